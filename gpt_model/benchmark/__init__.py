"""What this chapter claims about speed and memory, measured: `python -m gpt_model.benchmark`."""
