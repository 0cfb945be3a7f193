"""The planner's answers fit and could not be larger, follow its stated rule, and nonsense is told in one line."""

from dataclasses import replace
from typing import Any, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model import GPTConfig, costs
from gpt_model.devices import find_device
from gpt_model.plan import NEARLY_HIGHEST, USABLE_SHARE, Config, Serving, plan, report
from tests.commands import run
from utils.files import InputError
from utils.ranges import range_of

SIZES = ["gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl", "demo", "tiny"]
GPUS = ["24GB", "8 GB", "80GiB", "0.5gb", "h100", "rtx4090", "A100 40GB"]
anything = given(
    size=st.sampled_from(SIZES),
    gpu=st.sampled_from(GPUS),
    context=st.sampled_from([1, 100, 1024, 5000]),
    tokens_per_step=st.sampled_from([1, 9_999, 524_288]),
    sequences=st.sampled_from([None, 1, 50]),
    optimizer=st.sampled_from(["adamw", "muon", "galore"]),
)


@settings(max_examples=60, deadline=None)
@anything
def test_the_batch_fits_and_no_larger_one_does(**fields: Any) -> None:
    made = plan(config := Config(**fields))
    usable = USABLE_SHARE * made.device.memory

    def total(model: GPTConfig, batch: int) -> int:
        return costs.training_memory(model, batch, config.context, optimizer=config.optimizer).total

    tokens = made.micro_batch * config.context
    if made.micro_batch:
        assert made.memory.total == total(made.model, made.micro_batch) <= usable
        assert (made.accumulation - 1) * tokens < config.tokens_per_step <= made.accumulation * tokens
    if made.accumulation != 1:  # else a step has no more rows than these
        assert total(made.model, made.micro_batch + 1) > usable
    if made.model.checkpoint_activations or not made.micro_batch:  # only where a row does not fit without
        assert total(replace(made.model, checkpoint_activations=False), 1) > usable


@settings(max_examples=60, deadline=None)
@anything
def test_texts_fit_and_the_favoured_remembers_most_of_the_fastest(**fields: Any) -> None:
    made = plan(config := Config(**fields))
    usable = USABLE_SHARE * made.device.memory
    kinds = costs.variants(made.model)
    without = {name for name in kinds if name.startswith("SWA") and config.context <= costs.WINDOW}
    assert [one.name for one in made.serving] == [name for name in kinds if name not in without]
    for one in made.serving:
        weights = costs.weight_bytes(kinds[one.name], torch.bfloat16)
        assert one.cache == costs.cache_bytes(kinds[one.name], 1, config.context, torch.bfloat16)
        a_text = one.cache + 2 * made.model.vocab_size  # with its scores of the next token
        assert weights + one.fits * a_text <= max(usable, weights) < weights + (one.fits + 1) * a_text
        assert one.sequences in (0, one.fits if config.sequences is None else config.sequences)
        assert one.sequences <= one.fits
    for favoured, rivals in (
        (made.favoured, made.serving),
        (made.favoured_groups, [one for one in made.serving if one.name.startswith(("MHA", "GQA"))]),
    ):
        possible = [one for one in rivals if one.sequences]
        if favoured is None:
            assert not possible
            continue
        assert favoured.ceiling >= NEARLY_HIGHEST * max(one.ceiling for one in possible)
        for one in possible:
            assert one.cache <= favoured.cache or one.ceiling < NEARLY_HIGHEST * max(one.ceiling for one in possible)


def by_name(config: Config) -> dict[str, Serving]:
    return {one.name: one for one in plan(config).serving}


def test_the_ceiling_is_what_memory_and_processor_allow() -> None:
    """By hand: GPT-2 small and one text of 1,024 tokens on an H100; then a full one, which computes longer."""
    one = by_name(Config(size="gpt2-small", gpu="h100", sequences=1))["MHA"]
    step = (2 * (124_439_808 - 1024 * 768) + 1024 * 36_864) / find_device("h100").bytes_per_second
    assert one.ceiling == pytest.approx(1 / step)
    assert one.bound == "bytes"
    full = by_name(Config(size="gpt2-xl", gpu="24GB"))["MLA, R = 128"]
    kind = costs.variants(GPTConfig.preset("gpt2-xl"))["MLA, R = 128"]
    assert full.bound == "operations"
    assert full.ceiling == pytest.approx(165e12 / costs.forward_flops(kind, 1, 1, cached=1023))


def test_the_time_is_that_of_the_operations_at_the_assumed_share() -> None:
    made = plan(Config(size="gpt2-small", gpu="a100", utilisation=0.25))
    assert costs.mfu(made.model, made.tokens_per_second, 312e12) == pytest.approx(0.25)
    assert made.hours_per_billion_tokens == pytest.approx(1e9 / 91_000 / 3600, rel=0.05)  # nanoGPT's speed there
    lean = plan(Config(size="gpt2-large", gpu="16GB"))
    assert lean.model.checkpoint_activations
    assert costs.mfu(lean.model, lean.tokens_per_second, 165e12) < 0.4  # what is computed twice takes its time


def test_what_is_assumed_is_said() -> None:
    config = Config(size="gpt2-medium", gpu="24GB", context=2048)
    shown = report(config, plan(config))
    assert "Arithmetic, not a measurement." in shown
    for assumption in (
        "speeds are those of the RTX 4090",
        "a table of 2,048 positions",
        "90% of the memory",
        "training",
    ):
        assert f"\n- {assumption}" in shown
    assert "speeds are those of" not in report(config, plan(replace(config, gpu="h100")))


def test_a_whole_step_is_not_called_the_largest_that_fits() -> None:
    for tokens, largest in ((16_384, "A whole step of 16,384 tokens fits at once."), (524_288, "The largest that")):
        config = Config(gpu="h100", tokens_per_step=tokens)
        assert largest in report(config, plan(config))


def test_what_does_not_fit_is_said() -> None:
    config = Config(size="gpt2-xl", gpu="24GB")
    assert "That does not fit" in report(config, plan(config))
    assert plan(config).favoured is not None  # it can still be served
    config = Config(size="gpt2-xl", gpu="1GB")
    assert report(config, plan(config)).endswith("There is no room for that with any kind of attention.")


def test_it_runs_from_the_command_line() -> None:
    result = run("gpt_model.plan", "--size", "gpt2-medium", "--gpu", "24GB", "--context", "1024")
    config = Config(size="gpt2-medium", gpu="24GB", context=1024)
    assert (result.returncode, result.stdout, result.stderr) == (0, report(config, plan(config)) + "\n", "")


def test_nonsense_is_one_line_on_the_command_line() -> None:
    result = run("gpt_model.plan", "--gpu", "24 gallons")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("error: --gpu must be a memory, as in 24GB, or one of A100, ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "gpt5"}, "there is no preset 'gpt5'; there are gpt2-small, .*"),
        ({"gpu": "0GB"}, "--gpu must be a memory, as in 24GB, or one of A100, .*; got '0GB'"),
        ({"gpu": "9" * 400 + "GB"}, "--gpu must be a memory, as in 24GB, or one of A100, .*; got '9+GB'"),
        ({"gpu": "-24GB"}, "--gpu must be a memory, as in 24GB, or one of A100, .*; got '-24GB'"),
        ({"context": 0}, "context must be at least 1 and at most 16,777,216, got 0"),
        ({"tokens_per_step": 0}, "tokens_per_step must be at least 1 and .*, got 0"),
        ({"sequences": 0}, "sequences must be at least 1 and .*, got 0"),
        ({"utilisation": 40.0}, r"utilisation must be at least 0\.001 and at most 1, got 40\.0"),
    ],
)
def test_wrong_values_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        plan(Config(**fields))


@pytest.mark.parametrize("size", ["gpt2-xl", "tiny"])
@pytest.mark.parametrize("name", ["context", "tokens_per_step", "utilisation", "sequences"])
def test_the_ends_of_each_range_can_be_planned(name: str, size: str) -> None:
    range_ = range_of(get_type_hints(Config, include_extras=True)[name])
    assert range_ is not None
    for number in (range_.least, range_.most):
        for gpu in ("0.001GB", "24GB", "1000000GB"):
            config = Config(size=size, gpu=gpu, **{name: number})
            assert report(config, plan(config))
