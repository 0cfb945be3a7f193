"""Data sets on the Hugging Face Hub, streamed: no more than is read comes over the network, and nothing is stored.

`datasets` streams; but its streaming shuffle loses or doubles examples when work goes on after an interruption
(https://github.com/huggingface/datasets/issues/7901), so the files are read in order, one after another. Where work is
interrupted, the file and the row say where it goes on. The documents are shuffled when the shards are written.
"""

import gzip
import http.client
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pretraining.corpus.documents import URL_FIELDS, Document, Place, Row, Whole
from utils.extras import missing
from utils.files import InputError

SMOLLM = "hub:HuggingFaceTB/smollm-corpus"
KNOWN = {
    "web": f"{SMOLLM}:fineweb-edu-dedup",
    "textbooks": f"{SMOLLM}:cosmopedia-v2",
    "code": f"{SMOLLM}:python-edu",
}

SOFTWARE_HERITAGE = "https://softwareheritage.s3.amazonaws.com/content/"  # source files, by the hash of their content
TRIES = 3
TIMEOUT = 60.0  # seconds
LARGEST_FILE = 2**24  # bytes


def parse_hub(place: str) -> tuple[str, str]:
    """Return the repository and the configuration that `hub:OWNER/NAME:CONFIG` names; the latter may be left out.

    >>> parse_hub("hub:HuggingFaceTB/smollm-corpus:cosmopedia-v2")
    ('HuggingFaceTB/smollm-corpus', 'cosmopedia-v2')
    """
    repository, _, configuration = place.removeprefix("hub:").partition(":")
    if not repository or repository.count("/") > 1:
        raise InputError(f"a data set on the Hub is named as hub:OWNER/NAME:CONFIG, got {place!r}")
    return repository, configuration


@dataclass(frozen=True)
class HubData:
    """A data set on the Hub, its training split."""

    name: str
    repository: str
    configuration: str = ""

    def identity(self) -> Any:
        """Return repository, configuration, and the number of its files."""
        return [self.repository, self.configuration, self._stream.num_shards]

    def rows(self, start: Place) -> Iterator[tuple[Place, Row]]:
        """Yield all rows from a place on."""
        n_shards = self._stream.num_shards
        for number in range(start.shard, n_shards):
            first = start.row if number == start.shard else 0
            for row, content in enumerate(self._stream.shard(n_shards, number).skip(first), start=first + 1):
                where = f"{self.repository} {self.configuration}, file {number:,}, row {row:,}"
                yield Place(number, row), Row(_content(content), where)

    @cached_property
    def _stream(self) -> Any:
        try:
            from datasets import load_dataset  # here only: it takes long to import
            from datasets.exceptions import DatasetNotFoundError, DatasetsError
        except ImportError as error:
            raise missing("datasets", "data", "reading from the Hub") from error
        try:
            return load_dataset(self.repository, self.configuration or None, split="train", streaming=True)
        except (OSError, ValueError, DatasetsError, DatasetNotFoundError) as error:
            problem = " ".join(str(error).split())
            raise InputError(f"{self.name}: {self.repository} cannot be read from the Hub: {problem}") from error


@dataclass(frozen=True)
class SourceFile:
    """A source file of which a data set gives only the hash; Software Heritage has what is in it."""

    blob: str
    n_bytes: int

    def read(self) -> Document:
        """Fetch the file. Raises InputError if it cannot be had, or is not UTF-8 text."""
        problem: Exception | None = None
        for _ in range(TRIES):
            try:
                with urllib.request.urlopen(SOFTWARE_HERITAGE + self.blob, timeout=TIMEOUT) as response:
                    return Document(gzip.decompress(response.read(LARGEST_FILE)).decode("utf-8"))
            except (OSError, EOFError, zlib.error, http.client.HTTPException, UnicodeDecodeError) as error:
                problem = error
        raise InputError(f"the source file {self.blob} cannot be had: {problem}")


def _content(row: dict[str, Any]) -> dict[str, Any] | Whole:
    """Return what is in a row: its text, or the file that it only names, as rows of python-edu do."""
    if "text" not in row and isinstance(row.get("blob_id"), str):
        return SourceFile(row["blob_id"], int(row.get("length_bytes") or 0))
    return {name: row.get(name) for name in ("text", *URL_FIELDS)}
