"""Classifiers from the tests' small run: trained, gone on with, loaded, refused."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch

from finetuning.classification import baseline, compare, predict, train
from finetuning.classification.text_classifier import TextClassifier
from utils.files import InputError


def write_reviews(path: Path, names: tuple[str, ...] = ("bad", "good"), n: int = 160) -> Path:
    words = {"bad": "dull awful", "good": "great lovely", "odd": "strange queer"}
    rng = np.random.default_rng(0)
    filler = ["the", "of", "and", "she", "was", "in", "her", "that", "had", "with", "for", "not", "be", "as"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(n):
            name = names[number % len(names)]
            text = [*rng.choice(filler, size=rng.integers(3, 9)), rng.choice(words[name].split())]
            writer.writerow([f"{' '.join(rng.permutation(text))} {number}", name])
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> train.Config:
    data = write_reviews(tmp_path_factory.mktemp("reviews") / "reviews.csv")
    return train.Config(
        base=finished_run, data=data, epochs=8, batch_size=16, lr=3e-3, device="cpu", precision="float32",
        eval_every=10, checkpoint_every=20, most_tokens=32,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, settings: train.Config) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert train.main(replace(settings, out=out))
    return out


def test_it_learns_and_reports(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((trained / "report.json").read_bytes())
    assert report["test"]["accuracy"] >= 0.8  # the last of 16 texts; two words of each class are all that tells
    assert report["kind"] == "GPT"
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert page.count("<blockquote>") == page.count(", taken for ")
    assert (trained / "reliability.svg").read_bytes().startswith(b"<?xml")
    assert page.count("<h2>") == (trained / "report.md").read_text(encoding="utf-8").count("\n## ")
    probabilities = predict.main(predict.Config(run=trained, text=("that was great", "that was dull"), device="cpu"))
    assert probabilities.argmax(1).tolist() == [1, 0]
    assert capsys.readouterr().out.splitlines()[-1].startswith("bad  ")
    same = compare.main(compare.Config(first=trained, second=trained))
    assert (same["only_first"], same["only_second"], same["p"]) == (0, 0, 1.0)


def test_a_prediction_does_not_depend_on_the_batch(trained: Path) -> None:
    classifier = TextClassifier.from_run(trained)
    texts = ["that was great", "dull", "she was not in the great hall, and had to be with her " * 9, "lovely"]
    together = classifier.probabilities(texts)
    np.testing.assert_allclose(classifier.probabilities(texts, batch_size=1), together, atol=1e-6)
    np.testing.assert_allclose(classifier.probabilities(texts[::-1], batch_size=2)[::-1], together, atol=1e-6)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    trained: Path, settings: train.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(settings, out=tmp_path / "run")

    def give_up(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Classification, "evaluate", give_up)  # the first evaluation is after step 10
        with pytest.raises(KeyboardInterrupt):
            train.main(replace(config, checkpoint_every=5))
    assert train.main(config)
    weights = [safetensors.torch.load_file(run / "model.safetensors") for run in (trained, config.out)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_lora_and_the_head_learn_and_nothing_else(trained: Path, settings: train.Config, tmp_path: Path) -> None:
    out = tmp_path / "lora"
    assert train.main(replace(settings, out=out, lora_rank=2, epochs=1))
    adapter = safetensors.torch.load_file(out / "adapter.safetensors")
    assert any(name.endswith("qkv.A") for name in adapter)
    assert {name for name in adapter if name.startswith("head")} == {
        f"head.{layer}.{part}" for layer in (1, 4) for part in ("weight", "bias")
    }
    base = safetensors.torch.load_file(settings.base / "model.safetensors")
    merged = TextClassifier.from_run(out).model.gpt.state_dict()
    assert torch.equal(merged["token_embedding.weight"], base["token_embedding.weight"])
    name = "blocks.0.attention.qkv.weight"
    assert torch.linalg.matrix_rank(merged[name] - base[name], rtol=1e-4) == 2


def test_what_does_not_belong_together_is_told_in_one_line(
    trained: Path, settings: train.Config, tmp_path: Path
) -> None:
    three = write_reviews(tmp_path / "three.csv", ("bad", "good", "odd"))
    other = replace(settings, out=trained, data=three)
    for config, message in (
        (other, "holds a run with sha256"),
        (replace(settings, out=trained, pool="mean"), "holds a run with pool last, not mean"),
        (replace(settings, out=tmp_path / "a", most_tokens=99), "most_tokens must be at most the model's context, 32"),
        (replace(settings, out=tmp_path / "a", blocks=9), "blocks must be at most the model's, 2"),
        (replace(settings, out=tmp_path / "a", data=tmp_path / "none.csv"), "none.csv is not a file"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            train.main(config)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="give either --blocks 1 or --lora-rank 2"):
        replace(settings, blocks=1, lora_rank=2)
    for arguments, message in (
        ({"data": three}, "the classifier has no class 'odd': it knows bad, good"),
        ({"text": ("fine", "  ")}, "text 2 is empty"),
        ({}, "say what to classify"),
        ({"run": settings.base, "text": ("x",)}, "is a language model, not a classifier"),
        ({"run": tmp_path, "text": ("x",)}, "holds no classifier: python -m finetuning.classification.train makes one"),
    ):
        with pytest.raises(InputError, match=message):
            predict.main(predict.Config(**{"run": trained, "device": "cpu", **arguments}))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("script", [train, baseline])
def test_without_scikit_learn_nothing_is_begun(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match="needs the package sklearn, which is not installed: pip install"):
        script.main(script.Config(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_for_another_number_of_classes_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_bytes())
    for classes, message in ((["a", "b", "c"], r"head.4.bias is \(2,\) there, \(3,\) by config.json"), ([], "damaged")):
        config["classifier"]["classes"] = classes
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=message):
            TextClassifier.from_run(copy)


def test_other_texts_cannot_be_compared(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("text,label,p(a),p(b)\nx,a,1,0\n")
    with pytest.raises(InputError, match="tested on different texts"):
        compare.main(compare.Config(first=trained, second=tmp_path))
    (tmp_path / "predictions.csv").write_text("nonsense\nx\n")
    with pytest.raises(InputError, match="is damaged"):
        compare.main(compare.Config(first=trained, second=tmp_path))
    with pytest.raises(InputError, match=r"has no predictions.csv"):
        compare.main(compare.Config(first=trained, second=tmp_path / "nowhere"))
