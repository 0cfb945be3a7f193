"""OpenAI's formats: what clients send becomes requests of the engine, and its events what clients expect.

https://platform.openai.com/docs/api-reference/chat, and /completions beside it, as of 2026. What would change the
answer and is not supported is refused by name; other unknown fields are ignored, since clients send many.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from chat_ui.engine import Finished, ModelInfo, Request, Result, Token
from chat_ui.engine.events import MOST_CHOICES, MOST_LOGPROBS
from finetuning.instruction.conversation import Conversation, Turn
from gpt_model.sampling import Sampling
from utils.files import InputError

MOST_PROMPTS = 16
MOST_STOPS = 16
MOST_BIASES = 300  # as OpenAI
TOKENS_OF_A_COMPLETION = 16  # OpenAI's default
UNSUPPORTED = {  # fields that would change the answer, and the values that change nothing
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
}


class StreamOptions(BaseModel):
    """What a stream is to hold besides text."""

    include_usage: bool = False


class Common(BaseModel):
    """What both kinds of request have. top_k, min_p and repetition_penalty are not OpenAI's; others have them, too."""

    model: str = Field(max_length=300)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = Field(None, max_length=MOST_BIASES)
    max_tokens: int | None = Field(None, ge=1)

    @property
    def includes_usage(self) -> bool:
        """Return whether the last chunk of a stream is to hold the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, longest: int, default: int) -> Sampling:
        """Return the settings for texts of at most `longest` tokens, by default of `default` ones."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > MOST_STOPS:
            raise InputError(f"stop must have at most {MOST_STOPS} strings, got {len(stop)}")
        given = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p, "seed": self.seed}
        bias = {token: -math.inf if value <= -100 else value for token, value in (self.logit_bias or {}).items()}
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=bias,
            max_new_tokens=min(longest, self.max_tokens or default),
            stop=tuple(stop),
            **{name: value for name, value in given.items() if value is not None},
        )


class CompletionRequest(Common):
    """A body for /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @property
    def prompts(self) -> Sequence[Any]:
        """Return all prompts: texts, or lists of ids."""
        is_one = isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int))
        return [self.prompt] if is_one else self.prompt

    def requests(self, info: ModelInfo, longest: int) -> list[Request]:
        """Return a request for each prompt."""
        sampling = self.sampling(longest, TOKENS_OF_A_COMPLETION)
        prompts = self.prompts
        if not 1 <= len(prompts) <= MOST_PROMPTS:
            raise InputError(f"prompt must hold from 1 to {MOST_PROMPTS} prompts, got {len(prompts)}")
        prompts = [readable(prompt, "prompt") if isinstance(prompt, str) else prompt for prompt in prompts]
        return [Request(info.name, prompt, sampling, self.n, self.logprobs) for prompt in prompts]


class Part(BaseModel):
    """A part of a message; text is the only kind that these models read."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        """Return what it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Common):
    """A body for /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    def requests(self, info: ModelInfo, longest: int) -> list[Request]:
        """Return the one request."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InputError("top_logprobs needs logprobs to be true")
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        sampling = self.sampling(longest, longest)
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return [Request(info.name, conversation(self.messages), sampling, self.n, logprobs)]


def conversation(messages: Iterable[Message]) -> Conversation:
    """Return messages as a conversation: those of the system together, and what one side says twice in a row, too.

    Raises:
        InputError: if no user speaks, or not first.
    """
    system: list[str] = []
    turns: list[Turn] = []
    for message in messages:
        text = readable(message.text, "a message")
        if message.role in ("system", "developer"):
            system.append(text)
        elif turns and turns[-1].role == message.role:
            turns[-1] = Turn(turns[-1].role, f"{turns[-1].text}\n\n{text}")
        else:
            turns.append(Turn(message.role, text))
    return Conversation(tuple(turns), "\n\n".join(system) or None)


def readable(text: str, name: str) -> str:
    """Return a text.

    Raises:
        InputError: if it holds half a character, as JSON can, such as "\\ud83d".
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not valid text: it holds half of a surrogate pair") from error
    return text


def parse(kind: type[Common], body: object) -> Any:
    """Return a body as a request of a kind.

    Raises:
        InputError: for the first thing that is wrong; the message names it.
    """
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    for name, harmless in UNSUPPORTED.items():
        if name in body and body[name] not in harmless:
            raise InputError(f"{name} is not supported by this server")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not isinstance(part, str) or part.isidentifier())
        raise InputError(f"{where}: {first['msg']}" if where else first["msg"]) from error


@dataclass(frozen=True)
class Writer:
    """Writes the answers to one request in the format of its kind.

    Args:
        info: the model that was asked for.
        is_chat: whether it was asked in a chat.
        stream: whether the answer comes in chunks.
        includes_usage: whether they end with the usage; the others then say that they have none.
    """

    info: ModelInfo
    is_chat: bool
    stream: bool
    includes_usage: bool

    def __post_init__(self) -> None:
        kind = "chat.completion" if self.is_chat else "text_completion"
        made = "" if self.info.made is None else f"-{self.info.made:%Y%m%d%H%M%S}"
        head = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if self.is_chat and self.stream else kind,
            "created": int(time.time()),
            "model": self.info.name,
            "system_fingerprint": f"{self.info.name}{made}",
        }
        object.__setattr__(self, "_head", head)

    def whole(self, results: Sequence[Result], n_prompts: int) -> dict[str, Any]:
        """Return the answer in one piece; `results` has the choices of each prompt one after the other."""
        choices = []
        for index, result in enumerate(results):
            content: dict[str, Any] = {"text": result.text}
            if self.is_chat:
                content = {"message": {"role": "assistant", "content": result.text, "refusal": None}}
            logprobs = self._logprobs(result.tokens)
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": result.finished.reason})
        finished = [result.finished for result in results]
        return {**self._head, "choices": choices, "usage": usage(finished, n_prompts)}

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the first chunk of a choice, which says who speaks; None outside a chat."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}) if self.is_chat else None

    def piece(self, index: int, text: str, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        """Return a chunk with some text; `offset` is the number of characters before it."""
        content: dict[str, Any] = {"delta": {"content": text}} if self.is_chat else {"text": text}
        return self._chunk(index, content, logprobs=self._logprobs(tokens, offset))

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """Return the last chunk of a choice, the only one with a reason."""
        return self._chunk(index, {"delta": {}} if self.is_chat else {"text": ""}, reason=reason)

    def total(self, finished: Sequence[Finished], n_prompts: int) -> dict[str, Any]:
        """Return the chunk with the usage, which has no choices."""
        return {**self._head, "choices": [], "usage": usage(finished, n_prompts)}

    def _chunk(
        self, index: int, content: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "choices": [choice], **({"usage": None} if self.includes_usage else {})}

    def _logprobs(self, tokens: Sequence[Token], offset: int = 0) -> dict[str, Any] | None:
        if not tokens or tokens[0].logprob is None:
            return None
        if self.is_chat:
            return {"content": [_chat_logprob(token) for token in tokens], "refusal": None}
        names = [_name(token.data) for token in tokens]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.data.decode("utf-8", errors="ignore"))
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{_name(top.data): top.logprob for top in token.top} for token in tokens],
            "text_offset": offsets,
        }


def _name(data: bytes) -> str:
    """Return a token as text; one that is part of a character as OpenAI writes it, bytes:\\xe2."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _chat_logprob(token: Token) -> dict[str, Any]:
    top = [{"token": _name(t.data), "logprob": t.logprob, "bytes": list(t.data)} for t in token.top]
    return {"token": _name(token.data), "logprob": token.logprob, "bytes": list(token.data), "top_logprobs": top}


def usage(finished: Sequence[Finished], n_prompts: int) -> dict[str, Any]:
    """Return the tokens of all choices together; a prompt counts once, however many choices it has."""
    per_prompt = max(1, len(finished) // n_prompts)
    read = sum(end.usage.prompt_tokens for end in finished[::per_prompt])
    written = sum(end.usage.completion_tokens for end in finished)
    reused = sum(end.usage.reused_tokens for end in finished[::per_prompt])
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def model_object(info: ModelInfo) -> dict[str, Any]:
    """Return what /v1/models says of a model; `kind`, `label` and `context_length` are ours."""
    return {
        "id": info.name,
        "object": "model",
        "created": 0 if info.made is None else int(info.made.timestamp()),
        "owned_by": "openai" if info.kind == "gpt2" else "you",
        "kind": info.kind,
        "label": info.label,
        "context_length": info.context_length,
    }
