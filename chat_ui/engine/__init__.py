"""Serves models to many readers at once: what the app, the API and the terminal stand on. It knows none of them.

with Service(Models(Path("runs"))) as service:
    answer = service.submit(Request("demo", "Emma was", Sampling(max_new_tokens=50)))
    async for event in answer:
        if isinstance(event, Piece):
            print(event.text, end="")
"""

from chat_ui.engine.classifying import Opinion
from chat_ui.engine.events import (
    BusyError,
    Event,
    Finished,
    Loading,
    Piece,
    Queued,
    Request,
    Result,
    Started,
    Timings,
    Token,
    TokenLogprob,
    UnknownModelError,
    Usage,
)
from chat_ui.engine.models import Loaded, ModelInfo, Models
from chat_ui.engine.options import Options
from chat_ui.engine.prefixes import PrefixCache
from chat_ui.engine.service import Answer, Service, Status

__all__ = [
    "Answer",
    "BusyError",
    "Event",
    "Finished",
    "Loaded",
    "Loading",
    "ModelInfo",
    "Models",
    "Opinion",
    "Options",
    "Piece",
    "PrefixCache",
    "Queued",
    "Request",
    "Result",
    "Service",
    "Started",
    "Status",
    "Timings",
    "Token",
    "TokenLogprob",
    "UnknownModelError",
    "Usage",
]
