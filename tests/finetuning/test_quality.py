"""What is removed from instruction data, and why: one example for each reason, and what only looks like it."""

import csv
import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finetuning.instruction import prepare, quality
from finetuning.instruction.categories import CATEGORIES, category_of
from finetuning.instruction.conversation import Conversation, Turn
from finetuning.instruction.corpus import load_records
from finetuning.instruction.quality import REASONS, Limits, duplicates, judge, language_of, score
from finetuning.instruction.records import Record, read_conversations
from finetuning.instruction.templates import TEMPLATES
from utils.files import InputError
from working_with_text_data.minbpe import GPT2Tokenizer

GOOD = "Emma was published in 1815 by John Murray, and dedicated to the Prince Regent, whom its author disliked."
MANY = " ".join(f"The {number}th river of this long list flows to the sea." for number in range(400))


def record(question: str, answer: str, *, text: str = "", number: int = 1) -> Record:
    return Record(number, Conversation((Turn("user", question, text), Turn("assistant", answer))))


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    return GPT2Tokenizer()


EXAMPLES = [
    (None, record("When was the novel Emma published?", GOOD)),
    ("empty", record("When was Emma published?", " \n")),
    ("empty", record("Draw a horse for me, please.", "<nooutput> This cannot be fulfilled.")),
    ("empty", record("  ", GOOD)),
    ("template", record("Say hello.\n\n### Response:", "What do you mean by that, if I may ask?")),
    ("template", record("Write the next turn.", "Yes.\n\n### Instruction:\nGo on.\n\n### Response:And so on.")),
    ("short", record("Multiply 4 and 7.", "28")),
    ("long", record("List all rivers.", MANY)),
    ("refusal", record("Draw the solar system.", "I cannot create a visual of the solar system, as I have no hands.")),
    ("refusal", record("Who will win?", "As an AI language model, I have no opinion about any sports event.")),
    (None, record("Write an apology.", "I am sorry for what I said. I cannot undo it, and I hope you forgive me.")),
    ("language", record("Bitte schreibe mir ein kurzes Gedicht über den Herbst und das Meer.", GOOD)),
    (None, record('Translate "Les enfants jouent avec leurs jouets dans la maison" into English.', GOOD)),
    ("toxic", record("What do you think of me?", "You are an idiot, and everybody you know is a stupid idiot.")),
    ("low score", record("Tell me about the sea and the sun.", "*** *** *** *** *** *** *** *** *** *** *** *** -")),
    ("duplicate", record("When was the  novel EMMA published?", GOOD)),
    ("near duplicate", record("When was the novel Emma published?", f"{GOOD} Yes.")),
]


def test_each_reason_has_its_example(tokenizer: GPT2Tokenizer) -> None:
    records = [replace(each, number=number) for number, (_, each) in enumerate(EXAMPLES, 1)]
    verdicts = judge(records, TEMPLATES["alpaca"], tokenizer, Limits())
    assert [verdict.reason for verdict in verdicts] == [reason for reason, _ in EXAMPLES]
    assert {verdict.reason for verdict in verdicts} == {None, *REASONS}
    assert [verdict.detail for verdict in verdicts[-2:]] == ["of number 1", "of number 1"]
    assert verdicts[6].detail == "9 tokens"


def test_limits_are_what_is_asked_for(tokenizer: GPT2Tokenizer) -> None:
    limits = Limits(least_tokens=1, most_tokens=10_000, languages=("en", "de"), most_toxic=1.0, least_score=0.0)
    records = [each for reason, each in EXAMPLES if reason in ("short", "long", "language", "toxic", "low score")]
    assert [verdict.reason for verdict in judge(records, TEMPLATES["alpaca"], tokenizer, limits)] == [None] * 5
    with pytest.raises(InputError, match="least_tokens must not exceed most_tokens 5, got 6"):
        Limits(least_tokens=6, most_tokens=5)


def test_an_input_that_says_there_is_none_is_emptied(tokenizer: GPT2Tokenizer) -> None:
    for text in ("<noinput>", "No input", "No input required.", "N/A"):
        (verdict,) = judge([record("Name a novel.", GOOD, text=text)], TEMPLATES["alpaca"], tokenizer, Limits())
        assert verdict.record.conversation.turns[0].input == ""
    kept = record("Correct it.", GOOD, text="No input was given to him.")
    assert judge([kept], TEMPLATES["alpaca"], tokenizer, Limits())[0].record == kept


def test_what_the_score_looks_at() -> None:
    best = score(record("When was Emma published?", GOOD))
    assert best == 1
    for worse in (
        "Emma.", f"{GOOD} {GOOD} {GOOD}", "When was Emma published? When was Emma published?", GOOD.rstrip("."),
        "=|=|=|=|= and so on and so on =|=|=|=|=|=|=|=|=|=|=|=|=|=|=|=|=|=|=.",
    ):  # fmt: skip
        assert score(record("When was Emma published?", worse)) < best - 0.1
    assert score(record("Write it in Morse code.", ".. .-.. --- .--. .- -- .")) > Limits().least_score


def test_duplicates_are_of_the_first_that_is_kept() -> None:
    other = " ".join(f"word{number}" for number in range(40))
    texts = [GOOD, other, GOOD.upper(), f"{other} more", "short", "short text", f"{other} more and more"]
    assert duplicates(texts) == {
        2: ("duplicate", 0), 3: ("near duplicate", 1), 6: ("near duplicate", 1),
    }  # fmt: skip
    assert duplicates([]) == {}
    assert quality.similarity(*map(quality.shingles, (["a"] * 4, ["a"] * 4))) == 1


def test_the_language_of_a_few_words_is_not_guessed() -> None:
    assert language_of("Guten Tag!") == ("en", 0.0)
    assert language_of("Dies ist ein Satz, der lang genug ist, um ihn zu erkennen.")[0] == "de"


@pytest.mark.parametrize(
    ("instruction", "category"),
    [
        ("Write a Python function that sorts a list.", "coding"),
        ("What is 12 + 30?", "mathematics"),
        ("Translate the sentence into French.", "translation"),
        ("Summarize this article in a sentence.", "summarising"),
        ("Rewrite the sentence in the passive voice.", "rewriting"),
        ("Classify the animal as a mammal or a bird.", "classification"),
        ("Explain why the sky is blue.", "reasoning"),
        ("Compose a poem about autumn.", "writing"),
        ("Name five countries in Africa.", "lists"),
        ("Are you a robot?", "conversation"),
        ("Who wrote Emma?", "factual"),
        ("Bananas.", "other"),
    ],
)
def test_categories_by_rule(instruction: str, category: str) -> None:
    assert category_of(instruction) == category
    assert category in CATEGORIES


def test_a_missing_package_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    monkeypatch.setitem(sys.modules, "profanity_check", None)  # the last that is needed
    monkeypatch.setattr(prepare, "judge", lambda *_: pytest.fail("it began"))
    with pytest.raises(InputError, match=r"needs the package profanity_check, .*\[finetune\]"):
        prepare.main(prepare.Config(data=tmp_path / "data.jsonl", out=tmp_path / "out"))


def test_the_script_keeps_removes_and_shows(tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    formula = {
        "instruction": "=HYPERLINK(1) is what in a spreadsheet, <b>please</b>?",
        "output": GOOD.replace("Emma", "It"),
    }
    values = [{"instruction": r.conversation.turns[0].text, "output": r.response} for _, r in EXAMPLES]
    data.write_text("".join(json.dumps(value) + "\n" for value in [*values, formula]), encoding="utf-8")
    config = prepare.Config(data=data, out=out, context=20)
    statistics = prepare.main(config)
    assert sum(statistics["removed"].values()) + statistics["n_kept"] == statistics["n"] == len(values) + 1
    assert statistics["n_longer_than_context"] == 4
    assert len(read_conversations(out / "kept.jsonl")) == statistics["n_kept"]
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [each["reason"] for each in removed] == [reason for reason, _ in EXAMPLES if reason]
    with (out / "review.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(values) + 1
    assert rows[-1]["instruction"].startswith("'=HYPERLINK")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "<td>refusal</td><td>2</td>" in report
    assert "<b>" not in report
    with pytest.raises(InputError, match="exists: choose another --out"):
        prepare.main(config)
    (out / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds notes.txt, which is not ours"):
        prepare.main(replace(config, overwrite=True))
    (out / "notes.txt").unlink()
    assert prepare.main(replace(config, overwrite=True)) == statistics
    with pytest.raises(InputError, match="nothing is left of 18 examples: 3 empty, 2 template, 12 short, 1 long"):
        prepare.main(replace(config, out=tmp_path / "other", least_tokens=2048))
    assert not (tmp_path / "other").exists()


def test_the_projects_own_questions_pass(tokenizer: GPT2Tokenizer) -> None:
    records = load_records("test")
    verdicts = judge(records, TEMPLATES["chatml"], tokenizer, Limits(least_tokens=4))
    assert {verdict.reason for verdict in verdicts} <= {None, "near duplicate"}


@pytest.mark.slow
def test_alpaca_is_mostly_kept(real_data: Path, tmp_path: Path) -> None:
    with gzip.open(real_data / "alpaca" / "alpaca_data.json.gz") as file:
        first = json.load(file)[:8000]
    data = tmp_path / "first.json"
    data.write_text(json.dumps(first), encoding="utf-8")
    statistics = prepare.main(prepare.Config(data=data, out=tmp_path / "out"))
    assert statistics["n"] == 8000
    assert statistics["n_kept"] > 7950
    assert statistics["removed"]["empty"] == 15
