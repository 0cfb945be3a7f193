"""Ctrl-C in the first second of a script, while PyTorch is still being imported, is not a failure.

Each chapter's `__init__` imports this first. Python imports a chapter before it runs one of its modules as a script,
and meanwhile calls the script "-m": only then is anything changed here.
"""

import sys
from types import TracebackType


def _end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Say that the script stopped, or show what went wrong as Python does."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("\nstopped\n")
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[:1] == ["-m"]:
    sys.excepthook = _end
