"""A line chart made of characters, for terminals: of Braille's dots where they can be shown, else of stars.

    8.31 |⢇
         | ⠣⡀        o
         |  ⠈⠒⠤⣀⡀
    3.02 |      ⠈⠉⠉⠉⠉⠉
         +------------
          10       600

A Braille character is a grid of four by two dots, and each dot is a bit of its code point (the Unicode Standard,
section "Braille Patterns").
"""

from collections.abc import Sequence

import numpy as np

Points = Sequence[tuple[float, float]]

NO_DOT = 0x2800
BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


def draw_chart(curve: Points, marks: Points = (), *, width: int, height: int, braille: bool = True) -> list[str]:
    """Return the lines of a chart.

    Args:
        curve: one (x, y) at least, drawn as a line from left to right; where several share a column, their mean counts.
        marks: (x, y), each drawn as an o.
        width: characters of the longest line, with labels; 30 suffice for numbers of any size.
        height: lines of the picture, 2 at least; the axis below it has two more.
        braille: whether the terminal can show Braille's dots.
    """
    points = np.array([*curve, *marks], dtype=float)
    (left, low), (right, high) = points.min(axis=0), points.max(axis=0)
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    margin = max(map(len, labels))
    columns = width - margin - 2

    def cells(some: Points, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the row and the column of each point in a grid of that shape."""
        x, y = np.array(some, dtype=float).T
        return _scaled(high - y, high - low, shape[0]), _scaled(x - left, right - left, shape[1])

    dots_down, dots_across = BITS.shape if braille else (1, 1)
    dots = np.zeros((height * dots_down, columns * dots_across), dtype=bool)
    _connect(dots, *cells(curve, dots.shape))
    picture = _braille(dots) if braille else np.where(dots, "*", " ")
    if marks:
        picture[cells(marks, picture.shape)] = "o"
    lines = [f"{label:>{margin}} |{''.join(row)}".rstrip() for label, row in zip(labels, picture, strict=True)]
    first, last = f"{left:,.0f}", f"{right:,.0f}"
    ends = f"{first}{last:>{columns - len(first)}}" if len(first + last) < columns else f"{last:>{columns}}"
    return [*lines, f"{' ' * margin} +{'-' * columns}", f"{' ' * margin}  {ends}"]


def _scaled(distances: np.ndarray, whole: float, n_cells: int) -> np.ndarray:
    """Return which of the cells that share a whole each distance from its beginning falls into."""
    return np.round(distances / (whole or 1) * (n_cells - 1)).astype(int)


def _connect(dots: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Set the dots of a line through the mean row of each column that has a point."""
    counts = np.bincount(columns)
    there = np.flatnonzero(counts)
    means = np.bincount(columns, weights=rows)[there] / counts[there]
    across = np.arange(there[0], there[-1] + 1)
    heights = np.interp(across, there, means).round().astype(int)
    for column, before, now in zip(across, [heights[0], *heights], heights, strict=False):
        dots[min(before, now) : max(before, now) + 1, column] = True


def _braille(dots: np.ndarray) -> np.ndarray:
    """Return the characters that show a grid of dots, four rows and two columns of it in each."""
    height, width = dots.shape[0] // BITS.shape[0], dots.shape[1] // BITS.shape[1]
    groups = dots.reshape(height, BITS.shape[0], width, BITS.shape[1])
    codes = (groups * BITS[:, None, :]).sum(axis=(1, 3))
    return np.array([[chr(NO_DOT + code) if code else " " for code in row] for row in codes])
