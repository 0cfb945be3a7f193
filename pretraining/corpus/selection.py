"""The second stage: what only all documents together can tell, which are too surprising and which come twice.

It reads a few numbers per document, not the texts: 144 bytes each, of which 16 at a time are in memory.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pretraining.corpus.filtering import Filtered
from pretraining.corpus.near_duplicates import N_BANDS, Groups, first_of_each


class Selection(NamedTuple):
    """Which documents stay."""

    kept: dict[str, np.ndarray]
    """By source, whether each of its documents stays."""
    statistics: dict[str, dict[str, Any]]
    """By source, how many do, and how many do not for which reason."""


def select(
    sources: Mapping[str, Filtered], *, percentile: float = 100, prose: frozenset[str] = frozenset(), near: bool = True
) -> Selection:
    """Choose among the documents of all sources.

    Args:
        sources: in order; of duplicates the first one stays.
        percentile: of the documents of prose, this share in percent stays: what surprises the small model least.
        prose: the sources whose surprise is compared.
        near: drop near-duplicates too, not only texts that are the same.
    """
    sizes = [len(filtered.known("bytes")) for filtered in sources.values()]
    starts = np.cumsum([0, *sizes])
    reasons = np.zeros(starts[-1], dtype=np.uint8)  # 0 of what stays
    surprise = _all(sources, "surprise")
    is_prose = np.repeat([name in prose for name in sources], sizes)
    if percentile < 100 and is_prose.any():
        limit = np.percentile(surprise[is_prose], percentile)
        reasons[is_prose & (surprise > limit)] = 1
    left = np.flatnonzero(reasons == 0)
    reasons[left[~first_of_each(_all(sources, "exact")[left])]] = 2
    if near:
        left = np.flatnonzero(reasons == 0)
        groups = Groups(len(left))
        for band in range(N_BANDS):
            groups.join_equal(_all(sources, "bands", band)[left])
        reasons[left[groups.firsts() != np.arange(len(left))]] = 3
    names = ("kept", "surprising", "exact_duplicate", "near_duplicate")
    kept, statistics = {}, {}
    for name, start, end in zip(sources, starts, starts[1:], strict=False):
        counts = np.bincount(reasons[start:end], minlength=len(names))
        kept[name] = reasons[start:end] == 0
        statistics[name] = dict(zip(names, counts.tolist(), strict=True))
    return Selection(kept, statistics)


def _all(sources: Mapping[str, Filtered], key: str, column: int | None = None) -> np.ndarray:
    return np.concatenate([filtered.known(key, column) for filtered in sources.values()])
