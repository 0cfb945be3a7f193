"""Tables and figures of this benchmark, from its stored results alone."""

import functools
from collections.abc import Callable
from pathlib import Path

from utils.figures import BLUE, GREEN, INK, figure, save_svg
from utils.measuring import Row, markdown_table, show_each

COLORS = (BLUE, GREEN)


def curve_table(result: Row) -> str:
    """Show each model's speed by the number of texts written at once."""
    columns = [
        "model",
        "at once:",
        "tokens/s, all together:",
        "times one alone:",
        "by processor time:",
        "first token, ms:",
        "event loop late, p99, ms:",
    ]
    rows = []
    for row in result["rows"]:
        cells = ["", "", "", ""]
        if row["at_once"]:
            numbers = ("tokens_per_second", "times_one", "times_one_by_processor", "first_token_ms")
            formats = (",.0f", ".1f", ".1f", ",.0f")
            cells = [format(row[name]["median"], form) for name, form in zip(numbers, formats, strict=True)]
        rows.append((row["model"], str(row["at_once"]), *cells, f"{row['loop_late_p99_ms']:.1f}"))
    return markdown_table(columns, rows)


def equal_table(result: Row) -> str:
    """Show how many texts are the same alone and among others."""
    columns = ["model", "texts:", "tokens:", "texts with equal tokens:", "largest difference of a log-probability:"]
    rows = [
        (
            row["model"],
            str(row["texts"]),
            f"{row['tokens']:,}",
            str(row["equal_texts"]),
            f"{row['largest_difference']:.0e}",
        )
        for row in result["rows"]
    ]
    return markdown_table(columns, rows)


def turns_table(result: Row) -> str:
    """Show how soon a second turn's first token comes, beside reading everything anew."""
    columns = ["model", "tokens known:", "tokens new:", "anew, ms:", "with reuse, ms:", "share:"]
    rows = [
        (
            row["model"],
            f"{row['known_tokens']:,}",
            str(row["new_tokens"]),
            f"{row['anew_ms']['median']:,.0f}",
            f"{row['again_ms']['median']:,.0f}",
            f"{row['share']['median']:.0%}",
        )
        for row in result["rows"]
    ]
    return markdown_table(columns, rows)


TABLES: dict[str, Callable[[Row], str]] = {
    "equal": equal_table,
    "curve": curve_table,
    "turns": turns_table,
    "equal_gpu": equal_table,
    "curve_gpu": curve_table,
    "turns_gpu": turns_table,
}


def tables(results: Path) -> str:
    """Return all that was measured, in Markdown, each part with the machine it was measured on."""
    parts = show_each(results, {part: functools.partial(_table_and_machine, table) for part, table in TABLES.items()})
    return "\n\n".join(parts.values())


def _table_and_machine(table: Callable[[Row], str], result: Row) -> str:
    here = result["machine"]
    where = here["gpu"] if here["device"] == "cuda" else f"{here['cpu']}, {here['threads']} threads"
    busy = f"; other programs' load when it began: {result['load']:.1f}" if result["load"] > 1 else ""
    return f"{table(result)}\n\n{where}, PyTorch {here['torch']}{busy}."


def draw_all(results: Path, figures: Path) -> None:
    """Write curve.svg, and curve_gpu.svg, for what was measured."""
    show_each(
        results, {part: functools.partial(draw_curve, figures / f"{part}.svg") for part in ("curve", "curve_gpu")}
    )


def draw_curve(path: Path, result: Row) -> None:
    """Draw how many times as fast as one text several are written: on a CPU by its time, on a GPU by the clock."""
    on_cpu = result["machine"]["device"] == "cpu"
    key, of = ("times_one_by_processor", " by processor time") if on_cpu else ("times_one", "")
    names = list(dict.fromkeys(row["model"] for row in result["rows"]))
    with figure(figsize=(5.2, 3.4)) as (drawing, axes):
        for name, color in zip(names, COLORS, strict=False):
            rows = [row for row in result["rows"] if row["model"] == name and row["at_once"]]
            gains = [row[key]["median"] for row in rows]
            axes.plot([row["at_once"] for row in rows], gains, "o-", color=color, label=name)
        numbers = sorted({row["at_once"] for row in result["rows"] if row["at_once"]})
        axes.plot(numbers, numbers, color=INK, linestyle=":", label="as if each were alone")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(numbers, [str(n) for n in numbers])
        ticks = [2**power for power in range(int(max(numbers)).bit_length())]
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="texts written at once", ylabel=f"speed{of}, times one alone")
        axes.legend()
        save_svg(drawing, path)
