"""Templates: how a conversation becomes the text that a model reads, and which tokens of it are learned.

A base model continues text. It becomes one that answers by reading many conversations written in one fixed way, and it
must then be asked in exactly that way. So a tuned run directory carries the name of its template. There are two here:

    alpaca      Below is an instruction that describes a task. ...   Taori et al. 2023, Stanford Alpaca: plain text,
                                                                     its header and headings word for word
                ### Instruction:
                Name a colour.

                ### Response:Blue.<|endoftext|>

    chatml      <|im_start|>user                                     OpenAI 2023: two special tokens that no text
                Name a colour.<|im_end|>                             contains, so that nobody's words can pass for
                <|im_start|>assistant                                a turn of somebody else's
                Blue.<|im_end|>

Learned is what the model is to say: the answer *and the token that ends it*. Without that token in the loss, a model
never learns to stop, the most common fault of published code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetuning.instruction.conversation import Conversation, Role, Turn
from gpt_model.generation import END_OF_TEXT
from gpt_model.run_directory import read_config
from utils.files import InputError
from working_with_text_data.minbpe import Tokenizer

START, END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True)
class Piece:
    """A part of a rendered conversation."""

    text: str
    is_special: bool = False
    """Whether it is a special token, and not just text that looks like one."""
    weight: float = 0.0
    """How much its tokens count in the loss; 0 for what the model only reads."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens, and how much each of them counts in the loss."""

    ids: list[int]
    weights: list[float]

    @property
    def supervised(self) -> list[bool]:
        """Whether each token is learned."""
        return [weight > 0 for weight in self.weights]


class Template:
    """What both templates share; each says its pieces, and how to read them back."""

    name: str
    special_tokens: tuple[str, ...]

    def pieces(self, conversation: Conversation) -> Iterator[Piece]:
        """Yield the parts of a conversation in order."""
        raise NotImplementedError

    def opening(self) -> Iterator[Piece]:
        """Yield what stands before an answer that the model is to write."""
        raise NotImplementedError

    def parse(self, text: str) -> Conversation:
        """Return the conversation that `render` wrote.

        Raises:
            InputError: if the text is not of this template.
        """
        raise NotImplementedError

    def render(self, conversation: Conversation) -> str:
        """Return a conversation as text, special tokens as the text they look like."""
        return "".join(piece.text for piece in self.pieces(conversation))

    def encode(self, conversation: Conversation, tokenizer: Tokenizer) -> Encoded:
        """Return the tokens of a conversation, and their weights.

        Text that spells a special token stays text: nobody can end a turn by typing its end.

        Raises:
            InputError: if the tokenizer lacks a special token.
        """
        return _encode(self._checked(tokenizer), self.pieces(conversation))

    def prompt(self, conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
        """Return the tokens up to where the assistant's next answer begins.

        Raises:
            InputError: if the assistant spoke last, or the tokenizer lacks a special token.
        """
        if conversation.is_answered:
            raise InputError("the assistant spoke last: there is nothing to answer")
        return _encode(self._checked(tokenizer), [*self.pieces(conversation), *self.opening()]).ids

    def stop_tokens(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the tokens that end an answer: the template's own, and the end of a document."""
        ends = [self.special_tokens[-1], END_OF_TEXT]
        return tuple(dict.fromkeys(tokenizer.special_tokens[end] for end in ends if end in tokenizer.special_tokens))

    def missing(self, tokenizer: Tokenizer) -> list[str]:
        """Return the special tokens that a tokenizer lacks."""
        return [token for token in self.special_tokens if token not in tokenizer.special_tokens]

    def _checked(self, tokenizer: Tokenizer) -> Tokenizer:
        if missing := self.missing(tokenizer):
            raise InputError(f"the tokenizer lacks {', '.join(missing)}, which the template {self.name} needs")
        return tokenizer


def _encode(tokenizer: Tokenizer, pieces: Iterator[Piece] | list[Piece]) -> Encoded:
    """Encode pieces; what is read is joined first, so that a prompt has the same tokens with its answer and without."""
    ids: list[int] = []
    weights: list[float] = []
    text = ""

    def add(new: list[int], weight: float) -> None:
        ids.extend(new)
        weights.extend([weight] * len(new))

    for piece in pieces:
        if not piece.is_special and not piece.weight:
            text += piece.text
            continue
        add(tokenizer.encode_ordinary(text), 0.0)
        text = ""
        token = [tokenizer.special_tokens[piece.text]] if piece.is_special else tokenizer.encode_ordinary(piece.text)
        add(token, piece.weight)
    add(tokenizer.encode_ordinary(text), 0.0)
    return Encoded(ids, weights)


class Alpaca(Template):
    """Stanford's template: https://github.com/tatsu-lab/stanford_alpaca, train.py. A system prompt replaces its header.

    Later turns follow the end of the answer before, after an empty line.
    """

    name = "alpaca"
    special_tokens = (END_OF_TEXT,)
    header = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
    )  # fmt: skip
    header_with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
    )

    def pieces(self, conversation: Conversation) -> Iterator[Piece]:
        """Yield the header, then each turn under its heading."""
        has_input = bool(conversation.turns[0].input)
        header = self.header_with_input if has_input else self.header
        yield Piece(header if conversation.system is None else conversation.system)
        for turn in conversation.turns:
            if turn.role == "user":
                yield Piece(f"\n\n### Instruction:\n{turn.text}")
                yield Piece(f"\n\n### Input:\n{turn.input}" if turn.input else "")
            else:
                yield from self.opening()
                yield Piece(turn.text, weight=turn.weight)
                yield Piece(END_OF_TEXT, is_special=True, weight=turn.weight)

    def opening(self) -> Iterator[Piece]:
        """Yield the heading of an answer; Stanford's has no line break behind it."""
        yield Piece("\n\n### Response:")

    def parse(self, text: str) -> Conversation:
        """Return the conversation of a text; raise InputError if it has no header and headings."""
        heading = r"\n\n### (Instruction:\n|Input:\n|Response:)"
        header, *parts = re.split(heading, text)
        turns: list[Turn] = []
        for name, content in zip(parts[::2], parts[1::2], strict=True):
            if name == "Instruction:\n":
                turns.append(Turn("user", content))
            elif name == "Response:":
                turns.append(Turn("assistant", content.removesuffix(END_OF_TEXT)))
            elif turns:
                turns[-1] = Turn(turns[-1].role, turns[-1].text, content)
        if not turns:
            raise InputError("this is not a text of the template alpaca: it has no '### Instruction:'")
        return Conversation(tuple(turns), None if header in (self.header, self.header_with_input) else header)


class ChatML(Template):
    """OpenAI's chat markup: each turn between two special tokens. An input follows after a blank line."""

    name = "chatml"
    special_tokens = (START, END)

    def pieces(self, conversation: Conversation) -> Iterator[Piece]:
        """Yield the system prompt, if there is one, and the turns."""
        if conversation.system is not None:
            yield from self._turn("system", conversation.system)
        for turn in conversation.turns:
            text = f"{turn.text}\n\n{turn.input}" if turn.input else turn.text
            yield from self._turn(turn.role, text, weight=turn.weight if turn.role == "assistant" else 0.0)

    def opening(self) -> Iterator[Piece]:
        """Yield the head of an assistant's turn."""
        yield from self._head("assistant")

    def _turn(self, role: Role | str, text: str, weight: float = 0.0) -> Iterator[Piece]:
        yield from self._head(role)
        yield Piece(text, weight=weight)
        yield Piece(END, is_special=True, weight=weight)
        yield Piece("\n")

    def _head(self, role: str) -> Iterator[Piece]:
        yield Piece(START, is_special=True)
        yield Piece(f"{role}\n")

    def parse(self, text: str) -> Conversation:
        """Return the conversation of a text; an input is part of its instruction. Raise InputError for other text."""
        turn = rf"{re.escape(START)}(system|user|assistant)\n(.*?){re.escape(END)}\n"
        found = re.findall(turn, text, flags=re.DOTALL)
        if not found or re.sub(turn, "", text, flags=re.DOTALL):
            raise InputError(f"this is not a text of the template chatml: {text[:40]!r} is no turn between its tokens")
        system = found.pop(0)[1] if found[0][0] == "system" else None
        return Conversation(tuple(Turn(role, content) for role, content in found), system)


TEMPLATES: dict[str, Template] = {template.name: template for template in (Alpaca(), ChatML())}


def template_of(run: Path) -> Template | None:
    """Return the template that a run was tuned with; None for a base model, which continues any text.

    Raises:
        InputError: if `run` is not a run directory, or its template is not one of ours.
    """
    name = read_config(run).get("template")
    if name is None:
        return None
    if name not in TEMPLATES:
        raise InputError(f"{run / 'config.json'} names the template {name!r}: ours are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
