"""Clean instruction data: what is worth learning from is kept, the rest is removed with a reason, and shown.

    python -m finetuning.instruction.prepare --data alpaca_data.json --out runs/alpaca-data

Written are

kept.jsonl           what is kept, one example per line, each with a category: for `finetuning.instruction.train`
removed.jsonl        what is not, each with the reason
review.csv           a sample of both for reading by hand, in a spreadsheet
report.md, .html     how many of what, and examples
statistics.json      the same numbers
"""

import csv
import io
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetuning.instruction.quality import REASONS, Limits, Verdict, judge
from finetuning.instruction.records import read_records, to_json
from finetuning.instruction.scoring.answers import category
from finetuning.instruction.scoring.study import cell
from finetuning.instruction.templates import TEMPLATES
from finetuning.pages import Page, shortened
from gpt_model.run_directory import load_tokenizer
from utils.extras import check_installed
from utils.files import InputError, write_atomically
from utils.outputs import check_output_folder, delete_ours
from utils.ranges import Count, Seed
from working_with_text_data.minbpe import GPT2Tokenizer

log = logging.getLogger(__name__)

KEPT, REMOVED, REVIEW = "kept.jsonl", "removed.jsonl", "review.csv"
OURS = ("statistics.json", KEPT, REMOVED, REVIEW, "report.md", "report.html")
EXAMPLES = 3  # shown per reason
LONGEST_SHOWN = 160  # characters of a text in the report


@dataclass(frozen=True, kw_only=True)
class Config(Limits):
    """Check instruction data, and keep what is worth learning from."""

    data: Path
    """Conversations: a JSON list or JSON lines, as Alpaca (instruction, input, output) or chat (messages); also .gz."""
    out: Path = Path("runs/instruction-data")
    """The folder that is written."""
    overwrite: bool = False
    """Replace the folder if it is there; one that holds anything else is left as it is."""
    template: Literal["alpaca", "chatml"] = "alpaca"
    """What the examples will be written in; no text may hold its marks."""
    run: Path | None = None
    """The run directory whose tokenizer counts the tokens; by default GPT-2's does."""
    context: Count = 1024
    """Tokens that the model reads at most. Longer examples are kept, and training cuts the beginning of their prompt:
    they are counted here."""
    review: Count = 200
    """Examples in review.csv: half of them kept, half removed."""
    seed: Seed = 0
    """Decides which."""


def main(config: Config) -> dict[str, Any]:
    """Write the folder, and return the statistics.

    Raises:
        InputError: for data or an output that cannot be used, or a package that is missing.
    """
    for package in ("profanity_check", "py3langid", "rensa"):
        check_installed(package, "finetune", "checking examples")
    check_output_folder(config.out, OURS, overwrite=config.overwrite, inputs=(config.data, config.run))
    records = read_records(config.data)
    tokenizer = GPT2Tokenizer() if config.run is None else load_tokenizer(config.run)
    limits = Limits(**{field.name: getattr(config, field.name) for field in fields_of(Limits)})
    log.info("checking %s examples", f"{len(records):,}")
    verdicts = judge(records, TEMPLATES[config.template], tokenizer, limits)
    if all(verdict.reason for verdict in verdicts):
        raise InputError(f"{config.data}: nothing is left of {len(verdicts):,} examples: {_counts(verdicts)}")
    statistics = summarise(verdicts, config.context)
    delete_ours(config.out, OURS)
    _write_lines(config.out / KEPT, (_as_json(verdict) for verdict in verdicts if verdict.reason is None))
    _write_lines(config.out / REMOVED, (_as_json(verdict) for verdict in verdicts if verdict.reason is not None))
    write_text(config.out / REVIEW, review_table(verdicts, config.review, config.seed))
    write_report(config.out, statistics, verdicts, config.data)
    write_text(config.out / "statistics.json", json.dumps(statistics, indent=1))
    log.info(
        "%s of %s examples are kept -> %s; removed: %s; %s are longer than %s tokens and will lose the beginning of "
        "their prompt",
        f"{statistics['n_kept']:,}", f"{statistics['n']:,}", config.out, _counts(verdicts) or "none",
        statistics["n_longer_than_context"], config.context,
    )  # fmt: skip
    return statistics


def summarise(verdicts: Sequence[Verdict], context: int) -> dict[str, Any]:
    """Return counts by reason and category, and quantiles of tokens and scores of what is kept."""
    kept = [verdict for verdict in verdicts if verdict.reason is None]
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.reason is not None)
    categories = Counter(category(verdict.record) for verdict in kept)
    quantiles = (0, 5, 25, 50, 75, 95, 100)

    def spread(values: list[float]) -> dict[str, float]:
        return {f"{q}%": round(float(np.percentile(values, q)), 3) for q in quantiles}

    return {
        "n": len(verdicts),
        "n_kept": len(kept),
        "removed": {reason: reasons[reason] for reason in REASONS if reasons[reason]},
        "n_longer_than_context": sum(verdict.n_tokens > context for verdict in kept),
        "context": context,
        "categories": dict(categories.most_common()),
        "tokens": spread([verdict.n_tokens for verdict in kept]),
        "answer_words": spread([len(verdict.record.response.split()) for verdict in kept]),
        "score": spread([verdict.score for verdict in kept]),
        "n_with_several_turns": sum(len(verdict.record.conversation.turns) > 2 for verdict in kept),
    }


def review_table(verdicts: Sequence[Verdict], size: int, seed: int) -> str:
    """Return a sample as CSV, with an empty column for a reader's own verdict."""
    chance = random.Random(seed)
    kept = [verdict for verdict in verdicts if verdict.reason is None]
    removed = [verdict for verdict in verdicts if verdict.reason is not None]
    sample = chance.sample(removed, min(len(removed), size // 2))
    sample += chance.sample(kept, min(len(kept), size - len(sample)))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ("number", "reason", "detail", "category", "tokens", "score", "toxicity", "instruction", "answer", "verdict")
    )
    for verdict in sorted(sample, key=lambda verdict: verdict.record.number):
        record = verdict.record
        numbers = (verdict.n_tokens, f"{verdict.score:.2f}", f"{verdict.toxicity:.2f}")
        texts = (cell(record.prompt), cell(record.response), "")
        writer.writerow(
            (record.number, verdict.reason or "", verdict.detail, category(verdict.record), *numbers, *texts)
        )
    return table.getvalue()


def write_report(folder: Path, statistics: dict[str, Any], verdicts: Sequence[Verdict], data: Path) -> None:
    """Write report.md and report.html: the statistics, and examples of what was removed."""
    n = statistics["n"]
    page = Page(data.name)
    page.paragraph(
        f"{n:,} examples, of which {statistics['n_kept']:,} are kept. {statistics['n_longer_than_context']:,} of these "
        f"are longer than {statistics['context']:,} tokens: training cuts the beginning of their prompt."
    )
    removed = statistics["removed"].items()
    page.table(
        ["removed for", "examples", "share"], [[why, f"{count:,}", f"{count / n:.2%}"] for why, count in removed]
    )
    page.table(["category", "kept"], [[name, f"{count:,}"] for name, count in statistics["categories"].items()])
    titles = {"tokens": "tokens", "answer_words": "words of the answer", "score": "score"}
    rows = [[title, *(f"{value:g}" for value in statistics[key].values())] for key, title in titles.items()]
    page.table(["of what is kept", *statistics["tokens"]], rows)
    for reason in statistics["removed"]:
        page.heading(f"Removed: {reason}")
        examples = [verdict for verdict in verdicts if verdict.reason == reason][:EXAMPLES]
        texts = [(str(v.record.number), v.detail, v.record.prompt, v.record.response) for v in examples]
        shown = [[shortened(text, LONGEST_SHOWN) for text in row] for row in texts]
        page.table(["number", "why", "instruction", "answer"], shown, is_text=True)
    page.write(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with write_atomically(path) as file:
        file.write(text.encode())


def _as_json(verdict: Verdict) -> dict[str, Any]:
    why = {} if verdict.reason is None else {"reason": verdict.reason, "detail": verdict.detail}
    return {**to_json(verdict.record), "category": category(verdict.record), "number": verdict.record.number, **why}


def _write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    with write_atomically(path) as file:
        file.writelines(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)


def _counts(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.reason for verdict in verdicts if verdict.reason is not None)
    return ", ".join(f"{counts[reason]:,} {reason}" for reason in REASONS if counts[reason])


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
