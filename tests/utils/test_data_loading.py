"""Batches come in an order that seed and epoch decide, whoever prepares them and however often they stop."""

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from utils.data_loading import ResumableLoader, one_pass
from utils.files import InputError

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    # from Python 3.12 on: a forked worker of PyTorch's touches nothing that another thread may hold
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a machine with one core
]


class Numbers(Dataset):
    """Example i is the number i, and its square."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.tensor([index * index])


class BreaksAt(Numbers):
    """Numbers, of which one cannot be read as long as a file exists."""

    def __init__(self, length: int, broken: int, while_exists: Path) -> None:
        super().__init__(length)
        self.broken, self.while_exists = broken, while_exists

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        if index == self.broken and self.while_exists.exists():
            raise InputError(f"example {index} cannot be read")
        return super().__getitem__(index)


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


def take(loader: ResumableLoader, batches: int) -> list[list[int]]:
    """The examples of the next batches."""
    taken = []
    for _ in range(batches):
        numbers, squares = loader.next()
        assert torch.equal(squares, numbers[:, None] ** 2)
        taken.append(numbers.tolist())
    return taken


def permutations(length: int, seed: int, batch_size: int, batches: int, epoch: int = 0, index: int = 0) -> list:
    """What `take` should give: the slow twin, epoch after epoch in one long list."""
    order: list[int] = []
    while len(order) < index + batches * batch_size:
        order += np.random.default_rng((seed, epoch)).permutation(length).tolist()
        epoch += 1
    order = order[index:]
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(batches)]


@given(length=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 2**40), batches=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_the_order_is_a_permutation_for_each_epoch(length: int, batch_size: int, seed: int, batches: int) -> None:
    assert take(ResumableLoader(Numbers(length), batch_size, seed), batches) == permutations(
        length, seed, batch_size, batches
    )


def test_an_epoch_loses_nothing_and_doubles_nothing_and_the_next_has_another_order() -> None:
    taken = [i for batch in take(ResumableLoader(Numbers(20), batch_size=3, seed=7), 20) for i in batch]
    epochs = [taken[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_one_pass_is_in_order_and_leaves_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    pass_ = one_pass(Numbers(7), 3)
    for _ in range(2):
        assert [numbers.tolist() for numbers, _ in pass_] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_is_another_order() -> None:
    assert take(ResumableLoader(Numbers(100), 9, seed=1), 1) != take(ResumableLoader(Numbers(100), 9, seed=2), 1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_workers_do_not_change_the_batches(workers: int, prefetch: int) -> None:
    with closing(ResumableLoader(Numbers(10), 3, seed=1, workers=workers, prefetch=prefetch)) as loader:
        assert take(loader, 12) == permutations(10, 1, 3, 12)
        assert len(multiprocessing.active_children()) == workers, "these were not the only processes that read"


@given(length=st.integers(1, 12), batch_size=st.integers(1, 15), taken=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_resuming_goes_on_where_it_stood(length: int, batch_size: int, taken: int) -> None:
    first, second = (ResumableLoader(Numbers(length), batch_size, seed=3) for _ in range(2))
    take(first, taken)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert take(second, 5) == permutations(length, 3, batch_size, taken + 5)[taken:]


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2), (2, 1), (1, 2)])
@pytest.mark.parametrize("taken", [1, 5, 7])  # inside an epoch of 10, at its very end, and after it
def test_what_workers_have_read_ahead_does_not_count_as_read(before: int, after: int, taken: int) -> None:
    with closing(ResumableLoader(Numbers(10), 2, seed=3, workers=before, prefetch=4)) as loader:
        take(loader, taken)
        state = loader.state_dict()
    assert 10 * state["epoch"] + state["index"] == 2 * taken
    with closing(ResumableLoader(Numbers(10), 2, seed=3, workers=after)) as loader:
        loader.load_state_dict(state)
        assert take(loader, 4) == permutations(10, 3, 2, taken + 4)[taken:]


@pytest.mark.parametrize("workers", [0, 2])
def test_going_back_forgets_what_was_read_ahead(workers: int) -> None:
    with closing(ResumableLoader(Numbers(10), 3, seed=0, workers=workers)) as loader:
        take(loader, 2)
        loader.load_state_dict({"epoch": 1, "index": 4})
        assert take(loader, 3) == permutations(10, 0, 3, 3, epoch=1, index=4)
        loader.close()
        assert take(loader, 1) == permutations(10, 0, 3, 4, epoch=1, index=4)[3:]


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_random_numbers_alone(workers: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with closing(ResumableLoader(Numbers(10), 3, seed=0, workers=workers)) as loader:
        take(loader, 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_dataset_reaches_the_caller_and_costs_no_batch(workers: int, tmp_path: Path) -> None:
    marker = tmp_path / "broken"
    marker.touch()
    expected = permutations(10, 0, 2, 5)
    with closing(ResumableLoader(BreaksAt(10, expected[2][1], marker), 2, seed=0, workers=workers)) as loader:
        assert take(loader, 2) == expected[:2]
        for _ in range(2):
            with pytest.raises(InputError, match=f"example {expected[2][1]} cannot be read"):
                loader.next()
        marker.unlink()
        assert take(loader, 3) == expected[2:]


def test_without_a_reference_no_worker_lives() -> None:
    loader = ResumableLoader(Numbers(10), 3, seed=0, workers=2)
    loader.next()
    assert len(multiprocessing.active_children()) == 2
    del loader
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_pinned_for_cuda_only(workers: int) -> None:
    with closing(ResumableLoader(Numbers(10), 3, seed=0, workers=workers)) as loader:
        assert not loader.next()[0].is_pinned()
    if torch.cuda.is_available():
        with closing(ResumableLoader(Numbers(10), 3, seed=0, workers=workers, device="cuda")) as loader:
            assert loader.next()[0].is_pinned()
            assert take(loader, 9) == permutations(10, 0, 3, 10)[1:]


READER = """
import hashlib, sys
from tests.utils.test_data_loading import Numbers, ResumableLoader, take
from utils.interrupt import stop_on_signal

if __name__ == "__main__":
    with stop_on_signal() as stop:
        loader = ResumableLoader(Numbers(1000), 7, seed=11, workers=2)
        batches = take(loader, 200)
        print("reading", flush=True)
        sys.stdin.readline()
        batches += take(loader, 200)
        print(hashlib.sha256(repr(batches).encode()).hexdigest(), "stop" if stop.made else "no stop")
"""


def read_elsewhere(interrupt: bool) -> tuple[str, str]:
    """What another process prints that reads 400 batches and ends with its workers running."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", READER],
        cwd=ROOT, start_new_session=True, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n", process.communicate()[1]
    if interrupt:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, errors = process.communicate("go on\n", timeout=60)
    assert process.returncode == 0, errors
    return output, errors


def test_two_processes_read_the_same_and_end_silently() -> None:
    expected = hashlib.sha256(repr(permutations(1000, 11, 7, 400)).encode()).hexdigest()
    assert read_elsewhere(interrupt=False) == (f"{expected} no stop\n", "")


@pytest.mark.skipif(os.name == "nt", reason="groups of processes are POSIX")
def test_ctrl_c_stops_no_worker_while_the_reader_wants_to_go_on() -> None:
    output, errors = read_elsewhere(interrupt=True)
    assert output.endswith(" stop\n")
    assert errors.count("\n") == 2, errors
    assert "stopping after this step" in errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": Numbers(0)}, "the dataset is empty"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"prefetch": 0}, "prefetch must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused_before_reading(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResumableLoader(**{"dataset": Numbers(5), "batch_size": 2, "seed": 0, **changes})


def test_the_state_of_a_larger_dataset_is_refused() -> None:
    loader = ResumableLoader(Numbers(1000), 2, seed=0)
    with pytest.raises(InputError, match="1,001 examples of the epoch were read, but the dataset has 1,000"):
        loader.load_state_dict({"epoch": 0, "index": 1001})
