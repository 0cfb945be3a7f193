"""Files damaged again and again, to see what reads them: it may refuse in one line or give something sound.

No traceback, no hang, and no memory beyond what the file itself could need. The damage is seeded, so that a failure
comes back: it names the number of the mutation.
"""

import random
import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.command_line import describe
from utils.files import InputError

MUTATIONS = 200
PATIENCE = 60.0  # seconds for one reading of a file of some kilobytes, on a busy machine
ALLOWANCE = 256 * 2**20  # bytes that the process may grow by, whatever the file says
NUMBERS = [b"-1", b"0", b"1.9", b"1e999", b"NaN", b"null", b'"x"', b"[]", b"{}", b"99999999", b"9223372036854775808"]


def flip(data: bytes, rng: random.Random) -> bytes:
    at = place(data, rng)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def remove(data: bytes, rng: random.Random) -> bytes:
    at = place(data, rng)
    return data[:at] + data[at + rng.randint(1, 30) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    at = place(data, rng)
    return data[:at] + data[at : at + rng.randint(1, 200)] * rng.randint(2, 5) + data[at:]


def zero(data: bytes, rng: random.Random) -> bytes:
    at, length = place(data, rng), rng.randint(1, 64)
    return data[:at] + bytes(length) + data[at + length :]


def renumber(data: bytes, rng: random.Random) -> bytes:
    """Replace a number as it is written in JSON; in a file without one, flip a bit."""
    numbers = [match.span() for match in re.finditer(rb"-?\d+(\.\d+)?", data[:20_000])]
    if not numbers:
        return flip(data, rng)
    start, end = rng.choice(numbers)
    return data[:start] + rng.choice(NUMBERS) + data[end:]


def place(data: bytes, rng: random.Random) -> int:
    """A place in the file, half of the time near its beginning, where headers are."""
    return rng.randrange(min(len(data), 600) if rng.random() < 0.5 else len(data))


KINDS = (flip, flip, cut, remove, repeat, zero, renumber, renumber)


class Hang(BaseException):
    """A reader took too long. Not an Exception, so that no reader takes it for damage."""


@contextmanager
def limited(what: str) -> Iterator[None]:
    """Let the block have neither much time nor much memory: there is a MemoryError where it asks for more."""

    def stop(*_: object) -> None:
        raise Hang(f"{what}: no end after {PATIENCE} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ALLOWANCE, hard))
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def hurt(path: Path, read: Callable[[], object], seed: int = 0) -> int:
    """Damage a file again and again, read it each time, and return how often reading refused in one line."""
    sound, refused = path.read_bytes(), 0
    read()
    for number in range(MUTATIONS):
        rng = random.Random(f"{path.name} {seed} {number}")
        path.write_bytes(rng.choice(KINDS)(sound, rng))
        with limited(f"{path.name}, mutation {number}"):
            message = refusal(read)
        if message is not None:
            assert re.fullmatch(r"[^\n\x1b]+", message), f"mutation {number}: {message}"
            assert not re.search("weights_only|alloc|memory", message), f"mutation {number}: {message}"
            refused += 1
    path.write_bytes(sound)
    return refused


def refusal(read: Callable[[], object]) -> str | None:
    """What reading says against the file, if it refuses it."""
    try:
        read()
    except InputError as error:
        return describe(error)
    return None
