"""What this chapter claims about the demo, measured: `python -m pretraining.benchmark`."""
