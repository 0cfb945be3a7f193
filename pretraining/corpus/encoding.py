"""The third stage: the documents that stay become tokens, a file for each unit of a source.

The files are token shards like any others; documents are found again by the end-of-text token that each begins with.
"""

from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pretraining.corpus.filtering import Filtered
from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.minbpe.fast.parallel import encode_stream
from working_with_text_data.shards import open_shard, write_shard
from working_with_text_data.text_files import END_OF_TEXT


class Tokens:
    """The documents of a source as tokens.

    Args:
        folder: of the files that `encode` has written.
        end_of_text: the token each document begins with.
    """

    def __init__(self, folder: Path, end_of_text: int) -> None:
        self._shards = [open_shard(path) for path in sorted(folder.glob("[0-9]*.bin"))]
        sizes = [len(shard) for shard in self._shards]
        self._begins = np.cumsum([0, *sizes])
        found = [np.flatnonzero(shard == end_of_text) for shard in self._shards]
        starts = [places + begin for places, begin in zip(found, self._begins, strict=False)]
        self._starts = np.concatenate([np.empty(0, dtype=np.int64), *starts])
        self.lengths = np.diff(self._starts, append=self._begins[-1])
        """Tokens of each document, the end-of-text token counted."""

    def document(self, number: int) -> np.ndarray:
        """Return the tokens of a document; no document is in two files."""
        shard = int(np.searchsorted(self._begins, self._starts[number], side="right")) - 1
        start = self._starts[number] - self._begins[shard]
        return self._shards[shard][start : start + self.lengths[number]]


def encode(filtered: Filtered, kept: np.ndarray, tokenizer: Tokenizer, folder: Path, workers: int) -> None:
    """Write the tokens of the documents that stay; files that are there already are left as they are.

    Args:
        filtered: a source, finished.
        kept: whether each of its documents stays.
        tokenizer: one that has the end-of-text token.
        folder: where the files go.
        workers: processes that encode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):
        left.unlink()  # of a process that was killed
    end_of_text = np.array([tokenizer.special_tokens[END_OF_TEXT]], dtype=tokenizer.array_dtype)
    first = 0
    for unit in tqdm(filtered.units(), desc=f"encoding {filtered.folder.name}", unit="unit", leave=False):
        sizes = filtered.known_of_unit(unit, "bytes")
        stays = kept[first : first + len(sizes)]
        first += len(sizes)
        path = folder / f"{unit}.bin"
        if path.exists():
            continue
        with closing(encode_stream(tokenizer, _chosen(filtered, unit, stays), workers)) as encoded:
            parts = list(chain.from_iterable((end_of_text, tokens) for tokens in encoded))
        write_shard(path, np.concatenate([np.empty(0, dtype=tokenizer.array_dtype), *parts]))


def _chosen(filtered: Filtered, unit: str, stays: np.ndarray) -> Iterator[str]:
    documents = zip(filtered.documents(unit), stays.tolist(), strict=True)
    return (document["text"] for document, stay in documents if stay)
