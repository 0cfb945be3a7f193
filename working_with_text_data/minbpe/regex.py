r"""Byte-pair encoding inside pieces of text: a pattern splits first, merges never cross a split.

A word, its leading space, a number, a run of punctuation each become a piece, so that the vocabulary
is spent on words and their parts. Radford et al. 2019 (GPT-2), section 2.2.

The patterns want the third-party `regex` package: the standard library's `re` knows no \p{L} ("letter
of any script") and counts U+001C to U+001F as white space, which OpenAI's tokenizers do not.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from utils.files import InputError
from working_with_text_data.minbpe.base import Normalization, Tokenizer, lone_surrogate, merge_by_rank
from working_with_text_data.minbpe.counting import count_pieces
from working_with_text_data.minbpe.unicode_classes import compile_pattern
from working_with_text_data.minbpe.unit_encoder import Lesson, UnitEncoder
from working_with_text_data.minbpe.units import GPT2_CUTS, GPT4_CUTS

if TYPE_CHECKING:
    import tiktoken

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
# as tiktoken writes GPT-2's: the same pieces
TIKTOKEN_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
CUTS = {GPT2_PATTERN: GPT2_CUTS, TIKTOKEN_GPT2_PATTERN: GPT2_CUTS, GPT4_PATTERN: GPT4_CUTS}
CACHE_SIZE = 200_000  # distinct pieces whose ids are remembered; a novel has about 15,000
LONGEST_CACHED = 64  # characters of a piece that is remembered
SPACE = ord(" ")
SHORT = 4096  # characters of a text for which NumPy's overhead does not pay


class RegexTokenizer(Tokenizer):
    """Byte-pair encoding of the pieces that `pattern` splits a text into.

    Args:
        pattern: a regular expression whose matches cover every text; GPT-4's by default. Encoding is
            several times as fast with the two patterns of this module as with any other.
        normalization: see `Tokenizer`.

    Raises:
        InputError: if the pattern is not a regular expression.
    """

    def __init__(self, pattern: str = GPT4_PATTERN, normalization: Normalization | None = None) -> None:
        try:
            self._compiled = compile_pattern(pattern)
        except (regex.error, TypeError) as error:
            raise InputError(f"the splitting pattern {pattern!r} is not a regular expression: {error}") from error
        self.pattern = pattern
        super().__init__(normalization)

    def _set_ranks(self, ranks: dict[bytes, int]) -> None:
        super()._set_ranks(ranks)
        self._cache: dict[str, list[int]] = {}
        self._units: UnitEncoder | None = None

    def split(self, text: str) -> list[str]:
        """The pieces of a text, in order."""
        return self._compiled.findall(text)

    def _count_pieces(self, documents: Iterable[str], workers: int) -> dict[bytes, int]:
        return count_pieces(documents, self._compiled, CUTS.get(self.pattern), workers)

    def _encode(self, text: str) -> list[int]:
        if self.pattern in CUTS and len(text) > SHORT:
            return self._encode_units(text).tolist()
        return self._encode_pieces(text)

    def _encode_to_array(self, text: str) -> np.ndarray:
        if self.pattern in CUTS and len(text) > SHORT:
            return self._encode_units(text).astype(self.array_dtype, copy=False)
        return super()._encode_to_array(text)

    def _encode_units(self, text: str) -> np.ndarray:
        """The same ids by another way, which looks each distinct unit up once: see `units.py`."""
        return self._unit_encoder().encode(text.encode("utf-8"))

    def _unit_encoder(self) -> UnitEncoder:
        if self._units is None:
            self._units = UnitEncoder(CUTS[self.pattern], self._encode_unit, largest_id=max(self.ranks.values()))
        return self._units

    def _encode_unit(self, unit: bytes) -> list[int]:
        """Ids of one unit. Most are a single piece, and the caller remembers those."""
        if not (unit.isalpha() or (unit[0] == SPACE and unit[1:].isalpha())):  # such a word is one piece
            text = unit.decode("utf-8")
            if len(self.split(text)) > 1:
                return self._encode_pieces(text)
        rank = self.ranks.get(unit)
        return [self.ranks[token] for token in merge_by_rank(unit, self.ranks)] if rank is None else [rank]

    def parts(self, text: str, size: int) -> Iterator[str]:
        if self.pattern not in CUTS or len(text) <= size:
            yield text
            return
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise lone_surrogate(text) from error
        for part in CUTS[self.pattern].parts(data, size):
            yield part.decode("utf-8")

    def lesson(self) -> Lesson | None:
        return self._units.lesson() if self._units else None

    def take(self, lesson: Lesson | None) -> None:
        if lesson is not None:
            self._unit_encoder().take(lesson)

    def _encode_pieces(self, text: str) -> list[int]:
        """The obvious way: split, then merge what is in neither vocabulary nor cache."""
        ranks, cache = self.ranks, self._cache
        ids: list[int] = []
        for piece in self.split(text):
            known = cache.get(piece)
            if known is None:
                spelling = piece.encode("utf-8")
                rank = ranks.get(spelling)
                known = [ranks[part] for part in merge_by_rank(spelling, ranks)] if rank is None else [rank]
                if len(piece) <= LONGEST_CACHED:
                    if len(cache) >= CACHE_SIZE:
                        cache.clear()
                    cache[piece] = known
            ids += known
        return ids

    def to_tiktoken(self, name: str = "ours") -> "tiktoken.Encoding":
        """A tiktoken encoding with the same ids.

        Raises:
            InputError: if this tokenizer normalises, which tiktoken does not.
        """
        from working_with_text_data.minbpe.interop import to_tiktoken

        return to_tiktoken(self, name)

    def to_huggingface(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and its settings: `transformers.AutoTokenizer.from_pretrained` reads the folder."""
        from working_with_text_data.minbpe.interop import to_huggingface

        to_huggingface(self, Path(folder))

    def settings(self) -> dict[str, Any]:
        return {"pattern": self.pattern, **super().settings()}
