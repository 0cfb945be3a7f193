"""What makes the tokenizers fast: nothing here changes an id or a merge, and nothing here knows a tokenizer.

`trainer.py` learns merges; `long_pieces.py` encodes pieces of any length; `units.py` cuts text into units and numbers
them, on which `unit_encoder.py` (encoding) and `counting.py` (training) build; `processes.py` and `parallel.py` share
the work among several processes.
"""
