"""Learn to add from nothing but "right" and "wrong": reinforcement on a task whose answers a program can check.

    python -m finetuning.instruction.reinforce

A tiny model first sees some sums with their results, just long enough to know what an answer looks like. From then on
nobody shows it a result: it guesses, and guesses that were right become likelier (`policy_gradient.py`). It sees all
100 sums of two digits, so this shows that a reward alone can teach, and not that the model can add what it never met.
"""

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch

from finetuning.config import FineTuning
from finetuning.instruction.policy_gradient import LogReward, PolicyGradient, Rollouts, answer_targets
from finetuning.run import Base, check_new, fine_tune, goes_on, make_optimizer, open_run
from gpt_model import GPT, GPTConfig
from gpt_model.generation import END_OF_TEXT
from gpt_model.run_directory import read_config
from pretraining.config import Rate, Steps
from pretraining.engine import Engine, NextToken, Settings, World
from pretraining.metrics import draw_loss
from pretraining.open_run import training_in
from utils.command_line import show
from utils.files import InputError, write_atomically
from utils.ranges import Range, Seed, check_ranges
from working_with_text_data.minbpe import RegexTokenizer

log = logging.getLogger(__name__)

PROMPTS = [f"{a}+{b}=" for a in range(10) for b in range(10)]
N_NEW = 3  # tokens of an answer: two digits, and the end
SUPERVISED_BATCH, SUPERVISED_LR = 32, 2e-3
RESULTS = "results.json"


@dataclass(frozen=True)
class Config:
    """Teach a tiny model to add two digits by reinforcement.

    Ctrl-C saves and stops; the same command resumes. Everything is written to one run directory.
    """

    out: Path = Path("runs/addition")
    """The run directory that is written. If it holds a run with the same settings, that run goes on."""
    fresh: bool = False
    """Delete the run in --out and start over. A folder that holds anything else is left as it is."""
    supervised_steps: Annotated[int, Range(0, 10**6)] = 55
    """Steps of next-token prediction on sums with results, 32 sums each, before reinforcement begins."""
    steps: Steps = 400
    """Steps of reinforcement."""
    prompts: Annotated[int, Range(1, len(PROMPTS))] = 32
    """Sums per step, rather those that are still answered wrongly."""
    siblings: Annotated[int, Range(2, 2**16)] = 32
    """Answers to each of them, which are compared with one another."""
    lr: Rate = 5e-4
    """Peak learning rate. Too high a rate, or too few answers per step, and the model soon says one thing only: what is
    not drawn any more cannot be rewarded."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""
    seed: Seed = 0
    """Decides initial weights, the sums of each step, and what is drawn."""
    eval_every: Steps = 25
    """Steps between two looks at the likeliest answers to all 100 sums."""
    checkpoint_every: Steps = 50
    """Steps between two checkpoints. The newest two are kept."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def fine_tuning(self) -> FineTuning:
        """Return these settings as those of any fine-tuning run."""
        return FineTuning(
            out=self.out, fresh=self.fresh, batch_size=self.prompts * self.siblings, lr=self.lr, early_stopping=None,
            precision="float32", device=self.device, seed=self.seed, eval_every=self.eval_every,
            checkpoint_every=self.checkpoint_every,
        )  # fmt: skip


PRESETS = {"demo": Config()}


def reward(prompt: str, answer: str) -> float:
    """Return 1 for the sum, 0 for anything else."""
    a, b = prompt.removesuffix("=").split("+")
    return float(answer == str(int(a) + int(b)))


def main(config: Config) -> dict[str, float] | None:
    """Train, and return the shares of sums whose likeliest answer is right, before reinforcement and after.

    None, if it was stopped before the last step.

    Raises:
        InputError: for settings or a run directory that cannot be used; if another process trains in it.
    """
    tuning = config.fine_tuning()
    with training_in(config.out, config.device) as world:
        if world.size > 1:
            raise InputError(f"a model this small is trained by one process, not by {world.size}")
        is_new = not goes_on(tuning)
        if is_new:
            check_new(tuning)
        base = new_base(config.seed, {} if is_new else read_config(config.out))
        names = ("supervised_steps", "steps", "prompts", "siblings")
        open_run(tuning, base, {"task": "addition", **{name: getattr(config, name) for name in names}})
        return train(config, base, world)


def new_base(seed: int, stored: dict[str, object]) -> Base:
    """Return an untrained model that reads bytes, and its tokenizer.

    Args:
        seed: decides its weights.
        stored: the config.json of the run that is there, if there is one.
    """
    tokenizer = RegexTokenizer()
    tokenizer.add_special_tokens(END_OF_TEXT)
    torch.manual_seed(seed)
    shape = {"context_length": 8, "d_model": 64, "n_layers": 2, "n_heads": 4}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    return Base(model, tokenizer, stored, is_new=not stored)


def train(config: Config, base: Base, world: World) -> dict[str, float] | None:
    """Show the model some sums, then let it guess; as `main`."""
    model = base.model.to(world.device)
    rollouts = Rollouts(
        model, base.tokenizer, PROMPTS, reward,
        n_prompts=config.prompts, n_siblings=config.siblings, n_new=N_NEW, seed=config.seed,
    )  # fmt: skip

    def measure(model: GPT) -> dict[str, float]:
        rewards = rollouts.greedy_rewards()
        exact = sum(rewards) / len(rewards)
        return {"val_loss": 1 - exact, "exact": exact}

    show_sums(rollouts, config.supervised_steps, config.seed, world)
    before = measure(model)["exact"]
    log.info("%.0f%% of the likeliest answers are right after %s steps", 100 * before, config.supervised_steps)
    finished = fine_tune(
        config.fine_tuning(), model, PolicyGradient(measure), rollouts, list, config.steps, world,
        callbacks=[LogReward(rollouts)],
    )  # fmt: skip
    draw_loss(config.out, "answer")
    if not finished:
        return None
    results = {"exact_before": before, "exact_after": measure(model)["exact"]}
    with write_atomically(config.out / RESULTS) as file:
        file.write(json.dumps(results, indent=1).encode())
    show(f"right before reinforcement: {before:.0%}, after: {results['exact_after']:.0%}\n")
    return results


def show_sums(rollouts: Rollouts, steps: int, seed: int, world: World) -> None:
    """Train the model on sums with their results for some steps."""
    rows = [(prompt, str(sum(map(int, prompt.removesuffix("=").split("+"))))) for prompt in PROMPTS]
    encoded = [rollouts.tokenizer.encode_ordinary(prompt + answer) for prompt, answer in rows]
    length = len(PROMPTS[0]) + N_NEW
    ids_QT = torch.tensor([ids + [rollouts.end] * (length - len(ids)) for ids in encoded], device=world.device)
    targets_QT = answer_targets(ids_QT, len(PROMPTS[0]), rollouts.end)
    adamw = partial(make_optimizer, lr=SUPERVISED_LR, weight_decay=0.0)
    engine = Engine(rollouts.model.train(), NextToken(), adamw, Settings(), world)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(PROMPTS), (SUPERVISED_BATCH,), generator=generator).to(world.device)
        engine.step([(ids_QT[chosen, :-1], targets_QT[chosen])], 1.0)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
