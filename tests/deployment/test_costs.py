"""The sums are the prices', the claims are compared, and nonsense is refused."""

import pytest

from deployment.costs import (
    DOLLARS_PER_CORE_SECOND,
    DOLLARS_PER_GIB_SECOND,
    DOLLARS_PER_GPU_SECOND,
    PRICES_DATE,
    ROOT,
    Config,
    Gpus,
    claims,
    dollars_per_hour,
    estimate,
    measured_speeds,
    parse_gpus,
    report,
    storage_dollars_per_month,
    tokens_per_dollar,
)
from utils.files import InputError


def test_an_hour_is_3600_seconds_of_each_part() -> None:
    second = 8 * DOLLARS_PER_GPU_SECOND["H100"] + 16 * DOLLARS_PER_CORE_SECOND + 128 * DOLLARS_PER_GIB_SECOND
    assert dollars_per_hour(Gpus("H100", 8), 16, 128, nodes=2) == pytest.approx(2 * 3600 * second)
    assert dollars_per_hour(Gpus("L40S", 1), 0, 0) == pytest.approx(1.95, abs=0.005)  # as price lists have it
    assert dollars_per_hour(Gpus("H100", 1), 0, 0) == pytest.approx(3.95, abs=0.005)


def test_only_what_is_stored_beyond_the_free_part_is_paid() -> None:
    assert storage_dollars_per_month(1024) == 0
    assert storage_dollars_per_month(100, already_stored_gib=1000) == pytest.approx(76 * 0.09)
    assert storage_dollars_per_month(100, already_stored_gib=2000) == pytest.approx(9)


def test_a_month_is_paid_by_the_hour_and_regions_multiply() -> None:
    plain = estimate(Config(hours_per_month=10))
    assert plain.per_month == pytest.approx(10 * plain.per_hour)
    assert estimate(Config(region="eu")).per_hour == pytest.approx(1.5 * plain.per_hour)
    lasting = estimate(Config(gpu="none", preemptible=False)).per_hour
    assert lasting == pytest.approx(3 * estimate(Config(gpu="none")).per_hour)


def test_tokens_per_dollar_come_from_stored_measurements() -> None:
    training, writing = measured_speeds()
    assert training.tokens_per_second > 100 * writing.tokens_per_second > 0
    assert tokens_per_dollar(1000, 2.0) == 1_800_000


def test_the_report_says_its_assumptions_and_answers_each_claim() -> None:
    text = report(Config())
    assert "prices of 2026-07-01" in text
    assert "physical cores" in text
    assert [claim.said for claim in claims()] == ["$2.40 per hour", "$1,800 per month", "50,000 tokens per dollar"]
    assert all(claim.said in text and claim.found in text for claim in claims())


@pytest.mark.parametrize(
    ("text", "gpus"), [("L40S", Gpus("L40S", 1)), ("H100:8", Gpus("H100", 8)), ("none", Gpus("none", 0))]
)
def test_gpus_are_written_as_modal_has_them(text: str, gpus: Gpus) -> None:
    assert parse_gpus(text) == gpus
    assert str(gpus) == text


@pytest.mark.parametrize("text", ["", "h100", "H1000:9", "H100:0", "H100:9", "H100:", "H100:8:8", "H100:x", "L40S:-1"])
def test_other_gpus_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="GPU"):
        parse_gpus(text)


def test_a_gpu_cannot_be_had_for_good() -> None:
    with pytest.raises(InputError, match="always preemptible"):
        Config(gpu="L40S", preemptible=False)
    with pytest.raises(InputError, match="region must be one of"):
        Config(region="moon")


def test_the_page_has_what_comes_out() -> None:
    page = (ROOT / "deployment" / "README.md").read_text(encoding="utf-8")
    for claim in claims():
        assert f"| {claim.said} | {claim.found} |" in page
    assert PRICES_DATE in page
