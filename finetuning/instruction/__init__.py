"""Following instructions: data, supervised fine-tuning, preferences, reinforcement, evaluation."""
