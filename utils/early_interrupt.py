"""Ctrl-C in the first second of a script, while PyTorch is still being imported, ends it at once, with a word.

Python would raise KeyboardInterrupt inside an import. There NumPy may take it for a module that cannot be had, and the
script goes on; PyTorch may abort. Nothing has been written yet, so the process ends by itself here.

Each chapter's `__init__` imports this first. Python imports a chapter before it runs one of its modules as a script,
and meanwhile calls the script "-m": only then is anything changed here.
"""

import os
import signal
import sys
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    """Say that the script stopped, and end it as Ctrl-C ends a program that does not catch it."""
    os.write(2, b"\nstopped\n")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    os._exit(130)  # the first process of a container outlives the signal


def end() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, now that all is imported."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
