"""Charts of characters: every point is where it should be, and every line fits."""

import pytest

from utils.terminal_chart import draw_chart


def test_a_falling_line_in_stars() -> None:
    assert draw_chart([(0, 9), (1000, 1)], [(500, 9)], width=19, height=3, braille=False) == [
        "9 |*****   o",
        "  |    *********",
        "1 |            ****",
        "  +----------------",
        "   0          1,000",
    ]


def test_the_same_line_in_dots() -> None:
    assert draw_chart([(0, 9), (1000, 1)], width=19, height=3) == [
        "9 |⠉⠓⠲⠤⣄⡀",
        "  |     ⠉⠙⠒⠦⢤⣀⡀",
        "1 |           ⠉⠓⠲⠤⣄",
        "  +----------------",
        "   0          1,000",
    ]


def test_steep_parts_are_connected() -> None:
    lines = draw_chart([(0, 8), (1, 0), (2, 4)], width=6, height=5, braille=False)
    assert lines[:5] == ["8 |**", "  | *", "  | **", "  | **", "0 | **"]


def test_a_column_with_several_points_shows_their_mean() -> None:
    lines = draw_chart([(0, 8), (1, 8), (1, 0), (2, 0)], width=6, height=5, braille=False)
    assert lines[:5] == ["8 |**", "  | *", "  | **", "  |  *", "0 |  *"]


@pytest.mark.parametrize("braille", [True, False])
@pytest.mark.parametrize("width", [30, 80, 200])
@pytest.mark.parametrize("curve", [[(7, 3.25)], [(10, 2), (20, 2)], [(1e9, -1.23456e-9), (2e9, 12345678.9)]])
def test_lines_fit(curve: list[tuple[float, float]], width: int, braille: bool) -> None:
    lines = draw_chart(curve, curve, width=width, height=2, braille=braille)
    assert len(lines) == 4
    assert max(map(len, lines)) <= width
    assert sum(line.count("o") for line in lines) == len(curve)
