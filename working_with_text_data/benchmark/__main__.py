"""Measure what this chapter claims, and store it in `results/` with hardware, versions and commit.

    python -m working_with_text_data.benchmark --texts english/ code.jsonl.gz russian.txt

Each measurement is a process of its own, the contenders in turn, several rounds, on an otherwise idle
machine; contenders that read the same text must give equal ids. Figures are drawn from the results.
"""

import functools
import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from utils.files import InputError
from utils.hardware import describe
from utils.measuring import Call, Case, Row, check_folders, exponent, in_processes, measure_parts, show_results, spread
from utils.ranges import Range, check_ranges
from working_with_text_data.benchmark import cases
from working_with_text_data.benchmark.figures import draw_all, tables
from working_with_text_data.text_files import CORPUS, find_files

log = logging.getLogger(__name__)

CHAPTER = Path(__file__).parent.parent
CONTENDERS = ("ours", "ours, as array", "tiktoken", "tokenizers", "textbook")
# The slow ones get only the beginning of a text.
SAMPLE_BYTES = {"tokenizers": 4_000_000, "textbook": 100_000}
ENCODING_STEPS = ("textbook", "merge by rank", "remember pieces", "units in NumPy")
TRAINING_STEPS = ("textbook", "distinct pieces", "only what changed", "with a heap")
# What the optimisations are measured on, small enough for the textbook.
ENCODING_CHARACTERS = 500_000
TRAINING_CHARACTERS = 200_000
TRAINING_MERGES = 500


@dataclass(frozen=True)
class Config:
    """Measure the tokenizers: encoding, decoding and training, against tiktoken and Hugging Face's.

    Prints a table for each part, writes results/*.json, and draws figures/*.svg from them. With 60 MB
    of text and three rounds all of it takes about a quarter of an hour on two idle cores.
    """

    part: Literal["all", "encoding", "batch", "steps", "training", "figures"] = "all"
    """encoding: speed, memory and compression of each tokenizer on each text. batch: several processes. steps: from
    the textbook to here, one optimisation after the other. training: against Hugging Face's trainer, and how time
    grows with the text and the vocabulary. figures: draw the stored results again."""
    texts: tuple[Path, ...] = (CORPUS,)
    """UTF-8 files, .jsonl, .jsonl.gz, or folders of .txt files, of any size; their names are those of the rows. The
    first one is also what the other parts work on."""
    rounds: Annotated[int, Range(1, 10_000)] = 5
    """How often each measurement is made; the tables have mean and standard deviation."""
    results: Path = CHAPTER / "results"
    """Where the measurements are stored."""
    figures: Path = CHAPTER / "figures"
    """Where the figures are stored."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> None:
    """Measure the parts asked for, store and show them.

    Raises:
        InputError: if a text or a package is missing, results cannot be stored, or there is nothing to show.
    """
    for path in config.texts:
        find_files(path)
        if not next(cases.texts(path), ""):
            raise InputError(f"{path} holds no text: give a file of text, JSON lines or parquet, or a folder of .txt")
    check_folders(config.results, config.figures)
    parts: dict[str, Callable[[Config], Row]] = {
        "encoding": measure_encoding, "batch": measure_batch, "steps": measure_steps, "training": measure_training,
    }  # fmt: skip
    wanted = {
        name: functools.partial(measure, config) for name, measure in parts.items() if config.part in (name, "all")
    }
    if wanted:
        if not find_spec("tokenizers"):
            install = "pip install -c requirements.lock tokenizers"
            raise InputError(f"the package tokenizers, which is compared with, is not installed: {install}")
        versions = {name: version(name) for name in ("tiktoken", "tokenizers", "regex", "numpy")}
        measure_parts(wanted, config.results, {"machine": describe(), "versions": versions, "rounds": config.rounds})
    show_results(config.results, config.figures, tables, draw_all)


def measure_encoding(config: Config) -> Row:
    """Measure every contender on every text with both encodings."""
    calls: dict[Case, Call] = {
        (_name(text), encoding, name): (cases.encode_and_decode, (name, encoding, str(text), SAMPLE_BYTES.get(name)))
        for text in config.texts
        for encoding in cases.OURS
        for name in CONTENDERS
    }
    rows: list[Row] = []
    for (text_name, encoding, name), runs in in_processes(calls, config.rounds).items():
        first = runs[0]
        row = {"text": text_name, "encoding": encoding, "tokenizer": name, "bytes": first["bytes"]}
        row |= {"tokens": first["tokens"], "checksum": first["checksum"]}
        row["bytes_per_token"] = first["bytes"] / first["tokens"]
        for state in ("cold", "warm", "decode"):
            row[f"{state}_tokens_per_second"] = spread(first["tokens"] / run[state] for run in runs)
        row["memory_mb"] = spread(run["memory"] / 1e6 for run in runs)
        rows.append(row)
    _check_equal(rows, ("text", "encoding"), "checksum", skip=tuple(SAMPLE_BYTES))
    for row in rows:
        reference = _find(rows, text=row["text"], encoding=row["encoding"], tokenizer="tiktoken")
        for state in ("cold", "warm", "decode"):
            key = f"{state}_tokens_per_second"
            row[f"{state}_of_tiktoken"] = row[key]["median"] / reference[key]["median"]
    return {"rows": rows}


def measure_batch(config: Config) -> Row:
    """Measure one process against two, and tiktoken's threads, with GPT-2's encoding."""
    text = str(config.texts[0])
    calls: dict[Case, Call] = {
        (name, str(workers)): (cases.encode_batch, (name, "gpt2", text, workers))
        for name in ("ours", "ours, as array", "tiktoken")
        for workers in (1, 2)
    }
    runs = in_processes(calls, config.rounds)
    rows = []
    for (name, workers), measured in runs.items():
        row: Row = {"tokenizer": name, "workers": int(workers), "tokens": measured[0]["tokens"]}
        for state in ("cold", "warm"):
            row[f"{state}_seconds"] = spread(run[state] for run in measured)
            alone = statistics.median(run[state] for run in runs[name, "1"])
            row[f"{state}_speedup"] = alone / row[f"{state}_seconds"]["median"]
        rows.append(row)
    return {"text": _name(config.texts[0]), "rows": rows}


def measure_steps(config: Config) -> Row:
    """Measure what each optimisation gains, on a part of the text small enough for the textbook."""
    text = str(config.texts[0])
    calls: dict[Case, Call] = {}
    for step in ENCODING_STEPS:
        calls["encoding", step] = cases.encoding_step, (step, text, ENCODING_CHARACTERS)
    for step in TRAINING_STEPS:
        calls["training", step] = cases.training_step, (step, text, TRAINING_CHARACTERS, TRAINING_MERGES)
    rows = []
    for (what, step), runs in in_processes(calls, config.rounds).items():
        rows.append({"what": what, "step": step, "checksum": runs[0]["checksum"]})
        rows[-1]["seconds"] = spread(run["seconds"] for run in runs)
        first = _find(rows, what=what, step="textbook")["seconds"]["median"]
        rows[-1]["times_the_textbook"] = first / rows[-1]["seconds"]["median"]
    _check_equal(rows, ("what",), "checksum")
    return {
        "text": _name(config.texts[0]),
        "encoding_characters": ENCODING_CHARACTERS,
        "training_characters": TRAINING_CHARACTERS,
        "rows": rows,
    }


def measure_training(config: Config) -> Row:
    """Measure training against Hugging Face's on one thread, counting in two processes, and how time grows."""
    text = str(config.texts[0])
    sizes = [2**i * 1_000_000 for i in range(6)]
    vocabularies = [512, 1024, 2048, 4096, 8192, 16384, 32768]
    calls: dict[Case, Call] = {
        ("versus", "ours"): (cases.train, ("ours", text, 10_000_000, 50_257)),
        ("versus", "tokenizers"): (cases.train, ("tokenizers", text, 10_000_000, 50_257)),
        ("counting", "1"): (cases.count_pieces, (text, 1)),
        ("counting", "2"): (cases.count_pieces, (text, 2)),
        **{("size", str(size)): (cases.train, ("ours", text, size, 8192)) for size in sizes},
        **{("vocab", str(size)): (cases.train, ("ours", text, 8_000_000, size)) for size in vocabularies},
    }
    runs = in_processes(calls, config.rounds)
    seconds = {case: spread(run["seconds"] for run in measured) for case, measured in runs.items()}
    ours, theirs = seconds["versus", "ours"], seconds["versus", "tokenizers"]
    return {
        "text": _name(config.texts[0]),
        "versus": {
            "bytes": 10_000_000, "vocab_size": 50_257,
            "ours": ours, "tokenizers": theirs, "times_as_fast": theirs["median"] / ours["median"],
            "ours_memory_mb": runs["versus", "ours"][0]["memory"] / 1e6,
            "tokenizers_memory_mb": runs["versus", "tokenizers"][0]["memory"] / 1e6,
        },
        "counting": {
            "pieces": runs["counting", "1"][0]["pieces"],
            "one": seconds["counting", "1"], "two": seconds["counting", "2"],
            "speedup": seconds["counting", "1"]["median"] / seconds["counting", "2"]["median"],
        },
        "by_size": _growth(sizes, [seconds["size", str(size)] for size in sizes]),
        "by_vocab": _growth(vocabularies, [seconds["vocab", str(size)] for size in vocabularies]),
    }  # fmt: skip


def _growth(x: list[int], seconds: list[Row]) -> Row:
    """Return times at several sizes, and the exponent of the power law through their medians."""
    return {"x": x, "seconds": seconds, "exponent": exponent(x, [each["median"] for each in seconds])}


def _find(rows: list[Row], **wanted: Any) -> Row:
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def _check_equal(rows: list[Row], group: tuple[str, ...], key: str, skip: tuple[str, ...] = ()) -> None:
    """Check that all rows of a group agree: what gives other ids is not worth timing."""
    for row in rows:
        first = _find(rows, **{name: row[name] for name in group})
        if row[key] != first[key] and row.get("tokenizer") not in skip:
            raise RuntimeError(f"{row} and {first} differ in their ids")


def _name(path: Path) -> str:
    """Return a text's name: that of its file, without all endings."""
    return path.name.split(".")[0]


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
