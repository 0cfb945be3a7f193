"""Ctrl-C as a request: finish the step, save, and only then stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Tells whether somebody has asked the program to stop."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Let Ctrl-C or SIGTERM only set `made` while the block runs; a second one stops at once.

    In a thread other than the main one, which receives no signals, `made` stays unset.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True
        # not sys.stderr: the signal may have come in the middle of a write to it
        os.write(2, b"\nstopping after this step; once more to stop at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
