"""What is made of a run's losses: a curve and a histogram that can be checked by hand, and a figure that shows them."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from utils.figures import BLUE, COLORS, GREEN, INK, ORANGE, PURPLE
from utils.files import InputError
from utils.loss import LossAnalyzer
from utils.tracking import METRICS, append_line


def analyzer_of(losses: list[float], **settings: float) -> LossAnalyzer:
    analyzer = LossAnalyzer(**settings)
    for step, loss in enumerate(losses, start=1):
        analyzer.log(step, {"loss": loss})
    return analyzer


def test_the_smoothed_curve_is_the_mean_with_weights_that_fall_by_a_factor() -> None:
    losses = [8.0, 4.0, 6.0, 1.0]
    expected = []
    for n in range(1, 5):
        weights = 0.5 ** np.arange(n)[::-1]
        expected.append(np.average(losses[:n], weights=weights))
    assert analyzer_of(losses, smoothing=0.5).smoothed() == pytest.approx(expected, rel=1e-12)


def test_a_constant_loss_is_smooth_from_the_first_step_on() -> None:
    """Without the correction the curve would begin near 0."""
    assert analyzer_of([3.0] * 50, smoothing=0.99).smoothed() == pytest.approx([3.0] * 50)
    assert analyzer_of([3.0, 1.0], smoothing=0).smoothed() == [3.0, 1.0]


@pytest.mark.parametrize("smoothing", [-0.1, 1, math.nan])
def test_a_smoothing_that_would_never_move_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing must be at least 0 and below 1, got"):
        LossAnalyzer(smoothing=smoothing)


def test_the_histogram_counts_recent_losses_only() -> None:
    analyzer = analyzer_of([100.0, 100.0, 1.0, 1.25, 3.0], recent=3)
    assert analyzer.recent_histogram(bins=2) == ([2, 1], [1.0, 2.0, 3.0])


def test_one_loss_that_is_not_a_number_spoils_nothing() -> None:
    analyzer = analyzer_of([2.0, math.nan, math.inf, 2.0])
    assert analyzer.series["loss"] == [(1, 2.0), (4, 2.0)]
    assert analyzer.smoothed() == pytest.approx([2.0, 2.0])


def test_a_run_is_read_as_it_was_logged(tmp_path: Path) -> None:
    told = LossAnalyzer()
    for step in range(10, 60, 10):
        values = {"loss": 9 / step, "gradient_norm": 1.5, "lr_factor": step / 50, "seconds": 1}
        told.log(step, values)
        append_line(tmp_path / METRICS, {"step": step, **values})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 60, "lo')
    read = LossAnalyzer.from_run(tmp_path)
    assert read.series == told.series
    assert read.series["lr_factor"][-1] == (50, 1.0)


def test_a_run_without_numbers_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics.jsonl holds no loss, or is not there"):
        LossAnalyzer.from_run(tmp_path)


def drawn(path: Path) -> tuple[set[str], set[str]]:
    """The colours of a figure, and its texts: matplotlib leaves each as a comment beside its outlines."""
    builder = ElementTree.TreeBuilder(insert_comments=True)
    elements = list(ElementTree.parse(path, ElementTree.XMLParser(target=builder)).iter())
    styles = [element.get("style", "") for element in elements]
    settings = [part.strip() for style in styles for part in style.split(";")]
    colors = {part.split(": ")[1] for part in settings if part.startswith(("fill: #", "stroke: #"))}
    return colors, {element.text.strip() for element in elements if element.tag is ElementTree.Comment}


def test_the_figure_has_four_panels_that_can_be_read_on_light_and_dark(tmp_path: Path) -> None:
    analyzer = LossAnalyzer(recent=30)
    for step in range(1, 51):
        values = {"loss": 9 / step, "gradient_norm": 1 + step % 3, "learning_rate": step / 50}
        analyzer.log(step, values if step % 10 else {**values, "val_loss": 10 / step})
    analyzer.draw(tmp_path / "figure.svg")
    colors, texts = drawn(tmp_path / "figure.svg")
    assert {"loss", "gradient norm", "learning rate", "the last 30 losses", "smoothed", "held out"} <= texts
    assert "not logged" not in texts
    # what a page's own colour would hide is not drawn: all tones are those that stand out on both
    assert {BLUE, ORANGE, GREEN, PURPLE} <= colors
    assert colors <= {*COLORS, INK, "#818181", "#7f7f7f"}


def test_what_was_not_logged_is_said(tmp_path: Path) -> None:
    LossAnalyzer().draw(tmp_path / "figure.svg")
    assert "not logged" in drawn(tmp_path / "figure.svg")[1]
