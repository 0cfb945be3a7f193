"""Measure what this chapter claims, and store it in `results/` with hardware, versions and commit.

    python -m working_with_text_data.benchmark --texts english/ code.jsonl.gz russian.txt

Each measurement is a process of its own, the contenders in turn, several rounds, on an otherwise idle
machine; contenders that read the same text must give equal ids. Figures are drawn from the results.
"""

import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from utils.files import InputError, write_atomically
from working_with_text_data import benchmark_cases
from working_with_text_data.text_files import CORPUS

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
CONTENDERS = ("ours", "ours, as array", "tiktoken", "tokenizers", "textbook")
SAMPLES = {"tokenizers": 4_000_000, "textbook": 100_000}  # bytes; the slow ones get only the beginning of a text
ENCODING_STEPS = ("textbook", "merge by rank", "remember pieces", "units in NumPy")
TRAINING_STEPS = ("textbook", "distinct pieces", "only what changed", "with a heap")
Row = dict[str, Any]


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
    rounds: int = 5
    """How often each measurement is made; the tables have mean and standard deviation."""
    results: Path = HERE / "results"
    """Where the measurements are stored."""
    figures: Path = HERE / "figures"
    """Where the figures are stored."""


def main(config: Config) -> None:
    """Measure the parts asked for, store and show them.

    Raises:
        InputError: for a text that is not there, or fewer than one round.
    """
    for path in config.texts:
        if not path.exists():
            raise InputError(f"there is no file or folder {path}")
    if config.rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {config.rounds}")
    parts: dict[str, Callable[[Config], Row]] = {
        "encoding": measure_encoding, "batch": measure_batch, "steps": measure_steps, "training": measure_training,
    }  # fmt: skip
    for name, measure in parts.items():
        if config.part in (name, "all"):
            from utils.hardware import describe  # it imports torch

            result = {"machine": describe(), "versions": _versions(), "rounds": config.rounds, **measure(config)}
            with write_atomically(config.results / f"{name}.json") as file:
                file.write(json.dumps(result, indent=1).encode())
            log.info("%s -> %s", name, config.results / f"{name}.json")
    from working_with_text_data.benchmark_figures import draw_all, tables

    print(tables(config.results))
    draw_all(config.results, config.figures)


def measure_encoding(config: Config) -> Row:
    """Every contender on every text with both encodings."""
    cases: dict[tuple[str, ...], tuple[str, Sequence[Any]]] = {
        (_name(text), encoding, name): ("encoding", (name, encoding, str(text), SAMPLES.get(name)))
        for text in config.texts
        for encoding in benchmark_cases.OURS
        for name in CONTENDERS
    }
    rows: list[Row] = []
    for (text_name, encoding, name), runs in _interleaved(cases, config.rounds).items():
        first = runs[0]
        row = {"text": text_name, "encoding": encoding, "tokenizer": name, "bytes": first["bytes"]}
        row |= {"tokens": first["tokens"], "checksum": first["checksum"]}
        row["bytes_per_token"] = first["bytes"] / first["tokens"]
        for state in ("cold", "warm", "decode"):
            row[f"{state}_tokens_per_second"] = _spread(first["tokens"] / run[state] for run in runs)
        row["memory_mb"] = _spread(run["memory"] / 1e6 for run in runs)
        rows.append(row)
    _equal(rows, ("text", "encoding"), "checksum", skip=tuple(SAMPLES))
    for row in rows:
        reference = _find(rows, text=row["text"], encoding=row["encoding"], tokenizer="tiktoken")
        for state in ("cold", "warm", "decode"):
            key = f"{state}_tokens_per_second"
            row[f"{state}_of_tiktoken"] = row[key]["median"] / reference[key]["median"]
    return {"rows": rows}


def measure_batch(config: Config) -> Row:
    """One process against two, and tiktoken's threads, with GPT-2's encoding."""
    text = str(config.texts[0])
    cases = {
        (name, str(workers)): ("batch", (name, "gpt2", text, workers))
        for name in ("ours", "ours, as array", "tiktoken")
        for workers in (1, 2)
    }
    runs = _interleaved(cases, config.rounds)
    rows = []
    for (name, workers), measured in runs.items():
        row: Row = {"tokenizer": name, "workers": int(workers), "tokens": measured[0]["tokens"]}
        for state in ("cold", "warm"):
            row[f"{state}_seconds"] = _spread(run[state] for run in measured)
            alone = statistics.median(run[state] for run in runs[name, "1"])
            row[f"{state}_speedup"] = alone / row[f"{state}_seconds"]["median"]
        rows.append(row)
    return {"text": _name(config.texts[0]), "rows": rows}


def measure_steps(config: Config) -> Row:
    """What each optimisation gains, on a part of the text small enough for the textbook."""
    text = str(config.texts[0])
    cases = {
        **{("encoding", step): ("encoding_step", (step, text, 500_000)) for step in ENCODING_STEPS},
        **{("training", step): ("training_step", (step, text, 200_000, 500)) for step in TRAINING_STEPS},
    }
    rows = []
    for (what, step), runs in _interleaved(cases, config.rounds).items():
        rows.append({"what": what, "step": step, "checksum": runs[0]["checksum"]})
        rows[-1]["seconds"] = _spread(run["seconds"] for run in runs)
        first = _find(rows, what=what, step="textbook")["seconds"]["median"]
        rows[-1]["times_the_textbook"] = first / rows[-1]["seconds"]["median"]
    _equal(rows, ("what",), "checksum")
    return {
        "text": _name(config.texts[0]),
        "encoding_characters": 500_000,
        "training_characters": 200_000,
        "rows": rows,
    }


def measure_training(config: Config) -> Row:
    """Training against Hugging Face's on one thread, counting with two processes, and how time grows."""
    text = str(config.texts[0])
    sizes = [2**i * 1_000_000 for i in range(6)]
    vocabularies = [512, 1024, 2048, 4096, 8192, 16384, 32768]
    cases: dict[tuple[str, ...], tuple[str, Sequence[Any]]] = {
        ("versus", "ours"): ("training", ("ours", text, 10_000_000, 50_257)),
        ("versus", "tokenizers"): ("training", ("tokenizers", text, 10_000_000, 50_257)),
        ("counting", "1"): ("counting", (text, 1)),
        ("counting", "2"): ("counting", (text, 2)),
        **{("size", str(size)): ("training", ("ours", text, size, 8192)) for size in sizes},
        **{("vocab", str(size)): ("training", ("ours", text, 8_000_000, size)) for size in vocabularies},
    }
    runs = _interleaved(cases, config.rounds)
    seconds = {case: _spread(run["seconds"] for run in measured) for case, measured in runs.items()}
    ours, theirs = seconds["versus", "ours"]["median"], seconds["versus", "tokenizers"]["median"]
    return {
        "text": _name(config.texts[0]),
        "versus": {
            "bytes": 10_000_000, "vocab_size": 50_257,
            "ours": seconds["versus", "ours"], "tokenizers": seconds["versus", "tokenizers"],
            "times_as_fast": theirs / ours,
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
    """Times at several sizes, and the exponent of the power law through their medians."""
    y = [spread["median"] for spread in seconds]
    exponent = float(np.polyfit(np.log(x), np.log(y), 1)[0])
    return {"x": x, "seconds": seconds, "exponent": exponent}


def _interleaved(cases: dict[tuple[str, ...], tuple[str, Sequence[Any]]], rounds: int) -> dict[Any, list[Row]]:
    """Every case in a process of its own, all of them in turn, several times."""
    runs: dict[Any, list[Row]] = {case: [] for case in cases}
    with tqdm(total=rounds * len(cases), unit="run", leave=False) as progress:
        for _ in range(rounds):
            for case, (function, arguments) in cases.items():
                progress.set_description(" ".join(case))
                call = f"print(json.dumps(cases.{function}(*{list(arguments)!r})))"
                code = f"import json; import working_with_text_data.benchmark_cases as cases; {call}"
                run = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
                runs[case].append(json.loads(run.stdout))
                progress.update()
    return runs


def _spread(values: Any) -> Row:
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": deviation, "median": statistics.median(values)}


def _find(rows: list[Row], **wanted: Any) -> Row:
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def _equal(rows: list[Row], group: tuple[str, ...], key: str, skip: tuple[str, ...] = ()) -> None:
    """Raise unless all rows of a group agree: what gives other ids is not worth timing."""
    for row in rows:
        first = _find(rows, **{name: row[name] for name in group})
        if row[key] != first[key] and row.get("tokenizer") not in skip:
            raise RuntimeError(f"{row} and {first} differ in their ids")


def _name(path: Path) -> str:
    return path.name.split(".")[0]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("tiktoken", "tokenizers", "regex", "numpy")}


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
