"""How the engine works: its sizes and limits."""

from dataclasses import dataclass
from typing import Annotated

from utils.ranges import Count, Range, check_ranges


@dataclass(frozen=True)
class Options:
    """The sizes and limits of a `Service`.

    Raises:
        InputError: if one is out of range.
    """

    rows: Annotated[int, Range(1, 1024)] = 16
    """Texts that one model writes at the same time; fewer if their caches would need too much memory."""
    queue: Annotated[int, Range(1, 100_000)] = 64
    """Requests that may wait; further ones are refused with `BusyError`."""
    busy_max_tokens: Count = 128
    """Tokens of an answer at most while more than half of the queue is taken (the degraded mode "busy")."""
    prefill_chunk: Count | None = None
    """Tokens of prompts that are read between two steps of those who write; None: what takes about 50 milliseconds."""
    time_limit: Annotated[float, Range(0, 86_400, open_below=True)] = 300
    """Seconds after which a text that is being written ends with "length", and a request that waits with "error"."""
    prefix_mib: Annotated[int, Range(0, 2**20)] = 256
    """MiB per model, at most, for keys and values of earlier texts, which a conversation's next turn need not read
    again."""
    responses: Annotated[int, Range(0, 10**6)] = 256
    """Answers per model to deterministic requests (temperature 0, or a seed), kept for the next equal one."""
    exact: bool = False
    """Make a text equal to the bit, whatever runs beside it: always compute all rows, and reuse nothing. Slower."""

    def __post_init__(self) -> None:
        check_ranges(self)
