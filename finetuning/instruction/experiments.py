"""What fine-tuning needs: more examples, or a better base? The demo's recipe with less of each.

    python -m finetuning.instruction.experiments        # ten trainings of about a minute; the same command resumes

Each run learns from a part of the questions that come with the project, from the demo's model or from random weights,
and is graded on questions of the test split: by how many answers are right, word for word. Stored are also its
validation loss, and the steps after which it had made 90% of its progress.
"""

import json
import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetuning.instruction import train
from finetuning.instruction.answering import answers
from finetuning.instruction.corpus import AUSTEN, load_records
from finetuning.instruction.templates import TEMPLATES
from finetuning.run import save_weights
from gpt_model import GPT, TextGenerator
from gpt_model.run_directory import load, read_config
from pretraining.checkpoint import WEIGHTS
from pretraining.data_folder import TOKENIZER
from pretraining.metrics import read_metrics
from pretraining.open_run import store_config
from utils.figures import figure, save_svg
from utils.files import InputError, read_json, write_atomically
from utils.hardware import describe
from utils.locks import alone
from utils.outputs import check_output_file, check_writable
from utils.ranges import Count, check_ranges

log = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "experiments.json"
FIGURE = Path(__file__).parent / "figures" / "examples.svg"
PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
MOST_OF_THE_GAIN = 0.9
LONGEST_ANSWER = 40  # tokens
ROWS_AT_ONCE = 32
UNTRAINED = "untrained"  # the folder of a base with random weights


@dataclass(frozen=True)
class Config:
    """Fine-tune with fewer examples and without pretraining, and compare."""

    base: Path = Path("runs/demo")
    """The run directory of the base."""
    out: Path = Path("runs/instruction-experiments")
    """Where the runs are kept."""
    results: Path = RESULTS
    """Where the comparison is stored."""
    epochs: Count = 10
    """How often each example is learned from."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> None:
    """Train, grade, store and draw; runs that are there are only graded.

    Raises:
        InputError: if there is no base, or a folder or file cannot be written.
    """
    read_config(config.base)
    check_writable(config.out)
    check_output_file(config.results, overwrite=True, is_ours=_is_comparison, flag="--results")
    n_examples = len(train.conversations_of(train.PRESETS["demo"], "train"))
    rows = []
    with alone(config.out, "training in"):
        bases = {"the demo's model": config.base, "random weights": untrained(config)}
        for part in PARTS:
            for name, base in bases.items():
                examples = round(part * n_examples)
                run = config.out / f"{'demo' if base == config.base else 'random'}-{examples}"
                if not learned(config, base, run, examples):
                    return  # it was asked to stop
                rows.append({"base": name, "examples": examples, **graded(run)})
                log.info("%s", rows[-1])
    result = {"machine": describe(), "epochs": config.epochs, "rows": rows}
    with write_atomically(config.results) as file:
        file.write(json.dumps(result, indent=1).encode())
    draw(result, FIGURE if config.results == RESULTS else config.results.with_suffix(".svg"))
    print(table(result))


def untrained(config: Config) -> Path:
    """Return a run directory with a model of the base's shape that has learned nothing."""
    folder = config.out / UNTRAINED
    if not (folder / WEIGHTS).exists():
        model, tokenizer = load(config.base, None)
        torch.manual_seed(0)
        store_config(folder, {**read_config(config.base), "training": {"trainer": "none"}})
        tokenizer.save(folder / TOKENIZER)
        save_weights(folder / WEIGHTS, GPT(model.config).state_dict())
    return folder


def learned(config: Config, base: Path, run: Path, examples: int) -> bool:
    """Train a run to its end; return False if it was stopped before."""
    settings = replace(
        train.PRESETS["demo"], base=base, out=run, examples=examples, epochs=config.epochs, ask=(), eval_every=10,
        early_stopping=None,
        precision="float32", device="cpu",
    )  # fmt: skip
    return train.main(settings)


@torch.inference_mode()
def graded(run: Path) -> dict[str, Any]:
    """Return what a run's model is worth on test questions, and how soon it was."""
    generator, template = TextGenerator(*load(run, None)), TEMPLATES["chatml"]
    right: dict[str, list[bool]] = defaultdict(list)
    held_out = load_records("test")
    for start in range(0, len(held_out), ROWS_AT_ONCE):
        records = held_out[start : start + ROWS_AT_ONCE]
        asked = [record.conversation.question for record in records]
        said = answers(generator, template, asked, temperature=0.0, max_new_tokens=LONGEST_ANSWER)
        for record, text in zip(records, said, strict=True):
            kind = "austen" if (record.category or "").startswith(AUSTEN) else "other"
            right[kind].append(text.strip() == record.response)
    losses = {entry["step"]: entry["val_loss"] for entry in read_metrics(run) if "val_loss" in entry}
    first, best = losses[min(losses)], min(losses.values())
    soon = next(step for step, loss in losses.items() if first - loss >= MOST_OF_THE_GAIN * (first - best))
    return {
        "val_loss": best,
        "last_val_loss": losses[max(losses)],
        "steps": max(losses),
        "steps_to_best": min(losses, key=losses.__getitem__),
        "steps_to_most": soon,
        "exact": {name: sum(each) / len(each) for name, each in right.items()},
        "n_questions": {name: len(each) for name, each in right.items()},
    }


def _is_comparison(path: Path) -> bool:
    """Return whether a file holds an earlier comparison."""
    try:
        table(read_json(path))
    except (InputError, LookupError, TypeError, ValueError, AttributeError):
        return False
    return True


def table(result: dict[str, Any]) -> str:
    """Return the comparison as a table in Markdown."""
    lines = [
        "| base | examples | validation loss | right about Austen | right otherwise | steps to 90% of the gain |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        exact = row["exact"]
        lines.append(
            f"| {row['base']} | {row['examples']:,} | {row['val_loss']:.2f} | {exact['austen']:.0%} "
            f"| {exact['other']:.0%} | {row['steps_to_most']} of {row['steps']} |"
        )
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the loss and the share of right answers over the number of examples."""
    with figure(columns=2, figsize=(8, 3)) as (drawing, (left, right)):
        for name in dict.fromkeys(row["base"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["base"] == name]
            examples = [row["examples"] for row in rows]
            left.plot(examples, [row["val_loss"] for row in rows], "o-", label=name)
            right.plot(examples, [row["exact"]["austen"] for row in rows], "o-", label=name)
        left.set(xscale="log", xlabel="examples", ylabel="validation loss (nats)")
        right.set(xscale="log", xlabel="examples", ylabel="right about Austen", ylim=(0, None))
        left.legend()
        drawing.tight_layout()
        save_svg(drawing, path)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
