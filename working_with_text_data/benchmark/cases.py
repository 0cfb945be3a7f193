"""What this benchmark measures: each function is called in a process of its own, and returns its numbers.

Texts are read a few megabytes at a time and results are forgotten, so that memory stays bounded whatever the size
of a text. Reading and checking are outside the clock. Nothing here imports PyTorch, which every process would wait for.
"""

import os
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.memory import PeakMemory
from working_with_text_data.minbpe import (
    GPT2_PATTERN,
    GPT2Tokenizer,
    GPT4Tokenizer,
    RegexTokenizer,
    textbook,
    to_huggingface,
    to_tiktoken,
)
from working_with_text_data.minbpe.fast.parallel import encode_stream
from working_with_text_data.minbpe.fast.trainer import PairTable, learn_merges
from working_with_text_data.minbpe.merging import Pair, merge_by_rank
from working_with_text_data.text_files import read_documents

PART_CHARACTERS = 2**22  # of a long text, worked on together
OURS = {"gpt2": GPT2Tokenizer, "cl100k_base": GPT4Tokenizer}
Encode = Callable[[str], Any]
Decode = Callable[[list[int]], str]


def texts(path: Path) -> Iterator[str]:
    """Yield documents, or parts of them, in bounded memory."""
    if path.suffix in (".jsonl", ".gz", ".parquet"):
        yield from read_documents(path)
        return
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        with file.open(encoding="utf-8") as lines:
            while text := lines.read(PART_CHARACTERS) + lines.readline():
                yield text


def contender(name: str, encoding: str) -> tuple[Encode, Decode]:
    """Return the functions by which one of the tokenizers compared encodes and decodes.

    Raises:
        ValueError: for an unknown name.
    """
    ours = OURS[encoding]()
    if name == "ours":
        return ours.encode_ordinary, ours.decode
    if name == "ours, as array":
        return ours.encode_to_array, ours.decode
    if name == "textbook":
        return textbook_encoder(ours), ours.decode
    if name == "tiktoken":
        theirs = to_tiktoken(ours)
        return theirs.encode_ordinary, theirs.decode
    if name == "tokenizers":
        import tokenizers

        with tempfile.TemporaryDirectory() as folder:
            to_huggingface(ours, folder)
            hf = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        return lambda text: hf.encode(text, add_special_tokens=False).ids, hf.decode
    raise ValueError(f"there is no contender {name!r}")


def textbook_encoder(tokenizer: RegexTokenizer) -> Encode:
    """Return the textbook's way to encode, with the pieces and the ids of a tokenizer."""
    merges, ranks = tokenizer.merges, tokenizer.ranks

    def encode(text: str) -> list[int]:
        ids = []
        for piece in tokenizer.split(text):
            ids += textbook.encode([ranks[bytes([byte])] for byte in piece.encode("utf-8")], merges)
        return ids

    return encode


def encode_and_decode(name: str, encoding: str, path: str, limit: int | None = None) -> dict[str, Any]:
    """Encode a text twice, from a cold cache and a warm one, then decode it.

    Args:
        name: one of the contenders.
        encoding: "gpt2" or "cl100k_base".
        path: the text's file or folder.
        limit: how many bytes of the text to take; None: all.

    Returns:
        Seconds of "cold", "warm" and "decode", "bytes" and "tokens" of the text, a "checksum" of its ids, and the
        "memory" that was needed at most, in bytes.
    """
    encode, decode = contender(name, encoding)
    memory = PeakMemory()
    seconds = {"cold": 0.0, "warm": 0.0, "decode": 0.0}
    n_bytes = n_tokens = checksum = 0
    for state in ("cold", "warm"):
        for text in first_bytes(Path(path), limit) if limit else texts(Path(path)):
            started = time.perf_counter()
            ids = encode(text)
            seconds[state] += time.perf_counter() - started
            if state == "warm":
                ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
                started = time.perf_counter()
                decoded = decode(ids)
                seconds["decode"] += time.perf_counter() - started
                assert decoded == text
                n_bytes += len(text.encode("utf-8"))
                n_tokens += len(ids)
                checksum = zlib.crc32(np.array(ids, dtype=np.uint32).tobytes(), checksum)
    return {**seconds, "bytes": n_bytes, "tokens": n_tokens, "checksum": checksum, "memory": memory.growth}


def encode_batch(name: str, encoding: str, path: str, workers: int) -> dict[str, Any]:
    """Encode all documents together, from a cold cache, with several processes or threads."""
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    documents = list(texts(Path(path)))
    ours = OURS[encoding]()
    if name == "ours":
        run: Callable[[], Any] = lambda: ours.encode_batch(documents, workers=workers)  # noqa: E731
    elif name == "ours, as array":
        run = lambda: list(encode_stream(ours, documents, workers))  # noqa: E731
    else:
        theirs = to_tiktoken(ours)
        run = lambda: theirs.encode_ordinary_batch(documents, num_threads=workers)  # noqa: E731
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        encoded = run()
        seconds.append(time.perf_counter() - started)
    return {"cold": seconds[0], "warm": seconds[1], "tokens": sum(map(len, encoded))}


# -- the way from the textbook to here ----------------------------------------------------------------------


def encoding_step(step: str, path: str, limit: int) -> dict[str, Any]:
    """Encode the beginning of a text with GPT-2's tokenizer and the optimisations up to `step`."""
    text = next(texts(Path(path)))[:limit]
    ours = GPT2Tokenizer()
    ranks = ours.ranks
    steps: dict[str, Encode] = {
        "textbook": textbook_encoder(ours),
        "merge by rank": lambda text: [
            ranks[token] for piece in ours.split(text) for token in merge_by_rank(piece.encode("utf-8"), ranks)
        ],
        "remember pieces": ours._encode_by_pieces,
        "units in NumPy": ours.encode_ordinary,
    }
    started = time.perf_counter()
    ids = steps[step](text)
    return {"seconds": time.perf_counter() - started, "tokens": len(ids), "checksum": hash(tuple(ids))}


class ScannedPairTable(PairTable):
    """A pair table that finds the most frequent pair by looking at all of them."""

    def most_frequent(self) -> Pair | None:
        most = max(self.counts.values(), default=0)
        if not most:
            return None
        return min((pair for pair, count in self.counts.items() if count == most), key=self._entry)

    def learn(self, n_merges: int) -> dict[Pair, int]:
        merges: dict[Pair, int] = {}
        while len(merges) < n_merges and (pair := self.most_frequent()):
            merges[pair] = 256 + len(merges)
            self.merge(pair, merges[pair])
        return merges


def training_step(step: str, path: str, limit: int, n_merges: int) -> dict[str, Any]:
    """Learn merges from the beginning of a text with the optimisations up to `step`."""
    text = next(texts(Path(path)))[:limit]
    tokenizer = RegexTokenizer(GPT2_PATTERN)
    started = time.perf_counter()
    if step == "textbook":
        merges = textbook.train([piece.encode("utf-8") for piece in tokenizer.split(text)], n_merges)
    elif step == "distinct pieces":
        merges = textbook.train(Counter(piece.encode("utf-8") for piece in tokenizer.split(text)), n_merges)
    elif step == "only what changed":
        merges = ScannedPairTable(tokenizer._count_pieces([text], workers=1)).learn(n_merges)
    else:
        merges = learn_merges(tokenizer._count_pieces([text], workers=1), n_merges)
    return {"seconds": time.perf_counter() - started, "checksum": zlib.crc32(repr(list(merges)).encode())}


# -- training ----------------------------------------------------------------------------------------------


def train(name: str, path: str, limit: int, vocab_size: int) -> dict[str, Any]:
    """Train on the first `limit` bytes of a text, on one thread."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    documents = list(first_bytes(Path(path), limit))
    memory = PeakMemory()
    if name == "ours":
        tokenizer = RegexTokenizer(GPT2_PATTERN)
        started = time.perf_counter()
        tokenizer.train(documents, vocab_size)
        learned = tokenizer.vocab_size
    else:
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers

        hf = tokenizers.Tokenizer(models.BPE())
        hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
        started = time.perf_counter()
        hf.train_from_iterator(documents, trainer)
        learned = hf.get_vocab_size()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "vocab_size": learned, "memory": memory.growth}


def count_pieces(path: str, workers: int) -> dict[str, Any]:
    """Count the pieces of a whole text in `workers` processes."""
    documents = list(texts(Path(path)))
    tokenizer = RegexTokenizer(GPT2_PATTERN)
    started = time.perf_counter()
    pieces = tokenizer._count_pieces(documents, workers)
    return {"seconds": time.perf_counter() - started, "distinct": len(pieces), "pieces": sum(pieces.values())}


def first_bytes(path: Path, limit: int) -> Iterator[str]:
    """Yield the documents of a text up to a number of bytes, the last one cut."""
    for text in texts(path):
        part = text.encode("utf-8")[:limit].decode("utf-8", errors="ignore")
        limit -= len(part.encode("utf-8"))
        if part:
            yield part
        if len(part) < len(text) or limit < 4:
            return
