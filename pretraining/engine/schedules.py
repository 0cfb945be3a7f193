"""How the learning rate goes: the share of its peak that each step takes.

warm-up and cosine          rises, then falls along half a cosine (Radford et al. 2018; Loshchilov & Hutter 2016,
                            https://arxiv.org/abs/1608.03983)
linear                      rises, then falls along a line
warm-up, stable, decay      rises, stays at the peak, and falls along a line in the end: from the flat part,
                            training can go on to any length (Hu et al. 2024, https://arxiv.org/abs/2404.06395)
"""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def warmup_cosine(steps: int, *, warmup: int, minimum: float = 0.0) -> Schedule:
    """Return a schedule that rises for `warmup` steps, then falls along half a cosine to the share `minimum`."""

    def half_a_cosine(step: int) -> float:
        return _between(minimum, 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))

    return _rise(warmup, half_a_cosine)


def linear(steps: int, *, warmup: int, minimum: float = 0.0) -> Schedule:
    """Return a schedule that rises for `warmup` steps, then falls along a line to the share `minimum`."""
    return _rise(warmup, lambda step: _between(minimum, 1 - _done(step, warmup, steps)))


def warmup_stable_decay(steps: int, *, warmup: int, decay: int, minimum: float = 0.0) -> Schedule:
    """Return a schedule that rises, stays at the peak, and falls along a line in its last `decay` steps."""
    falls = max(warmup, steps - decay)
    return _rise(warmup, lambda step: _between(minimum, 1 - max(0.0, _done(step, falls, steps))))


def _rise(warmup: int, after: Schedule) -> Schedule:
    """Return a schedule whose first steps rise to 1: the very first already moves, by 1 / warmup."""
    return lambda step: (step + 1) / warmup if step < warmup else after(step)


def _done(step: int, start: int, end: int) -> float:
    """Return how much of the way from one step to another is behind: 0 at its start, below 0 before."""
    return (step - start) / max(1, end - start)


def _between(minimum: float, share: float) -> float:
    return minimum + (1 - minimum) * share
