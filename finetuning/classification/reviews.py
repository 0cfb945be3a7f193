"""Labelled texts: read from a CSV file, cleaned, rid of doubles, and split so that no test is known beforehand.

Three mistakes make a classifier look better than it is, and published notebooks make all of them. The file is sorted by
label, as IMDb's copy on the hub is, and a split by position has one class. A text stands in it twice, and is learned
before it is tested. Words are counted, or a stopping point is chosen, on the texts that then test it.
"""

from __future__ import annotations

import csv
import gzip
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.classification.near_duplicates import first_of_each
from utils.files import InputError, printable, refuse_lfs_pointer

log = logging.getLogger(__name__)

SENTENCES = Path(__file__).parent / "data" / "movie_sentences.csv.gz"
TEXT_COLUMNS = ("text", "review", "sentence")
LABEL_COLUMNS = ("label", "sentiment")
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
LONGEST_FIELD = 2**31 - 1  # characters
FEWEST_PER_CLASS = 10  # so that each split has some of each class

LINE_BREAK = re.compile(r"(?:<\s*br\s*/?\s*>\s*)+", re.IGNORECASE)
SPACES = re.compile(r"[ \t\r\f\v]{2,}|[\t\r\f\v]")


@dataclass(frozen=True)
class Reviews:
    """Texts with labels."""

    texts: tuple[str, ...]
    labels: np.ndarray
    """(N,), the number of each text's class."""
    names: tuple[str, ...]
    """What the classes are called, sorted."""
    ratings: np.ndarray | None = None
    """(N,), what the authors gave, where the file says so; NaN where it does not."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int] | np.ndarray) -> Reviews:
        """Return some of the texts, in the order of their indices."""
        ratings = None if self.ratings is None else self.ratings[indices]
        return Reviews(tuple(self.texts[index] for index in indices), self.labels[indices], self.names, ratings)


def clean(text: str) -> str:
    """Return a text with tags of line breaks as line breaks, and single spaces.

    >>> clean("A  fine<br /><br />film. ")
    'A fine\\nfilm.'
    """
    return SPACES.sub(" ", LINE_BREAK.sub("\n", text)).strip()


def read_reviews(path: Path) -> Reviews:
    """Return the labelled texts of a CSV file, cleaned, in the order of the file.

    Args:
        path: UTF-8, compressed if the name ends in .gz, with a header. The text is in the column "text", "review" or
            "sentence", the label in "label" or "sentiment", and, if there is one, a number in "rating". Rows without a
            label are left out.

    Raises:
        InputError: if it cannot be read, a column is missing, a text is empty, or there are fewer than two classes or
            too few texts of one. The message names the line.
    """
    texts: list[str] = []
    labels: list[str] = []
    ratings: list[float] = []
    n_without = 0
    for where, row in _rows(path):
        text, label, rating = clean(row[0]), row[1].strip(), row[2]
        if not label:
            n_without += 1
            continue
        if not text:
            raise InputError(f"{where}: the text is empty: remove the row, or its label")
        texts.append(text)
        labels.append(label)
        ratings.append(_number(rating, where))
    if n_without:
        log.info("%s: %s rows have no label and are left out", path, f"{n_without:,}")
    names, numbers, counts = np.unique(np.array(labels, dtype=str), return_inverse=True, return_counts=True)
    if len(names) < 2:
        found = f"all are {printable(labels[0])!r}" if labels else "there are none"
        raise InputError(f"{path} must hold labels of at least two classes, but {found}")
    if len(names) > len(texts) // FEWEST_PER_CLASS:
        raise InputError(f"{path} has {len(names):,} different labels for {len(texts):,} texts: are they labels?")
    if counts.min() < FEWEST_PER_CLASS:
        rare = printable(str(names[counts.argmin()]))
        raise InputError(f"{path} has {counts.min()} texts of class {rare!r}: give at least {FEWEST_PER_CLASS} of each")
    known = None if np.isnan(ratings).all() else np.array(ratings)
    return Reviews(tuple(texts), numbers, tuple(map(str, names)), known)


def _rows(path: Path) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Yield where each row of a file stands, and its text, label and rating."""
    if not path.is_file():
        raise InputError(f"{path} is not a file: give a CSV file with the columns text and label")
    refuse_lfs_pointer(path)
    csv.field_size_limit(LONGEST_FIELD)  # a review may be longer than the 131,072 characters that csv allows
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    line = 0
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            columns = _columns(header, path)
            for row in reader:
                line = reader.line_num
                if row and len(row) != len(header):
                    raise InputError(
                        f"{path}, line {line:,}: has {len(row)} of the header's {len(header)} columns: is a text with "
                        "commas in quotes?"
                    )
                if row:
                    yield f"{path}, line {line:,}", tuple("" if at is None else row[at] for at in columns)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} after line {line:,}"
        ) from error
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error} after line {line:,}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged after line {line:,}: {error}") from error


def _columns(header: list[str], path: Path) -> tuple[int, int, int | None]:
    """Return where text, label and rating stand in a row; the latter may be missing."""
    names = [name.strip().lower() for name in header]
    found = []
    for known in (TEXT_COLUMNS, LABEL_COLUMNS):
        if not (here := [names.index(name) for name in known if name in names]):
            there = printable(", ".join(names))[:200] or "none"
            raise InputError(f"{path} has no column {' or '.join(known)}; its columns are: {there}")
        found.append(here[0])
    return found[0], found[1], names.index("rating") if "rating" in names else None


def _number(rating: str, where: str) -> float:
    try:
        return float(rating) if rating.strip() else np.nan
    except ValueError as error:
        raise InputError(f"{where}: the rating must be a number, got {printable(rating)[:40]!r}") from error


@dataclass(frozen=True)
class Splits:
    """What is learned from, what settings are chosen by, and what is looked at once, in the end."""

    train: Reviews
    val: Reviews
    test: Reviews
    statistics: dict[str, Any]


def split(reviews: Reviews, seed: int) -> Splits:
    """Remove doubles, shuffle, and split 80/10/10, with the same shares of the classes in each part.

    Of texts that are equal or nearly so, the first stays, so that none can be in two parts.

    Raises:
        InputError: if too few texts of a class are left.
    """
    kept = np.array(first_of_each(reviews.texts))
    counts = np.bincount(reviews.labels[kept], minlength=len(reviews.names))
    if counts.min() < FEWEST_PER_CLASS:
        rare = printable(reviews.names[counts.argmin()])
        raise InputError(
            f"without doubles there are {counts.min()} texts of class {rare!r}: at least {FEWEST_PER_CLASS} "
            "of each are needed"
        )
    rng = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {name: [] for name in SHARES}
    for number in range(len(reviews.names)):
        of_this_class = rng.permutation(kept[reviews.labels[kept] == number])
        ends = np.round(np.cumsum(list(SHARES.values()))[:-1] * len(of_this_class)).astype(int)
        for name, part in zip(SHARES, np.split(of_this_class, ends), strict=True):
            parts[name].extend(part.tolist())
    splits = {name: reviews.take(rng.permutation(part)) for name, part in parts.items()}
    statistics = {
        "texts": len(reviews),
        "equal_texts_removed": len(reviews) - len(set(reviews.texts)),
        "near_duplicates_removed": len(set(reviews.texts)) - len(kept),
        **{name: describe(part) for name, part in splits.items()},
    }
    return Splits(**splits, statistics=statistics)


def describe(reviews: Reviews) -> dict[str, Any]:
    """Return how many texts of each class there are, and how long they are, in words."""
    words = np.array([len(text.split()) for text in reviews.texts])
    counts = np.bincount(reviews.labels, minlength=len(reviews.names)).tolist()
    return {
        "texts": len(reviews),
        "classes": dict(zip(reviews.names, counts, strict=True)),
        "words": {"median": float(np.median(words)), "mean": float(words.mean()), "longest": int(words.max())},
    }
