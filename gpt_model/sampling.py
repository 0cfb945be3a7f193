"""From scores to a token: the knobs of sampling, each as a function, and all of them in one value.

    scores -> bias -> repetition penalty -> minimum length -> temperature -> top-k -> top-p -> min-p -> draw

The order is that of `generate` in Hugging Face's transformers, and so is the result. A filter sets the scores of
what it drops to minus infinity, so that what is left needs no more than a softmax to be a distribution again.

Drawing inverts the distribution function: one uniform number per token picks the place in the running sum of the
probabilities. The number comes from a generator on the CPU, one per row, so that what a row draws depends on
its seed alone: neither on the rows beside it nor on the device.

Shapes: B rows, V vocabulary, K candidates (top_k of them, or V).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypedDict

import torch
from torch import Tensor

from utils.files import InputError
from utils.ranges import Count, Range, Seed, check_ranges

LOWEST_TEMPERATURE = 1e-6  # a lower one, but for 0, would make scores infinite
LARGEST_BIAS = 1e30  # so would a larger bias

Probability = Annotated[float, Range(0, 1, open_below=True)]
Temperature = Annotated[float, Range(0, 1e6)]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when to stop.

    Raises:
        InputError: if a number is out of range; the message names the field.
    """

    temperature: Temperature = 1.0
    """0 always takes the likeliest token; 1 draws as the model says; between, unlikely tokens get rarer."""
    top_k: Count | None = None
    """Draw among this many of the likeliest tokens; None for all."""
    top_p: Probability | None = None
    """Draw among the likeliest tokens that together have this probability; None for all."""
    min_p: Probability | None = None
    """Draw among tokens with at least this share of the likeliest one's probability; None for all."""
    repetition_penalty: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Above 1, tokens that are in the text already, prompt included, get rarer; 1.2 is much."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the scores of these ids; -inf forbids a token."""
    max_new_tokens: Count = 200
    """Tokens to write at most."""
    min_new_tokens: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Tokens to write before a stop token may end the text. A stop string ends it even so."""
    stop_tokens: Sequence[int] | None = None
    """Ids that end the text and are not part of it; by default <|endoftext|>."""
    stop: Sequence[str] = ()
    """Strings that end the text and are not part of it."""
    seed: Seed | None = None
    """The same seed draws the same text; None draws another each time. Row i of a batch uses seed + i."""
    overflow: Literal["slide", "error"] = "slide"
    """Where prompt and new tokens are more than the context: slide forgets the older half of a full context and
    reads the younger again; error refuses before it starts."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if 0 < self.temperature < LOWEST_TEMPERATURE:
            raise InputError(f"temperature must be 0, or at least {LOWEST_TEMPERATURE:g}, got {self.temperature}")
        for token, bias in self.logit_bias.items():
            if not (bias == -math.inf or abs(bias) < LARGEST_BIAS):
                raise InputError(f"logit_bias must be below {LARGEST_BIAS:g}, or -inf, got {bias} for token {token}")
        if self.min_new_tokens > self.max_new_tokens:
            most = f"at most max_new_tokens, {self.max_new_tokens}"
            raise InputError(f"min_new_tokens must be {most}, got {self.min_new_tokens}")
        if isinstance(self.stop, str):
            raise InputError(f"stop must be a list of strings, got the string {self.stop!r}")
        if "" in self.stop:
            raise InputError("a stop string must not be empty: it would end every text before it begins")
        if self.overflow not in ("slide", "error"):
            raise InputError(f"overflow must be slide or error, got {self.overflow!r}")

    def generators(self, n_rows: int) -> list[torch.Generator]:
        """Return a source of randomness for each row, on the CPU."""
        generators = [torch.Generator() for _ in range(n_rows)]
        for row, generator in enumerate(generators):
            generator.seed() if self.seed is None else generator.manual_seed(self.seed + row)
        return generators


class Changes(TypedDict, total=False):
    """The fields of `Sampling`, as keyword arguments of those who change some of them."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    max_new_tokens: int
    min_new_tokens: int
    stop_tokens: Sequence[int] | None
    stop: Sequence[str]
    seed: int | None
    overflow: Literal["slide", "error"]


def apply_repetition_penalty(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen less likely: divide positive scores by the penalty, multiply negative ones.

    Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1; there all scores are divided, which
    would make a token of negative score likelier.

    Args:
        logits_BV: (..., V).
        seen_BV: (..., V), True for the tokens of the text so far.
        penalty: 1 changes nothing.
    """
    penalized = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, penalized, logits_BV)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Drop all but the *nucleus* of (..., V): the fewest tokens, likeliest first, whose probability reaches p.

    Holtzman et al. 2019, https://arxiv.org/abs/1904.09751, section 3.1. Of tokens that are equally likely,
    as many stay as are needed.
    """
    if p >= 1:  # everything, although the sum of the likelier ones may be rounded to 1
        return logits_BV
    values, ids = logits_BV.sort(dim=-1, descending=True)
    probabilities = values.softmax(dim=-1)
    likelier = probabilities.cumsum(dim=-1) - probabilities  # what the tokens before have together; 0 for the first
    return torch.empty_like(logits_BV).scatter_(-1, ids, values.masked_fill_(likelier >= p, -math.inf))


def keep_min_p(logits_BV: Tensor, min_p: float) -> Tensor:
    """Drop tokens of (..., V) with less than `min_p` times the probability of the likeliest.

    Nguyen et al. 2024, https://arxiv.org/abs/2407.01082, section 3. Scores are logarithms of probabilities
    but for a constant, so a share becomes a distance, and no softmax is needed.
    """
    best = logits_BV.amax(dim=-1, keepdim=True)
    return logits_BV.masked_fill(logits_BV < best + math.log(min_p), -math.inf)


def _candidates(logits_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Return the probabilities (..., K) of the tokens to draw from, and their ids: None if these are 0 to V - 1.

    With top_k only K scores go on from here, so that no filter ever sorts the vocabulary: exactly K, even where
    several tokens share the last of them. (transformers keeps all of those.) Fan et al. 2018,
    https://arxiv.org/abs/1805.04833, section 5.4.
    """
    ids = None
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        logits_BV, ids = logits_BV.topk(sampling.top_k)
    # float16 and bfloat16 are too coarse for a sum over the vocabulary; float64 stays as it is
    scores_BK = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)) / sampling.temperature
    if sampling.top_p is not None:
        scores_BK = keep_top_p(scores_BK, sampling.top_p)
    if sampling.min_p is not None:
        scores_BK = keep_min_p(scores_BK, sampling.min_p)
    return scores_BK.softmax(dim=-1), ids


def check_tokens(name: str, tokens: Iterable[int], vocab_size: int) -> None:
    """Check that all of these ids are in the vocabulary.

    Raises:
        InputError: for the first one that is not; the message names it.
    """
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise InputError(f"{name} must be ids below {vocab_size:,}, the vocabulary's size, got {token}")


def check_scores(logits_BV: Tensor) -> None:
    """Check that the best score in each row of (..., V) is finite: damaged weights would write nonsense.

    Raises:
        InputError: if one is not.
    """
    if not logits_BV.amax(dim=-1).isfinite().all():
        raise InputError("no token can be chosen: the scores are NaN or infinite, or all tokens are forbidden")


def next_token_probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Return what `choose` draws from, (..., V): temperature, top-k, top-p, min-p. At temperature 0 it is one token.

    Raises:
        InputError: if no token can be chosen; see `check_scores`.
    """
    check_scores(logits_BV)
    if sampling.temperature == 0:
        certain = torch.zeros_like(logits_BV, dtype=torch.promote_types(logits_BV.dtype, torch.float32))
        return certain.scatter_(-1, logits_BV.argmax(dim=-1, keepdim=True), 1.0)
    probabilities_BK, ids_BK = _candidates(logits_BV, sampling)
    if ids_BK is None:
        return probabilities_BK
    return probabilities_BK.new_zeros(logits_BV.shape).scatter_(-1, ids_BK, probabilities_BK)


def choose(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Pick a token id for each row, (B,): temperature, top-k, top-p and min-p, then a draw from what they leave.

    Args:
        logits_BV: the model's scores.
        sampling: temperature 0 is an argmax and nothing else.
        generators: a source of randomness for each row, on the CPU; see `Sampling.generators`.

    Raises:
        InputError: if no token can be chosen; see `check_scores`.
    """
    check_scores(logits_BV)
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities_BK, ids_BK = _candidates(logits_BV, sampling)
    index_B = draw(probabilities_BK, generators)
    return index_B if ids_BK is None else ids_BK.gather(-1, index_B[:, None])[:, 0]


def draw(probabilities_BK: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw an index for each row, (B,). The probabilities need not sum to 1; one of 0 is never drawn."""
    device = probabilities_BK.device
    if device.type == "mps":  # it has no float64
        probabilities_BK = probabilities_BK.cpu()
    uniform_B1 = torch.stack([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    sums_BK = probabilities_BK.cumsum(dim=-1, dtype=torch.float64)
    places_B1 = uniform_B1.to(sums_BK.device) * sums_BK[:, -1:]
    return torch.searchsorted(sums_BK, places_B1, right=True)[:, 0].to(device)


class Sampler:
    """Chooses the next token of every row, again and again, with what has to be remembered for it.

    Args:
        sampling: how.
        prompts: the tokens of each row; the repetition penalty counts them.
        vocab_size: V.
        stop_tokens: these must not come before `sampling.min_new_tokens` others.
        device: where the scores will be.

    Raises:
        InputError: for a stop token or a biased one that is not in the vocabulary.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        stop_tokens: Collection[int],
        device: torch.device,
    ) -> None:
        check_tokens("stop_tokens", stop_tokens, vocab_size)
        check_tokens("logit_bias", sampling.logit_bias, vocab_size)
        self.sampling = sampling
        self.generators = sampling.generators(len(prompts))
        self.n_chosen = 0
        self.stop_tokens_N = torch.tensor(sorted(stop_tokens), dtype=torch.long, device=device)
        self.bias_V = None
        self.seen_BV = None
        if sampling.logit_bias:
            self.bias_V = torch.zeros(vocab_size)
            self.bias_V[list(sampling.logit_bias)] = torch.tensor([float(b) for b in sampling.logit_bias.values()])
            self.bias_V = self.bias_V.to(device)
        if sampling.repetition_penalty != 1:
            self.seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                self.seen_BV[row, list(prompt)] = True
            self.seen_BV = self.seen_BV.to(device)

    def adjust(self, logits_BV: Tensor) -> Tensor:
        """Return the scores (B, V) with bias, repetition penalty and minimum length applied."""
        if self.bias_V is not None:
            logits_BV = logits_BV + self.bias_V
        if self.seen_BV is not None:
            logits_BV = apply_repetition_penalty(logits_BV, self.seen_BV, self.sampling.repetition_penalty)
        if self.n_chosen < self.sampling.min_new_tokens:
            logits_BV = logits_BV.index_fill(-1, self.stop_tokens_N, -math.inf)
        return logits_BV

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` changes the next scores."""
        is_short = self.n_chosen < self.sampling.min_new_tokens
        return self.bias_V is not None or self.seen_BV is not None or is_short

    def remember(self, ids_B: Tensor) -> None:
        """Note what was chosen."""
        self.n_chosen += 1
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, ids_B[:, None], True)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Return the chosen ids (B,)."""
        ids_B = choose(self.adjust(logits_BV), self.sampling, self.generators)
        self.remember(ids_B)
        return ids_B


def choose_each(logits_BV: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Return the chosen ids (B,) for rows with settings of their own: one sampler of one row for each.

    Rows with equal settings are drawn together. Each gets what its sampler alone would choose.

    Raises:
        InputError: if for some row no token can be chosen; see `check_scores`.
    """
    if any(sampler.adjusts for sampler in samplers):
        rows = logits_BV.split(1)
        logits_BV = torch.cat([s.adjust(row) if s.adjusts else row for s, row in zip(samplers, rows, strict=True)])
    check_scores(logits_BV)  # of all rows, before any of them draws
    alike: dict[tuple[float | None, ...], list[int]] = {}
    for row, sampler in enumerate(samplers):
        how = sampler.sampling
        drawn = () if how.temperature == 0 else (how.top_k, how.top_p, how.min_p)
        alike.setdefault((how.temperature, *drawn), []).append(row)
    ids_B = torch.empty(len(samplers), dtype=torch.long, device=logits_BV.device)
    for rows in alike.values():
        generators = [samplers[row].generators[0] for row in rows]
        scores = logits_BV if len(rows) == len(samplers) else logits_BV[rows]
        ids_B[rows] = choose(scores, samplers[rows[0]].sampling, generators)
    for row, sampler in enumerate(samplers):
        sampler.remember(ids_B[row : row + 1])
    return ids_B
