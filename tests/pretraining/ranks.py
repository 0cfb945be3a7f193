"""What `test_many_processes` has each process do: train in every way, and say how far it is from one process.

    python -m tests.pretraining.ranks FOLDER [WAY OPTIMIZER]

The processes meet by the variables that torchrun would set. The main one writes what it measured to FOLDER/found.json.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt_model import GPT, GPTConfig
from gpt_model.gpt import NOT_COUNTED
from pretraining import choices as choosing
from pretraining.advanced_config import AdvancedConfig
from pretraining.engine import Engine, NextToken, Settings, World, join_world
from pretraining.engine.callbacks import MovingAverage
from pretraining.engine.engine import split_batch
from pretraining.engine.sharded_files import load_shards
from pretraining.hellaswag import Example, HellaSwag
from pretraining.optimizers import make_optimizers

STEPS = 5
ROWS = 8


def batches(rank: int = 0, size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a process's rows of each batch, in which every row supervises another number of tokens, and one none."""
    generator = torch.Generator().manual_seed(1)
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    for _ in range(STEPS):
        ids = torch.randint(64, (ROWS, 17), generator=generator)
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].clone()
        for row in range(ROWS):
            targets[row, 2 * row + 2 :] = NOT_COUNTED
        targets[3] = NOT_COUNTED
        yield inputs[mine], targets[mine]


def first_rows(number: int) -> tuple[Tensor, Tensor]:
    """Return the first rows of the first batch."""
    inputs, targets = next(batches())
    return inputs[:number], targets[:number]


def search(world: World, engine: Engine, way: str) -> int:
    """Return what processes with GPUs choose as their micro-batch if the last of them has memory for two rows only."""
    config = AdvancedConfig(data=Path("none"), batch_size=ROWS, precision="float32", context_length=16, parallel=way)
    model_config = engine.model.config
    gpus = World(torch.device("cuda"), world.rank, world.size)
    is_last = world.rank == world.size - 1
    try_rows = choosing.passes(engine, engine.objective, first_rows)
    limit = choosing._memory_of_one(config, model_config, 2, world.size) / choosing.SHARE_OF_MEMORY + 1

    def run_out(rows: int) -> None:
        try_rows(rows)
        if way == "fsdp":
            raise AssertionError("this pass needs all processes")
        if is_last and rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    with mock.patch.object(choosing, "_free_memory", return_value=limit if is_last else 1e12):
        return choosing.choose_micro_batch(config, model_config, gpus, run_out)


def make_engine(world: World, way: str, optimizer: str, dtype: torch.dtype) -> Engine:
    """Return an engine with a tiny model, the same in every process; 65 rows and 33 channels divide by nothing."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=65, context_length=16, d_model=32, n_layers=3, n_heads=2)).to(dtype)

    def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
        return make_optimizers(
            model, optimizer, lr=0.01, matrix_lr=0.02, weight_decay=0.1, bfloat16=False, galore_every=3
        )

    engine = Engine(model, NextToken(), optimizers, Settings(parallel=way, clip=0.5), world)
    for each in engine.optimizers:
        if hasattr(each, "dtype"):  # Muon computes in float32 unless told otherwise
            each.dtype = dtype
    return engine


def train(engine: Engine, rank: int, size: int, micro: int) -> list[float]:
    """Take all steps; return their losses."""
    infos = [engine.step(split_batch(batch, micro), 1.0) for batch in batches(rank, size)]
    return engine.read(infos)[0]


class Letters:
    """A tokenizer with a token per letter."""

    def encode_ordinary(self, text: str) -> list[int]:
        return [ord(letter) % 64 for letter in text]


def choices(engine: Engine) -> dict[str, float]:
    """Return what HellaSwag's callback measures on 17 examples: of the passes, one process would take one more."""
    endings = "ox", "a fox", "the owls", "foxes"
    examples = [Example("abcdefghijklmnopqrstuvwxyz"[: number + 1], endings, number % 4) for number in range(17)]
    measures: dict[str, float] = {}
    HellaSwag(examples, Letters()).after_evaluation(engine, measures)
    return measures


def state_bytes(engine: Engine) -> int:
    """Return the bytes that this process's optimizers remember, the counts of steps apart."""
    tensors = [t for each in engine.optimizers for state in each.state.values() for t in state.values() if t.dim()]
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local)


def difference(ones: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    return max((ones[name] - others[name]).abs().max().item() for name in ones)


def compare(world: World, way: str, optimizer: str, folder: Path) -> dict[str, Any]:
    """Train with all processes, and alone; return the differences."""
    alone = World(world.device)
    reference = make_engine(alone, "none", optimizer, torch.float64)
    losses = train(reference, 0, 1, ROWS)
    engine = make_engine(world, way, optimizer, torch.float64)
    average = MovingAverage(engine, lambda: [], decay=0.5)
    found: dict[str, Any] = {"rows": world.all(search(world, engine, way))}
    found["loss"] = max(abs(a - b) for a, b in zip(train(engine, world.rank, world.size, 2), losses, strict=True))
    found["choices"], found["choices_alone"] = choices(engine), choices(reference)
    average.after_step(engine, 1)
    weights = engine.way.whole(engine.model.state_dict())
    states, writing = engine.way.save_states(engine.optimizers, folder)
    if writing is not None:
        writing.result()
        world.barrier()
        saved, states = states, load_shards(folder, states, reference.optimizers)
    whole_average = average.state_dict()["average"]
    found["bytes"] = world.gather(state_bytes(engine))
    found["bytes_alone"] = state_bytes(reference)
    if world.is_main:
        found["weights"] = difference(reference.model.state_dict(), weights)
        expected = [each.state_dict()["state"] for each in reference.optimizers]
        found["states"] = max(
            difference(a[index], b["state"][index]) for a, b in zip(expected, states, strict=True) for index in a
        )
        found["average_is_whole"] = all(whole_average[name].shape == each.shape for name, each in weights.items())
    # what was made whole must be what a new engine takes its part of: one more step is then the same
    together = world.all((weights, states))[0]
    again = make_engine(world, way, optimizer, torch.float64)
    mine = together[1] if writing is None else load_shards(folder, saved, again.optimizers)
    again.way.load_whole_states(again.optimizers, mine)
    again.model.load_state_dict(again.way.cut(again.model, together[0]))
    batch = next(batches(world.rank, world.size))
    for each in (engine, again):
        each.step([batch], 0.5)
    ones, others = (each.way.whole(each.model.state_dict()) for each in (engine, again))
    if world.is_main:
        found["after_reload"] = difference(ones, others)
    return found


PAIRS = [(way, optimizer) for way in ("ddp", "zero1", "fsdp") for optimizer in ("adamw", "muon", "galore")]
PAIRS.remove(("fsdp", "galore"))  # which is refused: GaLore looks at whole gradients


def main(folder: Path, pairs: list[tuple[str, str]]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with join_world("cpu", timeout=240) as world:
        found = {
            f"{way} {optimizer}": compare(world, way, optimizer, folder / f"{way}-{optimizer}")
            for way, optimizer in pairs
        }
        if world.is_main:
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [(sys.argv[2], sys.argv[3])] if len(sys.argv) > 2 else PAIRS)
