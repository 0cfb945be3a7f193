"""Tables and figures of this benchmark, from its stored results alone."""

import json
from pathlib import Path

from attention_mechanisms.benchmark.timing import Row
from gpt_model.benchmark.decode import THEIRS, writing_table
from gpt_model.benchmark.sizes import plot_sizes, sizes_table
from utils.figures import BLUE, GREEN, INK, ORANGE, figure, save_svg

COLORS = {"float32": BLUE, "bfloat16": GREEN, "int8": ORANGE}


def quality_table(result: Row) -> str:
    """Perplexities, and what each costs against float32."""
    lines = [f"Perplexity of {result['run']} on {result['tokens']:,} tokens it has not seen.", ""]
    lines += ["| precision | perplexity | times float32 |", "| --- | ---: | ---: |"]
    for precision in COLORS:
        lines.append(f"| {precision} | {result[precision]:.3f} | {result[precision] / result['float32']:.5f} |")
    return "\n".join(lines)


TABLES = {"writing": writing_table, "quality": quality_table, "sizes": sizes_table}


def tables(results: Path) -> str:
    """All that was measured, in Markdown, each with the machine it was measured on."""
    shown = []
    for part, table in TABLES.items():
        if (path := results / f"{part}.json").exists():
            result = json.loads(path.read_bytes())
            shown.append(f"{table(result)}\n\n{machine(result)}.")
    return "\n\n".join(shown)


def machine(result: Row) -> str:
    """Where it was measured, and the most that machine does."""
    here, peaks = result["machine"], result["peaks"]
    where = here["gpu"] if here["device"] == "cuda" else f"{here['cpu']}, {here['threads']} threads"
    theirs = f", transformers {here['transformers']}" if here["transformers"] else ""
    return f"{where}, PyTorch {here['torch']}{theirs}; the best sum reads {peaks['bytes_per_second'] / 1e9:,.0f} GB/s"


def draw_all(results: Path, figures: Path) -> None:
    """writing.svg and sizes.svg, for what was measured."""
    if (path := results / "writing.json").exists():
        result = json.loads(path.read_bytes())
        rows = result["rows"]
        with figure(figsize=(7.0, 0.32 * len(rows) + 0.8)) as (drawing, axes):
            for y, row in enumerate(rows):
                speed, color = row["tokens_per_second"]["median"], COLORS[row["precision"]]
                axes.barh(y, speed, 0.7, color=INK if row["way"] == THEIRS else color)
                axes.text(speed, y, f"{speed:,.0f} ", va="center", ha="right", color="white", fontsize=8)
                ceiling = speed / row["ceiling_share"]
                axes.plot([ceiling, ceiling], [y - 0.38, y + 0.38], color=INK, linestyle=":")
            axes.set_yticks(
                range(len(rows)), [f"{row['way'].replace(', int8', '')}, {row['precision']}" for row in rows]
            )
            axes.set(xlabel="tokens a second; dotted: what reading the weights allows")
            axes.grid(visible=False, axis="y")
            axes.invert_yaxis()
            save_svg(drawing, figures / "writing.svg")
    if (path := results / "sizes.json").exists():
        result = json.loads(path.read_bytes())
        n_sizes = len({row["size"] for row in result["rows"]})
        with figure(columns=n_sizes, figsize=(3.6 * n_sizes, 3.4), layout="constrained", squeeze=False) as (
            drawing,
            axes,
        ):
            plot_sizes(axes[0], result)
            save_svg(drawing, figures / "sizes.svg")
