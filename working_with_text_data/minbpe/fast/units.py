"""Cut text into units that can be split and encoded on their own, and number them, with NumPy.

Most of a text is the same few words again and again. Finding out which word stands where takes Python
longer than anything else, so NumPy does it here, for a quarter of a megabyte at a time.

*Cutting.* Some neighbours never stand in one piece, whatever is around them: a letter and the space after
it, say. Such a place can be told from two bytes. `Cuts` lists these pairs of classes for a pattern; what
lies between two cuts is a *unit*, one piece or a few. When in doubt there is no cut: too long a unit is
only slow, one cut too many would be wrong.

*Numbering.* A unit of up to 15 bytes, with its length, fits into two 64-bit words, which a table of fixed
size maps to the unit's number. Where the table fails (a new unit; a long one; two units with one place in
the table) a dictionary decides, and the table learns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

CHUNK = 2**18  # bytes that are worked on together: small enough for the processor's cache
SPAN = 2**20  # bytes in which bounds are looked for together
FIRST_LOOK = 4096  # bytes at the end of a part in which a cut is looked for first
TABLE_BITS = 19
KEY_LENGTH = 15  # bytes of a unit that the table can hold
LONGEST = 64  # bytes of a unit that the dictionary can hold
MAX_UNITS = 200_000  # all numbers are forgotten when there are more; 40 MB of novels have 140,000
TOO_LONG = 0  # the number of every unit of more than LONGEST bytes

# Bytes by what they are or belong to. A byte of a character beyond ASCII counts only if no white space
# (U+0085, U+00A0, U+1680, U+2000 to U+200A, U+2028, U+2029, U+202F, U+205F, U+3000) begins or ends with it.
LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = frozenset(b"0123456789")
SPACES = frozenset(b" \t\n\v\f\r")
NEWLINES = frozenset(b"\r\n")
OTHERS = frozenset(range(128)) - LETTERS - DIGITS - SPACES
NO_SPACE_ENDS = frozenset(range(0x80, 0xC0)) - frozenset(b"\x85\xa0\x9f\xa8\xa9\xaf") - frozenset(range(0x80, 0x8B))
NO_SPACE_BEGINS = frozenset(range(0xC3, 0xF5)) - frozenset(b"\xe1\xe2\xe3")


@dataclass(frozen=True)
class Cuts:
    """Where a pattern's pieces surely end.

    Args:
        between: pairs of classes: a byte of the first followed by one of the second, cut in between.
        before: one such pair: cut before the first of the two bytes.
    """

    between: tuple[tuple[frozenset[int], frozenset[int]], ...]
    before: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())

    @cached_property
    def tables(self) -> tuple[bytes, bytes]:
        """Two tables with one bit per rule for each byte, set where it can be the rule's first byte, or its second."""
        rules = (*self.between, self.before)  # the last bit is that of `before`
        first, second = (
            bytes(sum((byte in rule[side]) << bit for bit, rule in enumerate(rules)) for byte in range(256))
            for side in (0, 1)
        )
        return first, second

    def bounds(self, text: bytes) -> np.ndarray:
        """Return where units begin, from 0 on, and where the last one ends: (n_units + 1,) int64."""
        if len(text) <= SPAN:
            return self._bounds(text)
        found = []  # a span at a time, so that a huge unit does not take many times its size
        for start in range(0, len(text), SPAN):
            before = min(start, 1)
            bounds = self._bounds(text[start - before : start + SPAN + 1]) + (start - before)
            found.append(bounds[(bounds >= start) & (bounds < min(start + SPAN, len(text)))])
        return np.concatenate([*found, [len(text)]])

    def bounds_of_several(self, text: bytes, ends: Sequence[int]) -> np.ndarray:
        """Return the same for texts that were joined and end at `ends`, of at most SPAN bytes; no unit spans two."""
        return self._bounds(text, [end for end in ends if 0 < end < len(text)])

    def _bounds(self, text: bytes, inner_ends: Sequence[int] = ()) -> np.ndarray:
        first, second = (np.frombuffer(text.translate(table), dtype=np.uint8) for table in self.tables)
        rules = first[:-1] & second[1:]
        rules[[end - 1 for end in inner_ends]] = 0  # the last byte of a text and the first of the next decide nothing
        before = 1 << len(self.between)
        cut = np.ones(len(text) + 1, dtype=bool)
        cut[1:-1] = rules & (before - 1)
        cut[1:-2] |= rules[1:] >= before
        cut[[*inner_ends]] = True
        return np.flatnonzero(cut)

    def parts(self, text: bytes, size: int) -> Iterator[bytes]:
        """Yield `text` in parts of whole units, of at most `size` bytes each but for one huge unit.

        Where the pattern has a `before` rule, a part never ends in the rule's first class, unless the text does:
        white space there is in pieces that depend on what follows.
        """
        start = 0
        length = size
        look_at = FIRST_LOOK
        while len(text) - start > length:
            look_at = min(look_at, length)
            window = text[start + length - look_at : start + length]
            cuts = reversed(self.bounds(window)[1:-1])
            cut = next((int(cut) for cut in cuts if window[cut - 1] not in self.before[0]), None)
            if cut is not None:
                end = start + length - look_at + cut
                yield text[start:end]
                start = end
                length = size
                look_at = FIRST_LOOK
            elif look_at < length:
                look_at *= 16
            else:
                length *= 2
        if start < len(text):
            yield text[start:]

    def text_parts(self, text: str, size: int) -> Iterator[bytes]:
        """Yield what `parts` does of a text in UTF-8, without ever holding all of that.

        Raises:
            UnicodeEncodeError: for a lone surrogate; its `object` is the whole text.
        """
        rest = b""
        start = 0
        while start < len(text):
            step = max(size, len(rest))  # longer and longer as long as a unit does not end
            try:
                data = rest + text[start : start + step].encode("utf-8")
            except UnicodeEncodeError:
                text.encode("utf-8")
                raise
            *parts, rest = self.parts(data, size)
            yield from parts
            start += step
        if rest:
            yield rest


# GPT-2 gives a space to what follows it, and other white space to nothing. An apostrophe may begin "'s" or "'re".
GPT2_CUTS = Cuts(
    between=(
        (LETTERS, DIGITS | OTHERS | SPACES),
        (DIGITS, LETTERS | OTHERS | SPACES),
        (OTHERS, DIGITS | SPACES),
        (OTHERS - frozenset(b"'"), LETTERS),
        (frozenset(b"'"), LETTERS - frozenset(b"sdmtlvr")),
        (NO_SPACE_ENDS, SPACES),
        (SPACES - frozenset(b" "), LETTERS | DIGITS | OTHERS | NO_SPACE_BEGINS),
    ),
    before=(SPACES, LETTERS | DIGITS | OTHERS | NO_SPACE_BEGINS),
)
# GPT-4 gives one character of almost any kind to the letters after it, and newlines to punctuation before
# them. What white space with a newline in it becomes depends on all that follows, so no cut is made there.
GPT4_CUTS = Cuts(
    between=(
        (LETTERS, DIGITS | OTHERS | SPACES),
        (DIGITS, LETTERS | OTHERS | SPACES),
        (OTHERS, DIGITS | (SPACES - NEWLINES)),
        (NO_SPACE_ENDS, SPACES - NEWLINES),
        (NEWLINES, LETTERS | DIGITS | OTHERS | NO_SPACE_BEGINS),
    )
)


class Units:
    """The numbers of the units seen so far.

    `spelling[number]` is a unit's bytes. Numbers begin at 1: 0 is for all that are too long to remember.
    """

    def __init__(self, cuts: Cuts) -> None:
        self.cuts = cuts
        self.forget()

    def forget(self) -> None:
        """Begin anew, with no unit known."""
        self.spelling: list[bytes] = [b""]
        self._numbers: dict[bytes, int] = {}
        # a row: the unit's first 8 bytes; its other 7 and its length; its number
        self._table = np.zeros((2**TABLE_BITS, 3), dtype=np.uint64)

    @property
    def full(self) -> bool:
        return len(self.spelling) > MAX_UNITS

    def chunks(self, text: bytes, size: int = CHUNK) -> Iterator[tuple[bytes, np.ndarray]]:
        """Yield parts of `text` of about `size` bytes, each with the bounds of its units; a larger unit comes alone."""
        for part in self.cuts.parts(text, size):
            bounds = self.cuts.bounds(part)
            if len(part) <= size:
                yield part, bounds
                continue
            huge = np.flatnonzero(np.diff(bounds) > size).tolist()
            ends = sorted({0, len(bounds) - 1, *huge, *(i + 1 for i in huge)})
            for first, last in pairwise(ends):
                yield part[bounds[first] : bounds[last]], bounds[first : last + 1] - bounds[first]

    def number(self, text: bytes, bounds: np.ndarray) -> np.ndarray:
        """Return the number of each unit of `text`, (n_units,) int64; new units are given the next ones."""
        starts, ends = bounds[:-1], bounds[1:]
        lengths = ends - starts
        # every 8 bytes of the text as one word, whatever address they begin at
        words = np.ndarray(len(text) + 8, dtype="<u8", buffer=text + bytes(16), strides=(1,))
        kept = np.minimum(lengths, KEY_LENGTH)
        low = words[starts] & _LOW_MASK[kept]
        high = words[starts + 8] & _HIGH_MASK[kept] | _LENGTH[kept]
        place = (low ^ high * _HASH[0]) * _HASH[1] >> np.uint64(64 - TABLE_BITS)
        rows = self._table.take(place.astype(np.int64), axis=0)
        numbers = rows[:, 2].astype(np.int64)
        missed = np.flatnonzero((rows[:, 0] != low) | (rows[:, 1] != high) | (lengths > KEY_LENGTH))
        if len(missed):
            found = self._look_up(text, starts[missed], ends[missed])
            numbers[missed] = found
            missed, found = missed[lengths[missed] <= KEY_LENGTH], found[lengths[missed] <= KEY_LENGTH]
            self._table[place[missed]] = np.stack([low[missed], high[missed], found.astype(np.uint64)], axis=1)
        return numbers

    def _look_up(self, text: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        numbers, spelling = self._numbers, self.spelling
        found = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if end - start > LONGEST:
                found.append(TOO_LONG)
                continue
            unit = text[start:end]
            number = numbers.get(unit)
            if number is None:
                number = numbers[unit] = len(spelling)
                spelling.append(unit)
            found.append(number)
        return np.array(found, dtype=np.int64)

    def add_all(self, units: list[bytes]) -> list[int]:
        """Number units, all different, of up to LONGEST bytes; return the places of those that were new."""
        known = self._numbers
        fresh = [i for i, unit in enumerate(units) if unit not in known]
        new = [units[i] for i in fresh]
        known.update(zip(new, range(len(self.spelling), len(self.spelling) + len(new)), strict=True))
        self.spelling += new
        return fresh


_LOW_MASK = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(KEY_LENGTH + 1)], dtype=np.uint64)
_HIGH_MASK = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(KEY_LENGTH + 1)], dtype=np.uint64)
_LENGTH = np.array([n << 56 for n in range(KEY_LENGTH + 1)], dtype=np.uint64)
_HASH = np.array([0xC2B2AE3D27D4EB4F, 0x9E3779B97F4A7C15], dtype=np.uint64)  # odd, with well mixed bits
