"""What the benchmarks of all chapters share: how things are measured, compared, stored and shown.

What is compared is measured in turn, round after round, so that another program's load falls on all of it:
`interleaved` calls the contenders in this process, `in_processes` starts a new process for each call. Results are
stored as one JSON file for each part of a benchmark, and tables and figures are made from these files alone.
"""

import functools
import json
import logging
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from utils import early_interrupt
from utils.figures import figure, save_svg
from utils.files import InputError, read_json, write_atomically
from utils.hardware import describe
from utils.outputs import check_writable
from utils.peaks import Work, measured_peaks, seconds

log = logging.getLogger(__name__)

Row = dict[str, Any]  # of a table: numbers and words that JSON can hold
Case = tuple[str, ...]
Call = tuple[Callable[..., Any], Sequence[Any]]  # a function and its arguments
Config = TypeVar("Config")
Shown = TypeVar("Shown")

SHORTEST_MEASUREMENT = 0.005  # seconds; of shorter work several calls are measured together
MOST_REPEATS = 100
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the norm


# -- measuring ---------------------------------------------------------------------------------------------


def interleaved(contenders: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Measure how many seconds each contender takes, once in each round.

    One call of each, which fills caches, does not count; whatever compiles must have been called before.

    Args:
        contenders: what is compared.
        rounds: how often each is measured.
        device: where they work.
    """
    repeats: dict[str, int] = {}
    for name, work in contenders.items():
        once = seconds(work, device)
        repeats[name] = min(MOST_REPEATS, math.ceil(SHORTEST_MEASUREMENT / once)) if once < SHORTEST_MEASUREMENT else 1
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            measured[name].append(seconds(work, device, repeats[name]))
    return measured


def in_processes(calls: Mapping[Case, Call], rounds: int) -> dict[Case, list[Any]]:
    """Make each call in a process of its own, all of them in turn, several times.

    Args:
        calls: for each case a module's function, and arguments that JSON can hold.
        rounds: how often each call is made.

    Returns:
        What the functions returned, `rounds` values for each case; JSON must be able to hold them too.
    """
    returned: dict[Case, list[Any]] = {case: [] for case in calls}
    with tqdm(total=rounds * len(calls), unit="run", leave=False) as progress:
        for _ in range(rounds):
            for case, (function, arguments) in calls.items():
                progress.set_description(" ".join(case))
                code = f"import json, sys; from {function.__module__} import {function.__name__} as measure; "
                code += "print(json.dumps(measure(*json.loads(sys.argv[1]))))"
                command = [sys.executable, "-c", code, json.dumps(arguments)]
                run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                returned[case].append(json.loads(run.stdout))
                progress.update()
    return returned


def assert_equal(what: str, output: Tensor, reference: Tensor) -> float:
    """Check that two outputs are equal up to rounding; return their difference as a share of the reference's norm.

    Raises:
        RuntimeError: if they differ by more than rounding explains: what gives other outputs is not worth timing.
    """
    difference = (output.float() - reference.float()).norm()
    norm = reference.float().norm()
    error = (difference / norm).item() if difference or norm else 0.0  # all zeros are equal, too
    if not error < TOLERANCE[output.dtype]:
        raise RuntimeError(f"{what}: the outputs differ by {error:.1e} of their norm")
    return error


# -- numbers -----------------------------------------------------------------------------------------------


def spread(values: Iterable[float]) -> Row:
    """Return the mean, standard deviation, median and quartiles; the deviation of a single value is None."""
    values = list(values)
    mean = statistics.mean(values)
    if len(values) == 1:
        return {"mean": mean, "sd": None, "median": mean, "q1": mean, "q3": mean, "n": 1}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"mean": mean, "sd": statistics.stdev(values), "median": median, "q1": q1, "q3": q3, "n": len(values)}


def rate(amount: float, seconds_each: Sequence[float]) -> Row:
    """Return how much is done per second, as a `spread`, where `amount` took so many seconds each time."""
    return spread(amount / second for second in seconds_each)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Row:
    """Return the `spread` of quotients of the same round, when both ran while the machine was equally busy."""
    return spread(a / b for a, b in zip(numerators, denominators, strict=True))


def shares(flops: float, nbytes: float, second: float, peaks: Row, dtype: torch.dtype) -> Row:
    """Return the speeds at which so many operations and bytes took `second`, also as shares of the measured peaks."""
    flops_per_second = flops / second
    bytes_per_second = nbytes / second
    return {
        "flops_per_second": flops_per_second,
        "flops_share": flops_per_second / peaks["flops_per_second"][dtype_name(dtype)],
        "bytes_per_second": bytes_per_second,
        "bytes_share": bytes_per_second / peaks["bytes_per_second"],
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the power of size with which values grow: 1 is linear, 2 quadratic."""
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without "torch.", for instance "float32"."""
    return str(dtype).removeprefix("torch.")


# -- results -----------------------------------------------------------------------------------------------


def machine(device: torch.device) -> Row:
    """Describe the machine, with what else decides a speed."""
    try:
        theirs = version("transformers")
    except PackageNotFoundError:
        theirs = None
    return {**describe(), "device": device.type, "threads": torch.get_num_threads(), "transformers": theirs}


def check_folders(results: Path, figures: Path) -> None:
    """Check, before anything is measured, that the folders of results and figures can be made or written to.

    Raises:
        InputError: if one cannot.
    """
    for path, flag in ((results, "--results"), (figures, "--figures")):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is not a folder: choose another {flag}")
        check_writable(path, flag)


def measure_parts(parts: Mapping[str, Callable[[], Row]], results: Path, about: Row) -> None:
    """Measure each part, and store it as results/NAME.json once it is done.

    Args:
        parts: functions that measure.
        results: the folder.
        about: what each file begins with, such as the machine.
    """
    for name, measure in parts.items():
        path = results / f"{name}.json"
        result = {**about, **measure()}
        with write_atomically(path) as file:
            file.write(json.dumps(result, indent=1).encode())
        log.info("%s -> %s", name, path)


def measure_with_peaks(
    parts: Mapping[str, Callable[[Row], Row]],
    results: Path,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    quick: bool,
) -> None:
    """Measure the device's peaks, then each part, which is given them, and store it once it is done.

    Args:
        parts: functions that measure.
        results: the folder.
        device: what is measured.
        dtypes: in which it computes.
        quick: whether the numbers are too rough to be quoted; this is stored with them.
    """
    with torch.no_grad():
        peaks = measured_peaks(device, dtypes)
        log.info("peaks: %s", peaks)
        about = {"machine": machine(device), "peaks": peaks, "quick": quick}
        measure_parts({name: functools.partial(measure, peaks) for name, measure in parts.items()}, results, about)


def read_results(results: Path, parts: Iterable[str]) -> dict[str, Row]:
    """Return the results of those parts that have been measured and have something to show.

    Raises:
        InputError: if a file is damaged.
    """
    found = {}
    for part in parts:
        if (path := results / f"{part}.json").exists():
            found[part] = read_json(path)
            if not isinstance(found[part], dict):
                raise InputError(f"{path} does not hold a benchmark's result")
    return {part: result for part, result in found.items() if result.get("rows", True)}


def show_each(results: Path, shows: Mapping[str, Callable[[Row], Shown]]) -> dict[str, Shown]:
    """Call each part's function with the part's stored result, if there is one, and return what they return.

    Raises:
        InputError: if a file is damaged, or was stored by another version of the benchmark.
    """
    shown = {}
    for part, result in read_results(results, shows).items():
        try:
            shown[part] = shows[part](result)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            path = results / f"{part}.json"
            raise InputError(f"{path} is of another version of this benchmark: measure anew, or remove it") from error
    return shown


def show_results(
    results: Path, figures: Path, tables: Callable[[Path], str], draw_all: Callable[[Path, Path], None]
) -> None:
    """Print the tables of stored results, and draw their figures if matplotlib is installed.

    Raises:
        InputError: if there is nothing to show, or a file is damaged or of another version.
    """
    shown = tables(results)
    if not shown:
        raise InputError(f"there are no results in {results}")
    print(shown)
    try:
        draw_all(results, figures)
    except ModuleNotFoundError as error:
        log.warning("%s is not installed, so there are no figures", error.name)


def draw_each(
    results: Path, figures: Path, plots: Mapping[str, tuple[Callable[[Any, Row], None], Mapping[str, Any]]]
) -> None:
    """Write figures/NAME.svg for each part that has been measured.

    Args:
        results: the folder of the results.
        figures: the folder to write to.
        plots: for each part a function that plots its result on given axes, and the arguments for `figure`.

    Raises:
        InputError: if a file is damaged, or was stored by another version of the benchmark.
    """

    def draw(part: str, result: Row) -> None:
        plot, arguments = plots[part]
        with figure(**arguments) as (drawing, axes):
            plot(axes, result)
            save_svg(drawing, figures / f"{part}.svg")

    show_each(results, {part: functools.partial(draw, part) for part in plots})


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. A heading that ends in a colon, which is not shown, sets its column to the right."""
    rules = ["---:" if column.endswith(":") else "---" for column in columns]
    lines = [[column.removesuffix(":") for column in columns], rules, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# -- scripts -----------------------------------------------------------------------------------------------


def run_benchmark(main: Callable[[Config], Any], config_class: type[Config]) -> None:
    """Run a benchmark from the command line; without tyro, as on many a GPU machine, `--quick` is the only flag."""
    if find_spec("tyro"):
        from utils import command_line

        command_line.run(main, config_class)
        return
    early_interrupt.end()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.warning("tyro is not installed, so of all flags only --quick is understood")
    main(config_class(quick="--quick" in sys.argv))  # type: ignore[call-arg]
