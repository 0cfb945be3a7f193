"""Tables and figures of this benchmark, from its stored results alone."""

import functools
from collections.abc import Callable
from pathlib import Path

from gpt_model.benchmark.sizes import plot_sizes, sizes_table
from gpt_model.benchmark.writing import THEIRS, writing_table
from utils.figures import BLUE, GREEN, INK, ORANGE, figure, save_svg
from utils.measuring import Row, markdown_table, show_each

COLORS = {"float32": BLUE, "bfloat16": GREEN, "int8": ORANGE}


def quality_table(result: Row) -> str:
    """Show perplexities, and what each precision costs beside float32."""
    text = f"Perplexity (e to the mean loss) of {result['run']} on {result['tokens']:,} tokens it has not seen."
    rows = [(name, f"{result[name]:.3f}", f"{result[name] / result['float32']:.5f}") for name in COLORS]
    return f"{text}\n\n{markdown_table(['precision', 'perplexity:', 'times float32:'], rows)}"


TABLES = {"writing": writing_table, "quality": quality_table, "sizes": sizes_table}


def tables(results: Path) -> str:
    """Return all that was measured, in Markdown, each part with the machine it was measured on."""
    parts = show_each(results, {part: functools.partial(_table_and_machine, table) for part, table in TABLES.items()})
    return "\n\n".join(parts.values())


def _table_and_machine(table: Callable[[Row], str], result: Row) -> str:
    return f"{table(result)}\n\n{machine(result)}."


def machine(result: Row) -> str:
    """Describe where it was measured, and the most that this machine reads."""
    here, peaks = result["machine"], result["peaks"]
    where = here["gpu"] if here["device"] == "cuda" else f"{here['cpu']}, {here['threads']} threads"
    theirs = f", transformers {here['transformers']}" if here["transformers"] else ""
    reads = f"summing a large array, the fastest reading we found, reaches {peaks['bytes_per_second'] / 1e9:,.0f} GB/s"
    return f"{where}, PyTorch {here['torch']}{theirs}; {reads}"


def draw_all(results: Path, figures: Path) -> None:
    """Write writing.svg and sizes.svg, for what was measured."""
    draws = {"writing": draw_writing, "sizes": draw_sizes}
    show_each(results, {part: functools.partial(draw, figures / f"{part}.svg") for part, draw in draws.items()})


def draw_writing(path: Path, result: Row) -> None:
    """Draw the tokens per second of each way of writing, and what reading the weights allows."""
    rows = result["rows"]
    several = len({row["size"] for row in rows}) > 1
    with figure(figsize=(7.0, 0.32 * len(rows) + 0.8)) as (drawing, axes):
        for y, row in enumerate(rows):
            speed, color = row["tokens_per_second"]["median"], COLORS[row["precision"]]
            axes.barh(y, speed, 0.7, color=INK if row["way"] == THEIRS else color)
            axes.text(speed, y, f"{speed:,.0f} ", va="center", ha="right", color="white", fontsize=8)
            ceiling = speed / row["ceiling_share"]
            axes.plot([ceiling, ceiling], [y - 0.38, y + 0.38], color=INK, linestyle=":")
        names = [f"{row['way'].replace(', int8', '')}, {row['precision']}" for row in rows]
        if several:
            names = [f"{row['size']}: {name}" for row, name in zip(rows, names, strict=True)]
        axes.set_yticks(range(len(rows)), names)
        axes.set(xlabel="tokens per second; dotted: what reading the weights allows")
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        save_svg(drawing, path)


def draw_sizes(path: Path, result: Row) -> None:
    """Draw `plot_sizes` in two columns: side by side, a page would shrink the sizes until nobody can read them."""
    n_sizes = len({row["size"] for row in result["rows"]})
    columns = min(2, n_sizes)
    lines = -(-n_sizes // columns)
    shape = (4.8 * columns, 3.3 * lines)
    with figure(columns, lines, figsize=shape, layout="constrained", squeeze=False) as (drawing, axes):
        plot_sizes(axes.flat, result)
        for unused in axes.flat[n_sizes:]:
            unused.remove()
        save_svg(drawing, path)
