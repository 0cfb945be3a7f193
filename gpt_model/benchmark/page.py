"""Tables and figures of this benchmark, from its stored results alone."""

from pathlib import Path

from attention_mechanisms.benchmark.timing import Row, read_results
from gpt_model.benchmark.decode import THEIRS, writing_table
from gpt_model.benchmark.sizes import plot_sizes, sizes_table
from utils.figures import BLUE, GREEN, INK, ORANGE, figure, save_svg

COLORS = {"float32": BLUE, "bfloat16": GREEN, "int8": ORANGE}


def quality_table(result: Row) -> str:
    """Perplexities, and what each costs against float32."""
    lines = [f"Perplexity (e to the mean loss) of {result['run']} on {result['tokens']:,} tokens it has not seen.", ""]
    lines += ["| precision | perplexity | times float32 |", "| --- | ---: | ---: |"]
    for precision in COLORS:
        lines.append(f"| {precision} | {result[precision]:.3f} | {result[precision] / result['float32']:.5f} |")
    return "\n".join(lines)


TABLES = {"writing": writing_table, "quality": quality_table, "sizes": sizes_table}


def tables(results: Path) -> str:
    """All that was measured, in Markdown, each with the machine it was measured on."""
    found = read_results(results, TABLES)
    return "\n\n".join(f"{TABLES[part](result)}\n\n{machine(result)}." for part, result in found.items())


def machine(result: Row) -> str:
    """Where it was measured, and the most that machine does."""
    here, peaks = result["machine"], result["peaks"]
    where = here["gpu"] if here["device"] == "cuda" else f"{here['cpu']}, {here['threads']} threads"
    theirs = f", transformers {here['transformers']}" if here["transformers"] else ""
    reads = f"summing a large array, the fastest reading we found, reaches {peaks['bytes_per_second'] / 1e9:,.0f} GB/s"
    return f"{where}, PyTorch {here['torch']}{theirs}; {reads}"


def draw_all(results: Path, figures: Path) -> None:
    """writing.svg and sizes.svg, for what was measured."""
    found = read_results(results, TABLES)
    if "writing" in found:
        rows = found["writing"]["rows"]
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
            axes.set(xlabel="tokens a second; dotted: what reading the weights allows")
            axes.grid(visible=False, axis="y")
            axes.invert_yaxis()
            save_svg(drawing, figures / "writing.svg")
    if "sizes" in found:
        result = found["sizes"]
        n_sizes = len({row["size"] for row in result["rows"]})
        columns = min(2, n_sizes)  # not all side by side: a page would shrink them until nobody can read them
        lines = -(-n_sizes // columns)
        shape = (4.8 * columns, 3.3 * lines)
        with figure(columns, lines, figsize=shape, layout="constrained", squeeze=False) as (drawing, axes):
            plot_sizes(axes.flat, result)
            for unused in axes.flat[n_sizes:]:
                unused.remove()
            save_svg(drawing, figures / "sizes.svg")
