"""From text to tokens, and from tokens to batches. Importing this imports no PyTorch."""

import utils.early_interrupt  # noqa: F401 - before NumPy, which takes its time
