"""Text from a model: guess a distribution for the next token, draw from it, append, repeat.

Several texts are written at once as rows of a batch. Prompts of different length are filled up on the left, so
that all rows end, and go on, at the same column; a mask hides what fills them up:

    . . . I  am  sure
    . It  is a   truth
    . . . .  .   Emma

Shapes: B rows, T time, V vocabulary.
"""

import codecs
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, Unpack

import torch
from torch import Tensor, nn

from attention_mechanisms import KVCache, Mask
from gpt_model.config import GPTConfig
from gpt_model.sampling import Changes, Sampler, Sampling, check_tokens, choose_each
from utils.files import InputError
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"


class LanguageModel(Protocol):
    """What generation needs of a model: GPT has it, and whatever computes the same faster."""

    config: GPTConfig

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Return an empty cache."""

    def __call__(
        self, ids_BT: Tensor, *, mask: Mask | None, cache: KVCache, last_only: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, T, V), or (B, 1, V) of the last position only; the tokens are appended to the cache."""


def device_of(model: LanguageModel) -> torch.device:
    """Return where the model computes: its `device` if it has one, else where its token embedding lies."""
    return model.device if hasattr(model, "device") else model.token_embedding.weight.device


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Check that a prompt has tokens, and that all of them are in the vocabulary.

    Raises:
        InputError: if it has none, or one is not; the message names it.
    """
    if not len(ids):  # an array is neither true nor false
        raise InputError("the prompt has no tokens: begin with one, such as <|endoftext|>")
    check_tokens("the prompt's tokens", ids, vocab_size)


def check_fits(n_ids: int, n_new: int, context: int) -> None:
    """Check that a model can look at a prompt and what is to be written after it.

    The last new token is never read, so that one more fits than the context holds.

    Raises:
        InputError: if they are more tokens than fit.
    """
    if n_ids + n_new > context + 1:
        raise InputError(f"the prompt's {n_ids} tokens and {n_new} new ones are more than the context of {context}")


class StreamedText:
    """Turn bytes into text as early as it is certain: whole characters, and no part of a stop string.

    The text ends before the stop string that is complete first, wherever the boundaries of the tokens are; if
    two are complete at the same character, before the longer one.

    Args:
        stop: strings that end the text; none of them empty.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = stop
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # what may be the beginning of a stop string

    def add(self, data: bytes, *, final: bool = False) -> str:
        """Return the text that these bytes make certain; with `final`, all there is; after the end, nothing."""
        if self.ended:
            return ""
        text = self._held + self._decoder.decode(data, final=final)
        found = [(start + len(stop), start) for stop in self.stop if (start := text.find(stop)) >= 0]
        if found:
            self.ended = True
            self._held = ""
            return text[: min(found)[1]]
        self.ended = final
        n_held = 0 if final else max((self._overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Return how many characters at the end of `text` are the beginning of `stop`."""
        lengths = range(min(len(text), len(stop) - 1), 0, -1)
        return next((n for n in lengths if text.endswith(stop[:n])), 0)


@dataclass
class _Row:
    """A text being written."""

    ids: list[int]  # what the model knows of it, and the token it is to read next
    sampling: Sampling
    stop_tokens: Collection[int]
    ended: bool = False

    def make_room(self, context: int) -> None:
        """Forget the older half of a full context, or all but the last token of a row that has ended."""
        if self.ended:
            self.ids = self.ids[-1:]
        elif len(self.ids) > context:
            self.ids = self.ids[-max(1, context // 2) :]


def _fill_up(rows: Sequence[_Row], device: torch.device) -> tuple[Tensor, Mask | None]:
    """Return the rows' ids as one tensor (B, T), filled up on the left, and the mask that hides what fills them up."""
    longest = max(len(row.ids) for row in rows)
    padding = tuple(longest - len(row.ids) for row in rows)
    ids_BT = torch.tensor([[0] * n + row.ids for n, row in zip(padding, rows, strict=True)], device=device)
    return ids_BT, Mask(left_padding=padding) if any(padding) else None


class TextGenerator:
    """Continues prompts.

    Raises:
        InputError: if tokenizer and model do not belong together, or the model is in training mode and has dropout.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        if tokenizer.vocab_size != model.config.vocab_size:
            raise InputError(
                f"the model has {model.config.vocab_size:,} token embeddings but the tokenizer has "
                f"{tokenizer.vocab_size:,} tokens: they are from different runs"
            )
        if isinstance(model, nn.Module) and model.training and model.config.dropout:
            raise InputError("the model is in training mode, in which dropout changes what it says: call model.eval()")
        self.model = model
        self.tokenizer = tokenizer
        self.end_of_text = tokenizer.special_tokens.get(END_OF_TEXT)

    def generate(self, prompt: str, sampling: Sampling | None = None, **changes: Unpack[Changes]) -> str:
        """Return the continuation of `prompt`, without it. Arguments and errors as in `stream`."""
        return "".join(self.stream(prompt, sampling, **changes))

    def stream(self, prompt: str, sampling: Sampling | None = None, **changes: Unpack[Changes]) -> Iterator[str]:
        """Yield the continuation of `prompt` as it comes, in pieces of whole characters.

        Args:
            prompt: what to continue; an empty one begins a new document.
            sampling: how; `Sampling()` by default.
            changes: fields of `sampling` to set differently.

        Raises:
            InputError: at once, for a number out of range, an empty prompt where the tokenizer has no
                <|endoftext|>, or, with overflow="error", for more tokens than the context holds.
        """
        return (piece for _, piece in self.stream_batch([prompt], sampling, **changes))

    def generate_batch(
        self, prompts: Sequence[str], sampling: Sampling | Sequence[Sampling] | None = None, **changes: Unpack[Changes]
    ) -> list[str]:
        """Return the continuation of each prompt. Arguments and errors as in `stream_batch`."""
        texts = [""] * len(prompts)
        for row, piece in self.stream_batch(prompts, sampling, **changes):
            texts[row] += piece
        return texts

    def stream_batch(
        self, prompts: Sequence[str], sampling: Sampling | Sequence[Sampling] | None = None, **changes: Unpack[Changes]
    ) -> Iterator[tuple[int, str]]:
        """Continue several prompts at once; yield which one, and the next piece of its text, as they come.

        A row's text is what it would be alone, with its seed.

        Args:
            prompts: what to continue; an empty one begins a new document.
            sampling: how: one for all, of which row i uses seed + i, or one for each.
            changes: fields to set differently in all of them.

        Raises:
            InputError: as in `stream`, and if there is not one sampling for each prompt.
        """
        rows = self._rows([self._encode(prompt) for prompt in prompts], sampling, changes)
        return self._pieces(rows, self._choices(rows, is_shared=not isinstance(sampling, Sequence)))

    def tokens(
        self, prompt: Sequence[int], sampling: Sampling | None = None, **changes: Unpack[Changes]
    ) -> Iterator[int]:
        """Yield the ids that continue `prompt`, which must not be empty; as `stream`, but without stop strings.

        Raises:
            InputError: as in `stream`, and for a prompt that is empty or has an id outside the vocabulary.
        """
        return (token for _, token in self.tokens_batch([prompt], sampling, **changes) if token is not None)

    def tokens_batch(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling] | None = None,
        **changes: Unpack[Changes],
    ) -> Iterator[tuple[int, int | None]]:
        """Continue several prompts at once; yield which one, and its next id, as they come: None where it ends.

        Arguments and errors as in `stream_batch` and `tokens`.
        """
        for prompt in prompts:
            check_ids(prompt, self.model.config.vocab_size)
        rows = self._rows([list(prompt) for prompt in prompts], sampling, changes)
        return self._choices(rows, is_shared=not isinstance(sampling, Sequence))

    def _encode(self, prompt: str) -> list[int]:
        ids = self.tokenizer.encode(prompt, disallowed_special=())
        if ids:
            return ids
        if self.end_of_text is None:
            raise InputError("the prompt is empty, and the tokenizer has no <|endoftext|> to begin a text with")
        return [self.end_of_text]

    def _rows(
        self, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling] | None, changes: Changes
    ) -> list[_Row]:
        samplings = sampling if isinstance(sampling, Sequence) else [sampling or Sampling()] * len(prompts)
        if len(samplings) != len(prompts):
            raise InputError(f"there must be one sampling for each prompt, got {len(samplings)} for {len(prompts)}")
        end = () if self.end_of_text is None else (self.end_of_text,)
        rows = []
        for ids, how in zip(prompts, (replace(how, **changes) for how in samplings), strict=True):
            rows.append(_Row(ids, how, frozenset(end if how.stop_tokens is None else how.stop_tokens)))
        return rows

    def _pieces(self, rows: list[_Row], choices: Iterator[tuple[int, int | None]]) -> Iterator[tuple[int, str]]:
        texts = [StreamedText(row.sampling.stop) for row in rows]
        for row, token in choices:
            data = b"" if token is None else self.tokenizer.decode_bytes([token])
            if piece := texts[row].add(data, final=token is None):
                yield row, piece
            rows[row].ended |= texts[row].ended

    def _choices(self, rows: list[_Row], *, is_shared: bool) -> Iterator[tuple[int, int | None]]:
        """Check what was asked for, say what will be forgotten, and begin; `is_shared`: all have the same sampling."""
        if not rows:
            return iter(())
        context = self.model.config.context_length
        for row in rows:
            if row.sampling.overflow == "error":
                check_fits(len(row.ids), row.sampling.max_new_tokens, context)
        longest = max(len(row.ids) for row in rows)
        n_new = max(row.sampling.max_new_tokens for row in rows)
        if longest > context:
            log.warning("the prompt's %s tokens exceed the context: its last %s are read", longest, context)
        if min(longest, context) + n_new > context + 1:  # the last new token is never read
            log.warning("once the context of %s tokens is full, its older half is forgotten", context)
        first, vocab_size, device = rows[0], self.model.config.vocab_size, device_of(self.model)
        choose: Callable[[Tensor], Tensor]
        if is_shared:
            choose = Sampler(first.sampling, [row.ids for row in rows], vocab_size, first.stop_tokens, device)
        else:
            samplers = [Sampler(row.sampling, [row.ids], vocab_size, row.stop_tokens, device) for row in rows]
            choose = partial(choose_each, samplers=samplers)
        return self._run(rows, choose)

    @torch.inference_mode()
    def _run(self, rows: list[_Row], choose: Callable[[Tensor], Tensor]) -> Iterator[tuple[int, int | None]]:
        """Yield (row, token) for each row and step, and (row, None) where one has ended.

        A row that the caller marks as ended yields nothing more. It is still computed until all others are done,
        since taking it out of the batch would move the cache of all others.
        """
        context = self.model.config.context_length
        n_new = max(row.sampling.max_new_tokens for row in rows)
        longest = max(len(row.ids) for row in rows)
        for row in rows:
            row.ids = row.ids[-context:]
        cache = self.model.new_cache(len(rows), min(context, longest + n_new))
        ids_BT, mask = _fill_up(rows, device_of(self.model))
        for step in range(1, n_new + 1):
            logits_B1V, _ = self.model(ids_BT, mask=mask, cache=cache, last_only=True)
            chosen_B = choose(logits_B1V[:, -1])
            for i, (row, token) in enumerate(zip(rows, chosen_B.tolist(), strict=True)):
                if row.ended:
                    continue
                row.ids.append(token)
                row.ended = token in row.stop_tokens
                yield i, None if row.ended else token
                if step == row.sampling.max_new_tokens and not row.ended:
                    row.ended = True
                    yield i, None
            if all(row.ended for row in rows):
                return
            ids_BT = chosen_B[:, None]
            if cache.lengths[0] == context:
                for row in rows:
                    row.make_room(context)
                cache.reset()
                ids_BT, mask = _fill_up(rows, ids_BT.device)
