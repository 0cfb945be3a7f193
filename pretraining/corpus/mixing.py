"""The mixture: how many tokens of each source, how often each is read, and in which order, all decided by a seed.

A source that is small beside its weight is read several times. Four times is about as good as new text, and more soon
is not (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", https://arxiv.org/abs/2305.16264), so the
epochs are bounded: then the whole mixture gets smaller, and its shares stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from utils.files import InputError


@dataclass(frozen=True)
class Portion:
    """What the mixture takes from a source."""

    share: float
    """Of all tokens."""
    n_available: int
    """Tokens of its documents, each counted once."""
    n_tokens: int
    """Wanted for the mixture; whole documents are taken, so that it may get up to one document more."""

    @property
    def epochs(self) -> float:
        """How often its documents are read, on average."""
        return self.n_tokens / self.n_available if self.n_available else 0.0


def parse_mix(mix: str) -> dict[str, float]:
    """Return the share of each source, by name; they add up to 1.

    >>> parse_mix("web=3,code=1")
    {'web': 0.75, 'code': 0.25}

    Raises:
        InputError: if it is written in another way, or names a source twice.
    """
    weights: dict[str, float] = {}
    for part in mix.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = float("nan")
        if not name or not equals or not 0 < weight < float("inf"):
            raise InputError(f"--mix gives each source a weight above 0, as web=0.7,code=0.3 does, got {part!r}")
        if name in weights:
            raise InputError(f"--mix names {name} twice")
        weights[name] = weight
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def plan(
    available: Mapping[str, int], shares: Mapping[str, float], n_tokens: int, max_epochs: float
) -> dict[str, Portion]:
    """Return what the mixture takes from each source.

    Args:
        available: tokens of each source.
        shares: of the mixture; they add up to 1.
        n_tokens: of the whole mixture; 0 for as many as the epochs allow.
        max_epochs: how often a source may be read, at most.

    Raises:
        InputError: if nothing is left of a source.
    """
    for name in shares:
        if not available[name]:
            raise InputError(f"nothing is left of the source {name}: take it out of --mix, or filter less")
    most = min(max_epochs * available[name] / share for name, share in shares.items())
    total = min(n_tokens, most) if n_tokens else most
    return {name: Portion(share, available[name], round(share * total)) for name, share in shares.items()}


def limiting(portions: Mapping[str, Portion]) -> str:
    """Return the name of the source that is read most often."""
    return max(portions, key=lambda name: portions[name].epochs)


def hold_out(n_documents: int, share: float, seed: int, number: int) -> np.ndarray:
    """Return whether each document of a source is held out: a share of them, at random.

    Args:
        n_documents: of the source.
        share: at least 0 and below 1.
        seed: of the whole corpus.
        number: of the source, so that each has its own choice.
    """
    chosen = np.zeros(n_documents, dtype=bool)
    order = np.random.default_rng([seed, number, 0]).permutation(n_documents)
    chosen[order[: round(share * n_documents)]] = True
    return chosen


def draw(lengths: np.ndarray, n_tokens: int, seed: int, number: int) -> np.ndarray:
    """Return documents of a source, whole epochs and a part of one, until there are enough tokens.

    Args:
        lengths: tokens of each document.
        n_tokens: enough.
        seed: of the whole corpus.
        number: of the source.

    Returns:
        Numbers of documents, int64; in each epoch every document comes once.
    """
    drawn = []
    epoch = 0
    while n_tokens > 0 and len(lengths):
        epoch += 1
        order = np.random.default_rng([seed, number, epoch]).permutation(len(lengths))
        reached = np.cumsum(lengths[order])
        n_documents = min(int(np.searchsorted(reached, n_tokens)) + 1, len(order))
        drawn.append(order[:n_documents])
        n_tokens -= int(reached[n_documents - 1])
    return np.concatenate([np.empty(0, dtype=np.int64), *drawn])


def shuffled(numbers: Mapping[int, np.ndarray], seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all documents in one random order, as two arrays: the source of each, and its number there.

    Args:
        numbers: of the documents of each source.
        seed: of the whole corpus.
        split: "train" or "val", which have their own orders.
    """
    sources = np.repeat(list(numbers), [len(documents) for documents in numbers.values()]).astype(np.int64)
    documents = np.concatenate([np.empty(0, dtype=np.int64), *numbers.values()])
    order = np.random.default_rng([seed, *split.encode()]).permutation(len(documents))
    return sources[order], documents[order]
