"""Documents from the Hub, and the filters on many machines."""

import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.corpus import hub
from pretraining.corpus.documents import Files, Row, parse
from pretraining.corpus.filtering import Filtered
from pretraining.corpus.many_machines import pipeline
from pretraining.corpus.screen import Screen
from tests.pretraining.corpus_hub import DataHub
from tests.pretraining.test_corpus_pipeline import paragraphs
from utils.files import InputError
from working_with_text_data import train_tokenizer
from working_with_text_data.text_files import read_documents

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["a novel", "pages of the web"])
def texts(request: pytest.FixtureRequest, persuasion: str) -> list[str]:
    """Some forty documents; those of the web are real ones."""
    if request.param == "a novel":
        return paragraphs(persuasion[:60_000], 1500)
    pages = request.getfixturevalue("real_data") / "text" / "web_digitalgov.jsonl.gz"
    with gzip.open(pages, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in itertools.islice(lines, 40)]


@pytest.mark.slow
def test_a_data_set_on_the_hub_is_streamed_in_order_from_any_row_on(
    tmp_path: Path, persuasion: str, texts: list[str]
) -> None:
    pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    repository = tmp_path / "hub" / "owner" / "corpus"
    texts = [f"{number}: {text}" for number, text in enumerate(texts)]
    thirds = [texts[:10], texts[10:20], texts[20:]]
    for folder in ("web", "code"):
        (repository / folder).mkdir(parents=True)
        for number, part in enumerate(thirds):
            table = pyarrow.table({"text": [f"{folder} {text}" for text in part], "id": list(range(len(part)))})
            parquet.write_table(table, repository / folder / f"train-{number:05}-of-00003.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("web", "code"))
    (repository / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    (tmp_path / "text.txt").write_text(persuasion[:20_000])
    train_tokenizer.main(
        train_tokenizer.Config(text=tmp_path / "text.txt", vocab_size=300, out=tmp_path / "tokenizer.json")
    )
    with DataHub(tmp_path / "hub") as served:
        environment = {
            **os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-m", "tests.pretraining.corpus_hub", str(tmp_path)]
        result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    said = json.loads((tmp_path / "said.json").read_text())
    assert [text for _, text in said["texts"]] == [f"web {text}" for text in texts]
    assert said["texts"][12][0] == [1, 3]
    assert said["later"] == said["texts"][13:]
    assert said["n_kept"] == len(texts)
    assert "owner/nothing" in said["problem"]
    assert not list((tmp_path / "home").rglob("*.parquet"))


def test_source_files_come_from_where_the_data_set_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Software Heritage's answers are files here."""
    monkeypatch.setattr(hub, "SOFTWARE_HERITAGE", f"{tmp_path.as_uri()}/")
    (tmp_path / "abc").write_bytes(gzip.compress("x = 'é'\n".encode()))
    (tmp_path / "cut").write_bytes(gzip.compress(b"x" * 100)[:-9])
    good, bad, none = (hub._content({"blob_id": name, "length_bytes": 9}) for name in ("abc", "cut", "none"))
    assert good == hub.SourceFile("abc", 9)
    assert parse(Row(good, "row 1")).text == "x = 'é'\n"
    for row in (bad, none):
        with pytest.raises(InputError, match=f"the source file {row.blob} cannot be had"):
            parse(Row(row, "row 2"))
    assert hub._content({"text": None, "blob_id": "abc"}) == {"text": None, "url": None, "source_url": None}


@pytest.mark.slow
def test_the_filters_are_the_same_as_a_datatrove_pipeline(tmp_path: Path, persuasion: str) -> None:
    """With the local executor and two tasks."""
    pytest.importorskip("datatrove")
    pytest.importorskip("orjson")  # with which datatrove reads lines of JSON
    texts = paragraphs(persuasion[:150_000], 2000)
    (tmp_path / "in").mkdir()
    for number in range(2):
        lines = (json.dumps({"text": text, "id": str(i)}) + "\n" for i, text in enumerate(texts[number::2]))
        (tmp_path / "in" / f"{number}.jsonl").write_text("".join(lines))
    screen = Screen(language="")
    pipeline(f"{tmp_path}/in", f"{tmp_path}/out", screen, tasks=2, logs=f"{tmp_path}/logs").run()
    assert len(list((tmp_path / "out").iterdir())) == 2
    filtered = Filtered(tmp_path / "ours")
    statistics = filtered.make(Files("web", tmp_path / "in"), screen, 1, strict=True, keep_rejected=False)
    ours = [document["text"] for unit in filtered.units() for document in filtered.documents(unit)]
    assert list(read_documents(tmp_path / "out")) == ours
    assert 10 < statistics.n_kept < statistics.n_read
