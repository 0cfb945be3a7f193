"""What this chapter claims about speed and memory, measured: `python -m working_with_text_data.benchmark`."""
