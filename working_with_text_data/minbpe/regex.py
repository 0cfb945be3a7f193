r"""Byte-pair encoding inside pieces of text: a pattern splits first, merges never cross a split.

A word, its leading space, a number, a run of punctuation each become a piece, so that the vocabulary
is spent on words and their parts. Radford et al. 2019 (GPT-2), section 2.2.

The patterns want the third-party `regex` package: the standard library's `re` knows no \p{L} ("letter
of any script") and counts U+001C to U+001F as white space, which OpenAI's tokenizers do not.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from working_with_text_data.minbpe.base import Normalization, Tokenizer
from working_with_text_data.minbpe.fast.counting import count_pieces
from working_with_text_data.minbpe.fast.long_pieces import encode_piece
from working_with_text_data.minbpe.fast.unit_encoder import Entries, UnitEncoder
from working_with_text_data.minbpe.fast.units import GPT2_CUTS, GPT4_CUTS
from working_with_text_data.minbpe.special_tokens import check_surrogates
from working_with_text_data.minbpe.splitting import splitter
from working_with_text_data.minbpe.unicode_classes import compile_pattern

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
HUGE_UNIT = 2**16  # bytes of a unit whose pieces are encoded one by one
SHORT_TEXT = 4096  # characters of a text for which NumPy's overhead does not pay


class RegexTokenizer(Tokenizer):
    """Byte-pair encoding of the pieces that `pattern` splits a text into.

    There are two ways to the same ids. `_encode_by_pieces` is the obvious one. `_encode_by_units` looks whole
    units up, an array of them at once, and takes each new one to `_encode_new_unit`; it is many times as fast,
    but needs to know where a pattern's pieces surely end, which is written down for the patterns of this module.

    Args:
        pattern: a regular expression, GPT-4's by default. A character that it does not match is a piece of its own.
        normalization: see `Tokenizer`.

    Raises:
        InputError: if the pattern is not a regular expression.
    """

    def __init__(self, pattern: str = GPT4_PATTERN, normalization: Normalization | None = None) -> None:
        self._split = splitter(pattern, covers_all=pattern in [*CUTS])
        self.pattern = pattern
        super().__init__(normalization)

    def settings(self) -> dict[str, Any]:
        return {"pattern": self.pattern, **super().settings()}

    def _set_ranks(self, ranks: dict[bytes, int]) -> None:
        super()._set_ranks(ranks)
        self._cache: dict[str, Sequence[int]] = {}
        self._units: UnitEncoder | None = None

    def split(self, text: str) -> list[str]:
        """Return the pieces of a text, in order. Together they are the text."""
        return self._split(text)

    def _count_pieces(self, documents: Iterable[str], workers: int) -> dict[bytes, int]:
        return count_pieces(documents, self._split, CUTS.get(self.pattern), workers)

    # -- the obvious way -----------------------------------------------------------------------------

    def _encode_by_pieces(self, text: str) -> list[int]:
        """Return the ids of a text: split, then merge what is in neither vocabulary nor cache."""
        ranks, vocab, cache = self.ranks, self.vocab, self._cache
        ids: list[int] = []
        for piece in self._split(text):
            known = cache.get(piece)
            if known is None:
                known = encode_piece(piece.encode("utf-8"), ranks, vocab)
                if len(piece) <= LONGEST_CACHED:
                    if len(cache) >= CACHE_SIZE:
                        cache.clear()
                    cache[piece] = known
            ids += known
        return ids

    # -- the fast way --------------------------------------------------------------------------------

    def _encode_text(self, text: str) -> list[int]:
        if self.pattern in CUTS and len(text) > SHORT_TEXT:
            return self._encode_by_units(text).tolist()
        return self._encode_by_pieces(text)

    def _encode_text_to_array(self, text: str) -> np.ndarray:
        if self.pattern in CUTS and len(text) > SHORT_TEXT:
            return self._encode_by_units(text).astype(self.array_dtype, copy=False)
        return super()._encode_text_to_array(text)

    def encode_to_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.pattern not in CUTS or sum(map(len, texts)) <= SHORT_TEXT:
            return super().encode_to_arrays(texts)
        try:
            arrays = [*self._unit_encoder.encode_many(self.normalize(text).encode("utf-8") for text in texts)]
        except UnicodeEncodeError:
            for text in texts:
                check_surrogates(text)
            raise
        return [array.astype(self.array_dtype, copy=False) for array in arrays]

    def _encode_by_units(self, text: str) -> np.ndarray:
        """Return the ids of a text by looking its units up, each of which is a piece or a few: see `units.py`."""
        return self._unit_encoder.encode(text.encode("utf-8"))

    @property
    def _unit_encoder(self) -> UnitEncoder:
        """The table of units, made when it is first needed."""
        if self._units is None:
            self._units = UnitEncoder(CUTS[self.pattern], self._encode_new_unit, largest_id=max(self.ranks.values()))
        return self._units

    def _encode_new_unit(self, unit: bytes) -> Sequence[int]:
        """Return the ids of a unit that the table lacks. Most units are a single piece."""
        if unit.isalpha() or (unit[0] == SPACE and unit[1:].isalpha()):  # such a word is one piece
            return encode_piece(unit, self.ranks, self.vocab)
        if len(unit) > HUGE_UNIT:
            return self._encode_huge_unit(unit)
        text = unit.decode("utf-8")
        if len(self._split(text)) > 1:
            return self._encode_by_pieces(text)
        return encode_piece(unit, self.ranks, self.vocab)

    def _encode_huge_unit(self, unit: bytes) -> Sequence[int]:
        """Return the same, with as few copies of the unit as possible, and no more than four bytes per id."""
        if self._is_one_piece(unit):
            return encode_piece(unit, self.ranks, self.vocab)
        ids = array("H" if self._unit_encoder.dtype == np.uint16 else "I")
        for match in compile_pattern(self.pattern).finditer(unit.decode("utf-8")):
            more = encode_piece(match.group().encode("utf-8"), self.ranks, self.vocab)
            ids.extend(more if isinstance(more, list) else array(ids.typecode, more))
        return ids

    def _is_one_piece(self, unit: bytes) -> bool:
        text = unit.decode("utf-8")
        first = compile_pattern(self.pattern).match(text)
        return first is not None and first.end() == len(text)

    # -- several processes ---------------------------------------------------------------------------

    def split_for_workers(self, text: str, size: int) -> Iterator[str]:
        if self.pattern not in CUTS or len(text) <= size:
            yield text
            return
        try:
            for part in CUTS[self.pattern].text_parts(text, size):
                yield part.decode("utf-8")
        except UnicodeEncodeError:
            check_surrogates(text)
            raise

    def new_entries(self) -> Entries | None:
        return self._units.new_entries() if self._units else None

    def add_entries(self, entries: Entries | None) -> None:
        if entries is not None:
            self._unit_encoder.add_entries(entries)
