"""The check of an exercise: it accepts what is right and says of the rest what is wrong."""

import torch

from utils.exercises import check

CASES = [(torch.tensor([3.0, 4.0]), 1.0), (torch.tensor([0.3, 0.4]), 1.0)]


def right(gradient: torch.Tensor, limit: float) -> torch.Tensor:
    """Shorten a gradient to a limit."""
    return gradient * min(1.0, limit / gradient.norm().item())


def test_another_way_to_the_same_is_right() -> None:
    told = check(lambda gradient, limit: gradient / max(1.0, (gradient**2).sum().sqrt() / limit), right, *CASES)
    assert told == "right, in each of 2 cases"


def test_mistakes_are_named_with_their_case() -> None:
    told = check(lambda gradient, limit: gradient * limit / gradient.norm(), right, *CASES)  # it lengthens, too
    assert told.startswith("not yet: case 2 of 2 differs")
    assert "tensor([0.6000, 0.8000])" in told
    assert "tensor([0.3000, 0.4000])" in told
    assert "case 1 of 2" in check(lambda gradient, limit: gradient[:1], right, *CASES)  # of another shape
    assert "case 1 of 2" in check(lambda gradient, limit: "a text", right, *CASES)


def test_an_empty_function_is_not_written_yet() -> None:
    assert check(lambda gradient, limit: None, right, *CASES) == "not written yet: it returns None"


def test_a_function_that_changes_its_arguments_is_compared_all_the_same() -> None:
    told = check(lambda gradient, limit: gradient.mul_(min(1.0, limit / gradient.norm().item())), right, *CASES)
    assert told == "right, in each of 2 cases"
    assert CASES[0][0].tolist() == [3.0, 4.0]
