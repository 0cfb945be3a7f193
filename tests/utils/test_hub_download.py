"""One file over a bad connection: it arrives whole and right, or the error says why and the old file is still there."""

import http.client
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hub import Cut, Flip, Headers, Hub, Pause, Status
from utils import hub_download
from utils.files import InputError, sha256
from utils.hub_download import DownloadError, NoConnectionError, download

SIZE = 500_000
FILE = "model.safetensors"
REPO = "openai-community/gpt2"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serves one large and one small file; whatever downloads waits milliseconds where it would wait seconds."""
    folder = tmp_path / "hub" / REPO
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(os.urandom(SIZE))
    (folder / "config.json").write_text('{"n_layer": 12}')
    monkeypatch.setattr(hub_download, "_DELAYS", (0.01, 0.02, 0.03))
    with Hub(tmp_path / "hub") as hub:
        hub.use(monkeypatch)
        yield hub


@pytest.fixture
def source(hub: Hub) -> Path:
    return hub.root / REPO / FILE


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / FILE


def fetch(target: Path, checksum: str | None = None, most_bytes: int = 2 * SIZE) -> str:
    return download(REPO, "main", target.name, target, checksum, most_bytes=most_bytes)


def ranges(hub: Hub) -> list[str | None]:
    return [request.headers.get("range") for request in hub.requests]


def alone(target: Path) -> bool:
    """Whether the folder holds the file and nothing else."""
    return list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", [FILE, "config.json"])
def test_a_file_arrives_with_one_request(hub: Hub, target: Path, name: str) -> None:
    target = target.with_name(name)
    assert fetch(target) == sha256(target) == sha256(hub.root / REPO / name)
    assert len(hub.requests) == 1
    assert alone(target)


@pytest.mark.parametrize("cut", [1, 70_000, SIZE - 1])
def test_a_cut_connection_goes_on_where_it_stopped(hub: Hub, source: Path, target: Path, cut: int) -> None:
    hub.faults[FILE] = [Cut(cut)]
    assert fetch(target) == sha256(source)
    # the last byte is sent twice; with one byte there is nothing to go on from
    assert ranges(hub) == [None, f"bytes={cut - 1}-" if cut > 1 else None]
    assert hub.sent(FILE) == [cut, SIZE - cut + 1]
    assert hub.requests[1].headers.get("if-range") == (f'"{sha256(source)}"' if cut > 1 else None)


def test_a_reset_connection_goes_on_where_it_stopped(hub: Hub, source: Path, target: Path) -> None:
    hub.faults[FILE] = [Cut(400_000, reset=True), Cut(0, reset=True)]
    assert fetch(target) == sha256(source)
    assert len(hub.requests) == 3


def test_as_long_as_more_comes_the_attempts_do_not_run_out(hub: Hub, source: Path, target: Path) -> None:
    hub.faults[FILE] = [Cut(20_000) for _ in range(20)]
    assert fetch(target) == sha256(source)
    assert len(hub.requests) == 21


def test_without_progress_the_attempts_run_out(hub: Hub, target: Path) -> None:
    hub.ignores_range = True
    hub.faults[FILE] = [Cut(20_000) for _ in range(20)]
    with pytest.raises(DownloadError, match=r"ended at 20.0kB of 500kB, 4 times; 20.0kB are kept: try later"):
        fetch(target)
    assert len(hub.requests) == 4


def test_an_empty_answer_is_a_cut_connection(hub: Hub, source: Path, target: Path) -> None:
    hub.faults[FILE] = [Cut(0), Cut(5000), Cut(0)]
    assert fetch(target) == sha256(source)


def test_silence_is_a_cut_connection(
    hub: Hub, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def be_patient(seconds: float) -> None:
        """Stand for the delay before the second request, whose answer may be late where the machine is busy."""
        monkeypatch.setattr(hub_download, "_TIMEOUT", 60)

    monkeypatch.setattr(hub_download, "_TIMEOUT", 2)
    monkeypatch.setattr(hub_download, "time", SimpleNamespace(sleep=be_patient))
    hub.faults[FILE] = [Pause(1000)]
    begin = time.monotonic()
    assert fetch(target) == sha256(source)
    assert time.monotonic() - begin < 60
    assert ranges(hub) == [None, "bytes=999-"]
    assert "no answer; trying again" in caplog.text


def test_a_flipped_byte_is_noticed_and_all_is_fetched_once_more(
    hub: Hub, source: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults[FILE] = [Flip(1234)]
    assert fetch(target) == sha256(source)
    assert hub.sent(FILE) == [SIZE, SIZE]
    assert "damaged" in caplog.text


def test_a_flipped_byte_before_a_cut_is_noticed(hub: Hub, source: Path, target: Path) -> None:
    hub.faults[FILE] = [Cut(100_000)]
    target.parent.mkdir()
    part = target.with_name(f"{FILE}.{sha256(source)}.part")
    part.write_bytes(bytes(50_000))  # of the right version by its name, but the disk has lost what was in it
    assert fetch(target) == sha256(source)
    assert alone(target)


@pytest.mark.parametrize("name", [FILE, "config.json"])
def test_damaged_twice_is_an_error_and_the_old_file_stays(hub: Hub, target: Path, name: str) -> None:
    target = target.with_name(name)
    target.parent.mkdir()
    target.write_bytes(b"old")
    hub.faults[name] = [Flip(3), Flip(4)]
    with pytest.raises(DownloadError, match="came twice with a wrong checksum"):
        fetch(target)
    assert target.read_bytes() == b"old"
    assert alone(target)  # what is damaged is no use to the next attempt


def test_a_wrong_pinned_checksum_is_an_error_before_anything_is_kept(hub: Hub, target: Path) -> None:
    with pytest.raises(
        DownloadError, match=f"is another file than wanted: its sha256 is [0-9a-f]{{64}}, not {'0' * 64}"
    ):
        fetch(target, checksum="0" * 64)
    assert not list(target.parent.iterdir())


def test_a_pinned_checksum_counts_where_the_server_tells_none(hub: Hub, source: Path, target: Path) -> None:
    plain = {"ETag": '"some-etag"', "X-Linked-Etag": None}
    hub.faults[FILE] = [Headers(plain)]
    assert fetch(target, checksum=sha256(source)) == sha256(source)
    hub.faults[FILE] = [Headers(plain), Headers(plain)]
    with pytest.raises(DownloadError, match="wrong checksum"):
        fetch(target, checksum="0" * 64)


def test_without_any_checksum_a_warning_says_so(
    hub: Hub, source: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults[FILE] = [Headers({"ETag": None, "X-Linked-Etag": None, "Content-Length": None, "X-Linked-Size": None})]
    assert fetch(target) == sha256(source)
    assert "no checksum" in caplog.text


def test_another_size_than_the_hub_says_is_an_error(hub: Hub, target: Path) -> None:
    hub.faults[FILE] = [Headers({"X-Linked-Size": "600000"})]
    with pytest.raises(DownloadError, match="should have 600,000 bytes, but the server has 500,000"):
        fetch(target)


def test_fewer_bytes_than_the_file_has_are_noticed_by_the_checksum(hub: Hub, target: Path) -> None:
    hub.faults[FILE] = [Headers({"X-Linked-Size": None, "Content-Length": str(SIZE - 1000)}) for _ in range(2)]
    with pytest.raises(DownloadError, match="wrong checksum"):
        fetch(target)
    assert not list(target.parent.iterdir())


def test_errors_of_the_server_pass(hub: Hub, source: Path, target: Path) -> None:
    hub.faults[FILE] = [Status(500), Status(408), Cut(1000), Status(503), Status(429)]
    assert fetch(target) == sha256(source)
    assert ranges(hub) == [None] * 3 + ["bytes=999-"] * 3


def test_an_error_of_the_server_that_stays_is_an_error(hub: Hub, target: Path) -> None:
    hub.faults[FILE] = [Status(500)] * 10
    with pytest.raises(DownloadError, match=f"/{FILE}: 500 Internal Server Error, 4 times; try later$"):
        fetch(target)
    assert len(hub.requests) == 4


def test_the_delay_a_server_asks_for_is_kept(hub: Hub, source: Path, target: Path) -> None:
    hub.faults[FILE] = [Status(429, {"Retry-After": "1"})]
    begin = time.monotonic()
    assert fetch(target) == sha256(source)
    assert time.monotonic() - begin > 1
    hub.faults[FILE] = [Status(429, {"Retry-After": "86400"})]
    with pytest.raises(DownloadError, match="429 Too Many Requests, 1 time"):
        fetch(target)


@pytest.mark.parametrize(
    ("status", "token", "advice"),
    [
        (401, None, r"set HF_TOKEN to a token from"),
        (401, "secret", r"HF_TOKEN is not valid"),
        (403, None, r"set HF_TOKEN to a token from"),
        (403, "secret", r"has no access: ask for it at http://127.0.0.1:\d+/openai-community/gpt2"),
        (404, None, r"is there such a file and revision at http://127.0.0.1:\d+/openai-community/gpt2, and is HF_END"),
        (410, None, r"is HF_ENDPOINT right\?"),
    ],
)
def test_a_refusal_is_an_error_at_once(
    hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch, status: int, token: str | None, advice: str
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.faults[FILE] = [Status(status, {"X-Error-Message": "the hub's words"})]
    with pytest.raises(
        DownloadError, match=rf"openai-community/gpt2.*: {status} .*\(the hub's words\); .*{advice}"
    ) as error:
        fetch(target)
    assert "secret" not in str(error.value)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("status", [203, 204])
def test_a_success_without_a_file_is_an_error(hub: Hub, target: Path, status: int) -> None:
    hub.faults[FILE] = [Status(status)]
    with pytest.raises(DownloadError, match=f"{status} .*, which brings no file"):
        fetch(target)
    assert not target.exists()


@pytest.mark.parametrize("headers", [{"Content-Length": "abc"}, {"X-Linked-Size": "abc"}])
def test_an_answer_that_makes_no_sense_is_an_error_at_once(hub: Hub, target: Path, headers: dict[str, str]) -> None:
    hub.faults[FILE] = [Headers(headers)]
    with pytest.raises(DownloadError, match="the server's answer makes no sense: .*'abc'"):
        fetch(target)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("told", [True, False])
def test_no_more_is_taken_than_such_a_file_may_have(hub: Hub, target: Path, told: bool) -> None:
    """Without Content-Length nobody knows the size before the end, and there need not be one."""
    if not told:
        hub.faults[FILE] = [Headers({"Content-Length": None, "X-Linked-Size": None})]
    with pytest.raises(DownloadError, match=r"model.safetensors has more than the 500kB that such a file may have"):
        fetch(target, most_bytes=SIZE - 1)
    assert len(hub.requests) == 1
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("elsewhere", ["ftp://127.0.0.1/model", "file:///etc/passwd"])
def test_only_http_addresses_are_followed(hub: Hub, target: Path, elsewhere: str) -> None:
    hub.faults[FILE] = [Status(302, {"Location": elsewhere})]
    with pytest.raises(DownloadError):
        fetch(target)
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    "error",
    [
        HTTPError("http://a", 503, "\x1b]0;gone\x07", Message(), None),
        http.client.BadStatusLine("\x1b[2J"),
        URLError(OSError("\x9b2J")),
    ],
    ids=repr,
)
def test_what_a_server_says_commands_no_terminal(error: Exception) -> None:
    assert hub_download._reason(error).isprintable()


def test_the_hubs_own_words_command_no_terminal(hub: Hub, target: Path) -> None:
    hub.faults[FILE] = [Status(404, {"X-Error-Message": "\x1b[31mgone" + 1000 * "!"})]
    with pytest.raises(DownloadError, match=r"404 Not Found \(\\x1b\[31mgone!+\)") as error:
        fetch(target)
    assert len(str(error.value)) < 500


def test_a_folder_in_its_place_is_noticed_before_anything_is_fetched(hub: Hub, target: Path) -> None:
    target.mkdir(parents=True)
    with pytest.raises(DownloadError, match="is a folder, where a file should come"):
        fetch(target)
    assert not hub.requests


def test_a_password_in_the_address_is_not_shown(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://me:secret@127.0.0.1:9")
    with pytest.raises(DownloadError) as error:
        fetch(target)
    assert "secret" not in str(error.value)


def test_a_missing_file_is_an_error_at_once(hub: Hub, target: Path) -> None:
    with pytest.raises(DownloadError, match="none.txt: 404 Not Found"):
        fetch(target.with_name("none.txt"))
    assert len(hub.requests) == 1


def test_a_server_that_ignores_range_sends_all(hub: Hub, source: Path, target: Path) -> None:
    hub.ignores_range = True
    hub.faults[FILE] = [Cut(100_000)]
    assert fetch(target) == sha256(source)
    assert hub.sent(FILE) == [100_000, SIZE]


@pytest.mark.parametrize("ignores_if_range", [False, True])
@pytest.mark.parametrize("size", [SIZE, 50_000])
def test_a_part_of_another_version_is_thrown_away(
    hub: Hub, source: Path, target: Path, size: int, ignores_if_range: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults[FILE] = [Cut(100_000), *[Status(500)] * 4]
    with pytest.raises(DownloadError):
        fetch(target)
    assert [path.name for path in target.parent.iterdir()] == [f"{FILE}.{sha256(source)}.part"]
    source.write_bytes(os.urandom(size))
    hub.ignores_if_range = ignores_if_range
    assert fetch(target) == sha256(source)
    assert hub.sent(FILE)[-1] == size
    assert "damaged" not in caplog.text, "it took two whole downloads to notice"
    assert alone(target)


def test_an_answer_from_another_byte_on_is_not_taken(
    hub: Hub, source: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults[FILE] = [Cut(100_000), Headers({"Content-Range": f"bytes 50000-{SIZE - 1}/{SIZE}"})]
    assert fetch(target) == sha256(source)
    assert ranges(hub) == [None, "bytes=99999-", None]
    assert "damaged" not in caplog.text


def test_without_an_etag_nothing_is_resumed(hub: Hub, source: Path, target: Path) -> None:
    hub.faults[FILE] = [Cut(1000), Cut(1000)]
    for etag in (None, 'W/"weak"'):
        hub.faults[FILE] = [Headers({"ETag": etag, "Content-Length": str(SIZE + 1), "X-Linked-Size": None})]
        assert fetch(target) == sha256(source)
    assert ranges(hub) == [None] * 4


def test_a_complete_part_is_not_fetched_again(hub: Hub, source: Path, target: Path) -> None:
    target.parent.mkdir()
    shutil.copy(source, target.with_name(f"{FILE}.{sha256(source)}.part"))
    assert fetch(target) == sha256(source)
    assert hub.sent(FILE) == [1]


def test_the_token_goes_to_the_hub_and_not_to_its_cdn(
    hub: Hub, source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret\n")  # as read from a file
    with Hub(tmp_path / "hub") as hub.content:
        hub.content.faults[FILE] = [Cut(100_000)]
        assert fetch(target) == sha256(source)
        assert [request.headers.get("authorization") for request in hub.requests] == ["Bearer secret"] * 2
        assert [request.headers.get("authorization") for request in hub.content.requests] == [None] * 2
        assert hub.content.sent(FILE) == [100_000, SIZE - 99_999]


def test_the_token_follows_a_redirect_on_the_hub(hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.faults[FILE] = [Status(307, {"Location": f"/{REPO}/resolve/moved/{FILE}"})]
    fetch(target)
    assert [request.headers["authorization"] for request in hub.requests] == ["Bearer secret"] * 2


def test_a_token_that_cannot_be_sent_is_an_error_that_does_not_show_it(
    hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in ("hf_one\nhf_two", "hf_\N{LATIN SMALL LETTER E WITH ACUTE}"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError, match="HF_TOKEN holds a character") as error:
            fetch(target)
        assert "hf_" not in str(error.value)
    assert not hub.requests


def test_a_cdn_that_cannot_be_reached_is_named(hub: Hub, target: Path, tmp_path: Path) -> None:
    with Hub(tmp_path) as hub.content:
        pass
    with pytest.raises(NoConnectionError, match=f"cannot reach {hub.content.url.removeprefix('http://')}: "):
        fetch(target)


@pytest.mark.parametrize("etag", ['"0-of-the-cdn"', None])
def test_the_checksum_is_the_hubs_whatever_etag_the_cdn_has(
    hub: Hub, source: Path, target: Path, tmp_path: Path, etag: str | None
) -> None:
    others = {"ETag": etag, "X-Linked-Etag": None, "X-Linked-Size": None}
    with Hub(tmp_path / "hub") as hub.content:
        hub.content.faults[FILE] = [Headers(others)]
        assert fetch(target) == sha256(source)
        hub.content.faults[FILE] = [Headers(others), Headers(others)]
        (tmp_path / "other" / REPO).mkdir(parents=True)
        (tmp_path / "other" / REPO / FILE).write_bytes(bytes(SIZE))
        hub.content.root = tmp_path / "other"
        with pytest.raises(DownloadError, match="wrong checksum"):
            fetch(target)
    assert sha256(target) == sha256(source)


def test_without_a_server_there_is_an_error_at_once(
    hub: Hub, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_download, "_DELAYS", (60.0,))  # an attempt more would be noticed
    with Hub(tmp_path) as gone:
        pass
    monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(NoConnectionError, match=r"cannot reach 127.0.0.1:\d+: Connection refused"):
        fetch(target)
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    with pytest.raises(NoConnectionError, match=r"cannot reach no-such-host.invalid: "):
        fetch(target)


def test_a_server_that_goes_away_in_the_middle_is_asked_again(
    hub: Hub, source: Path, target: Path, tmp_path: Path
) -> None:
    with Hub(tmp_path) as gone:
        pass
    hub.faults[FILE] = [Cut(1000), Status(302, {"Location": gone.url})]
    assert fetch(target) == sha256(source)
    assert ranges(hub) == [None, "bytes=999-", "bytes=999-"]


def test_a_connection_that_is_reset_before_any_answer_is_tried_again(
    hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets = []

    def reset_each() -> None:
        while len(resets) < 4:
            connection, _ = server.accept()
            connection.recv(1)  # the first byte of TLS
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            resets.append(1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=reset_each, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"https://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(DownloadError, match="Connection reset by peer, 4 times; try later"):
            fetch(target)
        thread.join(timeout=60)


def test_offline_there_is_no_request(hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NoConnectionError, match="HF_HUB_OFFLINE is set"):
        fetch(target)
    assert not hub.requests


@pytest.mark.parametrize(
    "url",
    ["huggingface.co", "file:///etc", "https://", "https://hub .co", "http://[::1", "http://hub:abc", "http://.hub.co"],
)
def test_an_endpoint_that_is_no_address_is_an_error(
    hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(InputError, match="HF_ENDPOINT must be an address"):
        fetch(target)


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(hub.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=SIZE - 1))
    with pytest.raises(DownloadError, match=f"needs 500kB more on the disk of {target.parent}, which has 500kB"):
        fetch(target)
    assert not list(target.parent.iterdir())


def test_what_is_there_already_needs_no_room(
    hub: Hub, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.parent.mkdir()
    target.with_name(f"{FILE}.{sha256(source)}.part").write_bytes(source.read_bytes()[:400_000])
    usage = shutil.disk_usage(hub.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_001))
    assert fetch(target) == sha256(source)


FAULTS = st.one_of(
    st.builds(Cut, st.integers(0, SIZE), st.booleans()),
    st.builds(Status, st.sampled_from([408, 429, 500, 502, 503])),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(FAULTS, max_size=6), flip=st.none() | st.tuples(st.integers(0, 6), st.integers(0, SIZE - 1)))
def test_whatever_goes_wrong_on_the_way_the_file_is_right(
    hub: Hub, target: Path, faults: list[Cut | Status], flip: tuple[int, int] | None
) -> None:
    hub_download._DELAYS = (0.0,) * 7  # the fixture restores it
    source = hub.root / REPO / FILE
    hub.faults[FILE] = [*faults]
    if flip:
        hub.faults[FILE].insert(flip[0], Flip(flip[1]))
    target.unlink(missing_ok=True)
    assert fetch(target) == sha256(target) == sha256(source)
    assert alone(target)
    hub.faults[FILE] = []
