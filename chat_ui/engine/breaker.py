"""A circuit breaker: what has failed several times in a row is left alone for a while, and then tried once.

Nygard, "Release It!", 2nd edition 2018, section 5.2. Without it, each request to a broken model would wait for the
same failure anew.
"""

from typing import Literal

FAILURES = 3
SECONDS = 30.0

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Counts failures in a row.

    Args:
        failures: so many in a row open it.
        seconds: for so long it stays open; then one try is let through, which closes it or opens it again.
    """

    def __init__(self, failures: int = FAILURES, seconds: float = SECONDS) -> None:
        self.failures = failures
        self.seconds = seconds
        self.n_failed = 0
        self._opened = 0.0

    def state(self, now: float) -> State:
        """Return "closed" where tries may be made, "open" where none may, "half-open" where the next one decides."""
        if self.n_failed < self.failures:
            return "closed"
        return "open" if now < self._opened + self.seconds else "half-open"

    def succeeded(self) -> None:
        """Note a try that went well."""
        self.n_failed = 0

    def failed(self, now: float) -> None:
        """Note a try that failed."""
        self.n_failed += 1
        self._opened = now
