"""Checking the exercises of a lesson: what a reader has written is compared with something that is right."""

import copy
import textwrap
from collections.abc import Callable
from typing import Any

import torch

MOST_CHARACTERS = 200  # of a value that is shown


def check(mine: Callable[..., Any], right: Callable[..., Any], *cases: tuple[Any, ...]) -> str:
    """Return whether two functions agree, in a line or a few that tell the reader what to look at.

    Args:
        mine: what the reader has written; still empty, it returns None.
        right: a function that is known to be right, such as one of PyTorch's.
        cases: the arguments of each comparison; each function gets copies, so neither can change them.
    """
    for number, case in enumerate(cases, start=1):
        got = mine(*copy.deepcopy(case))
        if got is None:
            return "not written yet: it returns None"
        wanted = right(*copy.deepcopy(case))
        try:
            torch.testing.assert_close(got, wanted, check_dtype=False, rtol=1e-4, atol=1e-6)
        except (AssertionError, TypeError):  # a TypeError: of another type altogether
            shown = {"given": case, "you return": got, "right is": wanted}
            lines = [f"  {name:<10} {_brief(value)}" for name, value in shown.items()]
            return "\n".join([f"not yet: case {number} of {len(cases)} differs", *lines])
    return f"right, in each of {len(cases)} cases"


def _brief(value: Any) -> str:
    return textwrap.shorten(repr(value), MOST_CHARACTERS, placeholder=" ...")
