"""Figures: the same data gives the same bytes, and they can be read on light pages and dark."""

from pathlib import Path

import pytest

from utils.figures import COLORS, INK, figure, save_svg


def contrast(a: str, b: str) -> float:
    """WCAG 2.1's contrast ratio."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted([luminance(a), luminance(b)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("color", [*COLORS, INK])
@pytest.mark.parametrize("page", ["#ffffff", "#111111"])
def test_colors_stand_out_on_light_and_dark(color: str, page: str) -> None:
    assert contrast(color, page) >= 3


def test_the_same_data_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        with figure() as (drawing, axes):
            axes.plot([1, 2, 3], [3, 1, 2], label="line")
            axes.legend()
            save_svg(drawing, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
