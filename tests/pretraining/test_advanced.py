"""The advanced trainer: the steps of the simple one, exact resume in any number of processes, one line for mistakes."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt_model import GPT, GPTConfig
from pretraining import advanced, choices, least_memory, simple
from pretraining.advanced_config import ADVANCED_PRESETS, AdvancedConfig
from pretraining.checkpoint import SHARDS, list_checkpoints, step_of
from pretraining.engine import World, world
from pretraining.metrics import read_metrics
from tests.processes import finish, start
from tests.tiny_run import tiny
from utils.files import InputError, sha256
from working_with_text_data.shards import write_shard

HERE = World(torch.device("cpu"))


def tiny_advanced(data: Path, out: Path, **changes: Any) -> AdvancedConfig:
    """The tests' tiny run for the advanced trainer."""
    return AdvancedConfig(**{**vars(tiny(data, out)), **changes})


def flags(config: AdvancedConfig) -> list[str]:
    """The flags of a command that make a configuration, where it differs from the defaults."""
    found: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            found += [f"--{field.name.replace('_', '-')}", str(value)]
    return found


@pytest.fixture(autouse=True)
def freed_memory_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advanced, "keep_freed_memory", lambda: None)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_one_process_takes_the_steps_of_the_simple_trainer(data: Path, tmp_path: Path, optimizer: str) -> None:
    """Loss for loss, and bit for bit, dropout included."""
    changes = {"optimizer": optimizer, "dropout": 0.1, "weight_decay": 0.1, "steps": 20}
    config = tiny_advanced(data, tmp_path / "advanced", **changes)
    assert advanced.main(config)
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(simple.Config)}
    assert simple.main(simple.Config(**{**shared, "out": tmp_path / "simple"}))
    ones, others = (read_metrics(tmp_path / name) for name in ("simple", "advanced"))
    assert [line["loss"] for line in ones] == [line["loss"] for line in others]
    assert [line["val_loss"] for line in ones if "val_loss" in line] == pytest.approx(
        [line["val_loss"] for line in others if "val_loss" in line], rel=1e-6
    )
    assert sha256(tmp_path / "simple" / "model.safetensors") == sha256(tmp_path / "advanced" / "model.safetensors")


def test_a_run_that_stops_again_and_again_ends_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_advanced(
        data, tmp_path / "whole", dropout=0.2, ema=0.9, plateau=1, early_stopping=9, skip_spikes=True
    )
    assert advanced.main(config)
    stopped = dataclasses.replace(config, out=tmp_path / "stopped")
    step = advanced.Engine.step

    def step_then_ctrl_c(engine: Any, *arguments: Any, **named: Any) -> Any:
        info = step(engine, *arguments, **named)
        os.kill(os.getpid(), signal.SIGINT)
        return info

    monkeypatch.setattr(advanced.Engine, "step", step_then_ctrl_c)
    assert [advanced.main(stopped) for _ in range(12)] == [False] * 11 + [True]
    assert sha256(stopped.out / "model.safetensors") == sha256(config.out / "model.safetensors")
    states = [torch.load(list_checkpoints(run)[0] / "state.pt", weights_only=True) for run in (config.out, stopped.out)]
    for name, tensor in states[0]["callbacks"]["MovingAverage"]["average"].items():
        assert torch.equal(states[1]["callbacks"]["MovingAverage"]["average"][name], tensor)


@pytest.mark.slow
def test_a_run_goes_on_in_any_number_of_processes_and_after_a_worker_is_killed(data: Path, tmp_path: Path) -> None:
    """Twelve steps by two processes, and twelve more: by two, one of them killed on the way, by one, and by four."""
    changes = {"checkpoint_every": 1, "eval_every": 24, "batch_size": 8, "timeout": 240.0}

    def command(name: str, **others: Any) -> list[str]:
        return ["pretraining.advanced", *flags(tiny_advanced(data, tmp_path / name, **{**changes, **others}))]

    finish(start(2, *command("two", steps=12)))
    for name in ("killed", "one", "four"):
        shutil.copytree(tmp_path / "two", tmp_path / name)
    finish(start(2, *command("two", steps=24)))
    processes = start(2, *command("killed", steps=24))
    deadline = time.monotonic() + 300
    while step_of(list_checkpoints(tmp_path / "killed")[0]) < 14:
        assert time.monotonic() < deadline
        assert processes[0].poll() is None
        time.sleep(0.01)
    processes[1].kill()  # one is enough: the other notices that it is alone
    assert processes[0].wait(300) != 0
    for process in processes:
        process.communicate()
    finish(start(2, *command("killed", steps=24)))
    assert sha256(tmp_path / "killed" / "model.safetensors") == sha256(tmp_path / "two" / "model.safetensors")
    assert advanced.main(tiny_advanced(data, tmp_path / "one", **changes, steps=24))
    finish(start(4, *command("four", steps=24, parallel="fsdp")))
    losses = [read_metrics(tmp_path / name)[-1]["val_loss"] for name in ("two", "one", "four")]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    # what four processes wrote side by side is what one process goes on from
    assert len(list((list_checkpoints(tmp_path / "four")[0] / SHARDS).glob("*.distcp"))) == 4
    for name in ("one", "four"):
        assert advanced.main(tiny_advanced(data, tmp_path / name, **changes, steps=27))
    losses = [read_metrics(tmp_path / name)[-1]["val_loss"] for name in ("one", "four")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


class TestChoices:
    def test_the_largest_micro_batch_is_found_by_running_out_of_memory(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a GPU does when its memory is full, told by an error of the same kind."""
        tried: list[int] = []

        def try_rows(rows: int) -> None:
            tried.append(rows)
            if rows > 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

        config = tiny_advanced(data, tmp_path, batch_size=12)
        gpu = World(torch.device("cuda"))
        assert choices.choose_micro_batch(config, GPTConfig.preset("tiny"), gpu, try_rows) == 4
        assert tried == [12, 6, 4]

    def test_another_error_is_not_taken_for_a_lack_of_memory(self, data: Path, tmp_path: Path) -> None:
        def broken(rows: int) -> None:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        config = tiny_advanced(data, tmp_path)
        with pytest.raises(RuntimeError, match="mat1"):
            choices.choose_micro_batch(config, GPTConfig.preset("tiny"), World(torch.device("cuda")), broken)

    def test_on_a_cpu_a_formula_tells(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = tiny_advanced(data, tmp_path, batch_size=64)
        model = GPTConfig.preset("tiny")
        needed = choices.training_memory(model, 16, config.context_length, autocast=False, optimizer="muon").total
        monkeypatch.setattr(choices, "available_memory", lambda: needed / choices.SHARE_OF_MEMORY + 1)
        assert choices.choose_micro_batch(config, model, HERE, lambda rows: None) == 16

    def test_trying_leaves_no_trace(self, data: Path, tmp_path: Path) -> None:
        config = tiny_advanced(data, tmp_path, parallel="ddp")
        engine = advanced.make_engine(config, GPTConfig.preset("tiny"), HERE)
        before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
        ids = torch.randint(512, (2, 33))
        choices.passes(engine, engine.objective, lambda rows: (ids[:rows, :-1], ids[:rows, 1:]))(2)
        assert all(torch.equal(before[name], tensor) for name, tensor in engine.model.state_dict().items())
        assert all(parameter.grad is None for parameter in engine.model.parameters())

    def test_the_vocabulary_is_padded_where_it_pays_and_stays_as_it_was(self, data: Path, tmp_path: Path) -> None:
        config = tiny_advanced(data, tmp_path / "run", steps=1)
        on_gpu = choices.choose_before_data(config, World(torch.device("cuda")))
        assert on_gpu.vocab_multiple == 64
        assert choices.choose_before_data(config, HERE).vocab_multiple == 1
        advanced.main(config)
        assert choices.choose_before_data(config, World(torch.device("cuda"))).vocab_multiple == 1

    @pytest.mark.parametrize(("parallel", "fits"), [("ddp", False), ("zero1", True), ("fsdp", True), ("auto", True)])
    def test_what_fits_in_parts_is_not_refused(
        self, parallel: str, fits: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """GPT-2 XL on eight devices of 16 GB each: weights and gradients take 12.5 GB, the optimizer 6.6 GB."""
        monkeypatch.setattr(least_memory, "total_memory", lambda device: 16e9)
        config = dataclasses.replace(ADVANCED_PRESETS["gpt2-xl"], parallel=parallel, checkpoint_activations=True)
        model = GPTConfig.preset("gpt2-xl", checkpoint_activations=True)
        with contextlib.nullcontext() if fits else pytest.raises(InputError, match="a training step would need 19"):
            least_memory.check_memory(config, model, HERE.device, 8)
        with pytest.raises(InputError, match="and cpu has 16.0 GB"):
            least_memory.check_memory(config, model, HERE.device)

    def test_what_does_not_fit_is_sharded(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        two = World(torch.device("cpu"), 0, 2)
        config, model = tiny_advanced(data, tmp_path), GPTConfig.preset("tiny")
        assert choices.choose_parallel(config, model, two).parallel == "ddp"
        monkeypatch.setattr(choices, "total_memory", lambda device: 1e5)
        assert choices.choose_parallel(config, model, two).parallel == "fsdp"


def test_a_run_goes_on_where_it_was_though_there_is_another_device(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a run on the CPU is resumed, with --device auto, on a machine with a GPU."""
    config = tiny_advanced(data, tmp_path / "run", steps=1)
    assert advanced.main(config)
    picked: list[str] = []
    monkeypatch.setattr(world, "pick_device", lambda name: picked.append(name) or HERE.device)
    assert advanced.main(dataclasses.replace(config, device="auto", steps=2))
    assert picked == ["cpu"]


def test_finewebs_shards_are_read_once_the_tokenizer_of_gpt2_lies_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command of the README; shards are named, and written, as FineWeb's are."""
    tokens = np.random.default_rng(0).integers(0, 50257, 2000).astype(np.uint16)
    (tmp_path / "fineweb").mkdir()
    for name in ("fineweb_train_000001.bin", "fineweb_val_000000.bin"):
        write_shard(tmp_path / "fineweb" / name, tokens)
    monkeypatch.chdir(tmp_path)
    config = tiny_advanced(Path("fineweb"), tmp_path / "run", steps=1, d_model=8)
    with pytest.raises(InputError, match=r"fineweb has no tokenizer, bpe\.json"):
        advanced.main(config)
    readme = (Path(advanced.__file__).parent / "README.md").read_text(encoding="utf-8")
    exec(re.search(r'^python -c "(.*fineweb/bpe\.json.*)"$', readme, re.MULTILINE)[1])
    assert advanced.main(config)


def test_early_stopping_ends_the_run(data: Path, tmp_path: Path) -> None:
    config = tiny_advanced(data, tmp_path / "run", lr=1.0, matrix_lr=5.0, steps=40, eval_every=1, early_stopping=1)
    assert advanced.main(config)
    assert read_metrics(config.out)[-1]["step"] < 40
    assert isinstance(GPT.from_run(config.out), GPT)


def test_presets_are_what_the_names_say() -> None:
    classic = ADVANCED_PRESETS["classic"]
    assert (classic.batch_size, classic.lr, classic.steps, classic.warmup * classic.steps) == (64, 3e-4, 100_000, 2000)
    assert (classic.position, classic.schedule) == ("learned", "cosine")
    assert (classic.eval_every, classic.checkpoint_every, classic.weight_decay, classic.clip) == (1000, 5000, 0.1, 1.0)
    for name in ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        preset, model = ADVANCED_PRESETS[name], GPTConfig.preset(name)
        assert (preset.d_model, preset.n_layers, preset.n_heads) == (model.d_model, model.n_layers, model.n_heads)
        assert preset.batch_size * preset.context_length == 2**19


class TestMistakes:
    """Each is one line, before work begins."""

    def test_an_unknown_tracker(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no tracker 'neptune': choose from tensorboard, wandb"):
            tiny_advanced(data, tmp_path, trackers=("neptune",))

    def test_a_batch_that_processes_cannot_share(self, data: Path, tmp_path: Path) -> None:
        three = World(torch.device("cpu"), 0, 3)
        with pytest.raises(InputError, match="3 processes cannot share a batch of 4 sequences evenly"):
            choices.choose_before_data(tiny_advanced(data, tmp_path), three)

    @pytest.mark.parametrize("precision", ["float16", "tf32"])
    def test_a_precision_for_gpus(self, data: Path, tmp_path: Path, precision: str) -> None:
        with pytest.raises(InputError, match=f"{precision} needs a GPU, not cpu: give --precision"):
            advanced.main(tiny_advanced(data, tmp_path / "run", precision=precision))
        assert not (tmp_path / "run").exists()

    def test_another_run(self, data: Path, tmp_path: Path) -> None:
        simple.main(tiny(data, tmp_path / "run", steps=1))
        with pytest.raises(InputError, match="holds a run with trainer simple, not advanced"):
            advanced.main(tiny_advanced(data, tmp_path / "run", steps=1))

    def test_a_disk_that_is_too_small(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(choices.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(InputError, match="a checkpoint needs some 0 MB, and the disk of"):
            advanced.main(tiny_advanced(data, tmp_path / "run"))

    def test_a_process_that_never_comes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", "0")
        with pytest.raises(InputError, match=r"the 2 processes did not meet at 127.0.0.1:0 within 0.2 s"):
            advanced.main(AdvancedConfig(data=tmp_path, timeout=0.2))

    def test_a_port_in_use(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            variables = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
            for name, value in {**variables, "MASTER_PORT": str(port)}.items():
                monkeypatch.setenv(name, value)
            with pytest.raises(InputError, match=rf"did not meet at 127.0.0.1:{port} .* is the port free\?"):
                advanced.main(AdvancedConfig(data=tmp_path, timeout=5))

    def test_documents_without_an_end(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(advanced, "END_OF_TEXT", "<|nothing|>")
        with pytest.raises(InputError, match="has no <|nothing|>, so --documents cannot tell them apart"):
            advanced.main(tiny_advanced(data, tmp_path / "run", documents=True))
