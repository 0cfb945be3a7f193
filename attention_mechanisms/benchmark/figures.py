"""Tables and figures of this benchmark, from its stored results alone."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.figures import BLUE, GREEN, INK, ORANGE, PURPLE, RED
from utils.measuring import Row, draw_each, markdown_table, show_each

KERNEL_COLORS = {"manual": ORANGE, "sdpa": BLUE, "flex": GREEN}
DECODE_COLORS = {"transformers": INK, "MHA": BLUE, "GQA": GREEN, "MLA": PURPLE, "SWA": ORANGE}
SHOWN_LENGTHS = (512, 2048, 8192, 32_768)  # of layers; kernels are shown at every length


# -- tables ------------------------------------------------------------------------------------------------


def tables(results: Path) -> str:
    """Return all tables, in Markdown, each with the machine it was measured on."""
    made = {"decode": decode_table, "window": window_table, "sweep": sweep_tables}
    return "\n\n".join(show_each(results, made).values())


def decode_table(result: Row) -> str:
    """Show a step of each kind of attention, and what it remembers and reads."""
    columns = ["attention", "", "context:", "ms per step:", "tokens/s:", "times MHA:", "cache, bytes per token:"]
    columns += ["held:", "of peak bytes/s:", "of peak FLOP/s:", *_energy_column(result["rows"])]
    rows = []
    for row in result["rows"]:
        cells = [row["attention"], row["dtype"], f"{row['context']:,}", _milliseconds(row["seconds"])]
        cells += [f"{row['tokens_per_second']['median']:,.0f}", f"{row['times_mha']['median']:.2f}"]
        cells += [f"{row['cache_bytes_per_token']:,.0f}", _megabytes(row["memory"])]
        cells += [f"{row['bytes_share']:.0%}", f"{row['flops_share']:.0%}", _energy(row)]
        rows.append(cells[: len(columns)])
    size = f"{result['n_layers']} attention layers of width {result['d_model']}, batch {result['batch']}"
    notes = [f"\n{note}." for note in result["notes"]]
    return "\n".join([f"{size}, {_machine(result)}.", "", markdown_table(columns, rows), *notes])


def window_table(result: Row) -> str:
    """Show the time of full and of sliding-window attention, and how it grows."""
    columns = ["", "reach, kernel", "tokens:", "ms:", "tokens/s:", "times full:", "memory:", "of peak FLOP/s:"]
    columns += ["of peak bytes/s:", *_energy_column(result["rows"])]
    rows = []
    for row in result["rows"]:
        cells = [row["what"], row["name"], f"{row['length']:,}", _milliseconds(row["seconds"])]
        cells += [f"{row['tokens_per_second']['median']:,.0f}", f"{row['times_full']['median']:.2f}"]
        cells += [_megabytes(row["memory"]), f"{row['flops_share']:.0%}", f"{row['bytes_share']:.0%}", _energy(row)]
        rows.append(cells[: len(columns)])
    growths = []
    for growth in result["growth"]:
        if growth["exponent"] is not None:
            cells = [growth["what"], growth["name"], f"{growth['from']:,}", f"{growth['to']:,}"]
            growths.append([*cells, f"T^{growth['exponent']:.2f}", f"{growth['time_per_token_ratio']:.2f}"])
    growth_columns = ["", "reach, kernel", "from:", "to:", "time grows as:", "time per token, last to first:"]
    size = f"Batch 1, {result['n_heads']} heads of {result['d_model'] // result['n_heads']}, {result['dtype']}"
    parts = [f"{size}, {_machine(result)}.", markdown_table(columns, rows)]
    return "\n\n".join([*parts, *([markdown_table(growth_columns, growths)] if growths else [])])


def sweep_tables(result: Row) -> str:
    """Show the rows of one width and batch, then what was left out of the whole sweep."""
    width, batch = result["shown"]
    kernels, layers = ([row for row in _shown(result) if row["what"] == what] for what in ("kernel", "layer"))
    kinds = f"GQA: {result['group']} query heads per group; MLA: R = C / {result['latent_share']}; "
    kinds += f"SWA: W = {result['window']}"
    parts = [
        f"Width {width:,}, heads of {result['head_dim']}, batch {batch}, {result['dtype']}, {_machine(result)}.",
        _sweep_table(kernels, "kernel"),
        _versus_table(kernels),
        f"Whole layers ({kinds}):",
        _sweep_table([row for row in layers if row["length"] in SHOWN_LENGTHS], "layer"),
        "Of all shapes (the first without room: batch x tokens x width):",
        _left_out_table(result["rows"]),
    ]
    if result["machine"]["device"] == "cpu":
        parts.insert(2, "On a CPU flex is compiled only where that pays; for few tokens it stores all scores.")
    return "\n\n".join(parts)


def _sweep_table(rows: list[Row], what: str) -> str:
    """Show a line for each length and name: first the forward pass alone, then both passes."""
    numbers = ["memory:", "of peak FLOP/s:", "of peak bytes/s:", *_energy_column(rows)]
    columns = ["tokens:", what, "forward: tokens/s:", *numbers, "with backward: tokens/s:", *numbers]
    lines = []
    for length, name in dict.fromkeys((row["length"], row["name"]) for row in rows):
        cells = [f"{length:,}", name]
        for row in rows:
            if (row["length"], row["name"]) == (length, name):
                cells += _sweep_cells(row, 1 + len(numbers))
        lines.append(cells)
    return markdown_table(columns, lines)


def _sweep_cells(row: Row, n_columns: int) -> list[str]:
    if "left_out" in row:
        return [row["left_out"], *[""] * (n_columns - 1)]
    speed = row["tokens_per_second"]
    cells = [f"{speed['median']:,.0f} ({speed['q1']:,.0f} to {speed['q3']:,.0f})", _megabytes(row["memory"])]
    cells += [f"{row['flops_share']:.0%}", f"{row['bytes_share']:.0%}", _energy(row)]
    return cells[:n_columns]


def _versus_table(rows: list[Row]) -> str:
    """Show the fused kernels beside the plain formula, and flex beside the fastest of them."""
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    columns = ["tokens:"]
    for pass_ in passes:
        columns += [f"{pass_}: fastest sdpa", f"{pass_}: times manual:", f"{pass_}: flex, times sdpa:"]
    lines = []
    for length in dict.fromkeys(row["length"] for row in rows):
        cells = [f"{length:,}"]
        for pass_ in passes:
            own = {row["name"]: row for row in rows if (row["length"], row["pass"]) == (length, pass_)}
            took = {name: row["seconds"]["median"] for name, row in own.items() if "seconds" in row}
            fastest = min((name for name in took if name.startswith("sdpa")), key=took.__getitem__, default="")
            cells += [fastest, _times(took, "manual", fastest), _times(took, fastest, "flex")]
        lines.append(cells)
    return markdown_table(columns, lines)


def _times(took: dict[str, float], slower: str, faster: str) -> str:
    """Return how many times as fast one is as the other, or nothing if one was not measured."""
    return f"{took[slower] / took[faster]:.2f}" if {slower, faster} <= took.keys() else ""


def _left_out_table(rows: list[Row]) -> str:
    """Show how many shapes were measured and how many not, and the smallest that found no room."""
    columns = ["", "pass", "measured:", "too slow:", "not available:", "no room:", "first without room"]
    lines = []
    for name, pass_ in dict.fromkeys((row["name"], row["pass"]) for row in rows):
        own = [row for row in rows if (row["name"], row["pass"]) == (name, pass_)]
        counts = Counter(row.get("left_out", "measured") for row in own)
        full = [row for row in own if row.get("left_out") in ("would not fit", "out of memory")]
        first = min(full, key=lambda row: row["batch"] * row["d_model"] * row["length"] ** 2, default=None)
        where = f"{first['batch']} x {first['length']:,} x {first['d_model']:,}" if first else ""
        numbers = [counts["measured"], counts["too slow"], counts["not available"], len(full)]
        lines.append([name, pass_, *map(str, numbers), where])
    return markdown_table(columns, lines)


def _shown(result: Row) -> list[Row]:
    width, batch = result["shown"]
    rows = [row for row in result["rows"] if (row["d_model"], row["batch"]) == (width, batch)]
    return sorted(rows, key=lambda row: row["length"])  # rows of one length stay in the order they were measured


def _milliseconds(seconds: Row) -> str:
    """Return median and quartiles."""
    median, q1, q3 = (1000 * seconds[key] for key in ("median", "q1", "q3"))
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:,.{digits}f} ({q1:,.{digits}f} to {q3:,.{digits}f})"


def _megabytes(nbytes: float | None) -> str:
    return "" if nbytes is None else f"{nbytes / 1e6:,.0f} MB"


def _energy_column(rows: list[Row]) -> list[str]:
    """Return the heading of the energy, if any was measured."""
    return ["mJ per token:"] if any(row.get("joules_per_token") for row in rows) else []


def _energy(row: Row) -> str:
    joules = row.get("joules_per_token")
    return f"{1000 * joules:.3g}" if joules else ""


def _machine(result: Row) -> str:
    """Describe where it was measured, and the most that this machine does."""
    machine, peaks = result["machine"], result["peaks"]
    where = machine["gpu"] if machine["device"] == "cuda" else f"{machine['cpu']}, {machine['threads']} threads"
    flops = ", ".join(f"{value / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, value in peaks["flops_per_second"].items())
    return f"{where}, PyTorch {machine['torch']}; measured peaks: {flops}, {peaks['bytes_per_second'] / 1e9:,.0f} GB/s"


# -- figures -----------------------------------------------------------------------------------------------


def draw_all(results: Path, figures: Path) -> None:
    """Write one SVG for each part that has been measured."""
    plots = {
        part: (plot, {"columns": 2, "figsize": (10, height), "layout": "constrained"})
        for part, plot, height in (
            ("decode", plot_decode, 4.2),
            ("window", plot_window, 3.6),
            ("sweep", plot_sweep, 3.6),
        )
    }
    draw_each(results, figures, plots)


def plot_decode(axes: Any, result: Row) -> None:
    """Plot tokens per second of each kind of attention at each context; one of two axes for each dtype."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in result["rows"]))
    for axis, dtype in zip(axes, dtypes, strict=False):
        rows = [row for row in result["rows"] if row["dtype"] == dtype]
        contexts = list(dict.fromkeys(row["context"] for row in rows))
        names = list(dict.fromkeys(row["attention"] for row in rows))
        names.sort(key=lambda name: not name.startswith("transformers"))
        for row in rows:
            y = names.index(row["attention"]) + (contexts.index(row["context"]) - (len(contexts) - 1) / 2) * 0.4
            kind = next(color for name, color in DECODE_COLORS.items() if row["attention"].startswith(name))
            alpha = 1 - 0.45 * contexts.index(row["context"]) / max(1, len(contexts) - 1)
            speed = row["tokens_per_second"]["median"]
            axis.barh(y, speed, 0.7 / len(contexts), color=kind, alpha=alpha)
            axis.text(speed, y, f" {speed:,.0f}", va="center", color=INK, fontsize=8)
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="tokens per second", title=dtype)
        axis.margins(x=0.15)
        axis.grid(visible=False, axis="y")
        axis.invert_yaxis()
    axes[1].set_yticklabels([])
    if len(contexts) > 1:
        axes[0].text(
            1, 0.86, f"full: context {contexts[0]:,}\npale: {contexts[-1]:,}", ha="right", transform=axes[0].transAxes
        )


def plot_window(axes: Any, result: Row) -> None:
    """Plot milliseconds against tokens on log axes, attention alone and whole layers."""
    for axis, what in zip(axes, ("attention", "layer"), strict=True):
        rows = [row for row in result["rows"] if row["what"] == what]
        for color, name in zip(
            [BLUE, ORANGE, GREEN, RED, PURPLE], dict.fromkeys(row["name"] for row in rows), strict=False
        ):
            own = [row for row in rows if row["name"] == name]
            growth = next(one for one in result["growth"] if (one["what"], one["name"]) == (what, name))
            label = name if growth["exponent"] is None else f"{name}: T^{growth['exponent']:.2f}"
            _line_of(axis, own, lambda row: 1000 * row["seconds"]["median"], color=color, label=label)
        title = "attention alone" if what == "attention" else "a layer, with its projections"
        _log_axes(axis, rows, title, "ms")


def plot_sweep(axes: Any, result: Row) -> None:
    """Plot tokens per second and memory of the kernels against length; dashed: forward and backward."""
    rows = [row for row in _shown(result) if row["what"] == "kernel" and "left_out" not in row]
    for name, color in KERNEL_COLORS.items():
        for pass_, style in (("forward", "-"), ("forward+backward", "--")):
            own = [row for row in rows if (row["name"], row["pass"]) == (name, pass_)]
            label = name if pass_ == "forward" else None
            _line_of(
                axes[0], own, lambda row: row["tokens_per_second"]["median"], color=color, linestyle=style, label=label
            )
            seen = [row for row in own if row["memory"]]
            _line_of(axes[1], seen, lambda row: row["memory"] / 1e6, color=color, linestyle=style, label=label)
    width, batch = result["shown"]
    _log_axes(axes[0], rows, f"width {width:,}, batch {batch}; dashed: with backward", "tokens per second")
    _log_axes(axes[1], rows, "memory beyond the inputs", "MB")


def _line_of(axis: Any, rows: list[Row], y: Callable[[Row], float], **style: Any) -> None:
    if rows:
        axis.plot([row["length"] for row in rows], [y(row) for row in rows], marker="o", markersize=4, **style)


def _log_axes(axis: Any, rows: list[Row], title: str, ylabel: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    lengths = sorted({row["length"] for row in rows})
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=ylabel, title=title)
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.tick_params(axis="x", labelsize=8)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.legend()
