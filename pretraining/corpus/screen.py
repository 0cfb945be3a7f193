"""What each document goes through by itself: address, language, Gopher's, C4's and FineWeb's rules, and more.

The order is FineWeb's, but for Gopher's rules: those on repetition cost most, and so come after those on quality.
A document is rejected for one reason, the first that holds.
"""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pretraining.corpus.addresses import is_blocked
from pretraining.corpus.contamination import Contamination
from pretraining.corpus.documents import Document
from pretraining.corpus.near_duplicates import exact_key, shingles
from pretraining.corpus.perplexity import CharacterModel
from pretraining.corpus.repetition import gopher_repetition
from pretraining.corpus.rules import c4, fineweb, gopher_quality
from pretraining.corpus.words import plain_words, split_words
from utils.extras import missing

LANGUAGE_PURPOSE = "finding the language (which --language '' leaves out)"
LANGUAGE_SAMPLE = 250  # characters from the middle of a document
BEFORE_AT = re.compile(r"[A-Za-z0-9._%+-]{1,64}$")
AFTER_AT = re.compile(r"@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")  # begins with what is quick to look for
FOUR_NUMBERS = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}")
NUMBER_IN_DOTS = re.compile(r"\.\d{1,3}\.")  # in every address, and quick to look for
EMAIL_INSTEAD = "email@example.com"
IP_INSTEAD = "192.0.2.1"  # an address that belongs to nobody: RFC 5737


class Verdict(NamedTuple):
    """What became of a document."""

    reason: str
    """Why it is rejected; nothing if it is kept."""
    text: str
    """As it is to be kept: rules drop lines, and addresses of people are replaced."""
    key: bytes
    """The same for texts with the same words."""
    shingles: np.ndarray
    """For finding near-duplicates."""
    surprise: float
    """What a small model makes of it, in bits per character; 0 without such a model."""
    n_replaced: int = 0
    """Addresses of people that were replaced."""


@dataclass(frozen=True)
class Screen:
    """Which filters there are, and what they look for."""

    prose: bool = True
    """Apply Gopher's, C4's and FineWeb's rules, which code and tables break."""
    language: str = "en"
    """Keep this language only, given as its ISO 639-1 code; empty for all."""
    replace_personal: bool = True
    """Replace e-mail and IP addresses."""
    blocked: frozenset[str] = frozenset()
    """Hosts and domains from which nothing is kept."""
    model: CharacterModel | None = field(default=None, repr=False)
    """How surprising a text is to it decides later, when all have been seen."""
    contamination: Contamination | None = field(default=None, repr=False)
    """What the model will be tested on, and must not have read."""

    def identity(self) -> dict[str, Any]:
        """Return all that decides a verdict, to be written as JSON."""
        return {
            "prose": self.prose,
            "language": self.language,
            "replace_personal": self.replace_personal,
            "blocked": sorted(self.blocked),
            "model": self.model.identity() if self.model else None,
            "contamination": self.contamination.identity() if self.contamination else None,
        }

    def judge(self, document: Document) -> Verdict:
        """Return what becomes of a document."""
        reason, text = self._reason(document)
        if reason:
            return Verdict(reason, text, b"", np.empty(0, dtype=np.uint64), 0)
        words = plain_words(text)
        if self.contamination and self.contamination.is_in(words):
            return Verdict("contaminated", text, b"", np.empty(0, dtype=np.uint64), 0)
        n_replaced = 0
        if self.replace_personal:
            text, n_replaced = without_addresses(text)
        surprise = self.model.surprise(text) if self.model else 0
        return Verdict("", text, exact_key(words or [text]), shingles(words), surprise, n_replaced)

    def _reason(self, document: Document) -> tuple[str, str]:
        """Return why a document is rejected, and its text without the lines that C4's rules drop."""
        text = document.text
        if not text or text.isspace():
            return "empty", text
        if self.blocked and is_blocked(document.url, self.blocked):
            return "url", text
        if self.language and language_of(text) != self.language:
            return "language", text
        if self.prose:
            words = split_words(text)
            if reason := gopher_quality(text, words) or gopher_repetition(text, words):
                return reason, text
            reason, text = c4(text, only_whole_sentences=False)
            if reason := reason or _fineweb(text):
                return reason, text
        return "", text


def _fineweb(text: str) -> str | None:
    """Return what `fineweb` does, finding words only where what stands between spaces would be too few of them."""
    reason = fineweb(text, text.split())
    return fineweb(text, split_words(text)) if reason == "list_ratio" else reason


def language_of(text: str) -> str:
    """Return the likeliest language of a text, as its ISO 639-1 code.

    Raises:
        InputError: if py3langid is not installed.
    """
    try:
        import py3langid  # here only: it loads a model
    except ImportError as error:
        raise missing("py3langid", "data", LANGUAGE_PURPOSE) from error
    middle = max(0, len(text) - LANGUAGE_SAMPLE) // 2
    return py3langid.classify(text[middle : middle + LANGUAGE_SAMPLE])[0]


def without_addresses(text: str) -> tuple[str, int]:
    """Return a text with e-mail and IP addresses replaced, and how many there were.

    >>> without_addresses("Write to ann.lee@mail.example.org, or 10.0.0.1.")
    ('Write to email@example.com, or 192.0.2.1.', 2)
    """
    pieces = []
    n_emails = n_ips = end = 0
    for host in AFTER_AT.finditer(text):
        if name := BEFORE_AT.search(text[max(end, host.start() - 64) : host.start()]):
            pieces += [text[end : host.start() - len(name[0])], EMAIL_INSTEAD]
            end = host.end()
            n_emails += 1
    text = "".join([*pieces, text[end:]])

    def replace(found: re.Match[str]) -> str:
        nonlocal n_ips
        before = text[found.start() - 1 : found.start()]
        after = text[found.end() : found.end() + 2].rstrip()
        if before.isdigit() or before == "." or after[:1].isdigit() or (after[:1] == "." and after[1:].isdigit()):
            return found[0]  # of a longer number, such as a version's
        if any(int(number) > 255 for number in found[0].split(".")):
            return found[0]
        n_ips += 1
        return IP_INSTEAD

    if NUMBER_IN_DOTS.search(text):
        text = FOUR_NUMBERS.sub(replace, text)
    return text, n_emails + n_ips
