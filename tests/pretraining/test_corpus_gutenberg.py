"""Books of Project Gutenberg: what is book, which books are kept, how they are divided, how they are fetched."""

import json
import re
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pretraining import prepare_gutenberg
from pretraining.corpus.documents import Place
from pretraining.corpus.gutenberg import Books, clean, decode
from pretraining.corpus.gutenberg_download import Fetcher, book_numbers, download_books
from pretraining.prepare_gutenberg import Config, divide
from utils.files import InputError
from working_with_text_data.shards import open_shard

HEADER = (
    "The Project Gutenberg EBook of {0}\r\n\r\nTitle: {0}\r\n\r\n*** START OF THIS PROJECT GUTENBERG EBOOK {0} ***\r\n"
)
FOOTER = (
    "\r\n\r\nEnd of Project Gutenberg's {0}\r\n\r\n*** END OF THIS PROJECT GUTENBERG EBOOK {0} ***\r\nSmall print\r\n"
)
CREDITS = "\r\nProduced by A. Volunteer and\r\nanother one\r\n\r\n[Transcriber's note: italics.]\r\n\r\n"


def book(title: str, text: str) -> bytes:
    return (HEADER.format(title) + CREDITS + text.replace("\n", "\r\n") + FOOTER.format(title)).encode("utf-8")


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("*** START OF THIS PROJECT GUTENBERG EBOOK EMMA ***", "*** END OF THIS PROJECT GUTENBERG EBOOK EMMA ***"),
        ("***START OF THE PROJECT GUTENBERG EBOOK A\nLONG TITLE***", "***END OF THE PROJECT GUTENBERG EBOOK A\nLONG"),
        (
            "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
            "End of the Project Gutenberg Etext of Emma",
        ),
    ],
)
def test_header_and_licence_are_cut_off(begin: str, end: str) -> None:
    body = "Produced by X\n\n\n\n\nEMMA\n\nBy  Jane\n\n\n\n\n\nText cafe\u0301.  "
    text = f"Header\n{begin}\n\n\n{body}\n\n\n{end}\nLicence"
    assert clean(text.replace("\n", "\r\n")) == "EMMA\n\nBy  Jane\n\nText café.\n"


@pytest.mark.parametrize(
    ("text", "missing"), [("A text", "begins"), ("*** START OF THE PROJECT GUTENBERG EBOOK A ***\nB", "ends")]
)
def test_what_is_no_book_is_refused(text: str, missing: str) -> None:
    with pytest.raises(InputError, match=f"where the book {missing}"):
        clean(text)


def test_encodings() -> None:
    assert decode("\ufeffcafé".encode()) == "café"
    assert decode("café".encode("latin-1")) == "café"
    header = "Character set encoding: cp1252\n"
    assert decode((header + "“café”").encode("cp1252")).endswith("“café”")
    assert decode((header.replace("cp1252", "nonsense") + "café").encode("latin-1")).endswith("café")


def test_nothing_but_the_book_is_left_of_real_books(real_data: Path) -> None:
    trace = re.compile(r"Project Gutenberg(-tm| License| Literary)|^(Produced by|E-?text prepared)", re.MULTILINE)
    files = sorted((real_data / "gutenberg").glob("*.txt"))
    for file in files[::4]:
        content = file.read_bytes()
        text = clean(decode(content))
        assert not trace.search(text), file.name
        assert "\r" not in text
        assert len(text.encode()) > 0.75 * len(content)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, persuasion: str) -> Path:
    """Twenty books, a second edition, a French one and a file that is none."""
    folder = tmp_path_factory.mktemp("library")
    for number in range(20):
        text = persuasion[number * 12_000 : number * 12_000 + 11_000]
        (folder / f"book{number:02}.txt").write_bytes(book(f"Book {number}", text))
    (folder / "edition.txt").write_bytes(book("Book 3, again", persuasion[36_000:47_000].replace("Anne", "Annie")))
    (folder / "french.txt").write_bytes(book("Livre", "Le chat est entré dans la maison, où il faisait chaud.\n" * 30))
    (folder / "letter.txt").write_text("Dear reader, this is no book.")
    return folder


def test_books_are_divided_by_book(library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config(library, tmp_path / "out", val=0.1, test=0.15, tokenizer="gpt2", workers=1, shard_tokens=30_000)
    manifest = prepare_gutenberg.main(config)
    assert manifest["documents"]["books"]["rejected"] == {"language": 1}
    assert manifest["documents"]["books"]["n_damaged"] == 1
    assert "the first that was damaged: " in caplog.text
    assert "letter.txt" in caplog.text
    assert manifest["documents"]["books"]["selected"]["near_duplicate"] == 1
    named = manifest["books"]
    assert [len(named[split]) for split in ("train", "val", "test")] == [15, 2, 3]
    assert sorted(name for names in named.values() for name in names) == [
        f"book{number:02}.txt" for number in range(20)
    ]
    for split in named:
        lines = (tmp_path / "out" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["where"] for line in lines] == named[split]
        assert not any("Gutenberg" in line or "Volunteer" in line for line in lines)
    n_train = sum(len(open_shard(path)) for path in (tmp_path / "out").glob("train_*.bin"))
    assert manifest["tokens"]["train"] == n_train > 30_000
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["shards"].keys() == {
        path.name for path in (tmp_path / "out").glob("*.bin")
    }
    for name in ("books.zip", "books.tar.gz"):  # the same from an archive
        with (
            zipfile.ZipFile(tmp_path / name, "w")
            if name.endswith("zip")
            else tarfile.open(tmp_path / name, "w:gz") as out
        ):
            for file in sorted(library.iterdir(), reverse=True):
                (out.write if name.endswith("zip") else out.add)(file, file.name)
    config = Config(tmp_path / "books.tar.gz", tmp_path / "other", val=0.1, test=0.15, workers=1)
    assert prepare_gutenberg.main(config)["books"] == named
    rows = [
        row.content.read() if "book" in row.where else None for _, row in Books(tmp_path / "books.zip").rows(Place())
    ]
    assert len(rows) == 23


@pytest.mark.parametrize("package", ["rensa", "py3langid"])
def test_a_missing_package_is_named_before_anything_is_downloaded_or_written(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = Config(tmp_path / "in", tmp_path / "out", download=5, mirrors=("http://127.0.0.1:9/",), workers=1)
    with pytest.raises(InputError, match=rf"needs the package {package}, .*: pip install .*\[data\]"):
        prepare_gutenberg.main(config)
    assert not list(tmp_path.iterdir())


def test_the_division_depends_on_the_seed_alone() -> None:
    kept = np.ones(100, dtype=bool)
    kept[7] = False
    splits = divide(kept, 0.05, 0.05, seed=0)
    assert [int((splits == number).sum()) for number in (-1, 0, 1, 2)] == [1, 89, 5, 5]
    assert (splits == divide(kept, 0.05, 0.05, seed=0)).all()
    assert (splits != divide(kept, 0.05, 0.05, seed=1)).any()
    with pytest.raises(InputError, match="2 books are too few for 1 to validate and 1 to test"):
        divide(np.ones(2, dtype=bool), 0.05, 0.05, seed=0)
    with pytest.raises(InputError, match="below 1"):
        Config(val=0.5, test=0.5)


CATALOGUE = (
    "Text#,Type,Issued,Title,Language,Authors\n1,Text,1971,One,en,A\n2,Sound,1971,Two,en,B\n"
    '3,Text,1971,"Three,\nor more",en; fr,C\n4,Text,1971,Quatre,fr,D\n5,Text,1971,Five,en,E\n'
)


class Mirror(BaseHTTPRequestHandler):
    """A mirror whose answers are in `server.files`: bytes, or a list of what to answer one time after the other."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        answer = self.server.files.get(self.path, 404)  # type: ignore[attr-defined]
        if isinstance(answer, list):
            answer = answer.pop(0)
        self.send_response(answer if isinstance(answer, int) else 200)
        content = b"" if isinstance(answer, int) else answer
        self.send_header("Content-Length", str(len(content) + (content == b"cut")))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ThreadingHTTPServer]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Mirror) for _ in range(2)]
    for server in servers:
        server.files, server.asked = {}, []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def test_books_are_fetched_from_whoever_has_them(
    mirrors: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = mirrors
    urls = [f"http://127.0.0.1:{server.server_address[1]}" for server in mirrors]
    one.files = {
        "/cache/epub/feeds/pg_catalog.csv": CATALOGUE.encode(),
        "/cache/epub/1/pg1.txt": [b"cut", b"first"],
    }
    other.files = {"/cache/epub/1/pg1.txt": [503], "/cache/epub/5/pg5.txt": b"fifth"}
    download_books(tmp_path / "books", 3, urls, 0, "en")
    assert {path.name: path.read_bytes() for path in (tmp_path / "books").iterdir()} == {
        "pg1.txt": b"first", "pg5.txt": b"fifth",
    }  # fmt: skip
    assert "1 of 3 books are in the catalogue, but not as text" in caplog.text
    del other.files["/cache/epub/5/pg5.txt"]
    one.asked.clear()
    download_books(tmp_path / "books", 3, urls, 0, "en")  # what is there is not fetched again
    assert one.asked == ["/cache/epub/feeds/pg_catalog.csv", "/cache/epub/3/pg3.txt"]
    one.files["/cache/epub/3/pg3.txt"] = 500
    with pytest.raises(InputError, match="book 3 cannot be had: .*goes on later"):
        download_books(tmp_path / "books", 3, urls, 0, "en")


def test_the_catalogue() -> None:
    assert list(book_numbers(CATALOGUE.encode(), "en")) == [1, 3, 5]
    assert list(book_numbers(CATALOGUE.encode(), "")) == [1, 3, 4, 5]
    with pytest.raises(InputError, match="other columns"):
        list(book_numbers(b"a,b\n", "en"))


def test_the_pace_is_kept(mirrors: list, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("pretraining.corpus.gutenberg_download.time.sleep", slept.append)
    mirrors[0].files = {"/a": b"a"}
    fetcher = Fetcher([f"http://127.0.0.1:{mirrors[0].server_address[1]}"], pause=5)
    began = time.monotonic()
    assert fetcher.fetch("a") == fetcher.fetch("a") == b"a"
    took = time.monotonic() - began
    assert slept[0] == 0
    assert 5 - took <= slept[1] <= 5
