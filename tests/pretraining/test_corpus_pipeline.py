"""A corpus from beginning to end: what is in it, that nothing changes it, and that it survives everything."""

import gzip
import hashlib
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretraining import prepare_smollm
from pretraining.corpus import filtering
from pretraining.corpus.documents import Files, Place, Row, batches
from pretraining.corpus.filtering import Filtered
from pretraining.corpus.mixing import draw, hold_out, parse_mix, plan
from pretraining.corpus.packing import Packing
from pretraining.corpus.screen import Screen
from pretraining.prepare_smollm import Config
from tests.forked import fork
from utils.files import InputError
from working_with_text_data import train_tokenizer
from working_with_text_data.dataset import BlockDataset
from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.shards import open_shard

SMALL_UNIT = 40_000  # bytes


def paragraphs(text: str, size: int) -> list[str]:
    """The text in documents of at least `size` characters, a paragraph on a line."""
    documents, waiting = [], ""
    for paragraph in text.split("\n\n"):
        waiting += " ".join(paragraph.split()) + "\n"
        if len(waiting) >= size:
            documents.append(waiting)
            waiting = ""
    return documents


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, persuasion: str) -> Path:
    """A web with duplicates, junk and damage; code; books; and a tokenizer."""
    folder = tmp_path_factory.mktemp("sources")
    web = paragraphs(persuasion[5000:260_000], 2000)
    rows = [json.dumps({"text": text, "url": f"https://site{number % 9}.example/"}) for number, text in enumerate(web)]
    prose = [text for text in web if sum(line.endswith(".") for line in text.splitlines()) > text.count("\n") / 2]
    near = prose[10].replace("father", "mother").replace("soon", "late").replace(" had been", " has been", 2)
    rows.insert(60, json.dumps({"text": prose[3].replace(",", "").replace("\n", "\n\n")}))
    rows.insert(70, json.dumps({"text": near}))
    rows.insert(20, json.dumps({"text": "Buy one of the shoes now.\n" * 80}))
    rows.insert(30, json.dumps({"text": prose[20] + "Write to jane@austen.example or 10.1.2.3. "}))
    rows.insert(7, '{"text": "cut off')
    rows.insert(8, '{"text": "\\ud800"}')
    rows.insert(9, "[1, 2]")
    (folder / "web").mkdir()
    (folder / "web" / "1.jsonl").write_text("\n".join(rows[:50]), encoding="utf-8")
    (folder / "web" / "2.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[50:]).encode()))
    (folder / "web" / "3.jsonl.gz").write_bytes(gzip.compress(random.Random(0).randbytes(5000))[:2000])
    (folder / "code.jsonl").write_text(
        "".join(json.dumps({"text": f"def f{i}(x):\n    return x + {i}\n" * 9}) + "\n" for i in range(40))
    )
    (folder / "books").mkdir()
    for number in range(3):
        text = persuasion[260_000 + number * 40_000 : 300_000 + number * 40_000]
        (folder / "books" / f"{number}.txt").write_text(text, encoding="utf-8")
    (folder / "books" / "latin.txt").write_bytes("café".encode("latin-1"))
    train_tokenizer.main(
        train_tokenizer.Config(text=folder / "books" / "0.txt", vocab_size=400, out=folder / "tokenizer.json")
    )
    return folder


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtering, "UNIT_BYTES", SMALL_UNIT)
    monkeypatch.setattr("pretraining.corpus.documents.BATCH_BYTES", SMALL_UNIT // 4)


def config(given: Path, out: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "mix": "web=0.5,code=0.2,books=0.3",
        "sources": (f"web={given / 'web'}", f"code={given / 'code.jsonl'}", f"books={given / 'books'}"),
        "no_prose": ("code", "books"),
        "language": "",
        "tokenizer": given / "tokenizer.json",
        "out": out,
        "held_out": 0.1,
        "shard_tokens": 20_000,
        "workers": 1,
    }
    return Config(**{**values, **changes})


def tree(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def made(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, made in one go by one process."""
    out = tmp_path_factory.mktemp("made") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filtering, "UNIT_BYTES", SMALL_UNIT)
        patch.setattr("pretraining.corpus.documents.BATCH_BYTES", SMALL_UNIT // 4)
        prepare_smollm.main(config(sources, out))
    return out


def test_the_manifest_says_what_became_of_every_document(made: Path, sources: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    web, code, books = (manifest["documents"][name] for name in ("web", "code", "books"))
    assert web["n_damaged"] == 4
    assert [line.split(" ", 1)[0].rsplit("/", 1)[1] for line in web["damaged"]] == ["1.jsonl,"] * 3 + ["3.jsonl.gz"]
    assert "line 8 is not JSON" in web["damaged"][0]
    assert web["rejected"]["dup_line_frac"] == 1
    assert web["n_replaced"] == 2
    assert web["selected"]["exact_duplicate"] == 1
    assert web["selected"]["near_duplicate"] == 2  # the changed one, and that with addresses
    assert web["n_read"] == web["n_kept"] + sum(web["rejected"].values())
    assert web["n_kept"] == sum(web["selected"].values())
    assert books["n_damaged"] == 1
    assert "latin.txt is not UTF-8" in books["damaged"][0]
    assert code["selected"] == {"kept": 40, "surprising": 0, "exact_duplicate": 0, "near_duplicate": 0}
    for name, shard in manifest["shards"].items():
        assert shard["sha256"] == hashlib.sha256((made / name).read_bytes()).hexdigest()
    assert manifest["tokens"]["train"] == sum(len(open_shard(path)) for path in made.glob("train_*.bin"))


def test_the_mixture_is_in_tokens_and_epochs_are_bounded(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    for name, share in (("web", 0.5), ("code", 0.2), ("books", 0.3)):
        assert manifest["mixture"][name]["share_of_tokens"] == pytest.approx(share, abs=0.06)
    assert max(portion["epochs"] for portion in manifest["mixture"].values()) == pytest.approx(4, abs=0.1)


def test_the_corpus_holds_whole_documents_in_another_order_and_none_of_them_twice(made: Path, sources: Path) -> None:
    tokenizer = Tokenizer.load(made / "bpe.json")
    text = {}
    for split in ("train", "val"):
        tokens = np.concatenate([open_shard(path) for path in sorted(made.glob(f"{split}_*.bin"))])
        text[split] = tokenizer.decode(tokens.tolist()).split("<|endoftext|>")[1:]
    passed = [path.read_text() for path in sorted(made.with_name("data-stages").glob("filtered-web-*/0*.jsonl"))]
    kept = [json.loads(line)["text"] for line in "".join(passed).splitlines()]
    where = [text["train"].index(document) for document in kept if document in text["train"]]
    assert len(where) > 10
    assert where != sorted(where)
    assert not set(text["train"]) & set(text["val"])
    assert len(set(text["val"])) == len(text["val"])
    assert BlockDataset(made, "train", 64)[0][0].shape == (64,)


def test_nothing_but_the_settings_changes_the_corpus(made: Path, sources: Path, tmp_path: Path) -> None:
    """Neither the number of processes, nor what was made before, nor a fresh start."""
    prepare_smollm.main(config(sources, tmp_path / "data", workers=2))
    assert tree(tmp_path / "data") == tree(made)
    stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "data-stages").rglob("0*")}
    prepare_smollm.main(config(sources, tmp_path / "data", seed=1, overwrite=True))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data-stages").rglob("0*")} == stages
    assert tree(tmp_path / "data")["train_000000.bin"] != tree(made)["train_000000.bin"]
    with pytest.raises(InputError, match="exists: choose another"):
        prepare_smollm.main(config(sources, tmp_path / "data"))


def prepare_until(n: int, config: Config) -> None:
    """Prepare, but kill this process when it is about to rename its n-th file."""
    left = n

    def count(event: str, arguments: object) -> None:
        nonlocal left
        if event == "os.rename":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    filtering.UNIT_BYTES = SMALL_UNIT
    sys.modules["pretraining.corpus.documents"].BATCH_BYTES = SMALL_UNIT // 4  # type: ignore[attr-defined]
    sys.addaudithook(count)
    prepare_smollm.main(config)


def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(made: Path, sources: Path, tmp_path: Path) -> None:
    same = config(sources, tmp_path / "data")
    for n in (1, 5, 9, 13, 11, 1, 3, 2):  # renamings, each time after those before
        process = fork(prepare_until, n, same)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "data").exists()
    prepare_smollm.main(same)
    assert tree(tmp_path / "data") == tree(made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data-stages"]


def test_strict_stops_at_the_first_damaged_line(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1.jsonl, line 8 is not JSON: .* \(without --strict"):
        prepare_smollm.main(config(sources, tmp_path / "data", strict=True))
    prepare_smollm.main(config(sources, tmp_path / "data"))
    with pytest.raises(InputError, match="line 8 is not JSON"):  # though the damage was counted before
        prepare_smollm.main(config(sources, tmp_path / "data", strict=True, overwrite=True))


def test_optional_filters_have_their_say(sources: Path, tmp_path: Path) -> None:
    test_set = tmp_path / "test.jsonl"
    lines = (sources / "web" / "1.jsonl").read_text().splitlines()
    test_set.write_text(lines[15] + "\n")
    hosts = tmp_path / "hosts"
    hosts.write_text("site4.example\n")
    filters = {
        "reference": sources / "books" / "0.txt",
        "percentile": 75,
        "decontaminate": (test_set,),
        "block_list": hosts,
        "keep_rejected": True,
        "keep_personal": True,
    }
    one = {"mix": "web=1", "sources": (f"web={sources / 'web'}",), "no_prose": (), "pack": 2000, "shard_tokens": 4100}
    manifest = prepare_smollm.main(config(sources, tmp_path / "data", **one, **filters))
    web = manifest["documents"]["web"]
    assert web["rejected"]["contaminated"] == 1
    assert web["rejected"]["url"] > 5
    assert web["n_replaced"] == 0
    n_left = web["n_kept"]
    assert web["selected"]["surprising"] == pytest.approx(n_left / 4, abs=1)
    stored = "".join(path.read_text() for path in tmp_path.rglob("*.rejected.jsonl"))
    rejected = [json.loads(line) for line in stored.splitlines()]
    assert len(rejected) == sum(web["rejected"].values())
    assert {row["reason"] for row in rejected} == set(web["rejected"])
    assert 0 < manifest["packing"]["train"]["cropped_share"] < 0.5
    end_of_text = Tokenizer.load(tmp_path / "data" / "bpe.json").special_tokens["<|endoftext|>"]
    shards = [open_shard(path) for path in sorted((tmp_path / "data").glob("train_*.bin"))]
    assert {len(shard) for shard in shards[:-1]} == {4000}
    assert all((shard.reshape(-1, 2000)[:, 0] == end_of_text).all() for shard in shards)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": "web"}, "gives each source a weight"),
        ({"mix": "web=1,web=2"}, "names web twice"),
        ({"mix": "papers=1", "sources": ()}, "--sources papers=PATH"),
        ({"mix": "web=1"}, "code, which is not in --mix"),
        ({"sources": ("web",)}, "gives each name one place"),
        ({"sources": ("web=nowhere",)}, "no file or folder nowhere"),
        ({"mix": "web=1", "sources": ("web=hub:a/b/c",)}, "OWNER/NAME"),
        ({"no_prose": ("novels",)}, "novels, which is not in --mix"),
        ({"tokenizer": Path("nothing.json")}, "nothing.json"),
        ({"block_list": Path("nothing")}, "nothing cannot be read"),
        ({"decontaminate": (Path("nothing.csv"),)}, "no test set nothing.csv"),
        ({"reference": Path("nothing")}, "no file or folder nothing"),
    ],
)
def test_mistakes_are_found_before_any_work(changes: dict, message: str, sources: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare_smollm.main(config(sources, tmp_path / "data", **changes))
    assert not list(tmp_path.iterdir())


def test_rows_that_fit_no_row_are_refused() -> None:
    with pytest.raises(InputError, match="shard_tokens must be at least pack"):
        Config(pack=5000, shard_tokens=1000)


def test_parquet_is_read_from_any_row_on(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": [f"text {i}" for i in range(700)], "url": ["u"] * 700, "other": [0] * 700})
    parquet.write_table(table, tmp_path / "1.parquet")
    (tmp_path / "2.parquet").write_bytes(b"nothing")
    source = Files("web", tmp_path)
    rows = list(source.rows(Place(0, 698)))
    assert [place for place, _ in rows] == [Place(0, 699), Place(0, 700), Place(1, 1)]
    assert rows[1][1].content == {"text": "text 699", "url": "u"}
    assert isinstance(rows[2][1].content, InputError)
    (first, *_), (other, *_) = (list(batches(source, start)) for start in (Place(), Place(0, 300)))
    assert first.rows[300:302] == other.rows[:2]


def test_documents_are_drawn_epoch_by_epoch() -> None:
    lengths = np.array([10, 20, 30, 40])
    drawn = draw(lengths, 250, seed=0, number=0)
    assert sorted(drawn[:4]) == sorted(drawn[4:8]) == [0, 1, 2, 3]
    assert lengths[drawn].sum() >= 250 > lengths[drawn[:-1]].sum()
    assert (
        draw(lengths, 250, seed=0, number=0).tolist() == drawn.tolist() != draw(lengths, 250, seed=1, number=0).tolist()
    )
    assert hold_out(1000, 0.1, 0, 0).sum() == 100
    assert (hold_out(1000, 0.1, 0, 0) != hold_out(1000, 0.1, 0, 1)).any()


def test_a_source_that_is_too_small_makes_the_mixture_smaller() -> None:
    portions = plan({"a": 1000, "b": 100}, parse_mix("a=1,b=1"), 10_000, max_epochs=2)
    assert {name: (portion.n_tokens, portion.epochs) for name, portion in portions.items()} == {
        "a": (200, 0.2), "b": (200, 2.0),
    }  # fmt: skip
    assert plan({"a": 1000, "b": 100}, parse_mix("a=1,b=1"), 100, max_epochs=2)["b"].n_tokens == 50
    with pytest.raises(InputError, match="nothing is left of the source b"):
        plan({"a": 1000, "b": 0}, parse_mix("a=1,b=1"), 100, max_epochs=2)


def test_packing_loses_only_what_it_says(rng: random.Random) -> None:
    documents = [np.full(rng.choice([3, 17, 40, 60, 120]), i) for i in range(500)]
    packing = Packing(100)
    rows = list(packing.rows(documents))
    assert {len(row) for row in rows} == {100}
    n_tokens = sum(map(len, documents))
    assert packing.n_tokens == n_tokens
    assert sum(map(len, rows)) == n_tokens - packing.n_cropped
    together = np.concatenate(rows)
    begins = np.flatnonzero(np.diff(together, prepend=-1))
    assert len(np.unique(together)) == len(begins)  # every document in one place
    assert set(range(0, len(together), 100)) <= set(begins)
    whole = sum(
        np.count_nonzero(together == i) == len(document) for i, document in enumerate(documents) if len(document) < 100
    )
    assert whole > 0.8 * sum(len(document) < 100 for document in documents)


class Generated:
    """A source that is never on disk: documents of words drawn at random, a few of them twice."""

    name = "generated"

    def __init__(self, megabytes: int) -> None:
        self.n_rows = megabytes * 200

    def identity(self) -> int:
        return self.n_rows

    def rows(self, start: Place) -> Iterator[tuple[Place, Row]]:
        words = [f"word{i}" for i in range(1000)]
        for number in range(start.row, self.n_rows):
            rng = random.Random(number - number % 10 // 9)
            sentences = (" ".join(rng.choices(words, k=12)) for _ in range(60))
            yield (
                Place(0, number + 1),
                Row({"text": "\n".join(f"The {part} and that." for part in sentences)}, str(number)),
            )


def filter_and_measure(megabytes: int, folder: Path) -> None:
    """Filter with two processes; write the most memory that this process and one of those took, in bytes."""
    statistics = Filtered(folder / "filtered").make(
        Generated(megabytes), Screen(language=""), 2, strict=True, keep_rejected=False
    )
    most = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    (folder / "memory.json").write_text(json.dumps({"memory": most, "bytes": statistics.bytes_read}))


@pytest.mark.parametrize("megabytes", [8, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_memory_does_not_grow_with_the_corpus(megabytes: int, tmp_path: Path) -> None:
    process = fork(filter_and_measure, megabytes, tmp_path)
    process.join()
    assert process.exitcode == 0
    measured = json.loads((tmp_path / "memory.json").read_text())
    assert measured["bytes"] > megabytes * 0.9e6
    own, of_a_worker = measured["memory"]
    assert own + 2 * of_a_worker < 1.5e9
