"""Split a text into pieces by a pattern, whatever the pattern: nothing is lost, and it comes to an end.

A pattern that is not one of ours may leave characters out (`\\w+`), have groups, or need longer than the universe
has existed for sixty letters (`(?:a|a)+b`). So each match is taken whole, a character that the pattern does not
match is a piece of its own, and the time is limited.
"""

import functools
from collections.abc import Callable

import regex

from utils.files import InputError
from working_with_text_data.minbpe.files import brief
from working_with_text_data.minbpe.unicode_classes import compile_pattern

Split = Callable[[str], list[str]]

SECONDS = 5.0  # that a split may take
CHARACTERS_PER_SECOND = 20_000  # so many characters give it another second


def covering(pattern: str) -> str:
    """Return the pattern extended so that it leaves no character out."""
    return rf"(?:{pattern})|[\s\S]"


def splitter(pattern: str, covers_all: bool) -> Split:
    """Return the function that splits a text into the matches of a pattern.

    Args:
        pattern: a regular expression.
        covers_all: it is known to match every text from end to end, fast, and has no groups.

    Raises:
        InputError: if it is not a regular expression.
    """
    try:
        pattern.encode("utf-8")
        compiled = compile_pattern(pattern)
        if covers_all:
            return compiled.findall
        return functools.partial(_split_carefully, pattern, compile_pattern(covering(pattern)))
    except (regex.error, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"the splitting pattern {brief(pattern)} is not a regular expression: {error}") from error


def _split_carefully(pattern: str, compiled: "regex.Pattern[str]", text: str) -> list[str]:
    limit = SECONDS + len(text) / CHARACTERS_PER_SECOND
    try:
        pieces = [piece for match in compiled.finditer(text, timeout=limit) if (piece := match.group())]
    except TimeoutError as error:
        raise InputError(
            f"the splitting pattern {brief(pattern)} takes more than {limit:.0f} s to split "
            f"{len(text):,} characters: write it so that it has one way to match a text, not many"
        ) from error
    if "".join(pieces) != text:  # it matches backwards, or drops what it has matched, by (?r) or \K
        raise InputError(f"the splitting pattern {brief(pattern)} gives pieces that are not the text")
    return pieces
