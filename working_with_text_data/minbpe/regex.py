r"""Byte-pair encoding inside pieces of text: a pattern splits first, merges never cross a split.

A word, its leading space, a number, a run of punctuation each become a piece, so that the vocabulary
is spent on words and their parts. Radford et al. 2019 (GPT-2), section 2.2.

The patterns want the third-party `regex` package: the standard library's `re` knows no \p{L} ("letter
of any script") and counts U+001C to U+001F as white space, which OpenAI's tokenizers do not.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import regex

from utils.files import InputError
from working_with_text_data.minbpe.base import Tokenizer, documents, merge_by_rank

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
CACHE_SIZE = 200_000  # distinct pieces whose ids are remembered; a novel has about 15,000


class RegexTokenizer(Tokenizer):
    """Byte-pair encoding of the pieces that `pattern` splits a text into.

    Args:
        pattern: a regular expression whose matches cover every text; GPT-4's by default.

    Raises:
        InputError: if the pattern is not a regular expression.
    """

    def __init__(self, pattern: str = GPT4_PATTERN) -> None:
        try:
            self._split = regex.compile(pattern)
        except (regex.error, TypeError) as error:
            raise InputError(f"the splitting pattern {pattern!r} is not a regular expression: {error}") from error
        self.pattern = pattern
        self._cache: dict[str, list[int]] = {}
        super().__init__()

    def _rebuild(self) -> None:
        super()._rebuild()
        self._cache.clear()

    def train(self, text: str | Iterable[str], vocab_size: int, *, progress: bool = False) -> None:
        pieces: Counter[str] = Counter()
        for document in documents(text):
            pieces.update(self._split.findall(document))
        self._learn({piece.encode("utf-8"): count for piece, count in pieces.items()}, vocab_size, progress)

    def encode_ordinary(self, text: str) -> list[int]:
        cache = self._cache
        ids: list[int] = []
        for piece in self._split.findall(text):
            piece_ids = cache.get(piece)
            if piece_ids is None:
                piece_ids = merge_by_rank(list(piece.encode("utf-8")), self.merges)
                if len(cache) < CACHE_SIZE:
                    cache[piece] = piece_ids
            ids.extend(piece_ids)
        return ids

    def settings(self) -> dict[str, Any]:
        return {"pattern": self.pattern}
