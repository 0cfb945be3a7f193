"""Which models there are, how they are called, and how they come into memory."""

import json
import logging
import os
import threading
from pathlib import Path

import pytest
from safetensors.torch import save_file

from chat_ui.engine import Models, UnknownModelError
from chat_ui.engine.models import GPT2, MemoryFullError
from gpt_model import GPT, GPTConfig
from tests.chat_ui.small_runs import loaded, write_classifier, write_run
from tests.hub import Hub
from tests.tiny_run import other_tokenizer
from utils.files import InputError
from utils.gpt2_download import ModelManager
from working_with_text_data.minbpe import GPT2Tokenizer


def aged(run: Path, seconds: int) -> Path:
    """Make a run's weights older."""
    file = run / "model.safetensors"
    made = file.stat().st_mtime - seconds
    os.utime(file, (made, made))
    return run


class TestFound:
    def test_tuned_ones_first_then_the_newest(self, tmp_path: Path) -> None:
        aged(write_run(tmp_path / "old"), 100)
        aged(write_run(tmp_path / "deep" / "er" / "base"), 50)
        aged(write_run(tmp_path / "chat-old", template="alpaca"), 300)
        aged(write_run(tmp_path / "chat", template="chatml"), 200)
        write_classifier(tmp_path / "mood")
        write_classifier(tmp_path / "topic", ["sport", "art", "a\nb", "law", "war", "sea"])
        aged(tmp_path / "topic", 10)
        write_run(tmp_path / ".hidden")
        write_run(tmp_path / "old" / "snapshots" / "inside")
        found = Models(tmp_path).available()
        assert [info.name for info in found] == ["chat", "chat-old", "deep/er/base", "old", "mood", "topic", *GPT2]
        assert [info.kind for info in found[:6]] == ["tuned", "tuned", "base", "base", "classifier", "classifier"]
        assert found[0].template == "chatml"
        assert found[0].label == f"chat (answers, made {found[0].made:%Y-%m-%d %H:%M})"
        assert found[4].label == f"mood (tells apart bad and good, made {found[4].made:%Y-%m-%d %H:%M})"
        assert "(tells apart sport, art, a\\nb, law and 2 more, made " in found[5].label
        assert found[-1].label == "gpt2-xl (OpenAI's GPT-2, continues text)"

    def test_a_run_itself_and_an_empty_folder(self, tmp_path: Path) -> None:
        assert Models(tmp_path / "nothing", gpt2=False).available() == []
        run = write_run(tmp_path / "one")
        models = Models(run, gpt2=False)
        assert [info.name for info in models.available()] == ["one"]
        assert models.load("one").info.run == run

    def test_links_are_followed_but_not_in_circles(self, tmp_path: Path) -> None:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "linked").symlink_to(write_run(tmp_path / "elsewhere"))
        (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs")
        assert [info.name for info in Models(tmp_path / "runs", gpt2=False).available()] == ["linked"]

    def test_what_cannot_be_used_is_left_out_and_said_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_run(tmp_path / "good")
        write_run(tmp_path / "damaged")
        (tmp_path / "damaged" / "config.json").write_text("{")
        write_run(tmp_path / "strange", template="klingon")
        other = json.loads((write_run(tmp_path / "future") / "config.json").read_text())
        other["model"]["flux"] = 1
        (tmp_path / "future" / "config.json").write_text(json.dumps(other))
        (write_run(tmp_path / "untrained") / "model.safetensors").unlink()
        write_classifier(tmp_path / "numbered", [1, 2])  # type: ignore[list-item]
        write_run(tmp_path / "typed").rename(tmp_path / os.fsdecode(b"caf\xe9"))  # in Latin-1
        models = Models(tmp_path, gpt2=False)
        for _ in range(2):
            models._looked = -10.0
            assert [info.name for info in models.available()] == ["good"]
        assert sorted(record.levelno for record in caplog.records) == [logging.WARNING] * 5
        assert "'classifier' must name classes, pool, most_tokens and cut" in caplog.text
        assert "its template 'klingon' is not one of alpaca, chatml" in caplog.text
        assert "a path that is not UTF-8: rename the folder" in caplog.text
        with pytest.raises(UnknownModelError):
            models.info("damaged")

    def test_a_new_run_is_found(self, tmp_path: Path) -> None:
        models = Models(tmp_path, gpt2=False)
        assert models.available() == []
        write_run(tmp_path / "new")
        models._looked = -10.0
        assert models.info("new").nbytes == 4 * sum(x.numel() for x in models.load("new").model.model.parameters())


class TestMemory:
    def test_one_load_serves_all_who_ask_at_the_same_time(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a")
        models = Models(tmp_path, gpt2=False)
        got = []
        threads = [threading.Thread(target=lambda: got.append(models.load("a"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(model) for model in got}) == 1

    def test_a_model_in_no_file_stays(self, tmp_path: Path) -> None:
        models = Models(tmp_path, gpt2=False, memory=1)
        models.add(loaded())
        write_run(tmp_path / "a")
        models._looked = -10.0
        assert [info.name for info in models.available()] == ["small", "a"]
        with pytest.raises(InputError, match="a does not fit into memory beside small"):
            models.load("a")
        assert models.get("small") is not None

    def test_a_classifier_takes_its_place_among_the_others(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a")
        write_classifier(tmp_path / "mood")
        models = Models(tmp_path, gpt2=False, memory=1)
        assert models.load("a") is models.load("a")
        with pytest.raises(MemoryFullError, match="mood does not fit into memory beside a"):
            models.load_classifier("mood", keep={"a"})
        assert models.load_classifier("mood") is models.load_classifier("mood")
        assert models.loaded() == ["mood"]
        with pytest.raises(InputError, match="mood writes no text, it is a classifier"):
            models.load("mood")
        with pytest.raises(InputError, match="a is not a classifier"):
            models.load_classifier("a")

    def test_a_tokenizer_without_the_templates_tokens(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "a", template="chatml")
        config = json.loads((run / "config.json").read_text())
        config["model"]["vocab_size"] = 300
        del config["tokenizer"]
        (run / "config.json").write_text(json.dumps(config))
        other_tokenizer(run / "bpe.json", 300)
        save_file(GPT(GPTConfig.from_dict(config["model"])).state_dict(), run / "model.safetensors")
        with pytest.raises(
            InputError, match=r"a: its tokenizer lacks <\|im_start\|>, <\|im_end\|>, which chatml needs"
        ):
            Models(tmp_path, gpt2=False).load("a")


def test_gpt2_is_downloaded_when_it_is_first_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model in the large one's place, from a hub on this machine: the weights of that size are not pinned."""
    source = tmp_path / "hub" / "openai-community" / "gpt2-large"
    source.parent.mkdir(parents=True)
    shape = GPTConfig(vocab_size=50_257, context_length=32, d_model=8, n_layers=1, n_heads=2)
    GPT(shape).export_to_hf(source, GPT2Tokenizer())
    for name in ("vocab.json", "merges.txt"):  # which say the same as tokenizer.json, and are not read
        (source / name).write_text("{}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Hub(tmp_path / "hub") as hub:
        hub.use(monkeypatch)
        models = Models(tmp_path / "runs")
        assert not models.info("gpt2-large").is_here
        told: list[tuple[int, int | None]] = []
        small = models.load("gpt2-large", lambda *progress: told.append(progress))
    assert told[-1][0] == told[-1][1] == (source / "model.safetensors").stat().st_size
    assert small.stop_tokens == (50_256,)
    assert models.info("gpt2-large").is_here
    assert ModelManager().is_here("gpt2-large")
    assert not ModelManager().is_here("gpt2")
