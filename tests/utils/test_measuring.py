"""What the benchmarks share: turns, processes, equality, numbers, stored results and the tables made from them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from utils import measuring
from utils.files import InputError
from utils.measuring import (
    assert_equal,
    exponent,
    in_processes,
    interleaved,
    markdown_table,
    measure_parts,
    ratio,
    read_results,
    show_each,
    spread,
)

CPU = torch.device("cpu")


def test_contenders_take_turns() -> None:
    turns: list[str] = []
    measured = interleaved({name: lambda name=name: turns.append(name) for name in "ab"}, 3, CPU)
    assert [len(times) for times in measured.values()] == [3, 3]
    switches = "".join(turns)[2:]  # after one call of each to see how long it takes, so short that many make one
    assert switches == ("a" * 100 + "b" * 100) * 3


def test_each_call_has_a_process_of_its_own() -> None:
    returned = in_processes({("a",): (json.dumps, ([1, "é"],)), ("b", "c"): (math.hypot, (3, 4))}, 2)
    assert returned == {("a",): [json.dumps([1, "é"])] * 2, ("b", "c"): [5.0, 5.0]}


def test_numbers_that_describe_a_measurement() -> None:
    deviation = pytest.approx(2.5**0.5)
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == {"mean": 3, "sd": deviation, "median": 3, "q1": 2, "q3": 4, "n": 5}
    assert spread([2.0]) == {"mean": 2, "sd": None, "median": 2, "q1": 2, "q3": 2, "n": 1}
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 1.0])["median"] == 3
    assert exponent([1, 10, 100], [3, 3 * 10**1.5, 3000]) == pytest.approx(1.5)


def test_what_differs_or_is_no_number_is_not_equal() -> None:
    x = torch.randn(100)
    assert assert_equal("x", x, x) == assert_equal("zeros", x * 0, x * 0) == 0
    with pytest.raises(RuntimeError, match=r"x: the outputs differ by 1\.0e-03 of their norm"):
        assert_equal("x", x * 1.001, x)
    with pytest.raises(RuntimeError, match="differ by nan"):
        assert_equal("x", x * math.nan, x)


def test_what_is_stored_can_be_shown(tmp_path: Path) -> None:
    parts = {"speed": lambda: {"rows": [1, 2]}, "nothing": lambda: {"rows": []}}
    measure_parts(parts, tmp_path / "results", {"machine": "here"})
    assert read_results(tmp_path / "results", ["speed", "later"]) == {"speed": {"machine": "here", "rows": [1, 2]}}
    shown = show_each(tmp_path / "results", {name: lambda result: sum(result["rows"]) for name in parts})
    assert shown == {"speed": 3}  # what has no rows has nothing to show


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged: "),
        ("[" * 5000, "is damaged: "),
        ("[1]", "does not hold a benchmark's result"),
        ('{"machine": {}}', "is of another version of this benchmark: measure anew, or remove it"),
        ('{"rows": [{"seconds": 1}]}', "is of another version of this benchmark"),
        ('{"rows": [1]}', "is of another version of this benchmark"),
    ],
)
@pytest.mark.parametrize("shows", ["tables", "draw_all"])
@pytest.mark.parametrize("chapter", ["working_with_text_data", "attention_mechanisms", "gpt_model"])
def test_results_that_cannot_be_shown_are_named(
    chapter: str, shows: str, content: str, message: str, tmp_path: Path
) -> None:
    figures: Any = __import__(f"{chapter}.benchmark.figures", fromlist=["figures"])
    part = {"working_with_text_data": "encoding", "attention_mechanisms": "decode", "gpt_model": "writing"}[chapter]
    (tmp_path / f"{part}.json").write_text(content)
    arguments = (tmp_path,) if shows == "tables" else (tmp_path, tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path / part}.json {message}"):
        getattr(figures, shows)(*arguments)


def test_without_results_there_is_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^there are no results in {tmp_path}$"):
        measuring.show_results(tmp_path, tmp_path, lambda results: "", lambda results, figures: None)


@pytest.mark.parametrize(("results", "figures", "flag"), [("file", "new", "--results"), ("new", "file", "--figures")])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, results: str, figures: str, flag: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"^{tmp_path / 'file'} is not a folder: choose another {flag}$"):
        measuring.check_folders(tmp_path / results, tmp_path / figures)


def test_a_colon_sets_a_column_to_the_right() -> None:
    assert markdown_table(["name", "ms:"], [["a", "1"]]) == "| name | ms |\n| --- | ---: |\n| a | 1 |"
