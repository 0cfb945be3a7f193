"""What trackers write can be read back with the readers of their own packages, and none of them stops a training."""

import json
import math
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from utils import tracking
from utils.files import InputError
from utils.outputs import delete_ours
from utils.tracking import METRICS, TRACKER_FILES, append_line, open_trackers, read_lines


def numbers(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_lines_of_json_are_always_written_and_a_resumed_run_adds_to_them(tmp_path: Path) -> None:
    for step in (10, 20):
        (tracker,) = open_trackers([], tmp_path, {})
        tracker.log(step, {"loss": 5 - step / 10, "tokens_per_second": 7})
        tracker.close()
    assert (tmp_path / METRICS).read_bytes() == (
        b'{"step": 10, "loss": 4.0, "tokens_per_second": 7}\n{"step": 20, "loss": 3.0, "tokens_per_second": 7}\n'
    )


def test_a_number_that_json_cannot_write_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    (tracker,) = open_trackers([], tmp_path, {})
    tracker.log(10, {"loss": 3.5, "gradient_norm": math.inf, "val_loss": math.nan})
    assert read_lines(tmp_path / METRICS) == ([{"step": 10, "loss": 3.5}], 0)


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    assert read_lines(path) == ([], 0)
    append_line(path, {"step": 1, "loss": 2.0})
    path.write_bytes(path.read_bytes() + b'{"loss": 1}\n[1]\n{"step": NaN}\n{"step": "2"}\n\xff\n' + b"[" * 9999)
    assert read_lines(path) == ([{"step": 1, "loss": 2.0}], 6)
    assert read_lines(path, ["step", "seconds"]) == ([], 7)


@pytest.mark.parametrize("names", [["mlflow"], ["tensorboard", "mlflow"]])
def test_an_unknown_tracker_is_named_before_anything_is_written(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no tracker 'mlflow': choose from tensorboard, wandb; metrics"):
        open_trackers(names, tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / name).mkdir(parents=True)  # wandb leaves such a folder behind, which is not the package
    for path in (str(tmp_path / "here"), ""):
        monkeypatch.setattr(sys, "path", [path])
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        with pytest.raises(InputError, match=rf"the tracker {name} needs the package .*: pip install .*\[track\]"):
            open_trackers([name], tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(name)]


def test_tensorboard_shows_each_number_at_its_step_and_the_settings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = open_trackers(["tensorboard"], tmp_path, {"lr": 0.5, "data": Path("a") / "b"})
    for tracker in trackers:
        tracker.log(10, {"loss": 3.5, "val_loss": 4.0})
        tracker.log(20, {"loss": 2.5, "gradient_norm": math.inf})
    folder = tmp_path / "tensorboard"
    assert scalars(folder, "loss") == [(10, 3.5), (20, 2.5)]  # before it is closed: people watch
    for tracker in trackers:
        tracker.close()
    assert scalars(folder, "val_loss") == [(10, 4.0)]
    assert scalars(folder, "gradient_norm") == [(20, math.inf)]
    (text,) = EventAccumulator(str(folder)).Reload().Tensors("config/text_summary")
    assert json.loads(text.tensor_proto.string_val[0]) == {"lr": 0.5, "data": str(Path("a") / "b")}
    assert numbers(tmp_path / METRICS) == [{"step": 10, "loss": 3.5, "val_loss": 4.0}, {"step": 20, "loss": 2.5}]


def test_tensorboard_forgets_the_steps_that_a_resumed_run_takes_again(tmp_path: Path) -> None:
    for begun, loss in ((0, 3.0), (20, 2.0)):
        trackers = open_trackers(["tensorboard"], tmp_path, {})
        for step in range(begun + 10, 50, 10):
            trackers[1].log(step, {"loss": loss})
        trackers[1].close()
    assert sorted(scalars(tmp_path / "tensorboard", "loss")) == [(10, 3.0), (20, 3.0), (30, 2.0), (40, 2.0)]
    delete_ours(tmp_path, TRACKER_FILES)  # nothing is left that we would not know as ours
    assert not tmp_path.exists()


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Has the kernel refuse to let any file grow past a size, in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# TensorBoard writes in a thread, which ends with the error that it then hands on
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_told_once_and_training_goes_on(
    tmp_path: Path, full_disk: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    others = set(threading.enumerate())
    trackers = open_trackers(["tensorboard"], tmp_path, {})
    for tracker in trackers:
        tracker.log(10, {"loss": 3.0})
    (writer,) = set(threading.enumerate()) - others
    full_disk((tmp_path / METRICS).stat().st_size + 5)
    for tracker in trackers:
        tracker.log(20, {"loss": 2.0})
        tracker.log(30, {"loss": 2.0})
    writer.join(60)  # so that its end is seen here and not in another test
    assert not writer.is_alive()
    full_disk(resource.RLIM_INFINITY)
    for tracker in trackers:
        tracker.log(40, {"loss": 1.0})
        tracker.close()
    assert numbers(tmp_path / METRICS) == [{"step": 10, "loss": 3.0}, {"step": 40, "loss": 1.0}]
    assert scalars(tmp_path / "tensorboard", "loss")[0] == (10, 3.0)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    for name, warning in zip((METRICS, "tensorboard"), warnings, strict=True):
        assert warning.startswith(f"{name}: numbers of this run are missing there (")
        assert "File too large" in warning


@pytest.fixture
def nobody_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    yield
    wandb.teardown()


def records(path: Path) -> Iterator[object]:
    """Yield what an offline run has stored, in the order of its log (LevelDB's format, after a header of 7 bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, header = 2**15, 7
    content = path.read_bytes()
    place = header
    whole = b""
    while place < len(content):
        if block - place % block < header:  # no header begins so close to the end of a block
            place += block - place % block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        place += header
        whole += content[place : place + size]
        place += size
        if kind in (1, 4):  # the whole of a record, or the last part of it
            yield Record.FromString(whole)
            whole = b""


def history(path: Path) -> list[Mapping[str, float]]:
    """What was logged in an offline run, without the columns that Weights & Biases adds."""
    lines = [record.history.item for record in records(path) if record.HasField("history")]
    named = [{item.nested_key[0]: json.loads(item.value_json) for item in line} for line in lines]
    return [{name: value for name, value in line.items() if not name.startswith("_")} for line in named]


@pytest.mark.usefixtures("nobody_logged_in")
def test_weights_and_biases_is_offline_without_a_login_or_a_server_and_a_resumed_run_is_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    run = tmp_path / "austen"
    run.mkdir()

    def go_on(begun: int, steps: int) -> list[str]:
        """Log some steps; return what was said."""
        caplog.clear()
        trackers = open_trackers(["wandb"], run, {"lr": 0.5, "data": Path("a")})
        for step in range(begun + 10, begun + steps + 10, 10):
            for tracker in trackers:
                tracker.log(step, {"loss": step / 8})
        for tracker in trackers:
            tracker.close()
        wandb.teardown()  # waits until all is written, as the end of a process does
        until = int(time.time()) + 1
        while time.time() < until:  # a folder is named after the second in which its run begins
            time.sleep(0.01)
        return [record.getMessage() for record in caplog.records if record.name == "utils.tracking"]

    kept = f"so the run is kept in {run / 'wandb'}: wandb sync sends it later"
    assert go_on(0, 30) == [f"wandb: nobody is logged in, {kept}"]
    assert go_on(20, 10) == [f"wandb: nobody is logged in, {kept}"]
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where no server answers
    monkeypatch.setattr(tracking, "PATIENCE", 1)
    (said,) = go_on(30, 10)
    assert said.startswith("wandb: ")
    assert said.endswith(f"connection refused, {kept}")

    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert [history(path) for path in files] == [
        [{"step": 10, "loss": 1.25}, {"step": 20, "loss": 2.5}, {"step": 30, "loss": 3.75}],
        [{"step": 30, "loss": 3.75}],
        [{"step": 40, "loss": 5.0}],
    ]
    first, *others = (next(record.run for record in records(path) if record.HasField("run")) for path in files)
    assert {other.run_id for other in others} == {first.run_id}
    assert first.display_name == "austen"
    settings = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert (settings["lr"], settings["data"]) == (0.5, "a")
    delete_ours(run, TRACKER_FILES)
    assert not run.exists()
