"""What many tests share: text, a prepared data folder, and a small model trained for a few steps.

What a run of the tests leaves out, and what it says of itself in the end, is in `tests/whole_run.py`.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from pretraining import simple
from tests.tiny_run import tiny
from tests.whole_run import (  # noqa: F401  hooks, which pytest looks for here
    pytest_addoption,
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_runtest_teardown,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from working_with_text_data import prepare, train_tokenizer
from working_with_text_data.text_files import CORPUS

# Hypothesis would fail an example that takes 0.2 s, or a strategy that takes a second for its first ten: so long do
# other programs on the same cores stop any test now and then. What a test may take is said by pytest's timeout.
settings.register_profile("without a clock", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("without a clock")


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Has a line shown when all tests are done, whichever process this one ran in."""
    return lambda line: record_property("say", line)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_works() -> None:
    """A shell that starts the tests in the background has them, and all they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def freed_memory_is_handed_back() -> Iterator[None]:
    """Trainers keep it for their next step; a process of thousands of tests would keep what each of them once took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simple, "keep_freed_memory", lambda: None)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real data, named by the variable TEST_DATA; tests that want it are skipped without."""
    if "TEST_DATA" not in os.environ:
        pytest.skip("TEST_DATA names no folder of test data")
    return Path(os.environ["TEST_DATA"])


@pytest.fixture(scope="session")
def persuasion() -> str:
    return (CORPUS / "persuasion.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, persuasion: str) -> Path:
    """Token shards of two documents with a vocabulary of 512."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text(persuasion[:60_000], encoding="utf-8")
    (folder / "text" / "b.txt").write_text(persuasion[60_000:100_000], encoding="utf-8")
    tokenizer = folder / "tokenizer.json"
    train_tokenizer.main(train_tokenizer.Config(text=folder / "text", vocab_size=512, out=tokenizer))
    prepare.main(prepare.Config(text=folder / "text", tokenizer=tokenizer, out=folder / "shards"))
    return folder / "shards"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run directory; copy it before changing it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert simple.main(tiny(data, out, snapshot_every=6))
    return out


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small products only lose by being shared out, and lose much where other programs use the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.node.name)
