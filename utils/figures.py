"""One look for all figures, readable on light pages and on dark ones: mid tones on a transparent background."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Tones with at least 3:1 contrast against both white and near-black (WCAG 2.1's bound for graphics).
BLUE, ORANGE, GREEN, RED, PURPLE = COLORS = ["#3f87d9", "#d97a1f", "#2f9e62", "#dc4f4f", "#9b6fd0"]
INK = "#808080"

STYLE: dict[str, Any] = {
    "figure.figsize": (7.0, 3.6),
    "figure.dpi": 110,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.bbox": "tight",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "text.color": INK,
    "boxplot.boxprops.color": INK,
    "boxplot.whiskerprops.color": INK,
    "boxplot.capprops.color": INK,
    "boxplot.flierprops.markeredgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    # Jupyter paints a background behind a transparent figure whose tick labels are all on one side of
    # middle grey; one label a shade lighter and one a shade darker keep it transparent
    "xtick.labelcolor": "#818181",
    "ytick.labelcolor": "#7f7f7f",
    "font.size": 10,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.hashsalt": "language-model-from-scratch",  # the same data gives the same file
}


@contextmanager
def figure(columns: int = 1, rows: int = 1, **subplots: Any) -> Iterator[tuple["Figure", Any]]:
    """Make a figure and its axes in the project's style, closed at the end of the block.

    Args:
        columns: axes side by side.
        rows: axes one below the other.
        subplots: other arguments of `plt.subplots`.
    """
    import matplotlib.pyplot as plt

    with plt.rc_context({**STYLE, "axes.prop_cycle": plt.cycler(color=COLORS)}):
        drawing, axes = plt.subplots(rows, columns, **subplots)
        try:
            yield drawing, axes
        finally:
            plt.close(drawing)


def save_svg(drawing: "Figure", path: Path) -> None:
    """Write a figure as SVG; the same data gives the same bytes."""
    with write_atomically(path) as file:
        file.write(svg_bytes(drawing))


def svg_bytes(drawing: "Figure") -> bytes:
    """Return a figure as SVG, without the date."""
    content = io.BytesIO()
    drawing.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def draw_boxes(
    axes: "Axes", y: float, labels: Iterable[str], widths: Iterable[float], colors: Iterable[str | None]
) -> None:
    """Draw a row of labelled boxes from x = 0 on, such as the tokens of a text.

    Args:
        axes: where to draw; its frame is taken away.
        y: height of the row's middle; a row is about 0.7 high.
        labels: the text in each box; a space is drawn as ␣, a line break as ↵.
        widths: one for each box.
        colors: one for each box; None draws only an outline.
    """
    from matplotlib.patches import FancyBboxPatch

    x = 0.0
    for label, width, color in zip(labels, widths, colors, strict=True):
        box = FancyBboxPatch((x + 0.08, y - 0.36), width - 0.16, 0.72, "round,pad=0,rounding_size=0.15")
        axes.add_patch(box).set(facecolor=color or "none", edgecolor=color or INK)
        text = axes.text(x + width / 2, y, label.replace(" ", "␣").replace("\n", "↵"))
        text.set(color="white" if color else INK, family=["DejaVu Sans Mono", "DejaVu Sans"])
        text.set(ha="center", va="center_baseline")
        x += width
    axes.set(xlim=(0, max(x, axes.get_xlim()[1])), xticks=[], yticks=[])
    axes.axis("off")


def draw_network(
    axes: "Axes", layers: Sequence[Sequence[str]], weights: Sequence[Sequence[Sequence[float]]], digits: int = 2
) -> None:
    """Draw a small network: a column of circles for each layer, and a line for each weight between two layers.

    A line is blue where the number is positive, orange where it is negative and grey where it is zero; the larger
    the number, the thicker the line.

    Args:
        axes: where to draw; its frame is taken away.
        layers: the text in each circle, layer by layer.
        weights: between each two layers a table, a row for each circle on the left.
        digits: decimals of the numbers on the lines.
    """
    heights = [[(len(layer) - 1) / 2 - row for row in range(len(layer))] for layer in layers]
    largest = max(abs(weight) for table in weights for row in table for weight in row)
    for left, table in enumerate(weights):
        for i, row in enumerate(table):
            for j, weight in enumerate(row):
                color = INK if weight == 0 else BLUE if weight > 0 else ORANGE
                start, end = heights[left][i], heights[left + 1][j]
                width = 0.6 + 3.4 * abs(weight) / largest
                for a, b in ((0, 0.17), (0.33, 1)):  # a gap for the number
                    ys = [start + share * (end - start) for share in (a, b)]
                    axes.plot([left + a, left + b], ys, color=color, linewidth=width, zorder=1)
                # a quarter of the way, where the numbers of up to three lines per circle stand evenly apart
                text = axes.text(left + 0.25, start + 0.25 * (end - start), f"{weight:z.{digits}f}", color=color)
                text.set(ha="center", va="center", fontsize=9)
    for x, layer in enumerate(layers):
        axes.scatter([x] * len(layer), heights[x], s=1300, color=PURPLE, zorder=2)
        for y, label in zip(heights[x], layer, strict=True):
            axes.text(x, y, label, ha="center", va="center", color="white", zorder=3)
    tallest = max(len(layer) for layer in layers)
    axes.set(xlim=(-0.3, len(layers) - 0.6), ylim=(-tallest / 2, tallest / 2))
    axes.axis("off")


def use_style() -> None:
    """Draw everything from here on in the project's style: for notebooks, which show what they draw."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({**STYLE, "axes.prop_cycle": plt.cycler(color=COLORS)})


def draw_matrices(axes: "Axes", shapes: dict[str, tuple[int, int]], color: str, width: float) -> None:
    """Draw matrices side by side and to scale: as high as they have rows, as wide as they have columns.

    Args:
        axes: where to draw; its frame is taken away.
        shapes: rows and columns of each, by the short name that is written into it.
        color: of all of them.
        width: of the axes, in columns; axes of the same width and size have the same scale.
    """
    from matplotlib.patches import Rectangle

    x = 0.0
    for name, (rows, columns) in shapes.items():
        axes.add_patch(Rectangle((x, 0), columns, -rows)).set(facecolor=color, edgecolor="none")
        axes.text(x + columns / 2, -rows / 2, name, color="white", ha="center", va="center")
        x += columns + 0.02 * width
    axes.set(xlim=(0, width), aspect="equal", anchor="W")
    axes.autoscale_view(scalex=False)
    axes.axis("off")
