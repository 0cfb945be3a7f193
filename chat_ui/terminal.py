"""Talk to a model in the terminal.

    python -m chat_ui.terminal --run runs/demo
    python -m chat_ui.terminal --pretrained gpt2

A tuned model answers; a base model continues what is there. Ctrl-C stops an answer, Ctrl-D ends.
"""

import asyncio
import logging
from dataclasses import dataclass, fields
from pathlib import Path

from chat_ui.engine import Finished, ModelInfo, Models, Options, Piece, Request, Service, Started
from chat_ui.engine.models import GPT2
from chat_ui.texts import clean
from finetuning.instruction.conversation import Conversation
from gpt_model.run_directory import read_config
from gpt_model.sampling import Sampling, Temperature
from utils.command_line import show
from utils.files import InputError
from utils.ranges import Count

log = logging.getLogger(__name__)

COMMANDS = "/new begins anew, /again asks for another answer, /quit ends"


@dataclass(frozen=True)
class Chat:
    """Whom to talk to."""

    run: Path | None = None
    """The run directory of a model you trained."""
    pretrained: str | None = None
    """Instead of a run: gpt2, gpt2-medium, gpt2-large or gpt2-xl, downloaded if need be."""
    system: str | None = None
    """What a tuned model is told before the first question."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""


@dataclass(frozen=True)
class Config(Sampling, Chat):
    """Talk to a model, which remembers the conversation as far as its context goes."""

    temperature: Temperature = 0.8
    """0 always takes the likeliest token; 1 draws as the model says; more gets wild."""
    top_k: Count | None = 50
    """Draw among this many of the likeliest tokens; None for all."""


def main(config: Config) -> None:
    """Read a line, answer it, again and again.

    Raises:
        InputError: if no model is named, or it cannot be read.
    """
    models, info = _find(config)
    models.load(info.name)
    sampling = Sampling(**{field.name: getattr(config, field.name) for field in fields(Sampling)})
    log.info("%s. %s.", info.label, COMMANDS)
    with Service(models, Options(rows=1)) as service:
        conversation: Conversation | None = None
        while (line := _read()) is not None:
            if line == "/quit":
                return
            if line == "/new":
                conversation = None
                continue
            if line == "/again" and conversation is None:
                log.info("there is nothing to answer yet")
                continue
            if line == "/again":
                conversation = conversation.question
            elif line.startswith("/"):
                log.info("%s", COMMANDS)
                continue
            elif conversation is None:
                conversation = Conversation.ask(line, system=config.system)
            else:
                conversation = conversation.then("user", line)
            conversation = conversation.then("assistant", _answer(service, Request(info.name, conversation, sampling)))


def _find(config: Config) -> tuple[Models, ModelInfo]:
    if (config.run is None) == (config.pretrained is None):
        raise InputError("say which model: either --run with a run directory, or --pretrained with a name")
    if config.pretrained is not None:
        if config.pretrained not in GPT2:
            raise InputError(f"pretrained must be one of {', '.join(GPT2)}, got {config.pretrained!r}")
        models = Models(Path("runs"), device=config.device)
        return models, models.info(config.pretrained)
    read_config(config.run)
    found = Models(config.run, gpt2=False, device=config.device)
    if not found.available():
        raise InputError(f"{config.run} has no weights that can be used: is its training finished?")
    return found, found.available()[0]


def _read() -> str | None:
    """Return the next line that says something; None at the end."""
    while True:
        try:
            line = clean(input("> ")).strip()  # of bytes that are no UTF-8, too
        except EOFError:
            show("\n")
            return None
        if line:
            return line


def _answer(service: Service, request: Request) -> str:
    """Print an answer as it comes, and return it, or what there is of it when it is stopped."""
    pieces: list[str] = []
    try:
        asyncio.run(_print(service, request, pieces))
    except KeyboardInterrupt:
        show("\n")
        log.info("stopped")
    return "".join(pieces)


async def _print(service: Service, request: Request, pieces: list[str]) -> None:
    answer = service.submit(request)
    try:
        async for event in answer:
            if isinstance(event, Started) and event.forgotten_turns:
                log.info("the oldest %s turns no longer fit into the context", event.forgotten_turns)
            elif isinstance(event, Piece):
                pieces.append(event.text)
                show(event.text)
            elif isinstance(event, Finished):
                show("\n")
                if event.error:
                    log.warning("%s", event.error)
    finally:
        answer.cancel()


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
