"""What is asked of the engine, and what it answers: one event after another.

    Queued 2 -> Queued 1 -> Loading -> Started -> Piece "Mr. " -> Piece "Knightley" -> ... -> Finished "stop"

Each of the n choices of a request has its own pieces and its own `Finished`; after the last `Finished` nothing comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from finetuning.instruction.conversation import Conversation
from gpt_model.sampling import Sampling
from utils.files import InputError
from utils.ranges import Range, check_ranges

MOST_CHOICES = 16
MOST_LOGPROBS = 20

Reason = Literal["stop", "length", "cancelled", "error"]
"""Why a text ended: by itself or a stop string, by its limit, by its reader, or by a fault that `Finished` tells."""


@dataclass(frozen=True)
class Request:
    """What somebody wants a model to say.

    Raises:
        InputError: if a number is out of range.
    """

    model: str
    """The name of a model, as `ModelInfo.name` has it."""
    prompt: str | Sequence[int] | Conversation
    """What to continue. A tuned model reads a conversation in its template; a base model reads its turns as one text.
    Of a conversation that does not fit into the context, the oldest turns are left out."""
    sampling: Sampling = field(default_factory=Sampling)
    """How. Choice i of n draws with seed + i. By default the stop tokens are the template's, or <|endoftext|>."""
    n: Annotated[int, Range(1, MOST_CHOICES)] = 1
    """Texts to write."""
    logprobs: Annotated[int, Range(0, MOST_LOGPROBS)] | None = None
    """Report the logarithm of each token's probability, and those of this many likeliest tokens; None: do not."""
    time_limit: Annotated[float, Range(0, 86_400, open_below=True)] | None = None
    """Seconds that reading and writing may take, after which the texts end with "length"; None: the service's limit."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability, as the model itself gives it, before any setting."""

    token: int
    data: bytes
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token that was written."""

    id: int
    data: bytes
    """What it stands for; part of a character, perhaps."""
    logprob: float | None = None
    """Only if the request asked."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens in its place, the likeliest first; as many as the request asked for."""


@dataclass(frozen=True)
class Usage:
    """Tokens read and written for one choice."""

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0
    """Of the prompt's, those that were known from an earlier request and not computed again."""


@dataclass(frozen=True)
class Timings:
    """Seconds since the request was submitted."""

    started: float
    """When the model began to read the prompt."""
    first_token: float
    """When the first token was there; of a text without any, as `total`."""
    total: float
    """When the text ended."""

    def tokens_per_second(self, n_tokens: int) -> float:
        """Return the speed after the first token; 0 for fewer than two tokens."""
        seconds = self.total - self.first_token
        return (n_tokens - 1) / seconds if n_tokens > 1 and seconds > 0 else 0.0


@dataclass(frozen=True)
class Queued:
    """The request waits; sent again whenever its position changes."""

    position: int
    """1: the next one to start."""


@dataclass(frozen=True)
class Loading:
    """The model is fetched first, from this disk or from the hub; sent a few times a second."""

    done_bytes: int
    total_bytes: int | None
    """None: not known."""


@dataclass(frozen=True)
class Started:
    """The model reads the prompt. Sent once, whatever n is."""

    model: str
    """Which one answers: another than was asked for if that one is broken and has a fallback."""
    prompt_tokens: int
    context_length: int
    forgotten_turns: int = 0
    """Oldest turns of the conversation that were left out, since they do not fit into the context."""
    degraded: tuple[str, ...] = ()
    """Names of the degraded modes that apply, such as "busy" (shorter answers) and "fallback" (another model)."""


@dataclass(frozen=True)
class Piece:
    """Text of one choice, in whole characters, and the tokens since its last piece."""

    choice: int
    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Finished:
    """The end of one choice."""

    choice: int
    reason: Reason
    usage: Usage
    timings: Timings
    error: str | None = None
    """For a person to read, in one line, if the reason is "error"."""
    cached: bool = False
    """Whether the text was stored from an equal request, and not computed again."""
    is_invalid: bool = False
    """Whether the error is that of the request, so that asking for the same again will not help."""


Event = Queued | Loading | Started | Piece | Finished


@dataclass(frozen=True)
class Result:
    """A choice in one piece, for those who do not stream."""

    text: str
    tokens: tuple[Token, ...]
    finished: Finished


class BusyError(Exception):
    """The queue is full: come back later. The message says so in one line."""


class UnknownModelError(InputError):
    """There is no model of that name. The message names those that there are."""
