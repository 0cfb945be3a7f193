"""What a machine in the cloud costs: prices of one day, the assumptions, and the sums that follow from them.

    python -m deployment.costs
    python -m deployment.costs --gpu H100:8 --hours-per-month 40

Modal bills each second of a container for its GPUs, its processor cores and its memory, and a month of what volumes
hold. Processor cores are physical ones, two of what other clouds call a vCPU. Prices change: look at
https://modal.com/pricing before spending much, and correct the table here.

Tokens per dollar come from speeds that were measured and stored in results/: a cost has to say what it would buy.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from utils.files import InputError
from utils.ranges import Range, check_ranges

ROOT = Path(__file__).parent.parent
SECONDS_PER_HOUR = 3600
HOURS_PER_MONTH = 730  # a year's 8,760 hours, divided by 12

PRICES_DATE = "2026-07-01"
PRICES_SOURCES = (
    "Modal's price list of May to July 2026 as others quoted it, since it could not be read itself:\n"
    "  https://techbytes.app/posts/serverless-gpu-pricing-matrix-modal-replicate-lambda-2026/ (GPUs; May 7)\n"
    "  https://www.beam.cloud/blog/modal-pricing-explained (H100, cores, multipliers; June 27)\n"
    "  https://finops.apis.io/finops/modal/modal-finops/ (cores, memory, storage)"
)
DOLLARS_PER_GPU_SECOND = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "L40S": 0.000542,
    "A100-40GB": 0.000583,
    "A100-80GB": 0.000694,
    "H100": 0.001097,
    "H200": 0.001261,
    "B200": 0.001736,
}
DOLLARS_PER_CORE_SECOND = 0.0000131
DOLLARS_PER_GIB_SECOND = 0.00000222
DOLLARS_PER_STORED_GIB_MONTH = 0.09
FREE_STORED_GIB = 1024  # of an account, not of a volume
DOLLARS_PER_TRANSFERRED_GIB = 0.0  # no list names a price for it; other clouds take about 0.09
REGION_MULTIPLIERS = {"any": 1.0, "us": 1.5, "eu": 1.5, "ap": 1.5, "elsewhere": 1.75}
NOT_PREEMPTIBLE_MULTIPLIER = 3.0  # not to be had with a GPU
MOST_GPUS = 8  # of one machine


@dataclass(frozen=True)
class Gpus:
    """GPUs of one machine, written as Modal has it: "L40S", or "H100:8"."""

    name: str
    count: int

    def __str__(self) -> str:
        return self.name if self.count <= 1 else f"{self.name}:{self.count}"


def parse_gpus(text: str) -> Gpus:
    """Return the GPUs that a text such as "H100:8" names; "none" is no GPU.

    Raises:
        InputError: for a name that Modal does not have, or a number that one machine does not hold.
    """
    if text == "none":
        return Gpus("none", 0)
    name, colon, count = text.partition(":")
    if name not in DOLLARS_PER_GPU_SECOND:
        raise InputError(f"there is no GPU {name!r}: it can be none, {', '.join(DOLLARS_PER_GPU_SECOND)}")
    if colon and not (count.isdecimal() and 1 <= int(count) <= MOST_GPUS):
        raise InputError(f"a machine has 1 to {MOST_GPUS} GPUs, as in {name}:{MOST_GPUS}, got {text!r}")
    return Gpus(name, int(count) if colon else 1)


def dollars_per_hour(gpus: Gpus, cpus: float, memory_gib: float, *, nodes: int = 1, multiplier: float = 1.0) -> float:
    """Return what an hour of `nodes` machines of this kind costs, storage and transfer left out."""
    gpu = gpus.count * DOLLARS_PER_GPU_SECOND.get(gpus.name, 0.0)
    second = gpu + cpus * DOLLARS_PER_CORE_SECOND + memory_gib * DOLLARS_PER_GIB_SECOND
    return nodes * multiplier * second * SECONDS_PER_HOUR


def storage_dollars_per_month(gib: float, *, already_stored_gib: float = 0.0) -> float:
    """Return what a month of `gib` more costs an account that already stores something."""
    before, after = (max(0.0, stored - FREE_STORED_GIB) for stored in (already_stored_gib, already_stored_gib + gib))
    return (after - before) * DOLLARS_PER_STORED_GIB_MONTH


def tokens_per_dollar(tokens_per_second: float, hourly: float) -> float:
    """Return how many tokens a dollar buys on a machine that is busy all the time it is paid for."""
    return tokens_per_second * SECONDS_PER_HOUR / hourly


@dataclass(frozen=True)
class Speed:
    """A speed that was measured."""

    what: str
    tokens_per_second: float
    where: str
    """The results file it is from."""


def measured_speeds() -> list[Speed]:
    """Return the speeds of GPT-2 small on an H100 that results/ holds: training, and writing one text."""
    training = json.loads((ROOT / "pretraining/results/gpu.json").read_bytes())["rows"][0]
    writing = json.loads((ROOT / "gpt_model/results/gpu.json").read_bytes())["rows"]
    fastest = max(writing, key=lambda row: row["tokens_per_second"]["median"])
    return [
        Speed("training GPT-2 small", training["tokens_per_second"]["median"], "pretraining/results/gpu.json"),
        Speed(
            "GPT-2 small writing one text", fastest["tokens_per_second"]["median"], "gpt_model/results/gpu.json"
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Estimate what a machine costs per hour and month, and what a dollar buys."""

    gpu: str = "L40S"
    """Kind and number, as in L40S or H100:8; or none."""
    cpus: Annotated[float, Range(0.125, 64)] = 8
    """Physical processor cores."""
    memory: Annotated[float, Range(0.125, 336)] = 32
    """GiB."""
    nodes: Annotated[int, Range(1, 32)] = 1
    """Machines of this kind at once."""
    storage: Annotated[float, Range(0, 10**6)] = 100
    """GiB kept in volumes all month."""
    transfer: Annotated[float, Range(0, 10**6)] = 0
    """GiB that leave the cloud in a month."""
    hours_per_month: Annotated[float, Range(0, 744)] = 80
    """Hours that the machine is up. All of a month are 730."""
    region: str = "any"
    """any, or us, eu, ap, elsewhere: to say where costs more."""
    preemptible: bool = True
    """Whether the cloud may take the machine back at any moment, as all of its GPUs. Without, three times the price."""

    def __post_init__(self) -> None:
        check_ranges(self)
        gpus = parse_gpus(self.gpu)
        if self.region not in REGION_MULTIPLIERS:
            raise InputError(f"region must be one of {', '.join(REGION_MULTIPLIERS)}, got {self.region!r}")
        if gpus.count and not self.preemptible:
            raise InputError(f"a machine with a GPU ({gpus}) is always preemptible: leave --no-preemptible out")


@dataclass(frozen=True)
class Estimate:
    """Dollars."""

    per_hour: float
    per_month: float
    """For the hours asked for, with storage and transfer."""
    always_on: float
    """For all hours of a month, with storage and transfer."""


def estimate(config: Config) -> Estimate:
    """Return what the machine costs."""
    multiplier = REGION_MULTIPLIERS[config.region] * (1 if config.preemptible else NOT_PREEMPTIBLE_MULTIPLIER)
    gpus = parse_gpus(config.gpu)
    hour = dollars_per_hour(gpus, config.cpus, config.memory, nodes=config.nodes, multiplier=multiplier)
    kept = storage_dollars_per_month(config.storage) + config.transfer * DOLLARS_PER_TRANSFERRED_GIB
    return Estimate(hour, hour * config.hours_per_month + kept, hour * HOURS_PER_MONTH + kept)


def assumptions(config: Config) -> list[str]:
    """Return what the estimate takes for granted, a line each."""
    return [
        f"prices of {PRICES_DATE}; {PRICES_SOURCES}",
        f"{config.nodes} x ({config.gpu}, {config.cpus:g} physical cores, {config.memory:g} GiB), billed by the second "
        "while it is up, busy or not",
        f"region {config.region}: times {REGION_MULTIPLIERS[config.region]:g}; "
        + ("preemptible" if config.preemptible else f"not preemptible: times {NOT_PREEMPTIBLE_MULTIPLIER:g}"),
        f"{config.storage:g} GiB stored, of which the account's first {FREE_STORED_GIB:,} GiB are free; then "
        f"${DOLLARS_PER_STORED_GIB_MONTH:g} per GiB and month",
        "transfer costs nothing: no list names a price" if not DOLLARS_PER_TRANSFERRED_GIB else "transfer is billed",
        "no free credits, no plan's monthly fee, no tax",
    ]


@dataclass(frozen=True)
class Claim:
    """What is often said, beside what comes out."""

    said: str
    found: str


def claims() -> list[Claim]:
    """Return the usual claims about an L40S workspace, each beside the sum."""
    workspace = Config()
    found = estimate(workspace)
    hour = dollars_per_hour(parse_gpus("H100"), workspace.cpus, workspace.memory)
    training, writing = (tokens_per_dollar(speed.tokens_per_second, hour) for speed in measured_speeds())
    return [
        Claim(
            "$2.40 per hour",
            f"${found.per_hour:.2f}: the GPU alone ${dollars_per_hour(parse_gpus('L40S'), 0, 0):.2f}, "
            "the rest for 8 cores and 32 GiB",
        ),
        Claim(
            "$1,800 per month",
            f"${found.always_on:,.0f} if it is never stopped; ${found.per_month:,.0f} at "
            f"{workspace.hours_per_month:g} hours, which is what idle shutdown is for",
        ),
        Claim(
            "50,000 tokens per dollar",
            f"{training:,.0f} tokens trained, or {writing:,.0f} written one text at a time (GPT-2 small, H100)",
        ),
    ]


def report(config: Config) -> str:
    """Return the estimate as text: its assumptions first."""
    found = estimate(config)
    lines = ["Assumptions"]
    lines += [f"- {line}" for line in assumptions(config)]
    lines += [
        "",
        f"per hour                 ${found.per_hour:,.2f}",
        f"per month, {config.hours_per_month:g} hours      ${found.per_month:,.2f}",
        f"per month, never stopped ${found.always_on:,.2f}",
        "",
        "What a dollar buys on an H100 with 8 cores and 32 GiB, at speeds measured on one",
    ]
    hour = dollars_per_hour(parse_gpus("H100"), 8, 32)
    for speed in measured_speeds():
        bought = tokens_per_dollar(speed.tokens_per_second, hour)
        lines.append(
            f"- {speed.what}: {speed.tokens_per_second:,.0f} tokens/s, {bought:,.0f} tokens per dollar ({speed.where})"
        )
    lines += ["", "What is often said, and what comes out"]
    lines += [f"- {claim.said}: {claim.found}" for claim in claims()]
    return "\n".join(lines)


def main(config: Config) -> Estimate:
    """Print the estimate, and return it."""
    print(report(config))
    return estimate(config)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
