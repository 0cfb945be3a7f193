"""What holds for all tests of this folder: they need a GPU that CUDA can use, and are skipped without one.

    python -m pytest tests/gpu -n 4

They need neither tyro nor a network, and take some minutes, most of them for compiling.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from utils.hardware import compiler_works

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark these tests, and have warnings shown only: PyTorch warns, for example, that TF32 is off, as it should be."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """Return the GPU; skip the test if there is none."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU that CUDA can use")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_compiled_yet(device: torch.device) -> Iterator[None]:
    """Forget what earlier tests compiled, so that each can count what it compiles, and give back their memory."""
    compiler_works(device.type)  # the first time, it compiles something itself
    torch.use_deterministic_algorithms(False)  # which training on a CPU switches on
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.cuda.empty_cache()
