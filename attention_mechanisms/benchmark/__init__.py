"""What this chapter claims about speed and memory, measured: `python -m attention_mechanisms.benchmark`."""
