"""What is said of a GPU and measured on it, and batches on their way to it."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.data import Dataset

from gpt_model.devices import find_device
from utils import hardware, peaks
from utils.data_loading import ResumableLoader
from utils.files import InputError

Say = Callable[[str], None]


def test_the_gpu_is_found_and_described(device: torch.device) -> None:
    assert hardware.pick_device() == hardware.pick_device("cuda") == device
    assert hardware.pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(InputError, match="one of this machine's, cuda, cpu, cuda:0.*; got 'cuda:99'"):
        hardware.pick_device("cuda:99")
    assert hardware.describe()["gpu"] == torch.cuda.get_device_name()
    assert hardware.compiler_works("cuda")


def test_bfloat16_pays_if_there_are_tensor_cores_for_it(device: torch.device) -> None:
    assert hardware.bfloat16_pays(device) == (torch.cuda.get_device_capability() >= (8, 0))


def test_peaks_are_near_those_of_the_data_sheet(device: torch.device, say: Say) -> None:
    measured = peaks.measured_peaks(device, [torch.float32, torch.bfloat16])
    flops, read = measured["flops_per_second"], measured["bytes_per_second"]
    say(f"peaks: {flops['bfloat16'] / 1e12:.0f} and {flops['float32'] / 1e12:.0f} TFLOP/s, {read / 1e12:.2f} TB/s")
    try:
        known = find_device(torch.cuda.get_device_name())
    except InputError:
        pytest.skip(f"no data sheet of {torch.cuda.get_device_name()} here")
    assert 0.5 < flops["bfloat16"] / known.flops_per_second < 1.05
    assert 0.5 < read / known.bytes_per_second < 1.05
    assert flops["float32"] < flops["bfloat16"] / 3


def test_memory_that_work_takes_is_counted_to_the_byte(device: torch.device) -> None:
    size = 40 * 2**20
    held = torch.empty(size, dtype=torch.uint8, device=device)

    def work() -> None:
        for _ in range(2):
            torch.empty_like(held)
        _both = torch.empty_like(held), torch.empty_like(held)

    before = peaks.free_memory(device)
    assert peaks.peak_memory(work, device) == 2 * size
    taken = torch.empty(2**33, dtype=torch.uint8, device=device)
    assert before - peaks.free_memory(device) > taken.nbytes / 2  # other processes may take and give back some


def test_time_counts_until_the_gpu_is_done(device: torch.device) -> None:
    """A product is asked for in microseconds; that is not what it takes."""
    a = torch.randn(8192, 8192, device=device)
    a @ a
    assert peaks.seconds(lambda: a @ a, device, repeats=3) > 2 * 8192**3 / 150e12  # in float32 no GPU is that fast


def test_power_is_a_number_of_watts_or_none(device: torch.device, say: Say) -> None:
    a = torch.randn(4096, 4096, device=device)
    idle, busy = peaks.watts(device), peaks.mean_watts(lambda: a @ a, device)
    say(f"{idle} W idle, {busy} W at work")
    assert (idle is None) == (busy is None)
    assert busy is None or 20 < busy < 1500


class Squares(Dataset):
    """Numbers and their squares."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((3,), index), torch.full((3,), index**2)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_lie_in_pinned_memory_and_are_those_of_a_cpu(workers: int, device: torch.device) -> None:
    pinned = ResumableLoader(Squares(), 8, seed=0, workers=workers, device=device)
    plain = ResumableLoader(Squares(), 8, seed=0)
    for _ in range(9):  # more than an epoch
        for batch, expected in zip(pinned.next(), plain.next(), strict=True):
            assert batch.is_pinned()
            assert torch.equal(batch.to(device, non_blocking=True).cpu(), expected)
    pinned.close()
    resumed = ResumableLoader(Squares(), 8, seed=0, device=device)
    resumed.load_state_dict(pinned.state_dict())
    assert torch.equal(resumed.next()[0], plain.next()[0])
