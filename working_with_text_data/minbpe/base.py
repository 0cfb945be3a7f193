"""The tokenizer interface: train, encode, decode, special tokens, save and load.

How a text is divided into pieces is left to the subclasses: not at all (`basic.py`), or by a pattern (`regex.py`).
What happens inside a piece is in `merging.py`.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from tqdm import tqdm

from utils.files import InputError, printable
from working_with_text_data.minbpe import files
from working_with_text_data.minbpe.fast.parallel import encode_stream
from working_with_text_data.minbpe.fast.trainer import learn_merges
from working_with_text_data.minbpe.merging import BYTES, Pair
from working_with_text_data.minbpe.special_tokens import assign_ids, check_allowed, check_surrogates, split_at

Normalization = Literal["NFC", "NFD", "NFKC"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
MOST_BYTES = 2**24  # of all tokens together; GPT-4's have 0.7 million
SAMPLE = "It's 12,345 cafe\u0301s: caf\xe9s, \u65e5\u672c\u8a9e \U0001f600\r\n\n\tdon't -- \x00 \xa0 end  "


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
        self._set_ranks({byte: i for i, byte in enumerate(BYTES)})

    def __init_subclass__(cls) -> None:
        Tokenizer.types[cls.__name__] = cls

    # -- training ------------------------------------------------------------------------------------

    @abstractmethod
    def _count_pieces(self, documents: Iterable[str], workers: int) -> dict[bytes, int]:
        """Return how often each piece of text occurs, where no token spans two pieces."""

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

        The order of the documents and the number of workers do not matter. Special tokens get new ids.

        Args:
            text: one text, or an iterable of documents, which is read once and never held as a whole;
                no token ever spans two documents.
            vocab_size: at least 256, the bytes.
            min_frequency: stop when the most frequent pair occurs less often than this.
            workers: processes that count the pieces.
            progress: show a progress bar.

        Raises:
            InputError: if vocab_size is below 256, min_frequency or workers below 1, or for a lone surrogate.
        """
        if vocab_size < 256:
            raise InputError(f"vocab_size must be at least 256, the number of bytes, got {vocab_size}")
        if min_frequency < 1 or workers < 1:
            raise InputError(f"min_frequency and workers must be at least 1, got {min_frequency} and {workers}")
        texts = [text] if isinstance(text, str) else text
        counted = tqdm(texts, "counting", disable=not progress, leave=False, unit=" texts")
        try:
            pieces = self._count_pieces(map(self.normalize, counted), workers)
        except UnicodeEncodeError as error:
            check_surrogates(error.object)
            raise
        self._set_merges(learn_merges(pieces, vocab_size - 256, min_frequency=min_frequency, progress=progress))
        specials, self.special_tokens = list(self.special_tokens), {}
        self.add_special_tokens(*specials)

    # -- encoding ------------------------------------------------------------------------------------

    @abstractmethod
    def _encode_text(self, text: str) -> list[int]:
        """Return the ids of a text that is normalised already; lone surrogates raise UnicodeEncodeError."""

    def _encode_text_to_array(self, text: str) -> np.ndarray:
        """Return the same as an array, by a faster way if the subclass has one."""
        return np.array(self._encode_text(text), dtype=self.array_dtype)

    def normalize(self, text: str) -> str:
        """Return the text in the tokenizer's normal form; as it is if it has none."""
        return unicodedata.normalize(self.normalization, text) if self.normalization else text

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the token ids of `text`, special tokens in it treated as the plain text they look like.

        Raises:
            InputError: for a lone surrogate, which no UTF-8 text can hold.
        """
        try:
            return self._encode_text(self.normalize(text))
        except UnicodeEncodeError:
            check_surrogates(text)
            raise

    def encode_to_array(self, text: str) -> np.ndarray:
        """Return `encode_ordinary` as an array: uint16 if every id of the vocabulary fits, uint32 otherwise."""
        try:
            return self._encode_text_to_array(self.normalize(text))
        except UnicodeEncodeError:
            check_surrogates(text)
            raise

    def encode_to_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return `encode_to_array` of each text, which the subclass may do faster for many short ones."""
        return [self.encode_to_array(text) for text in texts]

    def split_for_workers(self, text: str, size: int) -> Iterator[str]:
        """Yield parts of a text whose ids, one after another, are those of the whole, for several processes.

        Args:
            text: already normalised.
            size: about how many bytes a part has, where it is known where a text may be cut.
        """
        yield text

    def new_entries(self) -> Any:
        """Return what this tokenizer's cache has gained since the last call, for `add_entries` of a copy of it."""
        return None

    def add_entries(self, entries: Any) -> None:  # noqa: B027 - most tokenizers have no cache
        """Take over what a copy's cache has gained: it changes the speed of encoding, never an id."""

    def encode(
        self,
        text: str,
        *,
        allowed_special: Collection[str] | Literal["all"] = (),
        disallowed_special: Collection[str] | Literal["all"] = "all",
    ) -> list[int]:
        """Return the token ids of `text`.

        Args:
            text: any string.
            allowed_special: special tokens that become their control id, or "all".
            disallowed_special: special tokens that raise when they stand in the text; "all", the default,
                means all that are not allowed, and keeps a user's text from smuggling in control tokens; ()
                encodes them as ordinary text. The meaning of both is tiktoken's.

        Raises:
            InputError: if the text holds a disallowed special token, or a lone surrogate.
        """
        allowed = check_allowed(text, self.special_tokens, allowed_special, disallowed_special)
        ids: list[int] = []
        try:
            for part in split_at(text, allowed):
                ids += [self.special_tokens[part]] if part in allowed else self._encode_text(self.normalize(part))
        except UnicodeEncodeError:
            check_surrogates(text)
            raise
        return ids

    def encode_batch(self, texts: Iterable[str], *, workers: int = 1) -> list[list[int]]:
        """Return `encode_ordinary` of each text. For more than fit in memory there is `fast.parallel.encode_stream`."""
        return [ids.tolist() for ids in encode_stream(self, texts, workers)]

    # -- decoding ------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that `ids` stand for; an id outside the vocabulary gives U+FFFD's three bytes."""
        ids = ids.tolist() if isinstance(ids, np.ndarray) else [int(i) for i in ids]
        try:
            return b"".join(map(self.vocab.__getitem__, ids))
        except KeyError:
            return b"".join(self.vocab.get(i, REPLACEMENT) for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text that `ids` stand for. Bytes that are not UTF-8 give replacement characters, no error."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # -- vocabulary ----------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """All tokens: bytes, merges and special ones. Every id is below it."""
        return self._vocab_size

    @property
    def array_dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    def add_special_tokens(self, *specials: str | Mapping[str, int]) -> None:
        """Add special tokens, all of them or none, each with the next free id or with one of your choice.

        add_special_tokens("<|im_start|>", "<|im_end|>") or add_special_tokens({"<|im_start|>": 50300}).

        Raises:
            InputError: if a token is empty or holds a lone surrogate, or its id is impossible or taken.
        """
        wanted: dict[str, int | None] = {}
        for each in specials:
            wanted |= each if isinstance(each, Mapping) else {each: None}
        added = assign_ids(wanted, self.special_tokens, self.vocab, self.vocab_size)
        self.special_tokens |= added
        self.vocab |= {id_: special.encode("utf-8") for special, id_ in added.items()}
        self._vocab_size = max([self._vocab_size, *(id_ + 1 for id_ in added.values())])

    def _set_merges(self, merges: dict[Pair, int]) -> None:
        """Derive the tokens from the pairs that they are merged from."""
        vocab = dict(enumerate(BYTES))
        n_bytes = 0
        for (first, second), new_id in merges.items():
            vocab[new_id] = vocab[first] + vocab[second]
            n_bytes += len(vocab[new_id])
            if n_bytes > MOST_BYTES:
                raise InputError(f"the merges up to that of {first} and {second} make over {MOST_BYTES:,} bytes")
        ranks = {token: i for i, token in vocab.items()}
        if len(ranks) < len(vocab):
            raise InputError("two merges make the same token")
        self._set_ranks(ranks)
        self.merges = merges

    def _set_ranks(self, ranks: dict[bytes, int]) -> None:
        """Replace all tokens but the special ones by these. Their ids are their ranks."""
        self.ranks = ranks
        self.vocab = {i: token for token, i in ranks.items()}
        self._vocab_size = max(self.vocab) + 1

    # -- files ---------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return what the file keeps beside tokens: keyword arguments of the class."""
        return {"normalization": self.normalization} if self.normalization else {}

    def tokens_as_json(self) -> dict[str, Any]:
        """Return the file's entry for all tokens but the special ones."""
        return {"merges": [list(pair) for pair in self.merges]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return a tokenizer with the settings and tokens of a file, without its special tokens.

        Raises:
            InputError: if an entry is missing or impossible.
        """
        tokenizer = cls(**files.entry(content, "settings", dict))
        tokenizer._set_merges(files.merges_of(content))
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write one JSON file that `Tokenizer.load` reads back to an equal tokenizer."""
        tokens = {"special_tokens": self.special_tokens, **self.tokens_as_json()}
        files.write(Path(path), {"type": type(self).__name__, "settings": self.settings(), **tokens})

    @files.OnClassOnly
    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Return the tokenizer, of whatever type, that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            InputError: if it is damaged, of another format or of a newer version; the message says which.
        """
        content = files.read(Path(path))
        try:
            name = files.entry(content, "type", str)
            if name not in Tokenizer.types:
                raise InputError(
                    f'the entry "type" must be one of {", ".join(Tokenizer.types)}, got {files.brief(name)}'
                )
            tokenizer = Tokenizer.types[name].from_json(content)
            tokenizer.add_special_tokens(files.entry(content, "special_tokens", dict))
            if tokenizer.decode(tokenizer.encode_ordinary(SAMPLE)) != tokenizer.normalize(SAMPLE):
                raise InputError("it does not give back the text that it is given")
        except (InputError, TypeError) as error:  # a TypeError: a setting of a name that its class does not know
            raise InputError(f"{path} is damaged: {printable(str(error))}") from error
        return tokenizer
