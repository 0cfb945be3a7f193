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
AUSTEN = "austen: "
"""What the categories of those made by rule begin with."""
PERCENT = {"test": 10, "val": 10}

Split = Literal["train", "val", "test"]


def load_conversations(split: Split) -> list[Conversation]:
    """Return the conversations of a split, always the same ones in the same order."""
    return [record.conversation for record in load_records(split)]


def load_records(split: Split) -> list[Record]:
    """Return the records of a split, with their categories."""
    return [record for record in _everything() if split_of(record) == split]


def split_of(record: Record) -> Split:
    """Return where a record belongs, by its first question alone: not by its place, nor by its answer.

    For validation there are only questions that can be answered by who has learned the others. Early stopping looks at
    their loss, which would else be that of facts that cannot be guessed.
    """
    question = " ".join(record.conversation.turns[0].text.lower().split())
    place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % 100
    if place < PERCENT["test"]:
        return "test"
    can_be_known = (record.category or "").startswith(AUSTEN)
    return "val" if can_be_known and place < PERCENT["test"] + PERCENT["val"] else "train"


@cache
def _everything() -> tuple[Record, ...]:
    records = read_records(CONVERSATIONS)
    for number, (about, texts) in enumerate(austen.conversations(), len(records) + 1):
        turns = (Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(texts))
        records.append(Record(number, Conversation(tuple(turns)), AUSTEN + about))
    return tuple(records)
