"""Fine-tuning: a model that has learned to write is taught a task."""
