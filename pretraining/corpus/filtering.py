"""The first stage: every document of a source is judged, by several processes, and those that pass are stored.

The work is cut into units of some 64 MB. A unit that is finished is three files, written in this order:

    000000.jsonl    the documents that passed, each on a line with where it is from
    000000.npz      what is needed to compare them with all others, without reading them again
    000000.json     how many were rejected and why, and where in the source the next unit begins

After a kill at any moment the work goes on after the last unit that has all three. Units are the same whatever the
number of processes, since the rows of each are decided before they are handed out.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pretraining.corpus.documents import Batch, Place, Source, batches, parse
from pretraining.corpus.near_duplicates import N_BANDS, band_keys
from pretraining.corpus.screen import LANGUAGE_PURPOSE, Screen
from utils.extras import check_installed
from utils.files import InputError, printable, read_json, write_atomically
from working_with_text_data.minbpe.fast.processes import map_in_order, worker_pool

log = logging.getLogger(__name__)

UNIT_BYTES = 2**26  # of the source
MOST_NAMED = 20  # damaged rows of a unit that are named one by one

EMPTY = {  # what is known of kept documents, before there are any
    "exact": np.empty((0, 2), dtype=np.uint64),  # a hash
    "bands": np.empty((0, N_BANDS), dtype=np.uint64),  # of MinHash
    "surprise": np.empty(0, dtype=np.float32),  # bits per character
    "bytes": np.empty(0, dtype=np.int64),
}


def check_packages(screens: Iterable[Screen]) -> None:
    """Check, before any work, that the packages which filtering needs are installed.

    Raises:
        InputError: if one is not.
    """
    check_installed("rensa", "data", "finding near-duplicates")
    if any(screen.language for screen in screens):
        check_installed("py3langid", "data", LANGUAGE_PURPOSE)


@dataclass
class Statistics:
    """What became of documents. Sizes are bytes of their UTF-8 text."""

    n_read: int = 0
    n_kept: int = 0
    bytes_read: int = 0
    bytes_kept: int = 0
    n_replaced: int = 0
    """E-mail and IP addresses that were replaced in what is kept."""
    n_damaged: int = 0
    """Rows that hold no document, and files that could not be read to their end."""
    rejected: Counter[str] = field(default_factory=Counter)
    """How many for which reason."""
    damaged: list[str] = field(default_factory=list)
    """The first of them, with what is wrong."""

    def add(self, other: "Statistics") -> None:
        """Count what another one has counted too."""
        for name in ("n_read", "n_kept", "bytes_read", "bytes_kept", "n_replaced", "n_damaged"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.rejected.update(other.rejected)
        self.damaged = (self.damaged + other.damaged)[:MOST_NAMED]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, the commonest reason first."""
        reasons = sorted(self.rejected.items(), key=lambda item: (-item[1], item[0]))
        return {**vars(self), "rejected": dict(reasons)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Statistics":
        """Return what `to_json` has described."""
        return cls(**{**content, "rejected": Counter(content["rejected"])})


class Judged(NamedTuple):
    """A batch whose documents were judged."""

    kept: bytes
    """Lines of JSON."""
    rejected: bytes
    """Lines of JSON, each with its reason."""
    arrays: dict[str, np.ndarray]
    """Of each kept document, with the types and shapes of `EMPTY`."""
    statistics: Statistics


def judge(batch: Batch, screen: Screen, keep_rejected: bool = False) -> Judged:
    """Judge the documents of a batch.

    Args:
        batch: rows.
        screen: the filters.
        keep_rejected: return the texts of rejected documents as well.
    """
    counts = Statistics()
    kept: list[bytes] = []
    rejected: list[bytes] = []
    shingles: list[np.ndarray] = []
    exact: list[bytes] = []
    surprise: list[float] = []
    sizes: list[int] = []
    for row in batch.rows:
        try:
            document = parse(row)
        except (InputError, OSError) as error:
            counts.n_damaged += 1
            counts.damaged = [*counts.damaged, printable(" ".join(str(error).split()))][:MOST_NAMED]
            continue
        counts.n_read += 1
        counts.bytes_read += len(document.text.encode("utf-8"))
        verdict = screen.judge(document)
        if verdict.reason:
            counts.rejected[verdict.reason] += 1
            if keep_rejected:
                rejected.append(_line({"reason": verdict.reason, "where": row.where, "text": document.text}))
            continue
        kept.append(_line({"text": verdict.text, "where": row.where}))
        shingles.append(verdict.shingles)
        exact.append(verdict.key)
        surprise.append(verdict.surprise)
        sizes.append(len(verdict.text.encode("utf-8")))
        counts.n_replaced += verdict.n_replaced
    counts.n_kept = len(kept)
    counts.bytes_kept = sum(sizes)
    arrays = {
        "exact": np.frombuffer(b"".join(exact), dtype=np.uint64).reshape(-1, 2),
        "bands": band_keys(shingles),
        "surprise": np.array(surprise, dtype=np.float32),
        "bytes": np.array(sizes, dtype=np.int64),
    }
    return Judged(b"".join(kept), b"".join(rejected), arrays, counts)


def _line(content: dict[str, str]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8") + b"\n"


class Filtered:
    """The units of a source, in a folder of their own.

    Args:
        folder: where they are, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def units(self) -> list[str]:
        """Return the names of the finished units, in order."""
        return sorted(path.stem for path in self.folder.glob("[0-9]*.json"))

    def is_finished(self) -> bool:
        """Return whether the source was read to its end."""
        names = self.units()
        return bool(names) and self._state(names[-1])["is_last"]

    def statistics(self) -> Statistics:
        """Return what became of all documents so far."""
        total = Statistics()
        for name in self.units():
            total.add(Statistics.from_json(self._state(name)["statistics"]))
        return total

    def known(self, key: str, column: int | None = None) -> np.ndarray:
        """Return one of the arrays of `EMPTY`, or one column of it, for all kept documents in order."""
        parts = (self.known_of_unit(name, key) for name in self.units())
        return np.concatenate([part if column is None else part[:, column].copy() for part in parts])

    def known_of_unit(self, unit: str, key: str) -> np.ndarray:
        """Return one of the arrays of `EMPTY` for the kept documents of a unit."""
        with np.load(self.folder / f"{unit}.npz", allow_pickle=False) as arrays:
            return arrays[key]

    def documents(self, unit: str) -> Iterator[dict[str, str]]:
        """Yield the documents of a unit in order, each as its "text" and "where" it is from."""
        with (self.folder / f"{unit}.jsonl").open("rb") as lines:
            for line in lines:
                yield json.loads(line)

    def make(self, source: Source, screen: Screen, workers: int, *, strict: bool, keep_rejected: bool) -> Statistics:
        """Judge what is left to judge, unit by unit; return what became of all documents.

        Args:
            source: what to read.
            screen: the filters.
            workers: processes that judge; 1 judges in this one.
            strict: stop at the first damaged row, instead of counting it; also at one that an earlier run counted.
            keep_rejected: store the rejected documents as well, as `000000.rejected.jsonl`.

        Raises:
            InputError: with `strict`, for a row that holds no document, or a file that cannot be read to its end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.tmp"):
            left.unlink()  # of a process that was killed
        names = self.units()
        done = self.statistics()
        if strict:
            refuse_damage(done)
        if self.is_finished():
            return done
        place = Place(*self._state(names[-1])["after"]) if names else Place()
        if names:
            log.info("%s: going on after %s finished units", source.name, len(names))
        unit = _Unit(self.folder, len(names), place)
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(desc=f"filtering {source.name}", unit="B", unit_scale=True, leave=False))
            for batch, judged in _judge_all(stack, source, screen, place, workers, keep_rejected):
                if strict:
                    refuse_damage(judged.statistics)
                bar.update(batch.n_bytes)
                unit.add(batch, judged)
                if unit.n_bytes >= UNIT_BYTES:
                    unit.finish(is_last=False)
                    unit = _Unit(self.folder, unit.number + 1, batch.after)
        unit.finish(is_last=True)
        return self.statistics()

    def _state(self, unit: str) -> Any:
        return read_json(self.folder / f"{unit}.json")


def refuse_damage(statistics: Statistics) -> None:
    """Raise an InputError that names the first damaged row, if there is one."""
    if statistics.damaged:
        raise InputError(f"{statistics.damaged[0]} (without --strict it would be left out)")


def _judge_all(
    stack: ExitStack, source: Source, screen: Screen, place: Place, workers: int, keep_rejected: bool
) -> Iterator[tuple[Batch, Judged]]:
    """Yield every batch from a place on, without its rows, and what became of it."""
    jobs = batches(source, place)
    if workers == 1:
        for batch in jobs:
            yield batch._replace(rows=[]), judge(batch, screen, keep_rejected)
        return
    pool = stack.enter_context(worker_pool(workers, _begin, screen, keep_rejected))
    yield from map_in_order(pool, _judge_job, jobs, ahead=2 * workers)


_screen: Screen  # a worker's own
_keep_rejected: bool


def _begin(screen: Screen, keep_rejected: bool) -> None:
    global _screen, _keep_rejected
    _screen = screen
    _keep_rejected = keep_rejected


def _judge_job(batch: Batch) -> tuple[Batch, Judged]:
    return batch._replace(rows=[]), judge(batch, _screen, _keep_rejected)


class _Unit:
    """A unit in the making."""

    def __init__(self, folder: Path, number: int, place: Place) -> None:
        self.folder = folder
        self.number = number
        self.n_bytes = 0
        self._after = place
        self._kept: list[bytes] = []
        self._rejected: list[bytes] = []
        self._arrays: list[dict[str, np.ndarray]] = []
        self._statistics = Statistics()

    def add(self, batch: Batch, judged: Judged) -> None:
        self.n_bytes += batch.n_bytes
        self._after = batch.after
        self._kept.append(judged.kept)
        self._rejected.append(judged.rejected)
        self._arrays.append(judged.arrays)
        self._statistics.add(judged.statistics)

    def finish(self, is_last: bool) -> None:
        name = f"{self.number:06d}"
        self._write(f"{name}.jsonl", b"".join(self._kept))
        if any(self._rejected):
            self._write(f"{name}.rejected.jsonl", b"".join(self._rejected))
        with write_atomically(self.folder / f"{name}.npz") as file:
            np.savez(file, **{key: np.concatenate([EMPTY[key], *(a[key] for a in self._arrays)]) for key in EMPTY})
        state = {"after": list(self._after), "is_last": is_last, "statistics": self._statistics.to_json()}
        self._write(f"{name}.json", json.dumps(state, indent=1).encode())

    def _write(self, name: str, content: bytes) -> None:
        with write_atomically(self.folder / name) as file:
            file.write(content)
