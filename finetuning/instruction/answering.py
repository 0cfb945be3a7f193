"""Ask a tuned model: its template around the question, and its answer up to the token that ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

from finetuning.instruction.conversation import Conversation
from finetuning.instruction.templates import Template
from gpt_model.generation import StreamedText, TextGenerator
from gpt_model.sampling import Changes


def stream_answer(
    generator: TextGenerator, template: Template, conversation: Conversation, **sampling: Unpack[Changes]
) -> Iterator[str]:
    """Yield a model's answer to the last turn of a conversation, in pieces of whole characters, as it is written.

    A prompt that is longer than the context loses its beginning.

    Args:
        generator: of a model that was tuned with the template.
        template: how conversations are written for it.
        conversation: the user spoke last.
        sampling: how to choose tokens; see `gpt_model.sampling.Sampling`.

    Raises:
        InputError: if the assistant spoke last, the tokenizer lacks the template's tokens, or a number is out of range.
    """
    stop_tokens = template.stop_tokens(generator.tokenizer)
    text = StreamedText()
    for token in generator.tokens(
        template.prompt(conversation, generator.tokenizer), stop_tokens=stop_tokens, **sampling
    ):
        if piece := text.add(generator.tokenizer.decode_bytes([token])):
            yield piece
    if piece := text.add(b"", final=True):
        yield piece


def answers(
    generator: TextGenerator, template: Template, conversations: Sequence[Conversation], **sampling: Unpack[Changes]
) -> list[str]:
    """Return a model's answer to each of several conversations, written side by side. Arguments as `stream_answer`."""
    prompts = [template.prompt(conversation, generator.tokenizer) for conversation in conversations]
    written: list[list[int]] = [[] for _ in prompts]
    stop_tokens = template.stop_tokens(generator.tokenizer)
    for row, token in generator.tokens_batch(prompts, stop_tokens=stop_tokens, **sampling):
        if token is not None:
            written[row].append(token)
    return [generator.tokenizer.decode(ids) for ids in written]
