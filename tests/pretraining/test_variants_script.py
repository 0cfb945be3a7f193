"""The script that compares kinds of attention: what it stores, and that it goes on where it stopped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pretraining import simple, variants
from utils.files import InputError


@pytest.fixture
def config(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> variants.Config:
    """Two kinds, two seeds, two steps, and a small text."""
    chosen = ("MHA", "SWA, W = 16")
    monkeypatch.setattr(variants, "VARIANTS", {name: variants.VARIANTS[name] for name in chosen})
    shutil.copytree(data, tmp_path / "out" / "data")
    shutil.copy(data.parent / "tokenizer.json", tmp_path / "out" / "tokenizer.json")
    return variants.Config(out=tmp_path / "out", results=tmp_path / "variants.json", steps=2, seeds=2)


def test_each_kind_is_trained_with_each_seed(config: variants.Config, capsys: pytest.CaptureFixture[str]) -> None:
    variants.main(config)
    stored = json.loads(config.results.read_bytes())
    assert stored["steps"] == 2
    mha, swa = stored["rows"]["MHA"], stored["rows"]["SWA, W = 16"]
    assert mha["cache_bytes_per_token"] == 4 * 2 * 128 * 2  # layers, key and value, width, bytes
    assert swa["cache_bytes_per_token"] == mha["cache_bytes_per_token"] * 16 / 128
    assert mha["parameters"] == swa["parameters"]
    assert len(set(mha["bits_per_byte"])) == 2, "another seed gives another model"
    assert mha["bits_per_byte_mean"] == pytest.approx(sum(mha["bits_per_byte"]) / 2)
    printed = capsys.readouterr().out
    assert printed.strip() == variants.table(stored)
    assert f"| MHA | {mha['parameters']:,} | 2,048 |" in printed


def test_what_is_trained_is_not_trained_again(config: variants.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, seeds=1)
    variants.main(config)
    first = json.loads(config.results.read_bytes())["rows"]
    with pytest.raises(InputError, match="holds a training of 2 steps, not 3: choose another --out"):
        variants.main(replace(config, steps=3))  # going on would not make it one of 3 steps
    config.results.unlink()
    monkeypatch.setattr(simple.Trainer, "step", None)  # there is nothing left to do
    variants.main(config)
    assert json.loads(config.results.read_bytes())["rows"] == first


def test_interrupted_it_stores_nothing(config: variants.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simple, "main", lambda training: False)
    variants.main(config)
    assert not config.results.exists()


def test_impossible_numbers_are_named() -> None:
    with pytest.raises(InputError, match="seeds must be at least 1 and at most 1,000, got 0"):
        variants.Config(seeds=0)


def test_a_file_of_somebody_elses_is_not_replaced(config: variants.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simple, "main", None)  # it must not come so far
    for content in ("my thesis", '{"rows": 3}', "[" * 5000):
        config.results.write_text(content)
        with pytest.raises(InputError, match="was not written by this command, so it is not replaced"):
            variants.main(config)
        assert config.results.read_text() == content
