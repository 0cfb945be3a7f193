"""The engine's speed: tokens per second by the number of texts written at once, the first token, and the next turn.

Everything goes through `Service`, with its thread, as the app and the API use it; a coroutine that sleeps beside it
measures how long the event loop keeps others waiting. What is compared takes turns, round after round.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from chat_ui.engine import Loaded, ModelInfo, Models, Options, Request, Service, Token
from chat_ui.engine.batch import Batch, Text
from gpt_model import GPT, FastDecoder, GPTConfig, Sampling
from utils.measuring import Row, spread
from working_with_text_data.minbpe import BasicTokenizer

PROMPT_TOKENS = 24
LATENESS_SECONDS = 0.005  # between two looks at the event loop
IDLE_SECONDS = 0.5  # in each round, to see how late the event loop is by itself
WORDS_OF_A_TURN = 16  # tokens


@dataclass(frozen=True)
class Taken:
    """What writing some texts took."""

    seconds: float
    processor: float
    """Seconds of the processor, whatever else the machine did meanwhile."""
    first_tokens: list[float]
    """Seconds to the first token of each text."""
    late: list[float]
    """Seconds by which the event loop was late, again and again."""


def random_model(name: str, config: GPTConfig, device: torch.device) -> Loaded:
    """Return an untrained model, which is as fast as a trained one; its tokenizer knows bytes only."""
    torch.manual_seed(0)
    model = GPT(config).eval().to(device)
    tokenizer = BasicTokenizer()
    tokenizer.train("", config.vocab_size) if config.vocab_size == 256 else None
    info = ModelInfo(name, "base", datetime.now(), None, config, None)
    return Loaded(info, FastDecoder(model, "float32"), tokenizer, None, ())


def ids_of(seed: int, length: int, vocab_size: int) -> list[int]:
    """Return a prompt that no other one begins like."""
    return random.Random(seed).choices(range(vocab_size), k=length)


async def lateness(late: list[float]) -> None:
    """Note for ever how many seconds too late the event loop continues a coroutine that sleeps."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(LATENESS_SECONDS)
        late.append(time.perf_counter() - before - LATENESS_SECONDS)


async def write_at_once(service: Service, model: str, n: int, n_new: int, seed: int) -> Taken:
    """Let n texts be written at once; return what it took."""
    vocab_size = service.models.info(model).config.vocab_size
    sampling = Sampling(temperature=0.8, top_k=50, max_new_tokens=n_new, stop_tokens=())
    late: list[float] = []
    watching = asyncio.create_task(lateness(late))
    before, before_processor = time.perf_counter(), time.process_time()
    answers = [
        service.submit(Request(model, ids_of(1000 * seed + i, PROMPT_TOKENS + i % 8, vocab_size), sampling))
        for i in range(n)
    ]
    results = [await answer.results() for answer in answers]
    seconds, processor = time.perf_counter() - before, time.process_time() - before_processor
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    for (result,) in results:
        assert result.finished.usage.completion_tokens == n_new, result.finished
    return Taken(seconds, processor, [result.finished.timings.first_token for (result,) in results], late)


async def curve(service: Service, model: str, numbers: Sequence[int], n_new: int, rounds: int) -> list[Row]:
    """Return a row for each number of texts written at once, 0 among them: how late the event loop is by itself."""
    for n in (1, max(numbers)):
        await write_at_once(service, model, n, 2, seed=0)
    taken: dict[int, list[Taken]] = {n: [] for n in numbers}
    late: list[float] = []
    for round_ in range(rounds):
        for n in numbers:
            taken[n].append(await write_at_once(service, model, n, n_new, seed=1 + round_))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(lateness(late), IDLE_SECONDS)
    rows = [{"model": model, "at_once": 0, "loop_late_p99_ms": 1000 * percentile(late, 0.99)}]
    for n in numbers:
        pairs = list(zip(taken[numbers[0]], taken[n], strict=True))
        rows.append(
            {
                "model": model,
                "at_once": n,
                "tokens_per_second": spread(n * n_new / each.seconds for each in taken[n]),
                "times_one": spread(n * alone.seconds / together.seconds for alone, together in pairs),
                "times_one_by_processor": spread(n * one.processor / each.processor for one, each in pairs),
                "first_token_ms": spread(1000 * x for each in taken[n] for x in each.first_tokens),
                "loop_late_p99_ms": 1000 * percentile([x for each in taken[n] for x in each.late], 0.99),
            }
        )
    return rows


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def next_turn(service: Service, model: str, n_known: int, rounds: int) -> Row:
    """Return how soon the first token of a second turn comes, against one that reads all `n_known` tokens anew."""
    vocab_size = service.models.info(model).config.vocab_size
    sampling = Sampling(temperature=0, max_new_tokens=2, stop_tokens=())

    async def first_token(ids: list[int]) -> tuple[float, int]:
        (result,) = await service.submit(Request(model, ids, sampling)).results()
        return result.finished.timings.first_token, result.finished.usage.reused_tokens

    again, anew = [], []
    for round_ in range(rounds + 1):
        ids = ids_of(2 * round_, n_known, vocab_size)
        seconds, reused = await first_token(ids)
        assert reused == 0
        anew.append(seconds)
        seconds, reused = await first_token(ids + ids_of(2 * round_ + 1, WORDS_OF_A_TURN, vocab_size))
        assert reused >= n_known
        again.append(seconds)
    shares = [x / y for x, y in zip(again[1:], anew[1:], strict=True)]  # the first round warms up
    return {
        "model": model,
        "known_tokens": n_known,
        "new_tokens": WORDS_OF_A_TURN,
        "anew_ms": spread(1000 * x for x in anew[1:]),
        "again_ms": spread(1000 * x for x in again[1:]),
        "share": spread(shares),
        "median_share": statistics.median(shares),
    }


def measure_equality(loaded: Loaded, n_texts: int, n_new: int) -> Row:
    """Return how many texts have the same tokens alone and among others, and how far their numbers are apart.

    Prompts of different length come one after the other while others write, each with as many as there are rows.
    """
    greedy = Sampling(temperature=0, max_new_tokens=n_new, stop_tokens=())
    prompts = [ids_of(i, 2 + 5 * i % 60, loaded.model.config.vocab_size) for i in range(n_texts)]

    def written(n_rows: int) -> list[list[Token]]:
        texts = [Text(list(ids), greedy, logprobs=0) for ids in prompts]
        tokens: dict[Text, list[Token]] = {text: [] for text in texts}
        batch = Batch(loaded, n_rows)
        waiting = deque(texts)
        while waiting or not batch.is_idle:
            if waiting and batch.n_free:
                batch.add(waiting.popleft())
            for event in batch.step():
                if event.token is not None:
                    tokens[event.text].append(event.token)
        return list(tokens.values())

    pairs = list(zip(written(1), written(16), strict=True))
    equal = [[x.id for x in alone] == [x.id for x in among] for alone, among in pairs]
    differences = [
        abs(x.logprob - y.logprob) for alone, among in pairs for x, y in zip(alone, among, strict=True) if x.id == y.id
    ]
    return {
        "model": loaded.info.name,
        "texts": n_texts,
        "tokens": n_texts * n_new,
        "equal_texts": sum(equal),
        "largest_difference": max(differences),
    }


def measure_curve(models: Models, name: str, numbers: Sequence[int], n_new: int, rounds: int) -> list[Row]:
    """Return the rows of one model's curve."""
    options = Options(rows=max(numbers), queue=4 * max(numbers), prefix_mib=0, responses=0)
    with Service(models, options) as service:
        return asyncio.run(curve(service, name, numbers, n_new, rounds))


def measure_next_turn(models: Models, name: str, n_known: int, rounds: int) -> Row:
    """Return the row of one model's next turn."""
    with Service(models, Options(rows=2, prefix_mib=1024, responses=0)) as service:
        return asyncio.run(next_turn(service, name, n_known, rounds))


def models_of(run: Path | None, shapes: Sequence[tuple[str, GPTConfig]], device: str) -> Models:
    """Return models to measure: a run directory, and untrained ones of some shapes."""
    models = Models(run or Path("runs"), gpt2=False, memory=2**40, device=device)
    for name, config in shapes:
        models.add(random_model(name, config, models.device))
    return models
