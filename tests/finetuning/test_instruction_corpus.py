"""The questions and answers that come with the project: their names are in the novels, and the split can be learned."""

import re
from collections import Counter
from pathlib import Path
from typing import get_args

import working_with_text_data
from finetuning.instruction.conversation import Conversation
from finetuning.instruction.corpus import AUSTEN, Split, austen, load_conversations, load_records, split_of
from finetuning.instruction.records import Record

NOVELS = Path(working_with_text_data.__file__).parent / "corpus"
SPLITS: tuple[Split, ...] = get_args(Split)


def text_of(novel: str) -> str:
    text = (NOVELS / f"{novel.lower().replace(' ', '_')}.txt").read_text(encoding="utf-8")
    return " ".join(text.replace("_", "").split())


def test_every_name_and_every_opening_is_in_its_novel() -> None:
    texts = {novel: text_of(novel) for novel in austen.NOVELS}
    for novel, (_, heroine, opening) in austen.NOVELS.items():
        assert opening in texts[novel]
        assert heroine in austen.PEOPLE[novel]
        named = [*austen.PEOPLE[novel], *austen.HOUSES[novel], *austen.MARRIAGES[novel]]
        for name in [*named, *austen.MARRIAGES[novel].values()]:
            for word in name.split():
                assert re.search(rf"\b{re.escape(word.removesuffix('.'))}\b", texts[novel]), (novel, name)


def test_a_name_belongs_to_one_novel() -> None:
    for table in (austen.PEOPLE, austen.HOUSES):
        names = Counter(name for novel in table.values() for name in novel)
        assert max(names.values()) == 1


def test_no_question_is_asked_twice_and_splits_share_none() -> None:
    questions = Counter(each.turns[0].text.lower() for split in SPLITS for each in load_conversations(split))
    assert max(questions.values()) == 1
    for split in SPLITS:
        assert all(split_of(each) == split for each in load_records(split))
    asked = (Conversation.ask("Who  wrote EMMA?"), Conversation.ask("who wrote Emma?").then("assistant", "I."))
    assert len({split_of(Record(1, each, AUSTEN)) for each in asked}) == 1
    assert {split_of(record) for split in SPLITS for record in load_records(split) if not is_austen(record)} == {
        "train", "test",
    }  # fmt: skip


def test_each_held_out_answer_about_austen_is_learned_from_another_question() -> None:
    learned = {turn.text for record in load_records("train") for turn in record.conversation.turns}
    held_out = [record for split in SPLITS[1:] for record in load_records(split) if is_austen(record)]
    assert len(held_out) > 200
    assert [record.response for record in held_out if record.response not in learned] == []


def test_answers_are_plain_text_that_ends() -> None:
    for split in SPLITS:
        for record in load_records(split):
            assert record.is_answered
            texts = [turn.text for turn in record.conversation.turns]
            assert all(text == " ".join(text.split()) and text.isascii() for text in texts)
            if not is_austen(record):
                assert record.response[-1] in '.?!"'


def is_austen(record: Record) -> bool:
    return (record.category or "").startswith(AUSTEN)
