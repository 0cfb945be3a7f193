"""The tokenizer interface, and the two operations all byte-pair encoding is made of.

A byte-pair tokenizer begins with the 256 bytes as its tokens and learns *merges*: the pair of
neighbouring tokens seen most often becomes a token of its own, again and again, until the vocabulary
is as large as wanted. Gage 1994, "A New Algorithm for Data Compression"; for language models Sennrich
et al. 2016, https://arxiv.org/abs/1508.07909, section 3.2; on bytes Radford et al. 2019 (GPT-2), 2.2.

Merging by rank (the earlier a token was learned, the lower its rank) is the whole of encoding: always
make the token with the lowest rank, the leftmost first, until no two neighbours make one.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from tqdm import tqdm

from utils.files import InputError

Pair = tuple[int, int]
Normalization = Literal["NFC", "NFD", "NFKC"]

HEAP_LENGTH = 100  # pieces of more bytes are merged with a heap; below it the plain loop is faster
NEVER = 1 << 62  # the rank of what is no token
BYTES = [bytes([i]) for i in range(256)]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


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


def merge_by_rank(piece: bytes, ranks: dict[bytes, int], below: int = NEVER) -> list[bytes]:
    """The tokens of a piece of text: merge from single bytes on, the lowest rank first.

    That two neighbours spell a token is enough for them to be merged, whichever pair the token was
    learned from. For trained tokenizers this makes no difference: neighbours that spell a token always
    are the pair it was learned from, since merging the same bytes by the same lower ranks has left the
    same two. For tokenizers published as ranks alone it is the definition.

    Args:
        piece: UTF-8, or any bytes.
        ranks: the rank of each token. It holds all single bytes.
        below: merge only what has a lower rank than this.
    """
    if len(piece) > HEAP_LENGTH:
        return _merge_by_rank_long(piece, ranks, below)
    rank_of = ranks.get
    parts = [*map(BYTES.__getitem__, piece)]
    waiting = [rank_of(piece[i : i + 2], NEVER) for i in range(len(piece) - 1)]  # of part i and the next
    while waiting and (rank := min(waiting)) < below:
        i = waiting.index(rank)
        del waiting[i]
        merged = parts[i] = parts[i] + parts.pop(i + 1)
        if i:
            waiting[i - 1] = rank_of(parts[i - 1] + merged, NEVER)
        if i < len(waiting):
            waiting[i] = rank_of(merged + parts[i + 1], NEVER)
    return parts


def _merge_by_rank_long(piece: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """As `merge_by_rank` in O(n log n): a linked list of tokens and a heap of the merges in sight.

    Entries of the heap go stale as their tokens are merged away; they are recognised when popped.
    """
    parts = [*map(BYTES.__getitem__, piece)]
    end = len(parts)
    right = list(range(1, end + 1))  # position of the next token still there
    left = list(range(-1, end - 1))
    heap: list[tuple[int, int]] = []

    def consider(i: int) -> None:
        if i >= 0 and right[i] != end:
            rank = ranks.get(parts[i] + parts[right[i]], NEVER)
            if rank < below:
                heapq.heappush(heap, (rank, i))

    for i in range(end):
        consider(i)
    while heap:
        rank, i = heapq.heappop(heap)
        j = right[i]
        if not parts[i] or j == end or ranks.get(parts[i] + parts[j]) != rank:
            continue  # stale
        parts[i], parts[j] = parts[i] + parts[j], b""
        right[i] = right[j]
        if right[j] != end:
            left[right[j]] = i
        consider(i)
        consider(left[i])
    return [part for part in parts if part]


class Tokenizer(ABC):
    """Text to token ids and back. Ids are the 256 bytes, then the merges in order, then special tokens.

    Args:
        normalization: a Unicode normal form that text is brought into before anything else; none by
            default. Two spellings of one character then give the same tokens, and decoding gives the
            normal form, not the text as it was.

    Raises:
        InputError: for another normalization.
    """

    types: ClassVar[dict[str, type[Tokenizer]]] = {}  # by class name, so that `load` finds the right one

    def __init__(self, normalization: Normalization | None = None) -> None:
        if normalization not in (None, "NFC", "NFD", "NFKC"):
            raise InputError(f"normalization must be NFC, NFD, NFKC or none, got {normalization!r}")
        self.normalization = normalization
        self.merges: dict[Pair, int] = {}
        self.special_tokens: dict[str, int] = {}
        self._set_ranks({bytes([i]): i for i in range(256)})

    def __init_subclass__(cls) -> None:
        Tokenizer.types[cls.__name__] = cls

    # -- training ------------------------------------------------------------------------------------

    @abstractmethod
    def _count_pieces(self, documents: Iterable[str], workers: int) -> dict[bytes, int]:
        """How often each piece of text occurs, where no token spans two pieces."""

    def train(
        self,
        text: str | Iterable[str],
        vocab_size: int,
        *,
        min_frequency: int = 1,
        workers: int = 1,
        progress: bool = False,
    ) -> None:
        """Learn merges until there are `vocab_size` tokens (special ones not counted) or no pair is left.

        The result does not depend on the order of the documents or the number of workers. Special
        tokens there were get new ids, after the merges.

        Args:
            text: one text, or an iterable of documents, which is read once and never held as a whole;
                no token ever spans two documents.
            vocab_size: at least 256, the bytes.
            min_frequency: stop when the most frequent pair occurs less often than this.
            workers: processes that count the pieces.
            progress: show a progress bar.

        Raises:
            InputError: if vocab_size is below 256, or min_frequency or workers below 1.
        """
        from working_with_text_data.minbpe.trainer import learn_merges

        if vocab_size < 256:
            raise InputError(f"vocab_size must be at least 256, the number of bytes, got {vocab_size}")
        for name, value in (("min_frequency", min_frequency), ("workers", workers)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        texts = tqdm(
            [text] if isinstance(text, str) else text, "counting", disable=not progress, leave=False, unit=" documents"
        )
        pieces = self._count_pieces(map(self.normalize, texts), workers)
        self._set_merges(learn_merges(pieces, vocab_size - 256, min_frequency=min_frequency, progress=progress))
        specials, self.special_tokens = list(self.special_tokens), {}
        self.add_special_tokens(*specials)

    # -- encoding ------------------------------------------------------------------------------------

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Token ids of a text already normalised, without lone surrogates."""

    def normalize(self, text: str) -> str:
        """The text in the tokenizer's normal form; as it is if it has none."""
        return unicodedata.normalize(self.normalization, text) if self.normalization else text

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens in it treated as the plain text they look like.

        Raises:
            InputError: for a lone surrogate, which no UTF-8 text can hold.
        """
        try:
            return self._encode(self.normalize(text))
        except UnicodeEncodeError as error:
            raise lone_surrogate(text) from error

    def encode_to_array(self, text: str) -> np.ndarray:
        """`encode_ordinary` as an array: uint16 if every id of the vocabulary fits, uint32 otherwise."""
        try:
            return self._encode_to_array(self.normalize(text))
        except UnicodeEncodeError as error:
            raise lone_surrogate(text) from error

    def _encode_to_array(self, text: str) -> np.ndarray:
        return np.array(self._encode(text), dtype=self.array_dtype)

    def lesson(self) -> Any:
        """What this tokenizer has remembered of texts since the last time it was asked, for a copy of it to `take`."""
        return None

    def take(self, lesson: Any) -> None:  # noqa: B027 - most tokenizers remember nothing
        """Remember what a copy of this tokenizer has. It changes the speed of encoding, not the ids."""

    def parts(self, text: str, size: int) -> Iterator[str]:
        """A text in parts that give the same ids one by one, of about `size` bytes where that is possible."""
        yield text

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
            disallowed_special: special tokens that raise when they stand in the text; "all", the default,
                means all that are not allowed, and keeps a user's text from smuggling in control tokens; ()
                encodes them as ordinary text. The meaning of both is tiktoken's.

        Raises:
            InputError: if the text holds a disallowed special token, or a lone surrogate.
        """
        allowed = set(self.special_tokens) if allowed_special == "all" else set(allowed_special)
        if unknown := allowed - set(self.special_tokens):
            raise InputError(f"unknown special token {min(unknown)!r}; there are {sorted(self.special_tokens)}")
        disallowed = set(self.special_tokens) - allowed if disallowed_special == "all" else set(disallowed_special)
        for special in sorted(disallowed):
            if special in text:
                raise InputError(
                    f"the text holds the special token {special!r}: pass it in allowed_special to encode it as "
                    "a control token, or disallowed_special=() to encode it as plain text"
                )
        ids: list[int] = []
        try:
            for part in split_at(text, allowed):
                ids += [self.special_tokens[part]] if part in allowed else self._encode(self.normalize(part))
        except UnicodeEncodeError as error:
            raise lone_surrogate(text) from error
        return ids

    def encode_batch(self, texts: Iterable[str], *, workers: int = 1) -> list[list[int]]:
        """`encode_ordinary` of each text.

        Args:
            texts: in any number. `parallel.encode_stream` is for more than fit in memory.
            workers: processes to share the work; 1 does it in this one.
        """
        from working_with_text_data.minbpe.parallel import encode_stream

        return [ids.tolist() for ids in encode_stream(self, texts, workers)]

    # -- decoding ------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; an id outside the vocabulary gives U+FFFD's three bytes."""
        ids = ids.tolist() if isinstance(ids, np.ndarray) else [int(i) for i in ids]
        try:
            return b"".join(map(self.vocab.__getitem__, ids))
        except KeyError:
            return b"".join(self.vocab.get(i, REPLACEMENT) for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for. Bytes that are not UTF-8 give replacement characters, never an error."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # -- vocabulary ----------------------------------------------------------------------------------

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
                self._add_special(special, self.vocab_size)

    def _add_special(self, special: str, id_: int) -> None:
        if id_ in self.vocab:
            raise InputError(f"the special token {special!r} has the id {id_}, which {self.vocab[id_]!r} has already")
        self.special_tokens[special] = id_
        self.vocab[id_] = special.encode("utf-8")
        self._vocab_size = max(self._vocab_size, id_ + 1)

    def _set_merges(self, merges: dict[Pair, int]) -> None:
        """Derive the tokens from the pairs they are merged of."""
        vocab = {i: bytes([i]) for i in range(256)}
        for (first, second), new_id in merges.items():
            vocab[new_id] = vocab[first] + vocab[second]
        ranks = {token: i for i, token in vocab.items()}
        if len(ranks) < len(vocab):
            raise InputError("two merges make the same token")
        self._set_ranks(ranks)
        self.merges = merges

    def _set_ranks(self, ranks: dict[bytes, int]) -> None:
        """Take on these tokens, special ones aside. Their ids are their ranks."""
        self.ranks = ranks
        self.vocab = {i: token for token, i in ranks.items()}
        self._vocab_size = max(self.vocab) + 1

    # -- files ---------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What the file keeps beside tokens: keyword arguments of the class."""
        return {"normalization": self.normalization} if self.normalization else {}

    def tokens_as_json(self) -> dict[str, Any]:
        """The file's entry for all tokens but the special ones."""
        return {"merges": [list(pair) for pair in self.merges]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """A tokenizer with the settings and tokens of a file, without its special tokens."""
        tokenizer = cls(**content["settings"])
        tokenizer._set_merges({(int(a), int(b)): 256 + i for i, (a, b) in enumerate(content["merges"])})
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write one JSON file that `Tokenizer.load` reads back to an equal tokenizer."""
        from working_with_text_data.minbpe.files import save

        save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Read a tokenizer of any type that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            InputError: if it is damaged, of another format or of a newer version; the message says which.
        """
        from working_with_text_data.minbpe.files import load

        return load(Path(path))


def split_at(text: str, separators: Collection[str]) -> list[str]:
    """Cut `text` before and after each separator, the longest first where several begin at one place.

    split_at("a<x>b", {"<x>"}) -> ["a", "<x>", "b"]; empty parts are left out.
    """
    if not separators:
        return [text] if text else []
    pattern = "|".join(re.escape(s) for s in sorted(separators, key=len, reverse=True))
    return [part for part in re.split(f"({pattern})", text) if part]


def lone_surrogate(text: str) -> InputError:
    """The error for a text that UTF-8 cannot hold."""
    at = next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    return InputError(
        f"the text holds a lone surrogate, {text[at]!r}, at position {at:,}: it is half of a character, no text"
    )
