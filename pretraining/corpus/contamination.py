"""Decontamination: a model must not have read what it will be tested on.

A document is dropped if it has a phrase of 13 words in common with a text it will be tested on, compared without case
and punctuation, as GPT-3 was (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C).
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pretraining.corpus.words import Phrases, plain_words
from utils.files import InputError
from working_with_text_data.json_lines import parse, read_lines

PHRASE = 13  # words


class Contamination:
    """The phrases of test sets. Texts of fewer words than a phrase are left out: they are in many documents by chance.

    Args:
        texts: the examples of the test sets.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        hashes = [Phrases(plain_words(text)).hashes(PHRASE) for text in texts]
        self.hashes = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *hashes]))

    def is_in(self, words: Sequence[str]) -> bool:
        """Return whether a document has a phrase in common with a test set.

        Args:
            words: of the document, from `plain_words`.
        """
        hashes = Phrases(words).hashes(PHRASE)
        if not len(hashes) or not len(self.hashes):
            return False
        places = np.searchsorted(self.hashes, hashes)
        return bool((self.hashes[np.minimum(places, len(self.hashes) - 1)] == hashes).any())

    def identity(self) -> str:
        """Return what tells these phrases from others."""
        return f"{len(self.hashes)} {int(np.bitwise_xor.reduce(self.hashes)) if len(self.hashes) else 0:016x}"


def read_test_set(file: Path) -> Iterator[str]:
    """Yield the texts of a test set: every string in the lines of .jsonl, the rows of .csv, or a .json; also .gz.

    HellaSwag, for example, has contexts and endings, and a context with its right ending is one text.

    Raises:
        InputError: if the file cannot be read, or is of none of these kinds.
    """
    name = file.name.lower().removesuffix(".gz")
    if not file.is_file():
        raise InputError(f"there is no test set {file}")
    if name.endswith(".jsonl"):
        for line in read_lines(file):
            yield from _texts_of(parse(line))
    elif name.endswith(".csv"):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        for row in csv.reader(io.StringIO(content.decode("utf-8"), newline="")):
            yield from row
    elif name.endswith(".json"):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        for entry in json.loads(content):
            yield from _texts_of(entry)
    else:
        raise InputError(f"{file} is no test set that can be read: give .jsonl, .json or .csv, each also .gz")


def _texts_of(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict) and isinstance(entry.get("ctx"), str) and isinstance(entry.get("endings"), list):
        yield from (f"{entry['ctx']} {ending}" for ending in entry["endings"])
    elif isinstance(entry, dict | list):
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from _texts_of(part)
