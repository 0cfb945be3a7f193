"""From what a request gives to the tokens that a model reads, and no more of them than it can look at."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from chat_ui.engine.events import Request
from chat_ui.engine.models import Loaded
from finetuning.instruction.conversation import Conversation
from gpt_model.generation import check_fits, check_ids
from utils.files import InputError

LONGEST_TOKEN = 32  # characters; nearly all tokens are shorter, so that of a long text only the end is encoded
ROOM_FOR_ANSWER = 0.25  # share of the context that a conversation leaves free


class Prompt(NamedTuple):
    """What a model is to read."""

    ids: list[int]
    forgotten_turns: int = 0


def encode(request: Request, loaded: Loaded) -> Prompt:
    """Return the tokens of a request's prompt for a model.

    Raises:
        InputError: for ids that the vocabulary does not have, a conversation that the assistant ended, or more tokens
            than fit where the request's `overflow` is "error".
    """
    if isinstance(request.prompt, Conversation):
        return _fit(request.prompt, request, loaded)
    if isinstance(request.prompt, str):
        ids = _encode_text(request.prompt, loaded)
    else:
        check_ids(request.prompt, loaded.model.config.vocab_size)
        ids = list(request.prompt)
    if request.sampling.overflow == "error":
        check_fits(len(ids), request.sampling.max_new_tokens, loaded.info.context_length)
    return Prompt(ids)


def _encode_text(text: str, loaded: Loaded) -> list[int]:
    """Return the tokens of a text, or of its end if it is longer than the model can look at."""
    if len(text) > (longest := loaded.info.context_length * LONGEST_TOKEN):
        text = text[-longest:]
    ids = loaded.tokenizer.encode(text, disallowed_special=())
    if not ids and not loaded.stop_tokens:
        raise InputError("the prompt is empty, and the model has no <|endoftext|> to begin a text with")
    return ids or [loaded.stop_tokens[-1]]


def _fit(conversation: Conversation, request: Request, loaded: Loaded) -> Prompt:
    """Return the tokens of a conversation, without as many of its oldest turns as do not fit beside an answer."""
    context = loaded.info.context_length
    if conversation.is_answered and loaded.template is not None:
        raise InputError("the last turn must be the user's: there is nothing to answer")
    room = context - min(request.sampling.max_new_tokens, int(context * ROOM_FOR_ANSWER))
    turns = conversation.turns
    longest = context * LONGEST_TOKEN
    while len(turns) > 2 and sum(len(turn.text) + len(turn.input) for turn in turns) > longest:
        turns = turns[2:]
    while True:
        ids = _encode_conversation(replace(conversation, turns=turns), loaded)
        if len(ids) <= room or len(turns) < 3:
            break
        turns = turns[2:]  # a question and its answer, so that the rest begins with a question
    forgotten = len(conversation.turns) - len(turns)
    if request.sampling.overflow == "error" and (forgotten or len(ids) > context):
        raise InputError(f"the conversation is longer than the model's context of {context} tokens")
    return Prompt(ids, forgotten)


def _encode_conversation(conversation: Conversation, loaded: Loaded) -> list[int]:
    """Return the tokens of a conversation; for a base model, of its turns as one text, a line for each question."""
    if loaded.template is not None:
        return loaded.template.prompt(
            _shortened(conversation, loaded.info.context_length * LONGEST_TOKEN), loaded.tokenizer
        )
    text = conversation.system or ""
    for turn in conversation.turns:
        text += "\n" if turn.role == "user" and text else ""
        text += f"{turn.text}\n{turn.input}" if turn.input else turn.text
    return _encode_text(text, loaded)


def _shortened(conversation: Conversation, longest: int) -> Conversation:
    """Return a conversation with the end of what is longer than a context can hold, so that no more is encoded."""
    turns = (replace(turn, text=turn.text[-longest:], input=turn.input[-longest:]) for turn in conversation.turns)
    system = conversation.system and conversation.system[-longest:]
    return Conversation(tuple(turns), system)
