"""A conversation as a value: who said what, in which order.

Everything else stands on it: a template writes it as the text that a model is trained on, quality filters and
evaluation read it, and the chat app keeps one per window. It knows no tokens and no format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from utils.files import InputError

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side said.

    Raises:
        InputError: for a role that is neither, an input of the assistant's, or a weight below zero.
    """

    role: Role
    text: str
    input: str = ""
    """What an instruction is to be carried out on, such as the sentence to translate; only of a user's turn."""
    weight: float = 1.0
    """How much the tokens of an answer count in training; 0 for one that is only there to be read."""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InputError(f"a turn's role must be user or assistant, got {self.role!r}")
        if self.input and self.role != "user":
            raise InputError("only a user's turn has an input")
        if not self.weight >= 0:
            raise InputError(f"a turn's weight must not be below 0, got {self.weight}")


@dataclass(frozen=True)
class Conversation:
    """Turns of a user and an assistant, one after the other; the user begins.

    Raises:
        InputError: if there are no turns, or they do not alternate.
    """

    turns: tuple[Turn, ...]
    system: str | None = None
    """What the assistant is told before the first turn."""

    def __post_init__(self) -> None:
        if not self.turns:
            raise InputError("a conversation must have at least one turn")
        for number, turn in enumerate(self.turns):
            expected = get_args(Role)[number % 2]
            if turn.role != expected:
                raise InputError(f"turn {number + 1} of a conversation must be the {expected}'s, not the {turn.role}'s")

    @classmethod
    def ask(cls, text: str, *, input: str = "", system: str | None = None) -> Conversation:
        """Return a conversation that begins with a question or an instruction."""
        return cls((Turn("user", text, input),), system)

    def then(self, role: Role, text: str) -> Conversation:
        """Return this conversation with a turn more."""
        return Conversation((*self.turns, Turn(role, text)), self.system)

    @property
    def is_answered(self) -> bool:
        """Whether the assistant spoke last, so that there is something to learn from."""
        return self.turns[-1].role == "assistant"

    @property
    def question(self) -> Conversation:
        """The conversation without its last answer: what a model is asked when it is to answer by itself."""
        return Conversation(self.turns[:-1], self.system) if self.is_answered else self
