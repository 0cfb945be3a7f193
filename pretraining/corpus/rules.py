"""Rules that tell prose from what else is on the web: Gopher's, C4's and FineWeb's.

Each is a function that names the first rule a document breaks, or returns None. Thresholds, their order and the names
of the reasons are those of datatrove, with which FineWeb was made; given the same words, the verdicts are the same.

- Rae et al. 2021, "Scaling Language Models" (Gopher), https://arxiv.org/abs/2112.11446, appendix A.1.1
- Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (C4), https://arxiv.org/abs/1910.10683, section 2.2
- Penedo et al. 2024, "The FineWeb Datasets", https://arxiv.org/abs/2406.17557
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from pretraining.corpus.punctuation import PUNCTUATION, SENTENCE_ENDS
from pretraining.corpus.words import count_sentences, lengths_of

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
IS_WORD = 1  # something but punctuation
HAS_LETTER = 2
MOST_CACHED = 500_000  # words


class _Kinds(dict[str, int]):
    """What kind of word each is, found out once."""

    def __missing__(self, word: str) -> int:
        if len(self) > MOST_CACHED:
            self.clear()
        kind = IS_WORD * (not PUNCTUATION.issuperset(word)) + HAS_LETTER * any(map(str.isalpha, word))
        self[word] = kind
        return kind


_kinds = _Kinds()


def gopher_quality(text: str, words: Sequence[str]) -> str | None:
    """Return which of Gopher's rules on quality a document breaks: enough words, of the usual kinds and lengths."""
    kinds = np.frombuffer(bytes(map(_kinds.__getitem__, words)), dtype=np.uint8)
    is_word = kinds & IS_WORD > 0
    n_words = int(np.count_nonzero(is_word))
    if n_words < 50:
        return "gopher_short_doc"
    if n_words > 100_000:
        return "gopher_long_doc"
    lengths = lengths_of(words)
    mean_length = int(lengths[is_word].sum()) / n_words
    if mean_length < 3:
        return "gopher_below_avg_threshold"
    if mean_length > 10:
        return "gopher_above_avg_threshold"
    if text.count("#") / len(words) > 0.1:
        return "gopher_too_many_hashes"
    if (text.count("...") + text.count("…")) / len(words) > 0.1:
        return "gopher_too_many_ellipsis"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > 0.9:
        return "gopher_too_many_bullets"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > 0.3:
        return "gopher_too_many_end_ellipsis"
    if np.count_nonzero(kinds & HAS_LETTER) / len(words) < 0.8:
        return "gopher_below_alpha_threshold"
    if len(STOP_WORDS.intersection(words)) < 2:
        return "gopher_enough_stop_words"
    return None


def fineweb(text: str, words: Sequence[str]) -> str | None:
    """Return which of FineWeb's rules a document breaks: lines like those of prose, few of them twice."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    if sum(line[-1] in SENTENCE_ENDS for line in lines) / len(lines) < 0.12:
        return "line_punct_ratio"
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        return "short_line_ratio"
    n_line_ends = text.count("\n")
    if repeated(lines)[1] / (len(text) - n_line_ends) > 0.01:
        return "char_dup_ratio"
    if n_line_ends / len(words) > 0.3:
        return "list_ratio"
    return None


def c4(
    text: str, *, only_whole_sentences: bool = True, sentences: Callable[[str], int] = count_sentences
) -> tuple[str | None, str]:
    """Return which of C4's rules a document breaks, and the document without the lines that are no prose.

    Args:
        text: of the document.
        only_whole_sentences: drop lines that do not end as a sentence does. FineWeb was made without this.
        sentences: counts the sentences of a line.
    """
    n_sentences = 0
    kept = []
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        if len(line) > 1000 and max(map(len, words)) > 1000:
            continue
        if "[" in line:
            line = CITATION.sub("", line)
        if only_whole_sentences and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            continue
        if len(words) < 3:
            continue
        lowered = line.lower()
        if "lorem ipsum" in lowered:
            return "lorem_ipsum", text
        if "javascript" in lowered:
            continue
        if "{" in line:
            return "curly_bracket", text
        if any(policy in lowered for policy in POLICIES):
            continue
        if n_sentences < 5:  # more are not counted: enough is enough
            n_sentences += sentences(line)
        kept.append(line)
    if n_sentences < 5:
        return "too_few_sentences", text
    return None, "\n".join(kept).strip()


def repeated(parts: Sequence[str]) -> tuple[int, int]:
    """Return how many parts have come before, and their characters.

    >>> repeated(["one", "two", "one", "one"])
    (2, 6)
    """
    seen = set()
    n_parts = n_characters = 0
    for part in parts:
        if part in seen:
            n_parts += 1
            n_characters += len(part)
        else:
            seen.add(part)
    return n_parts, n_characters
