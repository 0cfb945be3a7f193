"""Speculative decoding: a small model guesses ahead, the large one checks the guesses in a single pass.

A large model takes nearly as long for one token as for five: most of the time it fetches its weights. So a small
model, the draft, proposes k tokens one by one, and the large one, the target, reads them all at once and says
for each what it would have thought. A proposed token x, which the draft drew with probability q(x), is accepted
with probability min(1, p(x) / q(x)), where p is the target's. At the first that is not, a token is drawn from
what p has more than q, max(0, p - q), and the rest of the proposal is thrown away; if all are accepted, the
target adds one more. So each pass writes 1 to k + 1 tokens, and their distribution is exactly the target's:

    P(x) = q(x) min(1, p(x) / q(x)) + (what is rejected) * max(0, p(x) - q(x)) / (sum of it) = p(x)

Leviathan et al. 2022, https://arxiv.org/abs/2211.17192, section 2.3 and appendix A.1.

Shapes: T time, K proposed tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_model.generation import LanguageModel, check_fits, check_ids, device_of
from gpt_model.sampling import Sampling, check_tokens, draw, next_token_probabilities
from utils.files import InputError


@dataclass(frozen=True)
class Round:
    """One pass of the target."""

    proposed: list[int]
    """What the draft thought of."""
    n_accepted: int
    """How many of these the target took, from the first on."""
    token: int
    """The target's own: in place of the first that it did not take, or after all of them."""

    @property
    def tokens(self) -> list[int]:
        """What this round adds to the text."""
        return [*self.proposed[: self.n_accepted], self.token]


def acceptance_rate(rounds: Iterable[Round]) -> float:
    """Return the share of proposed tokens that were accepted."""
    rounds = list(rounds)
    return sum(r.n_accepted for r in rounds) / max(1, sum(len(r.proposed) for r in rounds))


def speculate(
    target: LanguageModel, draft: LanguageModel, ids: Sequence[int], sampling: Sampling | None = None, n_draft: int = 4
) -> Iterator[Round]:
    """Continue `ids` as `target` alone would, with fewer passes of it; yield each round as it is made.

    Args:
        target: the model whose text is wanted.
        draft: a faster model with the same vocabulary.
        ids: the prompt, not empty.
        sampling: temperature, top_k, top_p, min_p, max_new_tokens, seed; stop_tokens end the text with the
            round that has one, and there are none by default.
        n_draft: tokens that are proposed at a time.

    Raises:
        InputError: at once, if a model cannot do it, the tokens are more than the context of one of them, or
            `sampling` asks for something that it does not support.
    """
    sampling = sampling or Sampling()
    if target.config.vocab_size != draft.config.vocab_size:
        sizes = f"{target.config.vocab_size:,} and {draft.config.vocab_size:,}"
        raise InputError(f"target and draft must have the same vocabulary, got {sizes} tokens")
    check_ids(ids, target.config.vocab_size)
    for model in (target, draft):
        check_fits(len(ids), sampling.max_new_tokens, model.config.context_length)
        if model.config.attention == "swa":
            raise InputError("speculative decoding takes tokens back, which the ring cache of attention=swa cannot")
    if n_draft < 1:
        raise InputError(f"n_draft must be at least 1, got {n_draft}")
    for name in ("repetition_penalty", "logit_bias", "min_new_tokens", "stop"):
        if getattr(sampling, name) != getattr(Sampling(), name):
            raise InputError(f"speculative decoding does not know {name}, got {getattr(sampling, name)}")
    check_tokens("stop_tokens", sampling.stop_tokens or (), target.config.vocab_size)
    return _rounds(target, draft, list(ids), sampling, n_draft)


@torch.inference_mode()
def _rounds(
    target: LanguageModel, draft: LanguageModel, text: list[int], sampling: Sampling, n_draft: int
) -> Iterator[Round]:
    (generator,) = sampling.generators(1)
    goal = len(text) + sampling.max_new_tokens
    # the last new token is never read
    judge, guesser = (_Reader(model, text, goal - 1, sampling) for model in (target, draft))
    while len(text) < goal:
        proposed: list[int] = []
        q_KV: list[Tensor] = []
        for _ in range(min(n_draft, goal - len(text) - 1)):  # the target's own token must fit in, too
            q_KV.append(guesser.probabilities([*text, *proposed], 1)[0])
            proposed.append(int(draw(q_KV[-1][None], [generator])))
        p_KV = judge.probabilities([*text, *proposed], len(proposed) + 1)
        n_accepted, token = verify(p_KV, q_KV, proposed, generator)
        text += [*proposed[:n_accepted], token]
        for reader in (judge, guesser):
            reader.cache.truncate(len(text) - 1)  # forget what was not accepted
        yield Round(proposed, n_accepted, token)
        if not set(sampling.stop_tokens or ()).isdisjoint(text[-n_accepted - 1 :]):
            return


def verify(
    p_KV: Tensor, q_KV: Sequence[Tensor], proposed: Sequence[int], generator: torch.Generator
) -> tuple[int, int]:
    """Return how many of the proposed tokens are accepted, and the token that comes after these.

    Args:
        p_KV: the target's probabilities (K + 1, V), for each proposed token and the one after all of them.
        q_KV: the draft's, from which the K proposed tokens were drawn.
        proposed: these.
        generator: the source of randomness, on the CPU.
    """
    K = len(proposed)
    n = 0
    if K:
        ids_K1 = torch.tensor(proposed, device=p_KV.device)[:, None]
        p_K, q_K = p_KV[:K].gather(1, ids_K1)[:, 0], torch.stack(list(q_KV)).gather(1, ids_K1)[:, 0]
        accepted_K = torch.rand(K, generator=generator).to(p_K.device) * q_K < p_K
        n = int(accepted_K.long().cumprod(dim=0).sum())  # up to the first that is not
    rest_V = p_KV[n]
    if n < K:
        more_V = (p_KV[n] - q_KV[n]).clamp(min=0)
        rest_V = more_V if more_V.any() else rest_V  # p and q may differ by no more than rounding
    return n, int(draw(rest_V[None], [generator]))


class _Reader:
    """A model and what it has read of a text."""

    def __init__(self, model: LanguageModel, prompt: Sequence[int], max_length: int, sampling: Sampling) -> None:
        self.model = model
        self.sampling = sampling
        self.cache = model.new_cache(1, max_length)
        if len(prompt) > 1:  # the scores in a long prompt are many, and not wanted
            self._read(prompt[:-1], last_only=True)

    def _read(self, ids: Sequence[int], last_only: bool) -> Tensor:
        ids_1T = torch.tensor([list(ids)], device=device_of(self.model))
        return self.model(ids_1T, mask=None, cache=self.cache, last_only=last_only)[0][0]

    def probabilities(self, text: Sequence[int], n: int) -> Tensor:
        """Read what is new; return what may come after each of the last n tokens of `text`, (n, V)."""
        logits_TV = self._read(text[self.cache.lengths[0] :], last_only=n == 1)
        return next_token_probabilities(logits_TV[-n:], self.sampling)
