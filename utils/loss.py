"""How training goes, from its numbers: the loss smoothed, how the recent losses spread, gradient norms, learning rate.

analyzer = LossAnalyzer.from_run(Path("runs/mine"))    # or analyzer.log(step, values) while training
analyzer.draw(Path("training.svg"))
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from utils.figures import BLUE, GREEN, INK, ORANGE, PURPLE, figure, save_svg
from utils.files import InputError
from utils.tracking import METRICS, read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS, HELD_OUT, GRADIENT = "loss", "val_loss", "gradient_norm"
RATES = {"learning_rate": "learning rate", "lr_factor": "learning rate, share of its peak"}


class LossAnalyzer:
    """Collects loss, held-out loss, gradient norm and learning rate, under the names of a run's metrics.jsonl.

    Numbers that are not finite are left out, since a single one would spoil every mean after it.
    """

    def __init__(self, *, smoothing: float = 0.9, recent: int = 200) -> None:
        """Begin with nothing.

        Args:
            smoothing: how much of the smoothed loss each new one leaves as it was, at least 0 and below 1.
            recent: how many losses are recent.

        Raises:
            ValueError: for a smoothing outside its range.
        """
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")
        self.smoothing = smoothing
        self.recent = recent
        self.series: dict[str, list[tuple[int, float]]] = defaultdict(list)
        """For each name, (step, value)."""

    @classmethod
    def from_run(cls, run: Path, *, smoothing: float = 0.9, recent: int = 200) -> Self:
        """Read what a run has logged; damaged lines are left out.

        Raises:
            InputError: if it has logged no loss.
        """
        analyzer = cls(smoothing=smoothing, recent=recent)
        for entry in read_lines(run / METRICS)[0]:
            analyzer.log(int(entry["step"]), entry)
        if not analyzer.series[LOSS]:
            raise InputError(f"{run / METRICS} holds no loss, or is not there")
        return analyzer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take those of a step's numbers that are of interest here."""
        for name in (LOSS, HELD_OUT, GRADIENT, *RATES):
            if name in values and math.isfinite(values[name]):
                self.series[name].append((step, values[name]))

    def smoothed(self) -> list[float]:
        """Return the exponential moving average of the losses, one for each.

        As in Adam it begins at 0 and is divided by what the weights so far add up to, so that the first losses count
        in full (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, section 3).
        """
        averages = []
        average = 0.0
        missing = 1.0  # how much of the weight is still that of the 0
        for _, loss in self.series[LOSS]:
            average = self.smoothing * average + (1 - self.smoothing) * loss
            missing *= self.smoothing
            averages.append(average / (1 - missing))
        return averages

    def recent_histogram(self, bins: int = 20) -> tuple[list[int], list[float]]:
        """Return how many of the recent losses fall into each of so many bins, and the edges of the bins."""
        counts, edges = np.histogram([loss for _, loss in self.series[LOSS][-self.recent :]], bins)
        return counts.tolist(), edges.tolist()

    def draw(self, path: Path) -> None:
        """Draw loss, gradient norm, learning rate and the recent losses as an SVG file of four panels."""
        with figure(2, 2, figsize=(9.0, 6.0), layout="constrained") as (drawing, panels):
            (losses, norms), (rates, spread) = panels
            self._draw_losses(losses)
            self._draw_series(norms, GRADIENT, "gradient norm", PURPLE)
            if self.series[GRADIENT] and min(norm for _, norm in self.series[GRADIENT]) > 0:
                norms.set_yscale("log")  # spikes are many times what is usual
            name = next((name for name in RATES if self.series[name]), "learning_rate")
            self._draw_series(rates, name, RATES[name], GREEN)
            self._draw_spread(spread)
            save_svg(drawing, path)

    def _draw_losses(self, axes: "Axes") -> None:
        axes.set(title="loss", xlabel="step")
        training = self.series[LOSS]
        if not training:
            _say_nothing(axes)
            return
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, color=BLUE, alpha=0.4, linewidth=1, label="training")
        axes.plot(steps, self.smoothed(), color=BLUE, label="smoothed")
        if self.series[HELD_OUT]:
            held_out = zip(*self.series[HELD_OUT], strict=True)
            axes.plot(*held_out, color=ORANGE, marker="o", markersize=4, label="held out")
        axes.legend()

    def _draw_series(self, axes: "Axes", name: str, title: str, color: str) -> None:
        axes.set(title=title, xlabel="step")
        if self.series[name]:
            axes.plot(*zip(*self.series[name], strict=True), color=color, linewidth=1.2)
        else:
            _say_nothing(axes)

    def _draw_spread(self, axes: "Axes") -> None:
        n_recent = min(self.recent, len(self.series[LOSS]))
        axes.set(title=f"the last {n_recent} losses", xlabel="loss", ylabel="how many")
        if n_recent:
            axes.stairs(*self.recent_histogram(), color=BLUE, fill=True, alpha=0.6)
        else:
            _say_nothing(axes)


def _say_nothing(axes: "Axes") -> None:
    axes.text(0.5, 0.5, "not logged", color=INK, ha="center", va="center", transform=axes.transAxes)
