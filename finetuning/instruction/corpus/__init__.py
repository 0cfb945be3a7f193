"""The questions and answers that come with the project: chatterbot's, read one by one, and facts about Austen's novels.

See README.md beside this file for where they are from, and their licence.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Literal

from finetuning.instruction.conversation import Conversation, Turn
from finetuning.instruction.corpus import austen
from finetuning.instruction.records import Record, read_records

CONVERSATIONS = Path(__file__).with_name("conversations.jsonl")
AUSTEN = "austen"
HELD_OUT = {"val": 10, "test": 10}  # percent, each

Split = Literal["train", "val", "test"]


def load_conversations(split: Split) -> list[Conversation]:
    """Return the conversations of a split, always the same ones in the same order."""
    return [record.conversation for record in load_records(split)]


def load_records(split: Split) -> list[Record]:
    """Return the records of a split, with their categories; "austen" is what was made by rule."""
    return [record for record in _everything() if split_of(record.conversation) == split]


def split_of(conversation: Conversation) -> Split:
    """Return where a conversation belongs, by its first question alone: not by its place, nor by its answer."""
    question = " ".join(conversation.turns[0].text.lower().split())
    place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % 100
    if place < HELD_OUT["test"]:
        return "test"
    return "val" if place < HELD_OUT["test"] + HELD_OUT["val"] else "train"


@cache
def _everything() -> tuple[Record, ...]:
    records = read_records(CONVERSATIONS)
    for number, texts in enumerate(austen.conversations(), len(records) + 1):
        turns = (Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(texts))
        records.append(Record(number, Conversation(tuple(turns)), AUSTEN))
    return tuple(records)
