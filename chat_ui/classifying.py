"""An answer of a classifier: of which class the reader's last message is. It comes in one piece."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chat_ui.engine import BusyError, Opinion, Request, Service
from chat_ui.texts import plain
from chat_ui.writing import Writing
from finetuning.instruction.conversation import Conversation
from utils.command_line import describe
from utils.files import InputError

if TYPE_CHECKING:
    from chat_ui.filters import Filter

logger = logging.getLogger(__name__)

MOST_CLASSES = 20  # in the table


@dataclass
class Classifying(Writing):
    """An answer that a classifier gives."""

    async def run(
        self,
        service: Service,
        request: Request,
        *,
        wrote: Callable[[str], Awaitable[None]],
        changed: Callable[[], Awaitable[None]],
        refuse: Filter | None = None,
    ) -> None:
        """Have the last turn of the request's conversation classified; the arguments are those of `Writing.run`."""
        assert isinstance(request.prompt, Conversation)
        begun = time.perf_counter()
        try:
            self.answer = asyncio.wrap_future(service.classify(self.model, request.prompt.turns[-1].text))
            if self.stopped:  # before there was anything to end
                self.answer.cancel()
            opinion = await self.answer
        except asyncio.CancelledError:
            self.reason = "cancelled"
            if not self.stopped:  # it is this task that was cancelled
                raise
        except (BusyError, InputError) as error:
            self.fail(str(error))
        except Exception as error:  # whatever is wrong with a model's files
            logger.exception("%s failed", self.model)
            self.fail(describe(error) or type(error).__name__)
        else:
            self.reason = "stop"
            self.figures = [
                f"{opinion.n_tokens:,} token{'s' * (opinion.n_tokens != 1)} read",
                f"in {1000 * (time.perf_counter() - begun):,.0f} ms",
                f"{self.nbytes / 1e6:,.0f} MB of weights",
            ]
            self._unshown = as_markdown(opinion)
            await self._flush(wrote, refuse)


def as_markdown(opinion: Opinion) -> str:
    """Return an opinion as a message: the most likely class, a table of all, and the words that weighed most."""
    best, chance = opinion.chances[0]
    rows = [f"| {plain(name)} | {chance:.1%} |" for name, chance in opinion.chances[:MOST_CLASSES]]
    if more := opinion.chances[MOST_CLASSES:]:
        rows.append(f"| {len(more):,} more | {sum(chance for _, chance in more):.1%} |")
    parts = [f"**{plain(best)}**, {chance:.0%}", "\n".join(["| class | probability |", "| :-- | --: |", *rows])]
    if opinion.words:
        parts.append(f"Words that weighed most: {', '.join(map(plain, opinion.words))}")
    return "\n\n".join(parts)
