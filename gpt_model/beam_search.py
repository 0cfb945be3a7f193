"""Beam search: not the likeliest next token, but a likely text.

Greedy decoding takes the best token and never looks back, even where it leads to a poor sentence. Beam search
keeps the n best beginnings, its beams, continues each by every token, and keeps the n best again. As a text grows
its probability only falls. So texts of different length are compared by a mean: the sum of the log probabilities
of their tokens, divided by a power of their number (Wu et al. 2016, https://arxiv.org/abs/1609.08144, section 7,
has a divisor that is a little different).

It is good where there is a right answer, as in translation. The likeliest continuation of an open text is dull and
repeats itself: Holtzman et al. 2019, https://arxiv.org/abs/1904.09751.

Shapes: N beams, T time, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpt_model.generation import LanguageModel, check_fits, check_ids, device_of
from gpt_model.sampling import check_scores, check_tokens
from utils.files import InputError

# The sum of log probabilities, the beam that is continued, the token that continues it.
Candidate = tuple[float, int, int]


@torch.inference_mode()
def beam_search(
    model: LanguageModel,
    ids: Sequence[int],
    n_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    end_token: int | None = None,
) -> list[tuple[list[int], float]]:
    """Return the best continuations of `ids` that were found, at most n_beams, best first: new tokens, and score.

    A score is the sum of the new tokens' log probabilities over their number to the power of length_penalty.
    The search goes on until no beam can become better than the worst of n_beams texts that have ended.

    Args:
        model: guesses tokens.
        ids: the prompt, not empty.
        n_beams: beginnings that are kept; 1 is greedy.
        max_new_tokens: a text ends at this length.
        length_penalty: 0 compares sums, which favours short texts; 1 compares means; more favours long ones.
        end_token: a text ends with this token, too.

    Raises:
        InputError: for an empty prompt, a number out of range, too many tokens, or scores that are not finite.
    """
    _check(model, ids, n_beams, max_new_tokens, length_penalty, end_token)
    device = device_of(model)
    cache = model.new_cache(n_beams, len(ids) + max_new_tokens - 1)  # the last new token is never read
    # the prompt is read once; all rows go on from it, and all but the first are dead until they get a beam
    logits_B1V, _ = model(torch.tensor([list(ids)], device=device), mask=None, cache=cache.rows(0, 1), last_only=True)
    cache.reorder([0] * n_beams)
    texts: list[list[int]] = [[]] * n_beams
    sums_N = torch.tensor([0.0] + [-math.inf] * (n_beams - 1), device=device)
    ended: list[tuple[list[int], float]] = []
    for length in range(1, max_new_tokens + 1):
        sums_NV = sums_N[:, None] + _log_probabilities(logits_B1V)
        going, ending = _best(sums_NV, n_beams, end_token)
        if length == max_new_tokens:
            ending += going
        ended += [([*texts[row], token], s / length**length_penalty) for s, row, token in ending if s > -math.inf]
        ended = sorted(ended, key=lambda text: text[1], reverse=True)[:n_beams]
        if length == max_new_tokens or not going:
            break
        if len(ended) == n_beams and _reachable(going[0][0], length, max_new_tokens, length_penalty) <= ended[-1][1]:
            break
        sums, rows, tokens = zip(*going, strict=True)
        texts = [[*texts[row], token] for row, token in zip(rows, tokens, strict=True)]
        sums_N = torch.tensor(sums, dtype=sums_NV.dtype, device=device)
        cache.reorder(rows)
        logits_B1V, _ = model(torch.tensor(tokens, device=device)[:, None], mask=None, cache=cache, last_only=True)
    return ended


def _log_probabilities(logits_B1V: Tensor) -> Tensor:
    """Return the logarithms of the next token's probabilities, (B, V)."""
    check_scores(logits_B1V)
    wide = torch.promote_types(logits_B1V.dtype, torch.float32)
    return logits_B1V[:, -1].log_softmax(dim=-1, dtype=wide)


def _reachable(best_sum: float, length: int, max_length: int, length_penalty: float) -> float:
    """Return the best score that a text may yet reach: no sum grows, but with a divisor that does, a mean may rise."""
    return best_sum / (max_length if length_penalty > 0 else length) ** length_penalty


def _best(sums_NV: Tensor, n_beams: int, end_token: int | None) -> tuple[list[Candidate], list[Candidate]]:
    """Return the best candidates, best first: those that go on, and those that end here. Each is at most n_beams."""
    V = sums_NV.shape[1]
    # twice as many as there are beams: should all of the best end here, there are others to go on
    best, places = sums_NV.flatten().topk(min(2 * n_beams, sums_NV.numel()))
    candidates = [(s, place // V, place % V) for s, place in zip(best.tolist(), places.tolist(), strict=True)]
    going = [candidate for candidate in candidates if candidate[2] != end_token][:n_beams]
    ending = [candidate for candidate in candidates[:n_beams] if candidate[2] == end_token]
    return going, ending


def _check(
    model: LanguageModel,
    ids: Sequence[int],
    n_beams: int,
    max_new_tokens: int,
    length_penalty: float,
    end_token: int | None,
) -> None:
    V = model.config.vocab_size
    check_ids(ids, V)
    check_fits(len(ids), max_new_tokens, model.config.context_length)
    for name, value in (("n_beams", n_beams), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not -10 <= length_penalty <= 10:
        raise InputError(f"length_penalty must be from -10 to 10, got {length_penalty}")
    if end_token is not None:
        check_tokens("end_token", [end_token], V)
