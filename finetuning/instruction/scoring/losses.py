"""How likely a model finds answers and sentences, in nats."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from finetuning.instruction.conversation import Conversation
from finetuning.instruction.supervised import fit_into
from finetuning.instruction.templates import Template
from gpt_model import GPT
from gpt_model.generation import END_OF_TEXT
from pretraining.evaluate import NOT_SCORED, padded, token_losses
from working_with_text_data.minbpe import Tokenizer

Window = tuple[np.ndarray, np.ndarray]


def answer_losses(
    model: GPT, tokenizer: Tokenizer, template: Template, conversations: Sequence[Conversation], batch_size: int = 16
) -> np.ndarray:
    """Return the loss of the answers of each conversation: minus the logarithm of their probability, and their tokens.

    The token that ends an answer counts. A prompt that is too long loses its beginning; of a conversation whose answer
    does not fit into the context, both numbers are 0.

    Returns:
        (N, 2)
    """
    windows = []
    for conversation in conversations:
        fitted = fit_into([template.encode(conversation, tokenizer)], model.config.context_length).kept
        ids = np.array(fitted[0].ids if fitted else [0, 0])
        weights = np.array(fitted[0].weights if fitted else [0, 0])
        windows.append((ids[:-1], np.where(weights[1:] > 0, ids[1:], NOT_SCORED)))
    return _losses(model, windows, batch_size)


def text_losses(model: GPT, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 16) -> np.ndarray:
    """Return minus the logarithm of the probability of each text, as a document of its own: (N,)."""
    start = tokenizer.special_tokens.get(END_OF_TEXT)
    windows = []
    for text in texts:
        ids = np.array(([] if start is None else [start]) + tokenizer.encode_ordinary(text))
        ids = ids[: model.config.context_length + 1]
        windows.append((ids[:-1], ids[1:]))
    return _losses(model, windows, batch_size)[:, 0]


@torch.inference_mode()
def _losses(model: GPT, windows: Sequence[Window], batch_size: int) -> np.ndarray:
    """Return the summed loss of each window's targets, and how many are scored: (N, 2)."""
    result = np.zeros((len(windows), 2))
    for rows in _batches(windows, batch_size):
        inputs, targets = padded([windows[row] for row in rows])
        result[rows, 0] = token_losses(model, inputs, targets).double().sum(dim=1).cpu().numpy()
        result[rows, 1] = np.count_nonzero(targets != NOT_SCORED, axis=1)
    return result


def _batches(windows: Sequence[Window], batch_size: int) -> Iterator[list[int]]:
    """Yield which windows go through the model together: those of like length."""
    order = sorted(range(len(windows)), key=lambda row: len(windows[row][0]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
