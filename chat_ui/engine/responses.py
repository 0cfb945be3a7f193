"""Answers that need not be computed again, since an equal request can have no other: temperature 0, or a seed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields

from chat_ui.engine.events import Reason, Token
from gpt_model.sampling import Sampling


@dataclass(frozen=True)
class Response:
    """A text that was written, and why it ended."""

    text: str
    tokens: tuple[Token, ...]
    reason: Reason


def key_of(ids: Sequence[int], sampling: Sampling, logprobs: int | None) -> Hashable | None:
    """Return what decides the text, for a model; None if chance does, too."""
    if sampling.temperature > 0 and sampling.seed is None:
        return None
    values = []
    for field in fields(sampling):
        value = getattr(sampling, field.name)
        if field.name == "logit_bias":
            value = tuple(sorted(value.items()))
        values.append(tuple(value) if isinstance(value, list | tuple) else value)
    return (tuple(ids), tuple(values), logprobs)


class ResponseCache:
    """Remembers so many responses; the least recently used is forgotten first.

    Args:
        size: 0 remembers nothing.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._responses: OrderedDict[Hashable, Response] = OrderedDict()

    def get(self, key: Hashable | None) -> Response | None:
        """Return the response to an equal request, if it is remembered."""
        if key is None or key not in self._responses:
            return None
        self._responses.move_to_end(key)
        return self._responses[key]

    def put(self, key: Hashable | None, response: Response) -> None:
        """Remember a response that was written to its end."""
        if key is not None and self.size:
            self._responses[key] = response
            while len(self._responses) > self.size:
                self._responses.popitem(last=False)
