"""Learn from pairs of answers which of them people prefer: direct preference optimisation.

    python -m finetuning.instruction.dpo demo
    python -m finetuning.instruction.dpo --base runs/alpaca --data preferences.json --out runs/preferred

It begins with a run that `finetuning.instruction.train` has taught to answer, and writes another, with the same
template. The first command needs that of `train demo`. See `preferences.py` for the loss.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from finetuning.config import FineTuning
from finetuning.instruction.preferences import (
    DirectPreference,
    EncodedPair,
    Pairs,
    Preference,
    corpus_preferences,
    encode_pair,
    pair_log_likelihoods,
    read_preferences,
)
from finetuning.instruction.records import divide
from finetuning.instruction.templates import TEMPLATES, Template
from finetuning.run import (
    REFERENCE,
    Base,
    checksum,
    fine_tune,
    load_base,
    open_run,
    precision_of,
    save_weights,
    steps_of,
)
from gpt_model import GPT
from gpt_model.model_files import read_tensors
from gpt_model.run_directory import load_model
from pretraining.config import Rate
from pretraining.engine import World
from pretraining.metrics import draw_loss, read_metrics
from pretraining.open_run import training_in
from utils.command_line import show
from utils.data_loading import ResumableLoader, one_pass
from utils.figures import BLUE, ORANGE, figure, save_svg
from utils.files import InputError, write_atomically
from utils.ranges import Count, Range
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)

Split = Literal["train", "val"]
RESULTS = "results.json"


@dataclass(frozen=True)
class Config(FineTuning):
    """Teach a model which answers people prefer, by direct preference optimisation on pairs.

    Ctrl-C saves and stops; the same command resumes. Everything is written to one run directory.
    """

    not_the_run: ClassVar[frozenset[str]] = FineTuning.not_the_run | {"data"}  # of the data, its checksum counts

    data: Path | None = None
    """Pairs: a JSON list or JSON lines of instruction, perhaps input, chosen and rejected. By default made by rule of
    the questions that come with this project: the right answer, and that to another question of its kind."""
    held_out: Annotated[float, Range(0, 0.5, open_below=True)] = 0.1
    """Share of --data that is kept for validation; what comes with the project is divided already."""
    beta: Annotated[float, Range(0, 100, open_below=True)] = 0.1
    """How closely the model is held to the one it began with: the larger, the closer."""
    epochs: Count = 1
    """How often each pair is learned from."""
    lr: Rate = 5e-6
    """Peak learning rate of AdamW. Small models bear more: 0.00005 to 0.0003 for the demo's."""


PRESETS = {
    "demo": Config(base=Path("runs/demo-chat"), out=Path("runs/demo-preferred"), lr=5e-5, eval_every=20),
    "alpaca": Config(base=Path("runs/alpaca"), out=Path("runs/alpaca-preferred"), batch_size=16, micro_batch_size=4),
}


def main(config: Config) -> dict[str, float] | None:
    """Train, and return the measures of the best weights on held-out pairs; None if it was stopped before the end.

    Raises:
        InputError: for data, settings, a base or a run directory that cannot be used; if another process trains in it.
    """
    with training_in(config.out, config.device) as world:
        base = load_base(config, world)
        name = base.config.get("template")
        if name not in TEMPLATES:
            raise InputError(
                f"{config.base or config.pretrained} has not learned to answer: begin with a run directory of "
                "python -m finetuning.instruction.train"
            )
        return train(config, TEMPLATES[name], replace(base, model=without_dropout(base.model)), world)


def train(config: Config, template: Template, base: Base, world: World) -> dict[str, float] | None:
    """Put data, reference, objective and model together, train, and say what came of it; as `main`."""
    length = base.model.config.context_length
    encoded = {split: encode(config, split, template, base.tokenizer, length) for split in ("train", "val")}
    world.from_main(lambda: open_run(config, base, {"sha256": checksum(config.data)}, template=template.name))
    model = base.model.to(world.device)
    reference = world.from_main(lambda: load_reference(config, base, encoded, world.device))
    pairs = {split: Pairs(encoded[split], reference[split]) for split in ("train", "val")}
    batches = ResumableLoader(
        pairs["train"], config.batch_size, config.seed, device=world.device, rank=world.rank, n_ranks=world.size
    )
    objective = DirectPreference(config.beta)
    validation = one_pass(pairs["val"], config.micro_batch_size or config.batch_size)
    steps = steps_of(config, len(pairs["train"]))
    finished = fine_tune(config, model, objective, batches, lambda: validation, steps, world)
    if world.is_main:
        draw_loss(config.out, "pair")
    if not finished:
        return None
    with torch.autocast(world.device.type, torch.bfloat16, enabled=precision_of(config, world.device) == "bfloat16"):
        moved = (tuple(part.to(world.device) for part in batch) for batch in validation)
        results = objective.evaluate(model, moved)
    if world.is_main:
        report(config, results)
    return results


def without_dropout(model: GPT) -> GPT:
    """Return the model without dropout, in training mode too."""
    plain = GPT(replace(model.config, dropout=0.0))
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def pairs_of(config: Config, split: Split) -> Sequence[Preference]:
    """Return the pairs of a split; of a user's data, every so manieth is held out, the same each time."""
    if config.data is None:
        return corpus_preferences(split)
    return divide(read_preferences(config.data), config.held_out, split, config.data)


def encode(config: Config, split: Split, template: Template, tokenizer: Tokenizer, length: int) -> list[EncodedPair]:
    """Return the pairs of a split as tokens, and say how many had to be left out.

    Raises:
        InputError: if the data cannot be read, or nothing of it is left.
    """
    pairs = [encode_pair(pair, template, tokenizer, length) for pair in pairs_of(config, split)]
    fitting = [pair for pair in pairs if pair is not None]
    where = config.data or "the project's own questions"
    if not fitting:
        raise InputError(f"{where}: no {split} pair's answers fit into {length} tokens")
    log.info("%s: %s pairs for %s; %s are left out, since their answers do not fit into %s tokens",
             where, f"{len(fitting):,}", split, len(pairs) - len(fitting), length)  # fmt: skip
    return fitting


def load_reference(
    config: Config, base: Base, encoded: dict[Split, list[EncodedPair]], device: torch.device
) -> dict[str, Tensor]:
    """Return the log-probabilities (number of pairs, 2) of each split's answers before training.

    They are computed once and kept in the run directory. If they are gone from there, the model that the run began with
    is asked again.
    """
    path = config.out / REFERENCE
    if path.exists():
        return read_tensors(path)
    model = base.model if base.is_new else without_dropout(load_model(config.base)).to(device)
    enabled = precision_of(config, device) == "bfloat16"
    reference = {}
    for split, pairs in encoded.items():
        parts = []
        examples = Pairs(pairs, torch.zeros(len(pairs), 2))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            for batch in tqdm(one_pass(examples, config.batch_size), f"reference, {split}", leave=False):
                parts.append(pair_log_likelihoods(model, tuple(part.to(device) for part in batch)).cpu())
        reference[split] = torch.cat(parts)
    save_weights(path, reference)
    likelier = (reference["val"][:, 0] > reference["val"][:, 1]).double().mean().item()
    log.info("before training, the chosen answer is the likelier one in %.0f%% of the held-out pairs", 100 * likelier)
    return reference


def report(config: Config, results: dict[str, float]) -> None:
    """Store, draw and print what came of it."""
    with write_atomically(config.out / RESULTS) as file:
        file.write(json.dumps(results, indent=1).encode())
    evaluated = [entry for entry in read_metrics(config.out) if "val_chosen" in entry]
    with figure() as (drawing, axes):
        for name, color in (("chosen", BLUE), ("rejected", ORANGE)):
            axes.plot(
                [0, *(entry["step"] for entry in evaluated)],
                [0, *(entry[f"val_{name}"] for entry in evaluated)],
                color=color, marker="o", markersize=4, label=name,
            )  # fmt: skip
        axes.set(xlabel="step", ylabel="change of log-probability (nats per answer)", title="Held-out answers")
        axes.legend()
        save_svg(drawing, config.out / "preferences.svg")
    show(
        f"held-out pairs whose chosen answer has gained on the other: {results['val_accuracy']:.0%} "
        f"(log-probability of chosen answers {results['val_chosen']:+.1f} nats, of rejected ones "
        f"{results['val_rejected']:+.1f})\n"
    )


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
