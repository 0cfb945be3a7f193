"""Continuous batching: the texts that one model writes at once, each in a row of one KV cache.

A step of a model costs nearly the same for one row as for several, because it reads all weights either way. So every
step writes one token of every text, texts leave when they end, and others take their place at any step (Yu et al.
2022, "Orca", https://www.usenix.org/conference/osdi22/presentation/yu, section 3.2). Prompts are read in chunks
between the steps (Agrawal et al. 2023, https://arxiv.org/abs/2308.16369), so that a long one stalls nobody:

    row 0    a a a a a a a a .           a text that ends; the last row moves to its place
    row 1      b b b b b b b b b b
    row 2            c c c c c c c
    desk     b     c c         d d d     where prompts are read, one after the other, before they get a row

Nothing here knows threads or time; scheduler.py calls it in a loop.

Shapes: B rows, T time, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attention_mechanisms import Mask, RingCache
from chat_ui.engine.events import Token, TokenLogprob
from chat_ui.engine.models import Loaded
from chat_ui.engine.prefixes import LEAST_REUSED, PrefixCache, common_prefix
from gpt_model.costs import forward_flops
from gpt_model.generation import StreamedText, device_of
from gpt_model.sampling import Sampler, Sampling, check_tokens, choose_each
from utils.files import InputError

FLOPS_OF_A_CHUNK = 4e9  # what two cores do in some 50 milliseconds
SHORTEST_CHUNK = 32  # tokens; with fewer, reading the weights takes longer than computing with them


Ended = Literal["stop", "length", "error"]


@dataclass(eq=False)
class Text:
    """A text that is being written.

    Args:
        ids: the prompt's tokens, at least one; those that are written are added.
        sampling: how; its stop tokens must be given.
        logprobs: as `Request.logprobs`.
    """

    ids: list[int]
    sampling: Sampling
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self.n_prompt = len(self.ids)
        self.n_reused = 0
        self.streamed = StreamedText(self.sampling.stop)
        self.window = list(self.ids)  # what the model is to look at: the ids, or after a full context the younger half
        self.ended: Ended | None = None
        self.error: str | None = None
        self.is_models_fault = False  # the error is not that of who asked
        self.sampler: Sampler | None = None

    @property
    def n_written(self) -> int:
        """Return the number of tokens written so far."""
        return len(self.ids) - self.n_prompt


@dataclass(frozen=True)
class Written:
    """What was done for one text: a token, some text that is certain now, or the end. A step may do this twice."""

    text: Text
    token: Token | None
    piece: str
    ended: Ended | None


class Batch:
    """Writes texts with one model.

    Args:
        loaded: the model.
        n_rows: texts that it writes at once.
        chunk: tokens of prompts to read per step; None: as many as cost `FLOPS_OF_A_CHUNK`.
        prefixes: what was read before; None: nothing is reused.
        exact: always compute `n_rows` rows and look at all slots of the cache, so that shapes, and with them the
            rounding of products, are the same whatever is in the other rows.
    """

    def __init__(
        self,
        loaded: Loaded,
        n_rows: int,
        *,
        chunk: int | None = None,
        prefixes: PrefixCache | None = None,
        exact: bool = False,
    ) -> None:
        self.loaded = loaded
        self.n_rows = n_rows
        self.prefixes = prefixes
        self.exact = exact
        self.writing: list[Text] = []  # text i is in row i
        self.reading: deque[Text] = deque()  # the first one is on the desk
        config = loaded.model.config
        flops = forward_flops(config, 1, config.context_length, last_only=True) / config.context_length
        self.chunk = chunk or max(SHORTEST_CHUNK, int(FLOPS_OF_A_CHUNK / flops))
        with torch.inference_mode():
            self._cache = loaded.model.new_cache(n_rows, config.context_length)
            self._desk = loaded.model.new_cache(1, config.context_length)
        if exact:
            for layer in self._cache.layers:
                layer.looks_at_all = True

    @property
    def n_free(self) -> int:
        """Return how many texts can be added."""
        return self.n_rows - len(self.writing) - len(self.reading)

    @property
    def is_idle(self) -> bool:
        """Return whether there is nothing to do."""
        return not self.writing and not self.reading

    def check(self, sampling: Sampling) -> None:
        """Check settings against the vocabulary.

        Raises:
            InputError: for a stop token or a biased one that it does not have.
        """
        vocab_size = self.loaded.model.config.vocab_size
        check_tokens("stop_tokens", sampling.stop_tokens or (), vocab_size)
        check_tokens("logit_bias", sampling.logit_bias, vocab_size)

    def add(self, text: Text) -> None:
        """Take a text, whose ids and settings are right; its prompt is read when it is its turn.

        Raises:
            ValueError: if there is no free row.
        """
        if self.n_free < 1:
            raise ValueError("there is no free row")
        model = self.loaded.model
        stop_tokens = text.sampling.stop_tokens or ()
        text.sampler = Sampler(text.sampling, [text.ids], model.config.vocab_size, stop_tokens, device_of(model))
        text.window = text.ids[-model.config.context_length :]
        self.reading.append(text)

    @torch.inference_mode()
    def remove(self, text: Text) -> None:
        """Forget a text that has ended, or is to end now; what was read of it may be reused."""
        if text in self.writing:
            row = self.writing.index(text)
            if self.prefixes is not None and text.error is None:
                self.prefixes.put(text.window[: self._cache.lengths[row]], self._cache, row)
            self._vacate(row)
        elif text in self.reading:
            if text is self.reading[0]:
                self._desk.reset()
            self.reading.remove(text)

    @torch.inference_mode()
    def step(self) -> list[Written]:
        """Write one token of each text that can, and read a chunk of prompts; return what was written.

        Texts that have ended are no longer in the batch.
        """
        written = self._write()
        budget = self.chunk
        while self.reading and budget > 0:
            n_read, more = self._read(budget)
            budget -= n_read
            written += more
        for event in written:
            if event.text.ended:
                self.remove(event.text)
        return written

    def _write(self) -> list[Written]:
        """Let the model read each text's last token, and choose the next ones."""
        if not self.writing:
            return []
        texts = list(self.writing)
        n = self.n_rows if self.exact else len(texts)
        last = [text.window[-1] for text in texts] + [0] * (n - len(texts))
        ids_B1 = torch.tensor(last, device=device_of(self.loaded.model))[:, None]
        mask = Mask(left_padding=(0,) * n) if self.exact else None  # so that it is never simplified
        logits_B1V, _ = self.loaded.model(ids_B1, mask=mask, cache=self._cache.rows(0, n), last_only=True)
        if len(texts) < n:
            self._cache.reset(range(len(texts), n))
        written = self._choose(logits_B1V[: len(texts), -1], texts)
        context = self.loaded.model.config.context_length
        full = [row for row, length in enumerate(self._cache.lengths[: len(texts)]) if length == context]
        for row in reversed(full):
            if not texts[row].ended:
                self._slide(row)
        return written

    def _read(self, budget: int) -> tuple[int, list[Written]]:
        """Read `budget` tokens of the prompt on the desk, or a few more; if that is all of it, choose what follows.

        Returns:
            how many were read, and what was written.
        """
        text = self.reading[0]
        done = self._desk.lengths[0]
        if not done and self.prefixes is not None:
            done = self._reuse(text)
        # a few tokens cost as much as many; and if it is to be exact, the cut must not depend on the prompt before
        size = self.chunk if self.exact else max(budget, min(self.chunk, SHORTEST_CHUNK))
        part = text.window[done : done + size]
        ids_1T = torch.tensor([part], device=device_of(self.loaded.model))
        logits_11V, _ = self.loaded.model(ids_1T, mask=None, cache=self._desk, last_only=True)
        if done + len(part) < len(text.window):
            return len(part), []
        self.reading.popleft()
        row = len(self.writing)
        self._cache.write_row(row, self._desk.read_row(0), len(text.window))
        self._desk.reset()
        self.writing.append(text)
        written = self._choose(logits_11V[:, -1], [text])
        if not text.ended and len(text.window) > self.loaded.model.config.context_length:
            self._slide(row)
        return len(part), written

    def _reuse(self, text: Text) -> int:
        """Put on the desk what is known of a text's beginning; return of how many tokens that is."""
        assert self.prefixes is not None
        is_ring = any(isinstance(layer, RingCache) for layer in self._desk.layers)
        length, content = self.prefixes.find(text.window, whole=is_ring)
        for row, other in enumerate(self.writing):  # a choice of the same request, perhaps
            n = common_prefix(other.window[: self._cache.lengths[row]], text.window[:-1])
            if n > max(length, LEAST_REUSED - 1) and (not is_ring or n == self._cache.lengths[row]):
                length, content = n, self._cache.read_row(row)
        if content is None:
            return 0
        part = content if is_ring else [[tensor[:, :length] for tensor in layer] for layer in content]
        self._desk.write_row(0, part, length)
        if not text.n_written:
            text.n_reused = length
        return length

    def _choose(self, logits_BV: Tensor, texts: Sequence[Text]) -> list[Written]:
        """Choose the next token of each text, and say what that means for it."""
        try:
            ids = choose_each(logits_BV, [text.sampler for text in texts if text.sampler]).tolist()
        except InputError as error:
            if len(texts) > 1:  # one of them ends, and the others go on
                return [w for row, text in enumerate(texts) for w in self._choose(logits_BV[row : row + 1], [text])]
            return [self._fail(texts[0], str(error), logits_BV)]
        return [self._note(text, ids[row], logits_BV[row]) for row, text in enumerate(texts)]

    def _fail(self, text: Text, error: str, logits_1V: Tensor) -> Written:
        """End a text for which no token can be chosen: who asked has forbidden all, or the model has none to offer."""
        text.ended = "error"
        text.is_models_fault = not logits_1V.amax().isfinite()
        text.error = "the model's scores are not finite: its weights are damaged" if text.is_models_fault else error
        return Written(text, None, text.streamed.add(b"", final=True), text.ended)

    def _note(self, text: Text, id_: int, logits_V: Tensor) -> Written:
        """Add a token to a text, or end it."""
        if id_ in (text.sampling.stop_tokens or ()):
            text.ended = "stop"
            return Written(text, None, text.streamed.add(b"", final=True), text.ended)
        text.ids.append(id_)
        text.window.append(id_)
        token = self._token(id_, logits_V, text.logprobs)
        piece = text.streamed.add(token.data)
        if text.streamed.ended:
            text.ended = "stop"
        elif text.n_written >= text.sampling.max_new_tokens:
            text.ended = "length"
            piece += text.streamed.add(b"", final=True)
        return Written(text, token, piece, text.ended)

    def _token(self, id_: int, logits_V: Tensor, logprobs: int | None) -> Token:
        decode = self.loaded.tokenizer.decode_bytes
        if logprobs is None:
            return Token(id_, decode([id_]))
        logprobs_V = logits_V.float().log_softmax(dim=-1)
        values, ids = logprobs_V.topk(min(logprobs, len(logprobs_V)))
        top = zip(ids.tolist(), values.tolist(), strict=True)
        likeliest = tuple(TokenLogprob(other, decode([other]), value) for other, value in top)
        return Token(id_, decode([id_]), float(logprobs_V[id_]), likeliest)

    def _slide(self, row: int) -> None:
        """Forget the older half of a full context: the younger half is read again, before other prompts."""
        text = self.writing[row]
        self._vacate(row)
        text.window = text.window[-max(1, self.loaded.model.config.context_length // 2) :]
        self.reading.insert(1 if self.reading and self._desk.lengths[0] else 0, text)

    def _vacate(self, row: int) -> None:
        """Take a text out of its row; the last row moves there, so that the rows in use stay together."""
        last = len(self.writing) - 1
        if row != last:
            self._cache.write_row(row, self._cache.read_row(last), self._cache.lengths[last])
            self.writing[row] = self.writing[last]
        self.writing.pop()
        self._cache.reset([last])
