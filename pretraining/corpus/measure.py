"""How quickly a corpus is made, and how the rules compare with datatrove's, which asks spaCy for the words.

python -m pretraining.corpus.measure --web web.jsonl.gz --sources web=web.jsonl.gz books=books/
"""

import json
import logging
import resource
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pretraining import prepare_smollm
from pretraining.corpus.repetition import gopher_repetition
from pretraining.corpus.rules import c4, fineweb, gopher_quality
from pretraining.corpus.words import split_words
from utils.files import InputError, read_json, write_atomically
from utils.hardware import describe
from utils.outputs import check_output_file
from utils.ranges import check_ranges
from working_with_text_data.text_files import find_files, read_documents
from working_with_text_data.train_tokenizer import CORES, Workers

log = logging.getLogger(__name__)

N_DOCUMENTS = 600
TURN = 100  # documents that ours and datatrove's take in turn


@dataclass(frozen=True)
class Config:
    """Measure how quickly a corpus is made. Without datatrove and spaCy, our rules are measured alone."""

    web: Path
    """Documents on which our rules are compared with datatrove's: the first 600."""
    sources: tuple[str, ...]
    """What the whole pipeline is measured on, as --sources of `prepare_smollm`; all but code is taken as prose."""
    tokenizer: Literal["gpt2", "gpt4"] | Path = "gpt2"
    """What it encodes with."""
    results: Path = Path(__file__).parents[1] / "results" / "corpus.json"
    """Where the results are stored."""
    workers: Workers = CORES
    """Processes of the pipeline."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> dict[str, Any]:
    """Measure, and store the results.

    Raises:
        InputError: if something cannot be read, or the results cannot be written.
    """
    check_output_file(config.results, overwrite=True, is_ours=_is_ours, flag="--results")
    find_files(config.web)
    result = {"machine": describe(), "rules": measure_rules(config.web), "pipeline": measure_pipeline(config)}
    with write_atomically(config.results) as file:
        file.write(json.dumps(result, indent=1).encode() + b"\n")
    return result


def measure_rules(web: Path) -> dict[str, Any]:
    """Return documents per second of processor time, ours and datatrove's, and how often they agree."""
    texts = list(islice(read_documents(web), N_DOCUMENTS))
    ways = {"ours": _ours, **_datatroves()}
    seconds = dict.fromkeys(ways, 0.0)
    verdicts: dict[str, list[list[str | None]]] = {name: [] for name in ways}
    for way in ways.values():
        way(texts[0])  # caches, models
    for start in range(0, len(texts), TURN):
        for name, way in ways.items():
            began = time.process_time()
            verdicts[name] += [way(text) for text in texts[start : start + TURN]]
            seconds[name] += time.process_time() - began
    result: dict[str, Any] = {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "documents_per_second": {name: len(texts) / spent for name, spent in seconds.items()},
    }
    if "datatrove" in ways:
        pairs = zip(verdicts["ours"], verdicts["datatrove"], strict=True)
        result["same_verdicts"] = sum(one == other for one, other in pairs) / len(texts)
        result["times_as_fast"] = seconds["datatrove"] / seconds["ours"]
    return result


def _ours(text: str) -> list[str | None]:
    words = split_words(text)
    return [gopher_repetition(text, words), gopher_quality(text, words), c4(text)[0], fineweb(text, words)]


def _datatroves() -> dict[str, Any]:
    try:
        import spacy  # noqa: F401 - datatrove finds words with it
        from datatrove.data import Document
        from datatrove.pipeline import filters
    except ImportError:
        log.warning("datatrove or spaCy is not installed: there is nothing to compare with")
        return {}
    rules = [
        filters.GopherRepetitionFilter(),
        filters.GopherQualityFilter(),
        filters.C4QualityFilter(),
        filters.FineWebQualityFilter(),
    ]

    def judge(text: str) -> list[str | None]:
        verdicts = [rule.filter(Document(text=text, id="")) for rule in rules]
        return [verdict[1] if isinstance(verdict, tuple) else None for verdict in verdicts]

    return {"datatrove": judge}


def measure_pipeline(config: Config) -> dict[str, Any]:
    """Return how long the whole pipeline takes, by the clock and in processor time of all its processes."""
    names = [entry.partition("=")[0] for entry in config.sources]
    with tempfile.TemporaryDirectory() as folder:
        settings = prepare_smollm.Config(
            mix=",".join(f"{name}=1" for name in names),
            sources=config.sources,
            tokenizer=config.tokenizer,
            out=Path(folder) / "data",
            workers=config.workers,
        )
        before, began = _processor_seconds(), time.perf_counter()
        manifest = prepare_smollm.main(settings)
        seconds, processor = time.perf_counter() - began, _processor_seconds() - before
    n_bytes = sum(source["bytes_read"] for source in manifest["documents"].values())
    return {
        "bytes": n_bytes,
        "documents": sum(source["n_read"] for source in manifest["documents"].values()),
        "workers": config.workers,
        "seconds": seconds,
        "processor_seconds": processor,
        "megabytes_per_second": n_bytes / 1e6 / seconds,
        "megabytes_per_processor_second": n_bytes / 1e6 / processor,
    }


def _processor_seconds() -> float:
    """Return the processor time of this process, and of those it started that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _is_ours(path: Path) -> bool:
    try:
        return "pipeline" in read_json(path)
    except (InputError, TypeError):
        return False


def table(result: dict[str, Any]) -> str:
    """Return the measurements as a paragraph for the README."""
    rules, pipeline, machine = result["rules"], result["pipeline"], result["machine"]
    speeds = rules["documents_per_second"]
    return (
        f"| measured on {machine['cores']} cores of an {machine['cpu']} | |\n| --- | ---: |\n"
        f"| the whole pipeline, {pipeline['bytes'] / 1e6:.0f} MB, {pipeline['workers']} workers, by the clock "
        f"| {pipeline['megabytes_per_second']:.1f} MB/s |\n"
        f"| the same, per second of processor time | {pipeline['megabytes_per_processor_second']:.1f} MB/s |\n"
        f"| all rules on {rules['documents']} web pages, one process | {speeds['ours']:,.0f} documents/s |\n"
        f"| datatrove's, with spaCy's words | {speeds['datatrove']:,.0f} documents/s |\n"
        f"| pages on which all verdicts are the same | {rules['same_verdicts']:.1%} |"
    )


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
