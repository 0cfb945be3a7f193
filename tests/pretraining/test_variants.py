"""Every kind of attention goes all the way: trained, stopped, resumed, loaded, and made to write."""

import dataclasses
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gpt_model import GPT, GPTConfig, Sampling, TextGenerator
from gpt_model.run_directory import load_tokenizer
from gpt_model.sampling import choose
from pretraining import simple
from pretraining.metrics import read_metrics
from tests.tiny_run import tiny
from utils.files import InputError, sha256
from utils.hardware import compiler_works
from utils.interrupt import stop_on_signal

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 9  # the context is 32
VARIANTS: dict[str, dict[str, object]] = {
    "mha-rope": {"position": "rope"},
    "gqa": {"attention": "gqa", "n_kv_groups": 2},
    "gqa-rope": {"attention": "gqa", "n_kv_groups": 1, "position": "rope"},
    "mla": {"attention": "mla", "latent_dim": 12},
    "mla-rope": {"attention": "mla", "latent_dim": 12, "rope_dim": 4, "position": "rope"},
    "swa": {"attention": "swa", "window_size": WINDOW},
    "swa-rope-sinks": {"attention": "swa", "window_size": WINDOW, "n_sinks": 2, "position": "rope"},
}
NEW_FIELDS = ("attention", "n_kv_groups", "latent_dim", "rope_dim", "window_size", "n_sinks", "position", "schedule")
NEW_MODEL_FIELDS = (*NEW_FIELDS, "query_latent_dim", "latent_norm")


class Trained(NamedTuple):
    """A run, its model as it left training, and the weights it began with."""

    run: Path
    model: GPT
    initial: dict[str, Tensor]


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("variants") / request.param
    config = tiny(data, out, n_heads=4, steps=90, eval_every=30, checkpoint_every=100, **VARIANTS[request.param])
    trainer = simple.Trainer(*simple.open_run(config))
    initial = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with stop_on_signal() as stop:
        simple.run_steps(trainer, stop)
    return Trained(out, trainer.model.eval(), initial)


class TestTrained:
    def test_learns(self, trained: Trained) -> None:
        losses = [line["val_loss"] for line in read_metrics(trained.run) if "val_loss" in line]
        assert len(losses) == 3
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 5.6 < math.log(512)

    def test_every_weight_moved(self, trained: Trained) -> None:
        for name, weight in trained.model.state_dict().items():
            assert not torch.equal(weight, trained.initial[name]), name

    def test_loads_as_it_was(self, trained: Trained, persuasion: str) -> None:
        ids = torch.tensor([load_tokenizer(trained.run).encode(persuasion[:500])[:32]])
        loaded = GPT.from_run(trained.run)
        assert loaded.config == trained.model.config
        with torch.no_grad():
            assert torch.equal(loaded(ids)[0], trained.model(ids)[0])

    @pytest.mark.parametrize("temperature", [0, 1])
    @pytest.mark.parametrize("prompt_length", [1, 20, 40])
    def test_generates_what_full_passes_give(
        self, trained: Trained, persuasion: str, prompt_length: int, temperature: float
    ) -> None:
        """Far past the context, from prompts shorter and longer than the window, and one beyond the context."""
        generator = TextGenerator(GPT.from_run(trained.run), load_tokenizer(trained.run))
        prompt = generator.tokenizer.encode(persuasion[:500])[:prompt_length]
        sampling = Sampling(temperature=temperature, max_new_tokens=80, seed=3, stop_tokens=())
        tokens = list(generator.tokens(prompt, sampling))
        assert tokens == by_full_passes(trained.model, prompt, 80, temperature, seed=3)
        assert len(set(tokens)) > 10 * temperature

    def test_writes_text(self, trained: Trained) -> None:
        generator = TextGenerator(GPT.from_run(trained.run), load_tokenizer(trained.run))
        text = generator.generate("Sir Walter", max_new_tokens=50, seed=0)
        assert text
        assert text == generator.generate("Sir Walter", max_new_tokens=50, seed=0)

    def test_without_a_table_of_positions_there_is_none(self, trained: Trained) -> None:
        names = trained.model.state_dict()
        assert ("position_embedding.weight" in names) == (trained.model.config.position == "learned")


@torch.no_grad()
def by_full_passes(model: GPT, prompt: list[int], n: int, temperature: float, seed: int) -> list[int]:
    """No cache: the model reads everything again for each token. A full context loses its older half."""
    sampling = Sampling(temperature=temperature, seed=seed)
    generators = sampling.generators(1)
    context = model.config.context_length
    seen, written = prompt[-context:], []
    for _ in range(n):
        if len(seen) > context:
            seen = seen[-(context // 2) :]
        logits_1TV, _ = model(torch.tensor([seen]))
        written.append(int(choose(logits_1TV[:, -1], sampling, generators)))
        seen = [*seen, written[-1]]
    return written


class TestExactResume:
    @pytest.mark.parametrize("name", ["gqa-rope", "mla", "mla-rope", "swa", "swa-rope-sinks"])
    def test_stopping_at_any_step(self, data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        config = tiny(data, tmp_path / "whole", n_heads=4, steps=6, dropout=0.2, **VARIANTS[name])
        assert simple.main(config)
        stopped = dataclasses.replace(config, out=tmp_path / "stopped")
        stop_after_each_step(monkeypatch)
        assert [simple.main(stopped) for _ in range(6)] == [False] * 5 + [True]
        assert sha256(stopped.out / "model.safetensors") == sha256(config.out / "model.safetensors")

    def test_another_variant_is_another_run(self, data: Path, tmp_path: Path) -> None:
        config = tiny(data, tmp_path / "run", steps=1, **VARIANTS["swa"])
        assert simple.main(config)
        for changes, message in (
            ({"window_size": 5}, "holds a run with window_size 9, not 5"),
            ({"attention": "mha"}, "holds a run with attention swa, not mha"),
            ({"position": "rope"}, "holds a run with position learned, not rope"),
        ):
            with pytest.raises(InputError, match=message):
                simple.main(dataclasses.replace(config, **changes))


def stop_after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    step = simple.Trainer.step

    def step_then_ctrl_c(trainer: simple.Trainer) -> float:
        loss = step(trainer)
        os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(simple.Trainer, "step", step_then_ctrl_c)


class TestOldRuns:
    """A run directory from when there was only one kind of attention, and of schedule."""

    def test_loads(self, finished_run: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        make_old(run)
        ids = torch.arange(32)[None]
        with torch.no_grad():
            assert torch.equal(GPT.from_run(run)(ids)[0], GPT.from_run(finished_run)(ids)[0])

    def test_a_finished_one_is_left_as_it_is(self, data: Path, finished_run: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        make_old(run)
        before = sha256(run / "model.safetensors")
        assert simple.main(tiny(data, run, snapshot_every=6))
        assert sha256(run / "model.safetensors") == before

    def test_resumes(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = tiny(data, tmp_path / "old", snapshot_every=6)
        with monkeypatch.context() as patch:
            stop_after_each_step(patch)
            assert not simple.main(config)
        make_old(config.out)
        assert simple.main(config)
        whole = tiny(data, tmp_path / "whole", snapshot_every=6)
        assert simple.main(whole)
        assert sha256(config.out / "model.safetensors") == sha256(whole.out / "model.safetensors")

    def test_is_not_taken_for_another_variant(self, data: Path, finished_run: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        make_old(run)
        for changes, message in (
            (VARIANTS["swa"], "holds a run with attention mha, not swa"),
            ({"position": "rope"}, "holds a run with position learned, not rope"),
            ({"schedule": "linear"}, "holds a run with schedule cosine, not linear"),
        ):
            with pytest.raises(InputError, match=message):
                simple.main(tiny(data, run, snapshot_every=6, **changes))


def make_old(run: Path) -> None:
    """Take the fields out of config.json that it did not have then."""
    stored = json.loads((run / "config.json").read_bytes())
    for part, names in (("model", NEW_MODEL_FIELDS), ("training", NEW_FIELDS)):
        stored[part] = {name: value for name, value in stored[part].items() if name not in names}
    (run / "config.json").write_text(json.dumps(stored))


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_learns_the_same(data: Path, tmp_path: Path, name: str) -> None:
    """Nearly: its digits are fewer."""
    losses = []
    for precision in ("float32", "bfloat16"):
        config = tiny(data, tmp_path / precision, n_heads=4, steps=5, precision=precision, **VARIANTS[name])
        assert simple.main(config)
        losses.append(read_metrics(config.out)[-1]["val_loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_cache_takes_what_autocast_makes(name: str) -> None:
    """Weights and cache are float32, keys and values come as bfloat16; rows of different lengths, too."""
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset("tiny", **{**VARIANTS[name], "n_heads": 4})).eval()
    ids = torch.randint(512, (2, 20))
    expected, _ = model(ids)
    cache = model.new_cache(2)
    with torch.autocast("cpu", torch.bfloat16):
        model(ids[:, :5], cache=cache)
        cache.reset([1])
        ragged, _ = model(ids[:, 5:12], cache=cache)  # the second row begins with token 5
        cache.reset()
        logits = [model(chunk, cache=cache)[0] for chunk in ids.split([12, 1, 7], dim=1)]
    near = {"rtol": 0, "atol": 0.05 * expected.std().item()}
    torch.testing.assert_close(ragged[0].float(), expected[0, 5:12], **near)
    torch.testing.assert_close(ragged[1].float(), model(ids[1:, 5:12])[0][0], **near)
    torch.testing.assert_close(torch.cat(logits, 1).float(), expected, **near)


class TestBadValues:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"attention": "gqa", "n_kv_groups": 3}, "n_kv_groups must divide n_heads, got 3 groups for 4 heads"),
            ({"attention": "gqa", "n_kv_groups": 0}, "n_kv_groups must be at least 1 and .*, got 0"),
            ({"attention": "mla", "latent_dim": 0}, "latent_dim must be at least 1 and .*, got 0"),
            ({"attention": "mla", "rope_dim": 5, "position": "rope"}, "rope_dim must be even .*, got 5"),
            ({"attention": "swa", "window_size": 0}, "window_size must be at least 1 and .*, got 0"),
            ({"attention": "swa", "n_sinks": -1}, "n_sinks must be at least 0 and .*, got -1"),
            ({"attention": "linear"}, "attention must be one of mha, gqa, mla, swa, got 'linear'"),
            ({"position": "alibi"}, "position must be one of learned, rope, got 'alibi'"),
            ({"position": "rope", "d_model": 36}, "rope needs heads of even size, got 9"),
        ],
    )
    def test_are_named_before_anything_is_written(
        self, data: Path, tmp_path: Path, changes: dict[str, object], message: str
    ) -> None:
        with pytest.raises(InputError, match=message) as caught:
            simple.main(tiny(data, tmp_path / "run", **{"n_heads": 4, **changes}))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"attention": "linear"}, "attention must be one of mha, gqa, mla, swa, got 'linear'"),
            ({"attention": "gqa", "n_kv_groups": 3}, "n_kv_groups must divide n_heads, got 3 groups for 2 heads"),
            ({"attention": "gqa", "n_kv_groups": 1}, "holds another model's weights"),
            ({"position": "rope"}, "holds another model's weights: position_embedding.weight"),
            ({"n_neurons": 8}, "unknown field 'n_neurons'"),
        ],
    )
    def test_in_a_config_file(
        self, finished_run: Path, tmp_path: Path, changes: dict[str, object], message: str
    ) -> None:
        run = tmp_path / "run"
        shutil.copytree(finished_run, run)
        stored = json.loads((run / "config.json").read_bytes())
        stored["model"].update(changes)
        (run / "config.json").write_text(json.dumps(stored))
        with pytest.raises(InputError, match=message) as caught:
            GPT.from_run(run)
        assert "\n" not in str(caught.value)
        assert str(run) in str(caught.value)

    def test_of_another_kind_of_attention_do_not_matter(self) -> None:
        ids = torch.arange(20)[None]
        for ignored, plain in (
            ({"n_kv_groups": 3, "window_size": 1, "latent_dim": 1, "rope_dim": 1, "n_sinks": 5}, {}),
            ({"attention": "mla", "rope_dim": 1}, {"attention": "mla"}),  # without rope
        ):
            logits = []
            for changes in (ignored, plain):
                torch.manual_seed(0)
                logits.append(GPT(GPTConfig.preset("tiny", **changes))(ids)[0])
            assert torch.equal(*logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        *((name, "as they come") for name in ("mla-rope", "swa-rope-sinks")),
        *(pytest.param(name, "as they come", marks=pytest.mark.exhaustive) for name in ("gqa-rope", "mla")),
        *((name, "left open") for name in ("mha", "swa-rope-sinks")),  # as after a few calls of different lengths
    ],
)
def test_compiles_without_a_break(name: str, lengths: str) -> None:
    """One graph forward, one backward; the loss and the gradients of the model as it stands.

    Exhaustively, machine code is made for two more kinds, whose graphs `test_large_models` looks at day by day.
    """
    if not compiler_works("cpu"):
        pytest.skip("there is no compiler")
    torch._dynamo.reset()  # what earlier tests compiled decides what the compiler takes for granted
    torch.manual_seed(0)
    # long enough for a window to be computed in blocks; of one layer, since a second is compiled like the first
    changes = {**VARIANTS.get(name, {}), "n_heads": 4, "n_layers": 1}
    model = GPT(GPTConfig.preset("tiny", context_length=160, **changes))
    ids = torch.randint(512, (2, 160))
    left_open = lengths == "left open"  # it is the graph that must not break: machine code for it takes a minute
    backend = "aot_eager" if left_open else "inductor"
    results = []
    for forward in (model, torch.compile(model, fullgraph=True, dynamic=left_open, backend=backend)):
        _, loss = forward(ids, ids.roll(-1, dims=1))
        loss.backward()
        results.append((loss.detach(), {key: weight.grad for key, weight in model.named_parameters()}))
        model.zero_grad()
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
