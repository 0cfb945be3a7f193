"""A conversation as the engine reads it, made of the messages of a page."""

from collections.abc import Iterable
from typing import Any, Protocol

from chat_ui.texts import said
from finetuning.instruction.conversation import Conversation, Turn


class Message(Protocol):
    """What is used of Chainlit's messages here."""

    type: str
    content: str
    metadata: dict[str, Any] | None


def conversation_of(messages: Iterable[Message], system: str = "") -> Conversation | None:
    """Return what was said, with a question last; None if the reader has not said anything.

    A question that got no answer is left out if another one follows, since turns alternate.
    """
    turns: list[Turn] = []
    for message in messages:
        if message.type == "user_message":
            if turns and turns[-1].role == "user":
                turns.pop()
            turns.append(Turn("user", message.content))
        elif turns and turns[-1].role == "user" and (text := answer_of(message)):
            turns.append(Turn("assistant", text))
    if turns and turns[-1].role == "assistant":
        turns.pop()
    return Conversation(tuple(turns), system or None) if turns else None


def answer_of(message: Message) -> str:
    """Return the text of an answer; of two side by side, that of the chosen one; of anything else, none."""
    metadata = message.metadata or {}
    if message.type != "assistant_message" or metadata.get("notice"):
        return ""
    if "sides" in metadata:
        return metadata["sides"][metadata["chosen"]]["text"]
    return said(message.content)
