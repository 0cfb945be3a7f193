"""Text from a model: guess a distribution for the next token, draw from it, append, repeat.

Shapes: T time, V vocabulary.
"""

import codecs
import logging
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from gpt_model.gpt import GPT
from utils.files import InputError
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"


def choose(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """Pick a token id.

    Args:
        logits_V: the model's scores.
        temperature: 0 takes the likeliest; 1 draws as the model says; between, unlikely tokens get rarer.
        top_k: draw among the k likeliest only (Fan et al. 2018, https://arxiv.org/abs/1805.04833, section 5.4).
        generator: the source of randomness.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        # exactly k stay, even where the k-th score is shared
        values, ids = logits_V.topk(top_k)
    else:
        values, ids = logits_V, torch.arange(len(logits_V), device=logits_V.device)
    probabilities = (values.float() / temperature).softmax(dim=-1)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


class TextGenerator:
    """Continues a prompt.

    Raises:
        InputError: if tokenizer and model do not belong together.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        if tokenizer.vocab_size != model.config.vocab_size:
            raise InputError(
                f"the model has {model.config.vocab_size:,} token embeddings but the tokenizer has "
                f"{tokenizer.vocab_size:,} tokens: they are from different runs"
            )
        self.model, self.tokenizer = model, tokenizer
        self.end_of_text = tokenizer.special_tokens.get(END_OF_TEXT)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        stop_tokens: Collection[int] | None = None,
        seed: int | None = None,
    ) -> str:
        """The continuation of `prompt`, without it. Arguments and errors as in `stream`."""
        return "".join(
            self.stream(
                prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                stop_tokens=stop_tokens,
                seed=seed,
            )
        )

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        stop_tokens: Collection[int] | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Yield the continuation of `prompt` as it comes, in whole characters.

        Args:
            prompt: what to continue; an empty one begins a new document.
            max_new_tokens: how many tokens at most.
            temperature: see `choose`.
            top_k: see `choose`.
            stop_tokens: ids that end the text and are not part of it; <|endoftext|> by default.
            seed: the same seed draws the same text; without one, each call draws another.

        Raises:
            InputError: for a temperature below 0, a top_k or max_new_tokens below 1, or an empty prompt
                where the tokenizer has no <|endoftext|>.
        """
        ids = self.tokenizer.encode(prompt, disallowed_special=())
        if not ids:
            if self.end_of_text is None:
                raise InputError("the prompt is empty, and the tokenizer has no <|endoftext|> to begin a text with")
            ids = [self.end_of_text]
        if stop_tokens is None:
            stop_tokens = set() if self.end_of_text is None else {self.end_of_text}
        tokens = self.tokens(ids, max_new_tokens, temperature=temperature, top_k=top_k, seed=seed)
        # A character may span tokens: hold its bytes back until it is whole.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in tokens:
            if token in stop_tokens:
                break
            if text := decoder.decode(self.tokenizer.decode_bytes([token])):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    @torch.inference_mode()
    def tokens(
        self,
        prompt: list[int],
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Iterator[int]:
        """Yield the ids that continue `prompt`, which must not be empty.

        When the context is full, the older half is forgotten and the younger read again.
        """
        if temperature < 0:
            raise InputError(f"temperature must not be negative, got {temperature}")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k must be at least 1, got {top_k}")
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        device = self.model.token_embedding.weight.device
        generator = torch.Generator(device=device)
        generator.seed() if seed is None else generator.manual_seed(seed)
        context = self.model.config.context_length
        cache = self.model.new_cache(1, min(context, len(prompt) + max_new_tokens))
        waiting = prompt[-context:]  # tokens the model has not read yet
        if len(prompt) > context:
            log.warning("the prompt's %s tokens exceed the context: its last %s are read", len(prompt), context)
        seen = list(waiting)
        for _ in range(max_new_tokens):
            if cache.lengths[0] + len(waiting) > context:
                cache.reset()
                waiting = seen = seen[-(context // 2) or -1 :]
            logits_11V, _ = self.model(torch.tensor([waiting], device=device), cache=cache, last_only=True)
            token = choose(logits_11V[0, -1], temperature, top_k, generator)
            yield token
            waiting = [token]
            seen.append(token)
