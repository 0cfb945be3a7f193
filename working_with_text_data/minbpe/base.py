"""The tokenizer interface, and the two operations all byte-pair encoding is made of.

A byte-pair tokenizer begins with the 256 bytes as its tokens and learns *merges*: the pair of
neighbouring tokens seen most often becomes a token of its own, again and again, until the vocabulary
is as large as wanted. Gage 1994, "A New Algorithm for Data Compression"; for language models Sennrich
et al. 2016, https://arxiv.org/abs/1508.07909, section 3.2; on bytes Radford et al. 2019 (GPT-2), 2.2.

Merging `ids` by a table of `ranks` (the earlier a merge was learned, the lower its rank) is the whole
of encoding: always merge the pair with the lowest rank, the leftmost first, until no pair has one.
"""

from __future__ import annotations

import heapq
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from utils.files import InputError, write_atomically

Pair = tuple[int, int]

FORMAT = "minbpe"
FORMAT_VERSION = 1
HEAP_LENGTH = 64  # pieces longer than this are merged with a heap; below it the plain loop is faster


def count_pairs(ids: Iterable[int], weight: int = 1, counts: dict[Pair, int] | None = None) -> dict[Pair, int]:
    """Count neighbouring pairs: [1, 2, 3, 1, 2] -> {(1, 2): 2, (2, 3): 1, (3, 1): 1}.

    Args:
        ids: token ids in order.
        weight: what one occurrence counts for.
        counts: add to this dictionary instead of a new one.
    """
    counts = {} if counts is None else counts
    for pair in pairwise(ids):
        counts[pair] = counts.get(pair, 0) + weight
    return counts


def merge(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each occurrence of `pair`, from the left: ([1, 2, 3, 1, 2], (1, 2), 4) -> [4, 3, 4]."""
    merged: list[int] = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def merge_by_rank(ids: list[int], merges: dict[Pair, int]) -> list[int]:
    """Apply `merges` (pair -> the token it makes; lower tokens were learned earlier) to a piece of text."""
    if len(ids) > HEAP_LENGTH:
        return _merge_by_rank_long(ids, merges)
    while len(ids) > 1:
        pair = min(pairwise(ids), key=lambda pair: merges.get(pair, math.inf))
        if pair not in merges:
            break
        ids = merge(ids, pair, merges[pair])
    return ids


def _merge_by_rank_long(ids: list[int], merges: dict[Pair, int]) -> list[int]:
    """As `merge_by_rank` in O(n log n): a linked list of tokens and a heap of the merges in sight.

    Entries of the heap go stale as their tokens are merged away; they are recognised when popped.
    """
    ids = list(ids)
    right = list(range(1, len(ids) + 1))  # position of the next token still there
    left = list(range(-1, len(ids) - 1))
    end = len(ids)

    heap = [(merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merges]
    heapq.heapify(heap)
    while heap:
        new_id, i = heapq.heappop(heap)
        j = right[i]
        if ids[i] < 0 or j == end or merges.get((ids[i], ids[j])) != new_id:
            continue  # stale
        ids[i], ids[j] = new_id, -1
        right[i] = right[j]
        if right[j] != end:
            left[right[j]] = i
            follower = merges.get((new_id, ids[right[j]]))
            if follower is not None:
                heapq.heappush(heap, (follower, i))
        if left[i] >= 0:
            before = merges.get((ids[left[i]], new_id))
            if before is not None:
                heapq.heappush(heap, (before, left[i]))
    return [token for token in ids if token >= 0]


class Tokenizer(ABC):
    """Text to token ids and back. Ids are the 256 bytes, then the merges in order, then special tokens."""

    types: ClassVar[dict[str, type[Tokenizer]]] = {}  # by class name, so that `load` finds the right one

    def __init__(self) -> None:
        self.merges: dict[Pair, int] = {}
        self.special_tokens: dict[str, int] = {}
        self._rebuild()

    def __init_subclass__(cls) -> None:
        Tokenizer.types[cls.__name__] = cls

    @abstractmethod
    def train(self, text: str | Iterable[str], vocab_size: int, *, progress: bool = False) -> None:
        """Learn merges until there are `vocab_size` tokens (special ones not counted) or no pair is left.

        Args:
            text: one text, or an iterable of documents; no token ever spans two documents.
            vocab_size: at least 256, the bytes.
            progress: show a progress bar.

        Raises:
            InputError: if vocab_size is below 256.
        """

    @abstractmethod
    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens in it treated as the plain text they look like.

        Raises:
            UnicodeEncodeError: for a lone surrogate, which no UTF-8 text can hold.
        """

    def encode(
        self,
        text: str,
        *,
        allowed_special: Collection[str] | Literal["all"] = (),
        disallowed_special: Collection[str] | Literal["all"] = "all",
    ) -> list[int]:
        """Token ids of `text`.

        Args:
            text: any string.
            allowed_special: special tokens that become their control id, or "all".
            disallowed_special: special tokens that raise when they stand in the text and are not allowed;
                "all", the default, keeps a user's text from smuggling in control tokens; () encodes
                them as ordinary text. The meaning of both is tiktoken's.

        Raises:
            InputError: if the text holds a disallowed special token.
        """
        allowed = set(self.special_tokens) if allowed_special == "all" else set(allowed_special)
        if unknown := allowed - set(self.special_tokens):
            raise InputError(f"unknown special token {min(unknown)!r}; there are {sorted(self.special_tokens)}")
        disallowed = set(self.special_tokens) if disallowed_special == "all" else set(disallowed_special)
        for special in sorted(disallowed - allowed):
            if special in text:
                raise InputError(
                    f"the text holds the special token {special!r}: pass it in allowed_special to encode it as "
                    "a control token, or disallowed_special=() to encode it as plain text"
                )
        ids: list[int] = []
        for part in split_at(text, allowed):
            ids.extend([self.special_tokens[part]] if part in allowed else self.encode_ordinary(part))
        return ids

    def encode_to_array(self, text: str) -> np.ndarray:
        """`encode_ordinary` as an array: uint16 if every id of the vocabulary fits, uint32 otherwise."""
        return np.array(self.encode_ordinary(text), dtype=self.array_dtype)

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode_ordinary` of each text."""
        return [self.encode_ordinary(text) for text in texts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; an id outside the vocabulary gives U+FFFD's three bytes."""
        return b"".join(self.vocab.get(int(i), b"\xef\xbf\xbd") for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for. Bytes that are not UTF-8 give replacement characters, never an error."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @property
    def vocab_size(self) -> int:
        """All tokens: bytes, merges and special ones. Every id is below it."""
        return self._vocab_size

    @property
    def array_dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    def add_special_tokens(self, *specials: str) -> None:
        """Give each new special token the next free id."""
        for special in specials:
            if not special:
                raise InputError("a special token must not be empty")
            if special not in self.special_tokens:
                self.special_tokens[special] = self.vocab_size
                self.vocab[self.vocab_size] = special.encode("utf-8")
                self._vocab_size += 1

    def _rebuild(self) -> None:
        """Derive the bytes of each token from the merges, after these have changed."""
        self.vocab = {i: bytes([i]) for i in range(256)}
        for (first, second), new_id in self.merges.items():
            self.vocab[new_id] = self.vocab[first] + self.vocab[second]
        for special, i in self.special_tokens.items():
            self.vocab[i] = special.encode("utf-8")
        self._vocab_size = max(self.vocab) + 1

    def _learn(self, pieces: dict[bytes, int], vocab_size: int, progress: bool) -> None:
        from working_with_text_data.minbpe.trainer import learn_merges

        if vocab_size < 256:
            raise InputError(f"vocab_size must be at least 256, the number of bytes, got {vocab_size}")
        self.merges = learn_merges(pieces, vocab_size - 256, progress=progress)
        specials, self.special_tokens = list(self.special_tokens), {}
        self._rebuild()
        self.add_special_tokens(*specials)

    # -- files ---------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What the file keeps beside merges and special tokens: keyword arguments of the class."""
        return {}

    def save(self, path: str | Path) -> None:
        """Write one JSON file that `Tokenizer.load` reads back to an equal tokenizer."""
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "type": type(self).__name__,
            "settings": self.settings(),
            "special_tokens": self.special_tokens,
            "merges": [list(pair) for pair in self.merges],
        }
        with write_atomically(path) as file:
            file.write(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Read a tokenizer of any type that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            InputError: if it is damaged, of another format or of a newer version; the message says which.
        """
        content = _read(Path(path))
        try:
            tokenizer = Tokenizer.types[content["type"]](**content["settings"])
            tokenizer.merges = {(int(a), int(b)): 256 + i for i, (a, b) in enumerate(content["merges"])}
            tokenizer.special_tokens = {str(text): int(i) for text, i in content["special_tokens"].items()}
            tokenizer._rebuild()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is damaged: {type(error).__name__} {error}") from error
        return tokenizer


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # bad JSON, or not UTF-8
        raise InputError(f"{path} is not a tokenizer file, or is cut short: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'{path} is not a tokenizer file: it lacks the entry "format": "{FORMAT}"')
    if content.get("version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has version {content.get('version')}, this code reads version {FORMAT_VERSION}: "
            "it was written by a newer release"
        )
    return content


def split_at(text: str, separators: Collection[str]) -> list[str]:
    """Cut `text` before and after each separator, the longest first where several begin at one place.

    split_at("a<x>b", {"<x>"}) -> ["a", "<x>", "b"]; empty parts are left out.
    """
    if not separators:
        return [text] if text else []
    import re

    pattern = "|".join(re.escape(s) for s in sorted(separators, key=len, reverse=True))
    return [part for part in re.split(f"({pattern})", text) if part]


def documents(text: str | Iterable[str]) -> Iterable[str]:
    """A text is one document; anything else is an iterable of them."""
    return [text] if isinstance(text, str) else text
