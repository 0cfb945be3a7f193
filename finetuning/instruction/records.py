"""Instruction data as files have it: Alpaca's JSON list, JSON lines, and chats, all read into conversations.

    [{"instruction": "Name a colour.", "input": "", "output": "Blue."}, ...]                      Alpaca
    {"instruction": "Name a colour.", "output": "Blue."}                                          one per line
    {"messages": [{"role": "user", "content": "Name a colour."},
                  {"role": "assistant", "content": "Blue."}]}                                     a chat, on one line

A file may be compressed (.gz). Other keys are left alone, except `category`, which evaluation goes by.
"""

import gzip
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetuning.instruction.conversation import Conversation, Turn
from utils.files import InputError, printable, refuse_lfs_pointer

log = logging.getLogger(__name__)

ROLES = "system, user or assistant"


@dataclass(frozen=True)
class Record:
    """A conversation, and where it comes from."""

    number: int
    """Its line in the file, or its place in the list, from 1 on."""
    conversation: Conversation
    category: str | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the last word is the assistant's, and not an empty one."""
        return self.conversation.is_answered and bool(self.response.strip())

    @property
    def response(self) -> str:
        """What the assistant said last; empty if the user spoke last."""
        return self.conversation.turns[-1].text if self.conversation.is_answered else ""

    @property
    def prompt(self) -> str:
        """Everything that the user said, inputs included, a blank line between two pieces."""
        turns = [turn for turn in self.conversation.turns if turn.role == "user"]
        return "\n\n".join(text for turn in turns for text in (turn.text, turn.input) if text)


def read_conversations(path: Path) -> list[Conversation]:
    """Return the conversations of a file, without those that have no answer: those are counted in one message.

    Raises:
        InputError: if the file cannot be used; the message names the line or record, and what is wrong with it.
        OSError: if it cannot be read.
    """
    records = read_records(path)
    answered = [record.conversation for record in records if record.is_answered]
    if not answered:
        raise InputError(f"{path} holds no conversation with an answer")
    if len(answered) < len(records):
        first = next(record.number for record in records if not record.is_answered)
        log.warning(
            "%s: %s of %s conversations have no answer and are left out, the first is number %s",
            path, f"{len(records) - len(answered):,}", f"{len(records):,}", first,
        )  # fmt: skip
    return answered


def divide(examples: Sequence[Any], held_out: float, split: Literal["train", "val"], where: Path) -> Sequence[Any]:
    """Return a split of a user's examples: every so manieth is held out for "val", the same ones each time.

    Raises:
        InputError: if there are so few that none would be held out.
    """
    every = max(2, round(1 / held_out))
    if len(examples) < every:
        raise InputError(f"{where} has {len(examples)} examples: of so few, {held_out:g} is none")
    return examples[::every] if split == "val" else [each for index, each in enumerate(examples) if index % every]


def read_records(path: Path) -> list[Record]:
    """Return all that a file holds, empty answers included.

    Raises:
        InputError: if the file cannot be used; the message names the line or record, and what is wrong with it.
        OSError: if it cannot be read.
    """
    records = []
    for number, where, value in read_values(path):
        try:
            records.append(to_record(value, number))
        except InputError as error:
            raise InputError(f"{path}: {where} {number}: {error}") from error
    if not records:
        raise InputError(f"{path} holds no conversations")
    return records


def to_record(value: Any, number: int = 1) -> Record:
    """Return a record of what JSON had, in any of the three forms.

    Raises:
        InputError: if a key is missing, or its value is of the wrong kind.
    """
    if not isinstance(value, dict):
        raise InputError(f"it must be an object with the keys instruction and output, or messages, got {_short(value)}")
    category = value.get("category")
    if category is not None:
        category = _text(value, "category")
    if "messages" in value:
        return Record(number, _from_messages(value["messages"]), category)
    for key in ("instruction", "output"):
        if key not in value:
            raise InputError(f"the key {key} is missing; there are {', '.join(map(repr, value)) or 'none'}")
    question = Turn("user", _text(value, "instruction"), _text(value, "input") if value.get("input") else "")
    return Record(number, Conversation((question, Turn("assistant", _text(value, "output")))), category)


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON has it: as Alpaca if that says it all, else as a chat, in which an input is text."""
    conversation = record.conversation
    extra = {} if record.category is None else {"category": record.category}
    if len(conversation.turns) == 2 and conversation.system is None:
        question, answer = conversation.turns
        return {"instruction": question.text, "input": question.input, "output": answer.text, **extra}
    system = [] if conversation.system is None else [{"role": "system", "content": conversation.system}]
    turns = [
        {"role": turn.role, "content": f"{turn.text}\n\n{turn.input}" if turn.input else turn.text}
        for turn in conversation.turns
    ]
    return {"messages": system + turns, **extra}


def _from_messages(messages: Any) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"messages must be a list of at least one message, got {_short(messages)}")
    turns: list[Turn] = []
    system = None
    for place, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f"message {place} must have the keys role and content, got {_short(message)}")
        text = _text(message, "content")
        if message["role"] == "system" and place == 1:
            system = text
        elif message["role"] in ("user", "assistant"):
            turns.append(Turn(message["role"], text))
        else:
            raise InputError(f"the role of message {place} must be {ROLES}, system only first, got {message['role']!r}")
    return Conversation(tuple(turns), system)


def _text(value: dict[str, Any], key: str) -> str:
    """Return a text that can be encoded; JSON may spell half a character, as in "\\ud800"."""
    text = value[key]
    if not isinstance(text, str):
        raise InputError(f"{key} must be a text, got {_short(text)}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{key} holds half of a surrogate pair, {text[error.start]!a}") from error
    return text


def read_values(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield the values of a file with their number, and what that numbers: a record of a list, or a line."""
    content = _read(path)
    if content.lstrip()[:1] == b"[":
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no JSON list: {_reason(error)}") from error
        yield from ((number, "record", value) for number, value in enumerate(values, 1))
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            try:
                yield number, "line", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: line {number} is not JSON: {_reason(error)}") from error


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file")
    refuse_lfs_pointer(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is damaged: {error}") from error
    return content.removeprefix(b"\xef\xbb\xbf")


def _reason(error: Exception) -> str:
    return "its brackets are nested too deeply" if isinstance(error, RecursionError) else printable(str(error))


def _short(value: Any) -> str:
    """Return a value as an error can quote it."""
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
