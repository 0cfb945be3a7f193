"""The benchmark runs from the command line, times only what is equal, and counts as the formulas say."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from attention_mechanisms import MultiHeadAttention, SlidingWindowAttention, attend
from attention_mechanisms.benchmark import __main__ as benchmark
from attention_mechanisms.benchmark import attention_costs as costs
from attention_mechanisms.benchmark import decode, figures, sweep, window
from attention_mechanisms.benchmark.sweep import Sweep, measure_sweep
from attention_mechanisms.masks import Mask
from tests import commands
from tests.alone import alone
from utils.files import InputError
from utils.measuring import read_results
from utils.peaks import peak_memory

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "attention_mechanisms" / "results"
PARTS = ("decode", "window", "sweep")
CPU = torch.device("cpu")
PEAKS = {"flops_per_second": {"float32": 1e11, "bfloat16": 1e11}, "bytes_per_second": 1e10}


# -- the whole ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_runs_from_the_command_line(tmp_path: Path) -> None:
    results, drawn = tmp_path / "results", tmp_path / "figures"
    small = ["--rounds", 1, "--contexts", 300, "--lengths", 128, 1280, "--widths", 256, "--batches", 1, 2]
    flags = ["--quick", "--device", "cpu", *small, "--results", results, "--figures", drawn]
    run = commands.run("attention_mechanisms.benchmark", *flags)
    assert run.returncode == 0, run.stderr[-3000:]
    stored = read_results(results, PARTS)
    assert list(stored) == list(PARTS)
    assert figures.tables(results) in run.stdout
    assert {path.name for path in drawn.iterdir()} == {f"{part}.svg" for part in PARTS}
    for part in stored.values():
        assert part["machine"]["torch"] == torch.__version__
        assert part["quick"]
        assert part["peaks"]["bytes_per_second"] > 0
    decoded = {row["attention"] for row in stored["decode"]["rows"]}
    assert {"MHA", "MLA absorbed, R = 192", "transformers, eager", "transformers, sdpa"} < decoded
    assert {row["length"] for row in stored["window"]["rows"]} == {128, 1280}
    swept = stored["sweep"]["rows"]
    assert len(swept) == 2 * 2 * 2 * 7  # lengths, batches, passes, kernels and layers
    assert all("seconds" in row or row["because"] for row in swept)
    flex = [row for row in swept if (row["name"], row["pass"]) == ("flex", "forward+backward")]
    assert {row["because"] for row in flex} == {"FlexAttention has no gradients on a CPU"}


def test_without_tyro_only_quick_is_understood(tmp_path: Path) -> None:
    code = "import sys, runpy, utils.measuring\nsys.modules['tyro'] = None\n"
    code += "def stop(*arguments): sys.exit('it began')\nutils.measuring.measured_peaks = stop\n"
    code += "runpy.run_module('attention_mechanisms.benchmark', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment)
    assert run.stderr == "tyro is not installed, so of all flags only --quick is understood\nit began\n"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1 and at most 10,000, got 0"),
        ({"budget": 0.0}, "budget must be above 0 and at most 3,600, got 0.0"),
        ({"budget": math.nan}, "budget must be above 0 and at most 3,600, got nan"),
        ({"lengths": (128, 0)}, "lengths must be at least 1 and at most 16,777,216, got 0"),
        ({"widths": (300,)}, "widths must be multiples of 256, for groups of four heads of 64, got 300"),
        ({"results": Path("/dev/null/x")}, "/dev/null/x cannot be written: /dev/null is not a folder"),
        ({"part": "figures", "results": Path("nowhere")}, "there are no results in nowhere"),
    ],
)
def test_wrong_numbers_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        benchmark.main(benchmark.Config(**fields))
    assert str(error.value) == message


# -- parts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoded() -> dict[str, Any]:
    with torch.no_grad():
        return decode.measure_decoding([300], [torch.float32], 2, 2, CPU, PEAKS)


def test_decoding_is_checked_and_complete(decoded: dict[str, Any]) -> None:
    assert max(decoded["checks"].values()) < 1e-5
    assert sum("transformers" in name for name in decoded["checks"]) == 2
    rows = {row["attention"]: row for row in decoded["rows"]}
    assert rows["MHA"]["times_mha"]["median"] == 1
    bytes_per_token = {name: row["cache_bytes_per_token"] for name, row in rows.items()}
    mha = 2 * 2 * 768 * 4  # keys and values of two layers
    assert bytes_per_token["MHA"] == bytes_per_token["transformers, sdpa"] == mha
    assert bytes_per_token["GQA, 4 groups"] == mha / 3
    assert bytes_per_token["MLA absorbed, R = 192"] == bytes_per_token["MLA naive, R = 192"] == mha / 8
    assert bytes_per_token["SWA, W = 256"] == mha * 256 / 301


def test_transformers_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with torch.no_grad():
        result = decode.measure_decoding([20], [torch.float32], 1, 1, CPU, PEAKS)
    assert result["notes"] == ["transformers is not installed, so it is left out"]
    assert len(result["rows"]) == 5


def test_a_context_without_room_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "free_memory", lambda device: 1e6)
    with torch.no_grad():
        result = decode.measure_decoding([50_000], [torch.bfloat16], 1, 1, CPU, PEAKS)
    assert result["rows"] == []
    assert result["notes"] == ["context 50,000 in bfloat16 needs 9 GB: left out"]


def test_a_text_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "free_memory", lambda device: 1e9)
    with pytest.raises(InputError, match="16,777,216 tokens need about 618 GB, 1 GB are free: choose"):
        window.measure_windows([128, 2**24], 2, CPU, torch.float32, PEAKS)


def test_windows_give_what_the_formula_gives() -> None:
    with torch.no_grad():
        result = window.measure_windows([64, 1300], 2, CPU, torch.float32, PEAKS)
    assert len(result["rows"]) == 2 * 4
    assert max(row["error"] for row in result["rows"]) < 1e-5
    assert {growth["exponent"] for growth in result["growth"]} == {None}  # nothing is longer than four windows


def small_sweep(**changes: Any) -> Sweep:
    settings = {"lengths": [128], "widths": [256], "batches": [1], "rounds": 1, "budget": 100.0}
    settings |= {"compile_on_cpu": False, "device": CPU, "dtype": torch.float32, "peaks": PEAKS}
    return Sweep(**(settings | changes))


def left_out(sweep: Sweep) -> dict[tuple[str, str], str | None]:
    return {(row["name"], row["pass"]): row.get("left_out") for row in measure_sweep(sweep)["rows"]}


def test_all_that_fits_is_measured() -> None:
    missing = {name for name, why in left_out(small_sweep()).items() if why}
    assert missing == {("flex", "forward+backward")}


def test_bfloat16_is_equal_enough_to_be_timed() -> None:
    missing = {name for name, why in left_out(small_sweep(lengths=[256], dtype=torch.bfloat16)).items() if why}
    assert missing == {("flex", "forward+backward")}


def test_what_takes_too_long_or_has_no_room_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    late = left_out(small_sweep(budget=1e-12))
    assert set(late.values()) == {"too slow", "not available"}
    monkeypatch.setattr(sweep, "free_memory", lambda device: 2e6)
    tight = left_out(small_sweep())
    assert tight["manual", "forward+backward"] == "would not fit"
    assert tight["sdpa", "forward"] is None


def test_memory_that_runs_out_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def small_memory(*qkv: torch.Tensor, kernel: str = "auto", **rest: Any) -> torch.Tensor:
        if kernel == "manual" and qkv[0].shape[2] > 100:
            raise torch.OutOfMemoryError("tried to allocate 9 GB. And so on.")
        return attend(*qkv, kernel=kernel, **rest)

    monkeypatch.setattr(sweep, "attend", small_memory)
    result = measure_sweep(small_sweep())
    rows = {(row["name"], row["pass"]): row for row in result["rows"]}
    assert rows["manual", "forward"]["left_out"] == "out of memory"
    assert rows["manual", "forward"]["because"] == "tried to allocate 9 GB"
    assert "seconds" in rows["sdpa", "forward"]
    result |= {"machine": {"device": "cpu", "threads": 2, "cpu": "?", "torch": "2"}, "peaks": PEAKS}
    assert "| manual | forward | 0 | 0 | 0 | 1 | 1 x 128 x 256 |" in figures.sweep_tables(result)


def test_a_kernel_that_errs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*qkv: torch.Tensor, kernel: str = "auto", **rest: Any) -> torch.Tensor:
        y = attend(*qkv, kernel=kernel, **rest)
        return y * 1.01 if kernel == "sdpa" else y

    monkeypatch.setattr(sweep, "attend", wrong)
    with pytest.raises(RuntimeError, match="sdpa: the outputs differ by 1.0e-02 of their norm"):
        measure_sweep(small_sweep())


def test_the_fastest_backend_is_named() -> None:
    took = {"manual": 6.0, "sdpa": 2.5, "sdpa: flash": 3.0, "sdpa: cudnn": 2.0, "flex": 4.0}
    rows = [{"length": 128, "name": name, "pass": "forward", "seconds": {"median": t}} for name, t in took.items()]
    assert figures._versus_table(rows).splitlines()[-1] == "| 128 | sdpa: cudnn | 3.00 | 0.50 |"


@pytest.mark.skipif(not (RESULTS / "decode.json").exists(), reason="nothing has been measured yet")
def test_committed_results_meet_what_the_chapter_claims() -> None:
    """The targets on a CPU; a new measurement that falls short shows here."""
    stored = read_results(RESULTS, PARTS)
    assert list(stored) == list(PARTS)
    assert not any(part["quick"] for part in stored.values())
    steps = {
        (row["dtype"], row["context"], row["attention"]): row["seconds"]["median"] for row in stored["decode"]["rows"]
    }
    for dtype, context in dict.fromkeys(key[:2] for key in steps):
        took = {name: seconds for (*where, name), seconds in steps.items() if where == [dtype, context]}
        assert took["MHA"] <= min(took["transformers, eager"], took["transformers, sdpa"])
        for name in ("GQA, 4 groups", "MLA absorbed, R = 192", "SWA, W = 256"):
            assert took[name] < took["MHA"], (dtype, context, name)
        assert took["MLA naive, R = 192"] >= 3 * took["MLA absorbed, R = 192"]
    windows = {(row["what"], row["length"], row["window"]): row for row in stored["window"]["rows"]}
    assert windows["attention", 8192, 512]["times_full"]["median"] >= 4
    growth = {(one["what"], one["name"]): one for one in stored["window"]["growth"]}
    assert growth["attention", "window 512, sdpa"]["exponent"] < 1.15


# -- formulas ----------------------------------------------------------------------------------------------


@given(T=st.integers(1, 9), past=st.integers(0, 9), window=st.none() | st.integers(1, 12))
def test_visible_pairs_are_those_of_the_mask(T: int, past: int, window: int | None) -> None:
    visible = Mask(query_offset=past, window=window).dense(T, past + T)
    assert costs.visible_pairs(T, past + T, window) == visible.expand(T, past + T).sum()


def counted_flops(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class OperationCounter(TorchDispatchMode):
    """Counts the operations that PyTorch is asked for."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


@torch.no_grad()
def test_what_is_slower_on_a_gpu_asks_for_more_operations() -> None:
    """Which is why: at 1,024 tokens a GPU waits for Python (results/README.md)."""
    asked, x_B1C = {}, torch.randn(decode.BATCH, 1, decode.D_MODEL)
    for name, decoder in decode._decoders(decode._layers(1, torch.float32, CPU), context=300, notes=[]).items():
        with OperationCounter() as counter:
            decoder(x_B1C)
        asked[name] = counter.count
    assert asked["transformers, sdpa"] < asked["MHA"]
    assert asked["MHA"] < min(asked[name] for name in ("GQA, 4 groups", "MLA absorbed, R = 192", "SWA, W = 256"))


def test_decoding_flops_are_those_that_torch_counts() -> None:
    context, x_B1C = 300, torch.randn(decode.BATCH, 1, decode.D_MODEL)
    with torch.no_grad():
        for name, layers in decode._layers(1, torch.float32, CPU).items():
            layers[0].kernel = "manual"  # torch does not count what its fused kernels compute on a CPU
            decoder = decode.Decoder(layers, context)
            expected = costs.decoding_flops(layers[0], decode.BATCH, context + 1)
            assert counted_flops(lambda decoder=decoder: decoder(x_B1C)) == expected, name


@pytest.mark.parametrize("training", [False, True])
def test_kernel_flops_are_half_of_those_that_the_plain_formula_takes(training: bool) -> None:
    shape = costs.Shape(length=256, d_model=128, batch=2)
    q, k, v = (torch.randn(2, 2, 256, 64, requires_grad=training) for _ in range(3))
    cost = costs.kernel_cost("manual", shape, torch.float32, training)

    def work() -> None:
        y = attend(q, k, v, kernel="manual")
        if training:
            y.sum().backward()

    # the plain formula keeps its scores, so that its backward pass has four products instead of five
    seen = counted_flops(work) * (3.5 / 3 if training else 1)
    assert cost.flops + cost.wasted_flops == pytest.approx(seen, rel=0.01)


def test_layer_flops_are_those_that_torch_counts() -> None:
    shape = costs.Shape(length=128, d_model=256, batch=1)
    layer = MultiHeadAttention(256, 4, kernel="manual")
    attention = costs.attention_flops(1, 4, costs.visible_pairs(128, 128), 64, 64)
    hidden = costs.attention_flops(1, 4, 128**2, 64, 64) - attention
    cost = costs.layer_cost(layer, shape, torch.float32, training=False)
    assert cost.flops + hidden == counted_flops(lambda: layer(torch.randn(1, 128, 256)))
    windowed = costs.layer_cost(SlidingWindowAttention(256, 4, 16), shape, torch.float32, training=False)
    assert windowed.flops == cost.flops - attention + costs.attention_flops(
        1, 4, costs.visible_pairs(128, 128, 16), 64, 64
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process has had at most")
@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
def test_memory_is_about_what_the_formula_says(kernel: str) -> None:
    estimate = costs.kernel_cost(kernel, costs.Shape(1024, 1024, 1), torch.float32, training=False).memory
    measured = alone(memory_of, kernel)
    assert measured is not None
    assert 0.4 * estimate < measured < 2.5 * estimate


def memory_of(kernel: str) -> int | None:
    q, k, v = torch.randn(3, 1, 16, 1024, 64)
    attend(q, k, v, kernel=kernel)  # loads the code
    return peak_memory(lambda: attend(q, k, v, kernel=kernel), CPU)


def test_energy_is_shown_where_it_was_measured(decoded: dict[str, Any]) -> None:
    machine = {"device": "cuda", "gpu": "a GPU", "torch": "2"}
    result = {**json.loads(json.dumps(decoded)), "machine": machine, "peaks": PEAKS}
    assert "mJ per token" not in figures.decode_table(result)
    result["rows"][0]["joules_per_token"] = 0.0123
    table = figures.decode_table(result)
    assert "| mJ per token |" in table
    assert "| 12.3 |" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
