"""Two processes against one: the same steps to the last digits, and each remembers its share only.

Processes are real and talk through gloo.
"""

import json

import pytest

from tests.pretraining.ranks import PAIRS
from tests.processes import finish, start


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What two processes measured of themselves, by way of sharing and optimizer."""
    folder = tmp_path_factory.mktemp("ranks")
    finish(start(2, "tests.pretraining.ranks", folder))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(("way", "optimizer"), PAIRS)
class TestTwoProcessesAgainstOne:
    """Each row of the batches supervises another number of tokens, and accumulation cuts them unevenly.

    Before the first step they had searched for a micro-batch, which is to leave no trace.
    """

    def test_the_steps_are_the_same(self, found: dict, way: str, optimizer: str) -> None:
        measured = found[f"{way} {optimizer}"]
        assert measured["loss"] < 1e-12
        assert measured["weights"] < 1e-12
        assert measured["states"] < 1e-12

    def test_a_state_that_was_made_whole_goes_on_as_if_it_had_not_been(
        self, found: dict, way: str, optimizer: str
    ) -> None:
        assert found[f"{way} {optimizer}"]["after_reload"] == 0
        assert found[f"{way} {optimizer}"]["average_is_whole"]

    def test_all_take_the_micro_batch_that_the_least_memory_holds(self, found: dict, way: str, optimizer: str) -> None:
        assert found[f"{way} {optimizer}"]["rows"] == [2, 2]

    def test_hellaswag_is_shared(self, found: dict, way: str, optimizer: str) -> None:
        measured = found[f"{way} {optimizer}"]
        assert measured["choices"] == measured["choices_alone"]
        assert all(0 < share < 1 for share in measured["choices"].values())

    def test_each_process_remembers_its_share(self, found: dict, way: str, optimizer: str) -> None:
        measured = found[f"{way} {optimizer}"]
        shares = [n_bytes / measured["bytes_alone"] for n_bytes in measured["bytes"]]
        assert shares == pytest.approx([1, 1] if way == "ddp" else [0.5, 0.5], abs=0.02)
