"""How well a tuned model answers questions that it has not been trained on, and what its tuning has changed.

    python -m finetuning.instruction.evaluate --run runs/demo-chat
    python -m finetuning.instruction.evaluate --run runs/alpaca --data alpaca_held_out.json

The model that the run began with is asked the same questions in the same template, if it is still there, or named by
--base or --pretrained. Everything is measured per category, with 95% intervals from the bootstrap. Written are

report.md, report.html, *.svg    tables and figures
evaluation.json                  the numbers
answers.jsonl                    what each model said, for `finetuning.instruction.human_eval`

The same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.instruction.conversation import Conversation
from finetuning.instruction.corpus import load_records
from finetuning.instruction.records import Record, read_records
from finetuning.instruction.scoring.adherence import adherence
from finetuning.instruction.scoring.answers import (
    ANSWERS,
    Answered,
    System,
    ask,
    category,
    room_for_prompt,
    stratified,
    write_answers,
)
from finetuning.instruction.scoring.judge import Judge, compare
from finetuning.instruction.scoring.losses import answer_losses
from finetuning.instruction.scoring.report import write_report
from finetuning.instruction.scoring.stereotypes import PAIRS, stereotype_preferences
from finetuning.instruction.scoring.text_metrics import Measure, bootstrap, interval, mean_of, overlap
from finetuning.instruction.templates import Template, template_of
from finetuning.instruction.toxicity import TOXIC, toxicity
from finetuning.run import Base, add_tokens
from gpt_model.run_directory import load, read_config
from utils.extras import check_installed
from utils.files import InputError, write_atomically
from utils.hardware import describe, pick_device
from utils.locks import alone
from utils.outputs import check_output_folder, check_writable
from utils.ranges import Count, Seed, check_ranges

log = logging.getLogger(__name__)

BEFORE, AFTER = "before", "after"
NUMBERS = "evaluation.json"
OURS = (NUMBERS, ANSWERS, "answers_*.jsonl", "report.md", "report.html", "*.svg")
ALL, OTHERS = "all", "all others"
PACKAGES = ("profanity_check", "rouge_score", "sacrebleu")  # imported where they are needed, after the answers
FEWEST = 5  # questions of a category that is shown by itself


@dataclass(frozen=True)
class Config:
    """Measure how well a tuned model answers, beside the model that it was tuned from."""

    run: Path
    """The run directory of the tuned model."""
    base: Path | None = None
    """The run directory of the model before tuning; by default the one that the run names, if it is still there."""
    pretrained: str | None = None
    """Instead of a base: gpt2, or a folder in Hugging Face layout."""
    data: Path | None = None
    """Held-out conversations, as for training; by default the test split of the project's own."""
    out: Path | None = None
    """The folder that is written; by default beside the run directory, named as it is with -evaluation."""
    limit: Count = 500
    """Questions at most, a share of each category."""
    max_new_tokens: Count = 128
    """Tokens of an answer at most."""
    batch_size: Count = 16
    """Questions that go through the model at once."""
    judge: str | None = None
    """An OpenAI-compatible endpoint that compares answers, such as http://127.0.0.1:8080/v1. Its key is read from the
    variable OPENAI_API_KEY, if it needs one."""
    judge_model: str = "gpt-4o-mini"
    """Which model of that endpoint."""
    judged: Count = 50
    """Questions that it compares, a share of each category."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""
    seed: Seed = 0
    """Decides which questions are asked and judged, and the bootstrap."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.base is not None and self.pretrained is not None:
            raise InputError("say either --base or --pretrained, not both")


def main(config: Config) -> dict[str, Any]:
    """Ask, measure, write the folder, and return the numbers.

    Raises:
        InputError: for a run, data or an output that cannot be used; for answers that leave no room for a question;
            for a package that is missing.
    """
    for package in PACKAGES:
        check_installed(package, "finetune", "evaluating answers")
    out = config.out or config.run.parent / f"{config.run.resolve().name}-evaluation"
    pick_device(config.device)
    template = template_of(config.run)
    if template is None:
        raise InputError(f"{config.run} was not tuned to answer: it has no template in its config.json")
    check_writable(out)
    if out.exists():
        check_output_folder(out, OURS, overwrite=True, inputs=(config.run, config.base, config.data))
    held_out = questions(config)
    drawn = stratified([category(record) for record in held_out], config.limit, config.seed)
    records = [held_out[place] for place in drawn]
    judge = None if config.judge is None else Judge(config.judge, config.judge_model)
    systems = load_systems(config, template)
    if judge is not None and len(systems) == 1:
        raise InputError("a judge compares two models: name the one before tuning by --base or --pretrained")
    for system in systems:
        room_for_prompt(system, config.max_new_tokens)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, "evaluating into"):
        result, answered = examine(config, systems, records, out)
        store(out, result, answered)
        if judge is not None:  # last, since it may not answer
            judged = stratified([each.category for each in answered], config.judged, config.seed)
            result["judge"] = compare(judge, [answered[place] for place in judged], AFTER, BEFORE, config.seed)
            store(out, result, answered)
    for row in result["measures"]:
        if row["category"] == ALL:
            values = {name: row[name]["value"] for name in result["systems"] if row[name]["value"] is not None}
            if values:  # perhaps nothing could be measured
                log.info("%s: %s", row["measure"], ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    log.info("%s questions -> %s", f"{len(records):,}", out)
    return result


def store(out: Path, result: dict[str, Any], answered: Sequence[Answered]) -> None:
    """Write the numbers and the report."""
    with write_atomically(out / NUMBERS) as file:
        file.write(json.dumps(result, indent=1).encode())
    write_report(out, result, answered)


def examine(
    config: Config, systems: Sequence[System], records: Sequence[Record], out: Path
) -> tuple[dict[str, Any], list[Answered]]:
    """Ask all models, write their answers, and return the numbers, and the answers question by question."""
    device = pick_device(config.device)
    answers, measures, stereotypes = {}, {}, {}
    for system in systems:
        system.model.to(device)
        path = out / f"answers_{system.name}.jsonl"
        answers[system.name] = ask(
            system, records, path, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size
        )
        measures[system.name] = measure(system, records, answers[system.name], config.batch_size)
        stereotypes[system.name] = _share(stereotype_preferences(system.model, system.tokenizer), config.seed)
        system.model.cpu()
    result = {
        "run": str(config.run), "data": str(config.data or "the project's test split"),
        "template": systems[0].template.name, "n_questions": len(records), "max_new_tokens": config.max_new_tokens,
        "systems": [system.name for system in systems],
        "measures": table(measures, [category(record) for record in records], config.seed),
        "stereotypes": stereotypes, "machine": describe(),
    }  # fmt: skip
    return result, write_answers(out / ANSWERS, records, answers)


def questions(config: Config) -> list[Record]:
    """Return the held-out records that have an answer to compare with.

    Raises:
        InputError: if there are none.
    """
    records = load_records("test") if config.data is None else read_records(config.data)
    answered = [record for record in records if record.is_answered]
    if not answered:
        raise InputError(f"{config.data} holds no conversation with an answer")
    return answered


def load_systems(config: Config, template: Template) -> list[System]:
    """Return the models that are asked: the one before tuning, if it is there, and the tuned one.

    Raises:
        InputError: if one cannot be read, or a vocabulary lacks the template's tokens.
    """
    model, tokenizer = load(config.run, None)
    if missing := template.missing(tokenizer):
        raise InputError(f"the tokenizer of {config.run} lacks {', '.join(missing)}, which its template needs")
    systems = [System(AFTER, model, tokenizer, template)]
    base, pretrained = config.base, config.pretrained
    if base is None and pretrained is None:
        stored = read_config(config.run)["training"]
        named = stored.get("base")
        base = Path(named) if isinstance(named, str) and Path(named).is_dir() else None
        if base is None:
            log.warning("the model before tuning is not there: name it by --base or --pretrained to compare with it")
    if base is not None or pretrained is not None:
        model, tokenizer = load(base, pretrained)
        before = add_tokens(Base(model, tokenizer, {}, is_new=True), template.missing(tokenizer))
        systems.insert(0, System(BEFORE, before.model, before.tokenizer, template))
    return systems


def measure(system: System, records: Sequence[Record], answers: Sequence[str], batch_size: int) -> list[Measure]:
    """Return everything that is measured of a model's answers."""
    conversations: list[Conversation] = [record.conversation for record in records]
    losses_N2 = answer_losses(system.model, system.tokenizer, system.template, conversations, batch_size)

    def perplexity(sums_2: np.ndarray) -> float:
        return math.exp(min(sums_2[0] / sums_2[1], 700)) if sums_2[1] else math.nan

    followed = [adherence(record.prompt, said) for record, said in zip(records, answers, strict=True)]
    return [
        Measure("perplexity of the reference", losses_N2, perplexity),
        *overlap(answers, [record.response for record in records]),
        mean_of("demands met", followed, scale=100),
        mean_of("toxic answers", [float(value > TOXIC) for value in toxicity(answers)], scale=100),
        mean_of("words", [len(said.split()) for said in answers]),
    ]


def table(measures: dict[str, list[Measure]], categories: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return each measure in each category, and over all: its value and interval per model, and of the difference.

    Args:
        measures: those of each model, in the same order.
        categories: of the questions.
        seed: of the bootstrap.
    """
    sizes = Counter(categories)
    places = np.array([name if sizes[name] >= FEWEST else OTHERS for name in categories])
    rows = []
    for name in (ALL, *sorted(set(places.tolist()) - {OTHERS}), *([OTHERS] if OTHERS in places else [])):
        chosen_N = np.ones(len(places), bool) if name == ALL else places == name
        drawn = {system: bootstrap(each, chosen_N, seed) for system, each in measures.items()}
        for column, measured in enumerate(next(iter(measures.values()))):
            row: dict[str, Any] = {"category": name, "measure": measured.name, "n": measured.count(chosen_N)}
            for system, each in measures.items():
                row[system] = _with_interval(each[column].value(chosen_N), drawn[system][:, column])
            if len(measures) > 1:
                change = measures[AFTER][column].value(chosen_N) - measures[BEFORE][column].value(chosen_N)
                row["difference"] = _with_interval(change, drawn[AFTER][:, column] - drawn[BEFORE][:, column])
            rows.append(row)
    return rows


def _with_interval(value: float, drawn_R: np.ndarray) -> dict[str, float | None]:
    """Return a number and its interval, as JSON can hold them: None for what is not there."""
    low, high = interval(drawn_R)
    return {name: x if math.isfinite(x) else None for name, x in (("value", value), ("low", low), ("high", high))}


def _share(preferences: Sequence[float], seed: int) -> dict[str, Any]:
    share = mean_of("stereotypes", preferences, scale=100)
    everything = np.ones(len(preferences), bool)
    return {**_with_interval(share.value(), bootstrap([share], everything, seed)[:, 0]), "n": len(PAIRS)}


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
