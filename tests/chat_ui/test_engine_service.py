"""The engine in its thread, and its events in the event loops of those who ask."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chat_ui.engine import BusyError, Finished, Models, Options, Piece, Request, Service, UnknownModelError
from finetuning.instruction.conversation import Conversation
from gpt_model import Sampling, TextGenerator
from tests.chat_ui.small_runs import loaded, tokenizer, write_run
from utils.files import InputError

GREEDY = Sampling(temperature=0, max_new_tokens=20, stop_tokens=())
ENDLESS = Sampling(temperature=0, max_new_tokens=10**6, stop_tokens=())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "base")
    write_run(folder / "tuned", template="chatml", context_length=128)
    return folder


@pytest.fixture
def service(runs: Path) -> Iterator[Service]:
    with Service(Models(runs, gpt2=False), Options(rows=3, prefix_mib=1)) as made:
        yield made
    assert not made.status().alive


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_several_loops_one_after_the_other(service: Service) -> None:
    small = loaded(precise=False)

    async def ask(*prompts: str) -> list[str]:
        answers = [service.submit(Request("base", prompt, GREEDY)) for prompt in prompts]
        return [result.text for answer in answers for result in await answer.results()]

    writer = TextGenerator(small.model, tokenizer())
    for prompts in (["it was"], ["a truth", "acknowledged", "it", "was it", "it was"]):
        wanted = [writer.generate(prompt, temperature=0, max_new_tokens=20, stop_tokens=()) for prompt in prompts]
        assert asyncio.run(ask(*prompts)) == wanted
    assert service.status().counters["finished_length"] == 6


def test_who_stops_waiting_stops_the_answer(service: Service) -> None:
    async def leave() -> None:
        waiting = asyncio.create_task(service.submit(Request("base", "it was", ENDLESS)).results())
        while not service.status().running:
            await asyncio.sleep(0.005)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())
    until(lambda: service.status().counters.get("finished_cancelled") == 1)


def test_a_loop_that_is_gone_is_not_written_for(service: Service) -> None:
    async def forget() -> None:
        service.submit(Request("base", "it was", ENDLESS))

    asyncio.run(forget())
    until(lambda: service.status().counters.get("finished_cancelled") == 1)


def test_draining_finishes_what_is_running_and_takes_no_more(service: Service) -> None:
    async def drain() -> None:
        answer = service.submit(Request("base", "it was", GREEDY))
        draining = asyncio.create_task(service.drain(60))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="shutting down"):
            service.submit(Request("base", "it was", GREEDY))
        ((result,), _) = await asyncio.gather(answer.results(), draining)
        assert result.finished.reason == "length"

    asyncio.run(drain())


def test_draining_has_an_end(service: Service) -> None:
    async def drain() -> None:
        answer = service.submit(Request("base", "it was", ENDLESS, n=2))
        event = await anext(answer)
        while not isinstance(event, Piece):
            event = await anext(answer)
        await service.drain(0)
        events = [event async for event in answer]
        assert [event.reason for event in events if isinstance(event, Finished)] == ["cancelled", "cancelled"]

    asyncio.run(drain())


def test_what_cannot_be_right_is_said_at_once(service: Service) -> None:
    async def ask() -> None:
        with pytest.raises(UnknownModelError, match="there is no model 'x'"):
            service.submit(Request("x", "it was"))
        with pytest.raises(InputError, match="n must be at most 3"):
            service.submit(Request("base", "it was", n=4))
        with pytest.raises(InputError, match="logprobs must be at least 0 and at most 20, got 21"):
            Request("base", "it was", logprobs=21)
        answered = Conversation.ask("it").then("assistant", "was")
        with pytest.raises(InputError, match="the last turn must be the user's"):
            service.submit(Request("tuned", answered))
        assert (await service.submit(Request("base", answered, GREEDY)).results())[0].text

    asyncio.run(ask())
    with pytest.raises(UnknownModelError):
        Service(service.models, fallback="x")
