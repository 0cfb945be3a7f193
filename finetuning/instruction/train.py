"""Teach a model to answer: supervised fine-tuning on conversations.

    python -m finetuning.instruction.train demo
    python -m finetuning.instruction.train alpaca --data alpaca_data.json

The first needs `make demo`, takes some minutes on two CPU cores, and ends with answers from before and after. The run
directory that it writes opens in `python -m gpt_model.generate` and in the chat app, which takes its template.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from finetuning.config import FineTuning
from finetuning.instruction.answering import answers
from finetuning.instruction.conversation import Conversation
from finetuning.instruction.corpus import load_conversations
from finetuning.instruction.records import divide, read_conversations
from finetuning.instruction.supervised import Answers, PackedConversations, add_noise, fit_into
from finetuning.instruction.templates import TEMPLATES, Template
from finetuning.run import Base, add_tokens, checksum, fine_tune, load_base, open_run, steps_of
from gpt_model import GPT, TextGenerator
from gpt_model.config import Tokens
from pretraining.engine import World
from pretraining.open_run import training_in
from utils.command_line import show
from utils.data_loading import ResumableLoader, one_pass
from utils.files import InputError
from utils.ranges import Count, Range
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)

Split = Literal["train", "val"]
LONGEST_ANSWER = 60  # tokens, of the samples that are shown


@dataclass(frozen=True)
class Config(FineTuning):
    """Teach a model to answer, by supervised fine-tuning on conversations.

    Ctrl-C saves and stops; the same command resumes. Everything is written to one run directory.
    """

    not_the_run: ClassVar[frozenset[str]] = FineTuning.not_the_run | {"data", "ask"}  # of the data, its checksum counts

    data: Path | None = None
    """Conversations: a JSON list or JSON lines, as Alpaca (instruction, input, output) or chat (messages). By default
    the questions and answers that come with this project."""
    held_out: Annotated[float, Range(0, 0.5, open_below=True)] = 0.05
    """Share of --data that is kept for validation; what comes with the project is divided already."""
    examples: Count | None = None
    """Learn from so many of the conversations only; by default from all."""
    template: Literal["chatml", "alpaca"] = "chatml"
    """How conversations are written. chatml adds two special tokens to a vocabulary that lacks them, and LoRA could not
    train those."""
    row_length: Tokens | None = None
    """Tokens of a row, which holds several conversations; longer ones lose the beginning of their prompt. By default
    as many as the model's context. A batch is so many rows."""
    neftune: Annotated[float, Range(0, 1000)] = 0.0
    """Noise on the embeddings while training, 5 to 15 in the paper; 0 for none."""
    ask: tuple[str, ...] = ("Hello, how are you?", "Who marries Mr. Darcy?", "What is the capital of France?")
    """Questions that are answered before and after, to be looked at."""


PRESETS = {
    "demo": Config(
        base=Path("runs/demo"), out=Path("runs/demo-chat"), epochs=10, batch_size=8, lr=1e-3, eval_every=20,
    ),
    "alpaca": Config(
        pretrained="gpt2", out=Path("runs/alpaca"), template="alpaca", batch_size=16, micro_batch_size=4,
    ),
}  # fmt: skip


def main(config: Config) -> bool:
    """Train from the run's newest checkpoint, or from the base. Return False if it was stopped before the last step.

    Raises:
        InputError: for data, settings, a base or a run directory that cannot be used; if another process trains in it.
    """
    with training_in(config.out, config.device) as world:
        template = TEMPLATES[config.template]
        base = load_base(config, world)
        missing = template.missing(base.tokenizer)
        if missing and config.lora_rank is not None:
            raise InputError(
                f"LoRA would not train the embeddings of {' and '.join(missing)}, which the vocabulary lacks: give "
                "--template alpaca, or no --lora-rank"
            )
        return train(config, template, add_tokens(base, missing), world)


def train(config: Config, template: Template, base: Base, world: World) -> bool:
    """Put data, objective and model together, train, and show what has changed.

    Args:
        config: what the user asked for.
        template: how conversations are written.
        base: what the run begins with, with the template's tokens.
        world: the processes.
    """
    length = min(config.row_length or base.model.config.context_length, base.model.config.context_length)
    rows = {split: make_rows(config, split, template, base.tokenizer, length) for split in ("train", "val")}
    weighted = any(weight not in (0, 1) for each in rows["train"].encoded for weight in each.weights)
    world.from_main(lambda: open_run(config, base, {"sha256": checksum(config.data)}, template=template.name))
    before = samples(base.model, base.tokenizer, template, config.ask) if world.is_main and base.is_new else []
    if config.neftune:
        add_noise(base.model, config.neftune)
    batches = ResumableLoader(
        rows["train"], config.batch_size, config.seed, device=world.device, rank=world.rank, n_ranks=world.size
    )

    validation = one_pass(rows["val"], config.micro_batch_size or config.batch_size)
    steps = steps_of(config, len(rows["train"]))
    finished = fine_tune(config, base.model, Answers(weighted=weighted), batches, lambda: validation, steps, world)
    if finished and world.is_main and config.ask:
        show_answers(config.ask, before, samples(base.model, base.tokenizer, template, config.ask))
    return finished


def make_rows(
    config: Config, split: Split, template: Template, tokenizer: Tokenizer, length: int
) -> PackedConversations:
    """Return the rows of a split, and say what had to be cut or left out.

    Raises:
        InputError: if the data cannot be read, or nothing of it is left.
    """
    conversations = conversations_of(config, split)
    if split == "train":
        conversations = conversations[: config.examples]
    fitted = fit_into((template.encode(each, tokenizer) for each in conversations), length)
    where = config.data or "the project's own questions"
    if not fitted.kept:
        raise InputError(f"{where}: no answer of the {split} conversations fits into {length} tokens")
    rows = PackedConversations(fitted.kept, length)
    log.info(
        "%s: %s conversations for %s in %s rows of %s tokens; %s lost the beginning of their prompt, %s are left out",
        where, f"{len(fitted.kept):,}", split, f"{len(rows):,}", length, fitted.n_cut, fitted.n_dropped,
    )  # fmt: skip
    return rows


def conversations_of(config: Config, split: Split) -> Sequence[Conversation]:
    """Return the conversations of a split; of a user's data, every so manieth is held out, the same each time."""
    if config.data is None:
        return load_conversations(split)
    return divide(read_conversations(config.data), config.held_out, split, config.data)


def samples(model: GPT, tokenizer: Tokenizer, template: Template, questions: Sequence[str]) -> list[str]:
    """Return the likeliest answer to each question, or its beginning."""
    asked = [Conversation.ask(question) for question in questions]
    generator = TextGenerator(model.eval(), tokenizer)
    return answers(generator, template, asked, temperature=0.0, max_new_tokens=LONGEST_ANSWER)


def show_answers(questions: Sequence[str], before: Sequence[str], after: Sequence[str]) -> None:
    """Print each question with its answer from before training, if there is one, and from after."""
    for number, (question, new) in enumerate(zip(questions, after, strict=True)):
        show(f"\n{question}\n")
        if before:
            show(f"  before  {' '.join(before[number].split())}\n")
        show(f"  after   {' '.join(new.split())}\n")


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
