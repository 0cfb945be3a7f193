r"""Character classes as OpenAI's tokenizers see them: `\p{L}` of the Unicode version they were built with.

Unicode grows each year, and the `regex` package follows it closely. tiktoken's engine follows later: it
takes some 17,000 letters and 300 numbers of `regex`'s for code points not yet assigned, which changes
how a text that holds one is split. `data/unassigned.txt` lists what is unassigned to tiktoken 0.14; here
it is taken out of every class, so that the same text gives the same tokens whatever `regex` is installed.
"""

import functools
from pathlib import Path

import regex

UNASSIGNED = Path(__file__).parent / "data" / "unassigned.txt"


def compile_pattern(pattern: str) -> "regex.Pattern[str]":
    r"""Compile a splitting pattern with each `\p{...}` in it limited to the code points tiktoken knows.

    Negated classes and those of unassigned and control characters (C...) are left as `regex` has them.

    Raises:
        regex.error: if it is not a regular expression.
        TypeError: if it is not a string.
    """
    return regex.compile(regex.sub(r"\\p\{(?!C)[\w=]+\}", _limited, pattern), regex.V1)  # V1 has set differences


def _limited(found: "regex.Match[str]") -> str:
    newer = _newer_than_tiktoken()
    if not newer:
        return found.group()
    # ASCII first: it is tested in order, and the list of exceptions is long
    plain = "".join(rf"\x{i:02x}" for i in range(128) if regex.fullmatch(found.group(), chr(i)))
    return f"[{plain}[{found.group()}--[{newer}]]]"


@functools.cache
def _newer_than_tiktoken() -> str:
    """Return the code points that the installed `regex` assigns and tiktoken does not, as the inside of a set."""
    newer = ""
    for line in UNASSIGNED.read_text().splitlines():
        low, high = (int(bound, 16) for bound in line.split())
        if 0x40000 <= low < 0xE0000:
            continue  # ten planes of 65,536 code points each, empty now and for long
        for run in regex.finditer(r"\P{Cn}+", "".join(map(chr, range(low, high + 1)))):
            newer += rf"\U{low + run.start():08x}-\U{low + run.end() - 1:08x}"
    return newer
