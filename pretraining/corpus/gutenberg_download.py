"""The books of Project Gutenberg's catalogue, one after another, from whichever mirror has them.

A book is there whole or not at all, and one that is there is not fetched again: so it goes on where it stopped. Between
two requests it waits, as https://www.gutenberg.org/policy/robot_access.html asks of robots.
"""

import csv
import http.client
import io
import logging
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError

from tqdm import tqdm

from utils.files import InputError, write_atomically

log = logging.getLogger(__name__)

MIRRORS = ("https://www.gutenberg.org", "https://gutenberg.pglaf.org", "https://aleph.gutenberg.org")
CATALOGUE = "cache/epub/feeds/pg_catalog.csv"
BOOK = "cache/epub/{number}/pg{number}.txt"
TIMEOUT = 60.0  # seconds
TRIES = 3  # of all mirrors
LARGEST = 2**27  # bytes


class Fetcher:
    """Fetches files from the first mirror that has them, and keeps the pace.

    Args:
        mirrors: addresses, in the order in which they are asked.
        pause: seconds between two requests.
    """

    def __init__(self, mirrors: Sequence[str], pause: float) -> None:
        self.mirrors = mirrors
        self.pause = pause
        self._last = -1e9

    def fetch(self, path: str) -> bytes:
        """Return a file.

        Raises:
            FileNotFoundError: if no mirror has it.
            ConnectionError: if none could be asked, three times.
        """
        problem = ""
        for _ in range(TRIES):
            n_missing = 0
            for mirror in self.mirrors:
                try:
                    return self._ask(f"{mirror.rstrip('/')}/{path}")
                except HTTPError as error:
                    error.close()
                    n_missing += error.code in (403, 404, 410)
                    problem = f"{mirror}: {error.code} {error.reason}"
                except (URLError, OSError, http.client.HTTPException) as error:
                    problem = f"{mirror}: {error}"
            if n_missing == len(self.mirrors):
                raise FileNotFoundError(problem)
        raise ConnectionError(problem)

    def _ask(self, url: str) -> bytes:
        time.sleep(max(0.0, self._last + self.pause - time.monotonic()))
        self._last = time.monotonic()
        request = urllib.request.Request(url, headers={"User-Agent": "language-model-from-scratch"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            content = response.read(LARGEST)
            expected = response.headers["Content-Length"]
        if expected and len(content) != int(expected):
            raise ConnectionResetError(f"{len(content):,} of {expected} bytes came")
        return content


def download_books(folder: Path, most: int, mirrors: Sequence[str], pause: float, language: str) -> None:
    """Download the first books of the catalogue that are not in the folder yet, until `most` are.

    Args:
        folder: where they go, each as `pg1342.txt`.
        most: books in all.
        mirrors: where to ask.
        pause: seconds between two requests.
        language: as the catalogue has it; empty for all.

    Raises:
        InputError: if the catalogue cannot be had, or no mirror answers any more.
    """
    fetcher = Fetcher(mirrors, pause)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        catalogue = fetcher.fetch(CATALOGUE)
    except OSError as error:
        raise InputError(f"the catalogue of Project Gutenberg cannot be had: {error}") from error
    numbers = [number for _, number in zip(range(most), book_numbers(catalogue, language), strict=False)]
    n_missing = 0
    for number in tqdm(numbers, "downloading", unit="book", leave=False):
        target = folder / f"pg{number}.txt"
        if target.exists():
            continue
        try:
            content = fetcher.fetch(BOOK.format(number=number))
        except FileNotFoundError:
            n_missing += 1
            continue
        except OSError as error:
            raise InputError(f"book {number} cannot be had: {error}; the same command goes on later") from error
        with write_atomically(target) as file:
            file.write(content)
    if n_missing:
        log.warning("%s of %s books are in the catalogue, but not as text", f"{n_missing:,}", f"{len(numbers):,}")


def book_numbers(catalogue: bytes, language: str) -> Iterator[int]:
    """Yield the numbers of the texts in a catalogue that are in a language, in order.

    Raises:
        InputError: if it is no catalogue.
    """
    rows = csv.DictReader(io.StringIO(catalogue.decode("utf-8-sig", errors="replace"), newline=""))
    if not {"Text#", "Type", "Language"} <= set(rows.fieldnames or ()):
        raise InputError("the catalogue of Project Gutenberg has other columns than Text#, Type and Language")
    for row in rows:
        languages = {part.strip() for part in (row["Language"] or "").split(";")}
        if row["Type"] == "Text" and (row["Text#"] or "").isdecimal() and (not language or language in languages):
            yield int(row["Text#"])
