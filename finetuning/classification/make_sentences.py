"""Make data/movie_sentences.csv.gz from the source package of `vaderSentiment` on PyPI.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    tar xf vaderSentiment-3.3.2.tar.gz
    python -m finetuning.classification.make_sentences --unpacked vaderSentiment-3.3.2

The package carries the data of its paper (Hutto & Gilbert 2014): sentences of movie reviews, each with the mean of what
twenty people thought of it, from -4 to 4. Its sign is the label here. A sentence that is neutral in the mean has none.
"""

import csv
import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetuning.classification.reviews import SENTENCES
from utils.files import InputError, write_atomically

ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


@dataclass(frozen=True)
class Config:
    """Write the sentences into the folder data, in place of those that are there."""

    unpacked: Path
    """The folder into which the source package was unpacked."""


def read_sentences(archive: Path) -> Iterator[tuple[str, float]]:
    """Yield each sentence of the archive, and the mean of its scores.

    Raises:
        InputError: if the archive is another one.
    """
    with tarfile.open(archive) as files:
        member = files.extractfile(MEMBER) if MEMBER in files.getnames() else None
        if member is None:
            raise InputError(f"{archive} does not hold {MEMBER}")
        for line in io.TextIOWrapper(member, encoding="utf-8", newline=""):
            _, score, text = line.rstrip("\r\n").split("\t")
            yield text, float(score)


def label_of(score: float) -> str:
    """Return the label that a score stands for; neutral has none."""
    if not score:
        return ""
    return "positive" if score > 0 else "negative"


def main(config: Config) -> None:
    """Read the archive, and write the file.

    Raises:
        InputError: if the folder is not the package's.
    """
    archive = config.unpacked / ARCHIVE
    if not archive.is_file():
        raise InputError(f"{config.unpacked} is not the unpacked vaderSentiment 3.3.2: it has no {ARCHIVE}")
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["text", "label", "rating"])
    for text, score in read_sentences(archive):
        writer.writerow([text, label_of(score), f"{score:.3f}"])
    with write_atomically(SENTENCES) as file:
        file.write(gzip.compress(table.getvalue().encode(), 9, mtime=0))  # no date: the same bytes each time


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
