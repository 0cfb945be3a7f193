"""GPT-2's folder: complete or an error that helps, whoever is killed, offline, out of disk or not alone."""

import json
import os
import pwd
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub import Cut, Flip, Hub, Pause, Status
from utils import hub_download
from utils.files import InputError, sha256
from utils.gpt2_download import FILES, RECORD, SIZES, WEIGHTS, ModelManager
from utils.hub_download import DownloadError, NoConnectionError

ROOT = Path(__file__).parent.parent.parent
SIZE = 500_000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serves something under the name of gpt2-large, the one size whose checksum is the server's."""
    folder = tmp_path / "hub" / "openai-community" / "gpt2-large"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(os.urandom(SIZE if name == WEIGHTS else 1000))
    monkeypatch.setattr(hub_download, "_DELAYS", (0.01, 0.02, 0.03))
    with Hub(tmp_path / "hub") as hub:
        hub.use(monkeypatch)
        yield hub


@pytest.fixture
def source(hub: Hub) -> Path:
    return hub.root / "openai-community" / "gpt2-large"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def contents(folder: Path, also: tuple[str, ...] = ()) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if path.name not in also}


def start(cache: Path, *arguments: str, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """The command line, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "utils.gpt2_download", "--size", "gpt2-large", "--cache-dir", str(cache), *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit,
    )  # fmt: skip


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.01)


def part_size(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob(f"{WEIGHTS}.*.part"))


def test_a_folder_is_complete_and_used_again_without_a_request(hub: Hub, source: Path, cache: Path) -> None:
    folder = ModelManager(cache).download_gpt2_model("gpt2-large")
    assert contents(folder, also=(RECORD,)) == contents(source)
    record = json.loads((folder / RECORD).read_text())
    assert record == {
        name: {"bytes": (source / name).stat().st_size, "sha256": sha256(source / name)} for name in FILES
    }
    asked = len(hub.requests)
    assert asked == len(FILES)
    for size in ("gpt2-large", "large", "774M"):
        assert ModelManager(str(cache)).download_gpt2_model(size) == folder
    assert len(hub.requests) == asked


def test_a_complete_folder_needs_no_right_to_write(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ModelManager(cache).download_gpt2_model("gpt2-large")
    shutil.rmtree(hub.root)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = {path: path.stat().st_mtime_ns for path in [*cache.rglob("*"), cache]}
    assert ModelManager(cache).download_gpt2_model("gpt2-large") == folder
    assert {path: path.stat().st_mtime_ns for path in [*cache.rglob("*"), cache]} == before


def test_without_a_folder_the_cache_is_in_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ModelManager().cache_dir == tmp_path / "language-model-from-scratch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert ModelManager().cache_dir == Path.home() / ".cache" / "language-model-from-scratch"
    assert ModelManager("~/models").cache_dir == Path.home() / "models"


def test_without_a_home_folder_an_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number for which there is no user."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(InputError, match="there is no home folder .*: set XDG_CACHE_HOME"):
        ModelManager()


def test_a_cache_that_cannot_be_written_is_an_error_that_says_what_to_set(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="cannot be written: .* does not allow it; set XDG_CACHE_HOME"):
        ModelManager(cache).download_gpt2_model("gpt2-large")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", RECORD])
def test_what_was_lost_or_cut_short_is_fetched_again(hub: Hub, source: Path, cache: Path, name: str) -> None:
    folder = ModelManager(cache).download_gpt2_model("gpt2-large")
    for damage in (Path.unlink, lambda path: os.truncate(path, 10)):
        hub.requests.clear()
        damage(folder / name)
        ModelManager(cache).download_gpt2_model("gpt2-large")
        assert contents(folder, also=(RECORD,)) == contents(source)
        # without the record nobody knows whether the files are right
        assert [request.file for request in hub.requests] == (list(FILES) if name == RECORD else [name])


@pytest.mark.parametrize("record", ["null", "[1]", "[" * 5000, '{"config.json": 5}', '{"config.json": {}}'])
def test_a_record_that_makes_no_sense_is_none(hub: Hub, source: Path, cache: Path, record: str) -> None:
    folder = ModelManager(cache).download_gpt2_model("gpt2-large")
    (folder / RECORD).write_text(record)
    ModelManager(cache).download_gpt2_model("gpt2-large")
    assert contents(folder, also=(RECORD,)) == contents(source)


def test_an_error_keeps_the_files_that_are_complete(hub: Hub, cache: Path) -> None:
    hub.faults[WEIGHTS] = [Status(404)]
    with pytest.raises(DownloadError, match=r"openai-community/gpt2-large/.*model.safetensors: 404 Not Found"):
        ModelManager(cache).download_gpt2_model("gpt2-large")
    hub.requests.clear()
    ModelManager(cache).download_gpt2_model("gpt2-large")
    assert [request.file for request in hub.requests] == [WEIGHTS]


def test_each_size_has_its_repository_and_its_commit(hub: Hub, cache: Path) -> None:
    for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        (hub.root / "openai-community" / name).mkdir(exist_ok=True)
        hub.faults["config.json"] = [Status(404)]
        with pytest.raises(
            DownloadError, match=rf"/openai-community/{name}/resolve/{SIZES[name].revision}/config.json"
        ):
            ModelManager(cache).download_gpt2_model(name)
    assert len({release.revision for release in SIZES.values()}) == 4


def test_other_weights_than_the_pinned_ones_are_refused(hub: Hub, source: Path, cache: Path) -> None:
    shutil.copytree(source, source.with_name("gpt2"))
    with pytest.raises(DownloadError, match="is another file than wanted"):
        ModelManager(cache).download_gpt2_model("gpt2")
    assert not list(cache.rglob(f"{WEIGHTS}*"))


def test_another_revision_has_a_folder_of_its_own_and_no_pin(hub: Hub, source: Path, cache: Path) -> None:
    shutil.copytree(source, source.with_name("gpt2"))
    folders = [ModelManager(cache).download_gpt2_model("gpt2", revision=name) for name in ("main", "refs/pr/1")]
    assert folders == [cache / "gpt2" / "main", cache / "gpt2" / "refs%2Fpr%2F1"]
    assert all(contents(folder, also=(RECORD,)) == contents(source) for folder in folders)


@pytest.mark.parametrize("revision", ["", "..", "../../etc", "a b", "/etc"])
def test_what_cannot_be_a_revision_is_an_error(hub: Hub, cache: Path, revision: str) -> None:
    with pytest.raises(InputError, match=f"revision must be .*, got {re.escape(repr(revision))}"):
        ModelManager(cache).download_gpt2_model("gpt2", revision=revision)
    assert not cache.exists()


def test_an_unknown_size_is_an_error(hub: Hub, cache: Path) -> None:
    with pytest.raises(InputError, match=r"size must be one of gpt2, gpt2-small, .*, 1558M, got 'gpt3'"):
        ModelManager(cache).download_gpt2_model("gpt3")
    assert not hub.requests


def test_offline_an_incomplete_folder_is_an_error_that_says_what_is_missing(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = r"HF_HUB_OFFLINE is set, but .* needs {}: run `python -m utils.gpt2_download --size gpt2-large` where"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NoConnectionError, match=message.format(", ".join(FILES))):
        ModelManager(cache).download_gpt2_model("large")
    assert not cache.exists()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = ModelManager(cache).download_gpt2_model("large")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    with pytest.raises(NoConnectionError, match=message.format("a fresh copy of its files")):
        ModelManager(cache).download_gpt2_model("large", force_download=True)
    (folder / WEIGHTS).unlink()
    with pytest.raises(NoConnectionError, match=message.format(WEIGHTS)):
        ModelManager(cache).download_gpt2_model("large")
    assert len(hub.requests) == asked


def test_without_a_connection_a_folder_is_used_or_an_error_says_what_is_missing(
    hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelManager(cache).download_gpt2_model("large")
    with Hub(tmp_path) as gone:
        pass
    monkeypatch.setenv("HF_ENDPOINT", gone.url)
    assert ModelManager(cache).download_gpt2_model("large") == folder
    with pytest.raises(NoConnectionError, match=rf"cannot reach .* needs .*{WEIGHTS}: run .* --revision main` "):
        ModelManager(cache).download_gpt2_model("large", revision="main")


def test_force_download_fetches_all_again(hub: Hub, source: Path, cache: Path) -> None:
    folder = ModelManager(cache).download_gpt2_model("large")
    for name in FILES:
        (source / name).write_bytes(b"new " + name.encode())
    assert ModelManager(cache).download_gpt2_model("large", force_download=True) == folder
    assert contents(folder, also=(RECORD,)) == contents(source)


@pytest.mark.parametrize("faults", [[Flip(5), Flip(6)], [Status(500)] * 9, [Cut(1000), *[Status(503)] * 9]])
def test_a_forced_download_that_fails_leaves_a_folder_that_can_be_used(
    hub: Hub, source: Path, cache: Path, faults: list[Flip | Status | Cut]
) -> None:
    folder = ModelManager(cache).download_gpt2_model("large")
    old = sha256(folder / WEIGHTS)
    (source / WEIGHTS).write_bytes(os.urandom(SIZE))
    hub.faults[WEIGHTS] = faults
    with pytest.raises(DownloadError):
        ModelManager(cache).download_gpt2_model("large", force_download=True)
    hub.requests.clear()
    assert ModelManager(cache).download_gpt2_model("large") == folder
    assert sha256(folder / WEIGHTS) == old
    assert not hub.requests


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_goes_on_where_one_that_was_stopped_left_off(
    hub: Hub, source: Path, cache: Path, how: signal.Signals
) -> None:
    hub.faults[WEIGHTS] = [Pause(200_000)]
    process = start(cache)
    wait_for(lambda: part_size(cache) == 200_000)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    assert "Traceback" not in errors
    assert part_size(cache) == 200_000
    hub.requests.clear()
    output, errors = (process := start(cache)).communicate(timeout=60)
    assert process.returncode == 0, errors
    assert contents(Path(output.strip()), also=(RECORD,)) == contents(source)
    assert [(request.file, request.headers["range"]) for request in hub.requests] == [(WEIGHTS, "bytes=199999-")]
    assert hub.sent(WEIGHTS) == [SIZE - 199_999]
    assert re.search(r"model.safetensors: +40%.*\[.*<.*B/s\]", errors), "a bar that begins where the part ends"


def test_of_two_processes_one_downloads_and_the_other_waits(hub: Hub, source: Path, cache: Path) -> None:
    hub.faults[WEIGHTS] = [pause := Pause(200_000)]
    first = start(cache)
    wait_for(lambda: part_size(cache) == 200_000)
    second = start(cache)
    assert second.stderr is not None
    assert "another process is downloading to" in second.stderr.readline()
    pause.go.set()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert outputs[0] == outputs[1]
    assert contents(Path(outputs[0].strip()), also=(RECORD,)) == contents(source)
    assert len(hub.requests) == len(FILES)


def test_a_process_that_waits_takes_over_from_one_that_is_killed(hub: Hub, source: Path, cache: Path) -> None:
    hub.faults[WEIGHTS] = [Pause(200_000)]
    first = start(cache)
    wait_for(lambda: part_size(cache) == 200_000)
    second = start(cache)
    assert second.stderr is not None
    assert "another process is downloading to" in second.stderr.readline()
    first.kill()
    first.communicate(timeout=60)
    output, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert contents(Path(output.strip()), also=(RECORD,)) == contents(source)
    assert hub.sent(WEIGHTS) == [200_000, SIZE - 199_999]


def test_a_file_that_may_not_grow_is_one_line_and_what_came_is_kept(hub: Hub, source: Path, cache: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    _, errors = (process := start(cache, limit=limit)).communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert re.search(
        r"error: cannot write .*\.part: File too large; 200kB are kept: make room and run it again", errors
    )
    ModelManager(cache).download_gpt2_model("large")
    assert hub.sent(WEIGHTS)[1:] == [SIZE - 199_999]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_is_one_line_and_what_came_is_kept(hub: Hub, source: Path, small_disk: Path) -> None:
    hub.faults[WEIGHTS] = [pause := Pause(200_000)]
    process = start(small_disk)
    wait_for(lambda: part_size(small_disk) == 200_000)
    other = small_disk / "other"
    other.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    pause.go.set()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert re.search(r"error: cannot write .*\.part: No space left on device; \d+kB are kept: make room", errors)
    kept = part_size(small_disk)
    assert 200_000 < kept < 310_000
    with pytest.raises(DownloadError, match=f"{WEIGHTS} needs .*kB more on the disk of {small_disk}"):
        ModelManager(small_disk).download_gpt2_model("large")  # this time it is known beforehand
    other.unlink()
    hub.requests.clear()
    folder = ModelManager(small_disk).download_gpt2_model("large")
    assert contents(folder, also=(RECORD,)) == contents(source)
    assert hub.sent(WEIGHTS) == [SIZE - kept + 1]


def test_mistakes_on_the_command_line_are_one_line(hub: Hub, cache: Path) -> None:
    hub.token = "secret"
    for arguments, line in [
        (["--size", "gpt3"], "error: size must be one of gpt2, "),
        ([], f"error: {hub.url}/openai-community/gpt2-large/resolve/{SIZES['large'].revision}/config.json: 401 "),
    ]:
        _, errors = (process := start(cache, *arguments)).communicate(timeout=60)
        assert process.returncode == 1
        assert errors.startswith(line)
        assert errors.count("\n") == 1
