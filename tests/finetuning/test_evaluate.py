"""An evaluation as a user has it: before and after, gone on with, and what cannot be evaluated."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from finetuning.instruction import evaluate, train
from finetuning.instruction.evaluate import Config
from finetuning.instruction.scoring import report
from finetuning.instruction.scoring.answers import read_answers
from finetuning.instruction.scoring.text_metrics import Measure
from finetuning.instruction.templates import TEMPLATES
from finetuning.pages import Page, markdown
from finetuning.run import Base, add_tokens, open_run, save_weights
from gpt_model.run_directory import load, read_config
from tests.finetuning.judges import endpoint, says
from utils.files import InputError

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def tuned(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as tuning makes it, of a model that was not tuned."""
    out = tmp_path_factory.mktemp("runs") / "tuned"
    base = add_tokens(Base(*load(finished_run, None), {}, is_new=True), TEMPLATES["chatml"].special_tokens)
    open_run(train.Config(base=finished_run, out=out), base, {}, template="chatml")
    save_weights(out / "model.safetensors", base.model.state_dict())
    return out


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "held_out.jsonl"
    values = [{"instruction": f"Name {n}.", "output": f"{n}.", "category": "numbers"} for n in range(6)]
    values += [{"instruction": f"{SCRIPT} | `what`?", "output": SCRIPT, "category": SCRIPT}]
    values += [{"instruction": "Nothing?", "output": ""}]
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_before_and_after_are_measured_and_shown(
    tuned: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(run=tuned, data=held_out, out=tmp_path / "out", max_new_tokens=3, device="cpu", judged=2)
    with endpoint(lambda _: says("C")) as (url, requests):
        result = evaluate.main(dataclasses.replace(config, judge=url))
    assert result["n_questions"] == 7
    assert result["systems"] == ["before", "after"]
    assert result["judge"]["ties"] == 2
    shown = [request["messages"][0]["content"] for request in requests]
    assert [SCRIPT in text for text in shown].count(True) == 2  # one of each category, in both orders
    rows = {(row["category"], row["measure"]): row for row in result["measures"]}
    assert {category for category, _ in rows} == {"all", "numbers", "all others"}
    loss = rows["all", "perplexity of the reference"]
    assert loss["before"]["low"] < loss["before"]["value"] < loss["before"]["high"]
    assert loss["difference"]["value"] == 0  # it was not tuned
    assert rows["all", "demands met"]["before"] == {"value": None, "low": None, "high": None}
    assert rows["all", "exact match"]["n"] == 7
    out = tmp_path / "out"
    assert json.loads((out / "evaluation.json").read_text(encoding="utf-8")) == result
    assert [len(each.answers) for each in read_answers(out / "answers.jsonl")] == [2] * 7
    for name in ("report.html", "report.md"):
        page = (out / name).read_text(encoding="utf-8")
        assert "&lt;script>alert" in page.replace("&gt;", ">")
        assert "<script" not in page
        assert "perplexity.svg" in page
    assert b"<svg" in (out / "chrF.svg").read_bytes()

    def fail(*_: object) -> None:
        raise AssertionError("it asked again")

    monkeypatch.setattr("gpt_model.TextGenerator.tokens_batch", fail)
    assert evaluate.main(config)["measures"] == result["measures"]


def test_what_cannot_be_evaluated_is_one_line(
    tuned: Path, finished_run: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rouge_score", None)
        with pytest.raises(InputError, match="needs the package rouge_score, which is not installed: pip install"):
            evaluate.main(Config(run=tuned, data=held_out, out=out))  # before the models are asked
    with pytest.raises(InputError, match="was not tuned to answer: it has no template"):
        evaluate.main(Config(run=finished_run, data=held_out, out=out))
    with pytest.raises(InputError, match="not both"):
        Config(run=tuned, base=tuned, pretrained="gpt2")
    with pytest.raises(InputError, match="has no config"):
        evaluate.main(Config(run=tmp_path, data=held_out, out=out))
    (tmp_path / "empty.jsonl").write_text('{"instruction": "a", "output": " "}', encoding="utf-8")
    with pytest.raises(InputError, match="no conversation with an answer"):
        evaluate.main(Config(run=tuned, data=tmp_path / "empty.jsonl", out=out))
    with pytest.raises(InputError, match="must begin with http"):
        evaluate.main(Config(run=tuned, data=held_out, out=out, judge="nowhere"))
    context = read_config(tuned)["model"]["context_length"]
    with pytest.raises(InputError, match=f"--max-new-tokens {context} .* must be less than {context}, the context"):
        evaluate.main(Config(run=tuned, data=held_out, out=out, max_new_tokens=context))
    untraceable = shutil.copytree(tuned, tmp_path / "untraceable")
    stored = read_config(untraceable)
    del stored["training"]["base"]
    (untraceable / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="a judge compares two models"):
        evaluate.main(Config(run=untraceable, data=held_out, out=out, judge="http://127.0.0.1:9/v1"))
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds thesis.txt, which is not ours"):
        evaluate.main(Config(run=tuned, data=held_out, out=out))


def test_the_difference_is_of_the_same_questions() -> None:
    def measure(values: list[float]) -> list[Measure]:
        return [evaluate.mean_of("x", values)]

    rows = evaluate.table({"before": measure([1, 5, 9, 2, 7]), "after": measure([2, 6, 10, 3, 8])}, ["a"] * 5, seed=0)
    assert [row["category"] for row in rows] == ["all", "a"]
    assert rows[0]["difference"] == pytest.approx({"value": 1, "low": 1, "high": 1})
    assert rows[0]["before"]["low"] < 4.8 < rows[0]["before"]["high"]


def test_numbers_are_shown_with_their_intervals() -> None:
    number = {"value": 12.345, "low": 1.2345, "high": 1234.5}
    assert report.bracketed(number) == "12.3 [1.23, 1,234]"
    assert report.bracketed({"value": None, "low": None, "high": None}) == "-"
    assert report.bracketed({"value": -0.0001, "low": None, "high": None}) == "0.00"


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    page = Page("a <b> *c*")
    page.table(["x|y"], [["<i>\n`z`"]], is_text=True)
    page.figure("f.svg", b"<svg/>", '"<b>"')
    page.write(tmp_path)
    assert "<b>" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()[4] == r"| &lt;i&gt; \`z\` |"
    assert markdown("- [a](javascript:b) ![c](d)") == r"\- \[a\](javascript:b) \!\[c\](d)"
