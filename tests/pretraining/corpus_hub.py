"""A Hub on loopback with data sets in parquet files, enough of one for `datasets` to stream from.

`python -m tests.pretraining.corpus_hub FOLDER` is the client, in a process of its own, since `huggingface_hub` reads
HF_ENDPOINT as it is imported: it reads a data set from several places on and makes a corpus of it.
"""

import hashlib
import json
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


class DataHub:
    """Serves `root/OWNER/NAME/...` as data sets until the `with` block ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bytes_sent = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "DataHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub: DataHub = self.server.hub  # type: ignore[attr-defined]
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if found := re.fullmatch(r"/datasets/([\w-]+/[\w-]+)/resolve/[^/]+/(.+)", path):
            self.send_file(hub.root / found[1] / found[2])
        elif found := re.fullmatch(r"/api/datasets/([\w-]+/[\w-]+)(?:/revision/[^/]+)?", path):
            self.send_json(self.description(found[1]))
        elif found := re.fullmatch(r"/api/datasets/([\w-]+/[\w-]+)/tree/[^/]+/?(.*)", path):
            self.send_json([entry for entry in self.tree(found[1]) if entry["path"].startswith(found[2])])
        else:
            self.send_nothing("Repo")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else urllib.parse.parse_qs(body)["paths"]
        found = re.fullmatch(r"/api/datasets/([\w-]+/[\w-]+)/paths-info/.*", urllib.parse.unquote(self.path))
        assert found
        self.send_json([entry for entry in self.tree(found[1]) if entry["path"] in wanted])

    def description(self, repository: str) -> dict[str, Any] | None:
        if not (self.server.hub.root / repository).is_dir():  # type: ignore[attr-defined]
            return None
        siblings = [{"rfilename": entry["path"]} for entry in self.tree(repository) if entry["type"] == "file"]
        return {
            "_id": "0" * 24, "id": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False,
            "gated": False, "disabled": False, "downloads": 0, "likes": 0,
        }  # fmt: skip

    def tree(self, repository: str) -> list[dict[str, Any]]:
        root = self.server.hub.root / repository  # type: ignore[attr-defined]
        entries: list[dict[str, Any]] = []
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_dir():
                entries.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
            else:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                large = {"lfs": {"oid": digest, "size": path.stat().st_size, "pointerSize": 134}}
                entries.append(
                    {"type": "file", "path": name, "oid": digest[:40], "size": path.stat().st_size}
                    | (large if path.suffix == ".parquet" else {})
                )
        return entries

    def send_json(self, content: Any) -> None:
        if content is None:
            return self.send_nothing("Repo")
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        return None

    def send_nothing(self, missing: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", f"{missing}NotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, path: Path) -> None:
        if not path.is_file():
            return self.send_nothing("Entry")
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
        digest = hashlib.sha256(data).hexdigest()
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[first : last + 1])
            self.server.hub.bytes_sent += last - first + 1  # type: ignore[attr-defined]
        return None


def client(folder: Path) -> None:
    from pretraining import prepare_smollm
    from pretraining.corpus.documents import Place
    from pretraining.corpus.hub import HubData
    from utils.files import InputError

    data = HubData("web", "owner/corpus", "web")
    texts = [(place, row.content["text"]) for place, row in data.rows(Place())]
    later = [(place, row.content["text"]) for place, row in data.rows(Place(1, 3))]
    problem = ""
    try:
        HubData("web", "owner/nothing").identity()
    except InputError as error:
        problem = str(error)
    config = prepare_smollm.Config(
        mix="web=1", sources=("web=hub:owner/corpus:web",), no_prose=("web",), tokenizer=folder / "tokenizer.json",
        out=folder / "data", held_out=0, max_epochs=1, workers=1,
    )  # fmt: skip
    manifest = prepare_smollm.main(config)
    said = {"texts": texts, "later": later, "n_kept": manifest["documents"]["web"]["n_kept"], "problem": problem}
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    client(Path(sys.argv[1]))
