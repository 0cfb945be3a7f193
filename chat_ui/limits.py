"""How often somebody may do something: a window that slides over the last minute."""

import time
from collections import deque

MOST_KEYS = 10_000  # remembered at once; beyond that the quietest are forgotten, so that made-up names fill no memory


class RateLimit:
    """Allows each key so many events per window. Keys should be short, since many of them are remembered.

    Args:
        most: events.
        seconds: of the window.
    """

    def __init__(self, most: int, seconds: float = 60) -> None:
        self.most = most
        self.seconds = seconds
        self._events: dict[str, deque[float]] = {}

    def allow(self, key: str) -> bool:
        """Return whether the key may do it once more now, and count it if so."""
        if self.wait(key):
            return False
        events = self._events.pop(key, None) or deque()
        events.append(time.monotonic())
        self._events[key] = events  # last in the order of the dictionary
        if len(self._events) > MOST_KEYS:
            del self._events[next(iter(self._events))]
        return True

    def wait(self, key: str) -> float:
        """Return the seconds until the key may do it again: 0 for now. Nothing is counted."""
        events = self._events.get(key)
        if events is None:
            return 0
        start = time.monotonic() - self.seconds
        while events and events[0] <= start:
            events.popleft()
        if not events:
            del self._events[key]
        return events[0] - start if len(events) >= self.most else 0

    def forget(self, key: str) -> None:
        """Let a key begin anew."""
        self._events.pop(key, None)
