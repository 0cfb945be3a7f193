"""Instruction data in each of its forms, and each thing that can be wrong with it, by line."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from finetuning.instruction.conversation import Conversation, Turn
from finetuning.instruction.records import Record, read_conversations, read_records, to_json, to_record
from utils.files import InputError

ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
    ]
}
BLUE = Conversation.ask("Name a colour.").then("assistant", "Blue.")


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps([ALPACA, CHAT], indent=1).encode()),
        ("lines.jsonl", lines(ALPACA, CHAT)),
        ("with_blanks.jsonl", b"\xef\xbb\xbf" + lines(ALPACA) + b"\r\n\n" + lines(CHAT).rstrip()),
        ("packed.json.gz", gzip.compress(json.dumps([ALPACA, CHAT]).encode())),
    ],
)
def test_each_form_says_the_same(name: str, content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / name, content)
    assert read_conversations(path) == [BLUE, Conversation(BLUE.turns, "Be brief.")]


def test_an_input_and_a_category_are_kept_and_written_again() -> None:
    value = {"instruction": "Translate.", "input": "Good day", "output": "Bonjour", "category": "translation"}
    record = to_record(value, 7)
    question = Turn("user", "Translate.", "Good day")
    assert record == Record(7, Conversation((question, Turn("assistant", "Bonjour"))), "translation")
    assert to_json(record) == value
    assert record.prompt == "Translate.\n\nGood day"
    several = to_record({"messages": [*CHAT["messages"], *CHAT["messages"][1:]]})
    assert to_record(to_json(several)) == several


def test_answers_that_are_empty_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(
        tmp_path / "data.jsonl", lines(ALPACA, {**ALPACA, "output": " \n"}, {"messages": CHAT["messages"][:2]})
    )
    with caplog.at_level(logging.WARNING):
        assert read_conversations(path) == [BLUE]
    assert "2 of 3 conversations have no answer and are left out, the first is number 2" in caplog.text
    assert [record.is_answered for record in read_records(path)] == [True, False, False]
    with pytest.raises(InputError, match="no conversation with an answer"):
        read_conversations(written(tmp_path / "none.jsonl", lines({**ALPACA, "output": ""})))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no conversations"),
        (b"[]", "holds no conversations"),
        (lines(ALPACA) + b"\n{'instruction'}\n", "line 3 is not JSON: Expecting property name"),
        (lines(ALPACA) + b"\xff\n", "line 2 is not JSON: 'utf-8' codec"),
        (b'{"a":' * 5000, "line 1 is not JSON: its brackets are nested too deeply"),
        (b"[" * 5000, "is no JSON list: its brackets are nested too deeply"),
        (b'[{"instruction": 1}', "is no JSON list: Expecting ','"),
        (lines(ALPACA, 5), "line 2: it must be an object with the keys instruction and output, or messages, got 5"),
        (lines(ALPACA, {"instruction": "Hi"}), "line 2: the key output is missing; there are 'instruction'"),
        (json.dumps([ALPACA, {}]).encode(), "record 2: the key instruction is missing; there are none"),
        (lines({**ALPACA, "output": None}), "line 1: output must be a text, got None"),
        (lines({**ALPACA, "input": 3}), "line 1: input must be a text, got 3"),
        (lines({**ALPACA, "output": "\ud800"}), r"line 1: output holds half of a surrogate pair, '\\ud800'"),
        (lines({"messages": []}), r"line 1: messages must be a list of at least one message, got \[\]"),
        (lines({"messages": [{"role": "user"}]}), "line 1: message 1 must have the keys role and content"),
        (lines({"messages": [{"role": "tool", "content": ""}]}), "the role of message 1 must be system, user or as"),
        (lines({"messages": CHAT["messages"][2:]}), "turn 1 of a conversation must be the user's, not the assistant's"),
        (lines({"messages": CHAT["messages"][:1]}), "a conversation must have at least one turn"),
        (lines({"messages": [CHAT["messages"][1]] * 2}), "turn 2 of a conversation must be the assistant's"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_place(content: bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", content)
    with pytest.raises(InputError, match=message) as error:
        read_records(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="is not a regular file"):
        read_records(tmp_path)
    with pytest.raises(InputError, match="is damaged"):
        read_records(written(tmp_path / "broken.json.gz", gzip.compress(lines(ALPACA))[:-9]))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    with pytest.raises(InputError, match="Git LFS pointer"):
        read_records(written(tmp_path / "pointer.json", pointer))
