"""The benchmark compares what gives equal outputs, stores what it measured, and says what is wrong."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from gpt_model import GPT, GPTConfig
from gpt_model.benchmark import writing
from gpt_model.benchmark.__main__ import Config, main
from gpt_model.benchmark.writing import THEIRS, greedy, measure_quality
from gpt_model.config import PRESETS
from gpt_model.fast.decoder import FastDecoder
from utils.files import InputError

QUICK = Config(part="writing", quick=True, sizes=("demo",), device="cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small GPT-2 and few tokens, for a processor without a fast product of integers.

    Compiled steps have tests of their own.
    """
    monkeypatch.setitem(PRESETS, "demo", {**PRESETS["demo"], "position": "learned"})
    monkeypatch.setattr(writing, "compiler_works", lambda device: False)
    monkeypatch.setattr(writing, "PROMPT_TOKENS", 6)
    monkeypatch.setattr(writing, "NEW_TOKENS", 4)
    monkeypatch.setattr(writing, "HELD_OUT_CHARACTERS", 1000)


def test_writing_is_measured_in_each_precision_beside_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(dataclasses.replace(QUICK, results=tmp_path, figures=tmp_path))
    stored = json.loads((tmp_path / "writing.json").read_bytes())
    assert {"cpu", "torch", "transformers", "commit", "threads"} <= stored["machine"].keys()
    ways = [(row["precision"], row["way"]) for row in stored["rows"]]
    assert ways == [
        ("float32", "GPT"), ("float32", "FastDecoder"), ("float32", THEIRS),
        ("bfloat16", "GPT"), ("bfloat16", "FastDecoder"), ("int8", "FastDecoder, int8"), ("bfloat16", THEIRS),
    ]  # fmt: skip
    for row in stored["rows"]:
        assert row["tokens_per_second"]["median"] > 0
        assert 0 < row["ceiling_share"] < 2  # so small a model fits into the processor's own caches
        if row["way"] == THEIRS:
            assert row["times_transformers"]["median"] == 1
    float32, bfloat16, int8 = (stored["rows"][i]["bytes_per_token"] for i in (1, 4, 5))
    assert float32 == 2 * bfloat16
    assert 0.5 < int8 / bfloat16 < 0.6
    assert "| demo | int8 | FastDecoder, int8 |" in capsys.readouterr().out
    assert (tmp_path / "writing.svg").stat().st_size > 1000


def test_what_writes_other_tokens_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(FastDecoder):
        def _logits(self, x_BTC: torch.Tensor) -> torch.Tensor:
            return -super()._logits(x_BTC)

    monkeypatch.setattr(writing, "FastDecoder", Wrong)
    with pytest.raises(RuntimeError, match="FastDecoder does not write the tokens that the model writes"):
        writing.measure_writing(("demo",), 1, torch.device("cpu"), {"bytes_per_second": 1e9})


def test_greedy_writes_what_a_pass_over_the_whole_text_says() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset("demo")).eval()
    ids_BT = torch.randint(4096, (1, writing.PROMPT_TOKENS))
    new = greedy(model, ids_BT)
    logits_BTV, _ = model(torch.cat([ids_BT, new[None]], dim=1))
    assert torch.equal(logits_BTV[0, writing.PROMPT_TOKENS - 1 : -1].argmax(dim=-1), new)
    assert len(new) == writing.NEW_TOKENS


def test_eight_bits_cost_a_little_perplexity(finished_run: Path) -> None:
    row = measure_quality(finished_run)
    assert row["tokens"] > 1000
    assert 1 < row["float32"] < 512
    for precision in ("bfloat16", "int8"):
        assert row[precision] == pytest.approx(row["float32"], rel=0.02)
        assert row[precision] != row["float32"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1 and at most 10,000, got 0"),
        ({"context": 2**64}, "context must be at least 1 and at most 2,147,483,647, got 18446744073709551616"),
        ({"sizes": ("gpt3",)}, "--sizes must be among gpt2-small, .*, got 'gpt3'"),
        ({"part": "figures"}, "there are no results in "),
        ({"part": "quality", "run": Path("nowhere")}, "nowhere is not a run directory"),
        ({"sizes": ("tiny",)}, "--sizes must read 96 tokens to be measured at writing, tiny does not"),
        ({"part": "sizes", "context": 4}, "demo reads up to 256 tokens: 4 of 4 cannot be written"),
        ({"device": "gpu"}, "device must be auto or one of this machine's, .*; got 'gpu'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        main(dataclasses.replace(QUICK, results=tmp_path, figures=tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_where_results_cannot_be_stored_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_measure", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        main(dataclasses.replace(QUICK, results=tmp_path / "file", figures=tmp_path))


def test_a_quick_look_leaves_the_committed_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writing, "_measure", lambda *_: [])
    with pytest.raises(InputError, match="there are no results in runs/quick/gpt_model/results"):
        main(QUICK)  # no rows are nothing to show
    assert json.loads(Path("runs/quick/gpt_model/results/writing.json").read_bytes())["quick"]


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "writing.json").write_text("{")
    with pytest.raises(InputError, match=r"writing\.json is damaged"):
        main(dataclasses.replace(QUICK, part="figures", results=tmp_path, figures=tmp_path))


def test_what_is_no_gpt2_is_not_compared_with_one(caplog: pytest.LogCaptureFixture) -> None:
    model = GPT(GPTConfig.preset("tiny", position="rope"))
    assert writing._their_writer(model, torch.zeros(1, 1, dtype=torch.int64)) == {}
    assert caplog.messages == ["position rope is not GPT-2's, so transformers is left out"]


def test_without_transformers_nothing_is_compared_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_their_writer", lambda *_: {})
    main(dataclasses.replace(QUICK, results=tmp_path, figures=tmp_path))
    stored = json.loads((tmp_path / "writing.json").read_bytes())
    assert [row["times_transformers"] for row in stored["rows"]] == [None] * 5
