"""What measures the engine: see `python -m chat_ui.benchmark --help`."""
