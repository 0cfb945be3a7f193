"""Requests from the queue to their end, round by round: no thread, no event loop, and a clock that is set by hand."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_ui.engine import (
    BusyError,
    Event,
    Finished,
    Loading,
    Models,
    Options,
    Piece,
    Queued,
    Request,
    Started,
    UnknownModelError,
)
from chat_ui.engine.batch import Batch
from chat_ui.engine.breaker import FAILURES, SECONDS
from chat_ui.engine.lane import Job
from chat_ui.engine.scheduler import Scheduler
from finetuning.instruction.conversation import Conversation
from gpt_model import Sampling
from gpt_model.costs import cache_bytes
from tests.chat_ui.small_runs import write_run

GREEDY = Sampling(temperature=0, max_new_tokens=8, stop_tokens=())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "base")
    write_run(folder / "other", seed=1)
    write_run(folder / "tuned", seed=2, template="chatml", context_length=128)
    return folder


class Engine(Scheduler):
    """A scheduler whose events are kept by job."""

    def __init__(self, runs: Path, fallback: str | None = None, memory: int | None = None, **options: Any) -> None:
        self.now = 0.0
        self.told: dict[Job, list[Event]] = {}
        models = Models(runs, gpt2=False, memory=memory)
        settings = {"rows": 2, "prefix_mib": 1, **options}
        super().__init__(models, Options(**settings), self.keep, fallback=fallback, clock=lambda: self.now)

    def keep(self, told: list[tuple[Job, Event]]) -> None:
        for job, event in told:
            self.told.setdefault(job, []).append(event)

    def ask(self, prompt: Any = "it was", model: str = "base", sampling: Sampling = GREEDY, **request: Any) -> Job:
        return self.submit(Request(model, prompt, sampling, **request))

    def until(self, condition: Callable[[], bool]) -> None:
        """Do rounds until something is so; models are loaded in between."""
        for _ in range(2000):
            if condition():
                return
            if not self.round():
                for load in list(self._loads.values()):
                    load.future.exception(timeout=30)
        raise AssertionError("it never came to that")

    def finish(self, *jobs: Job) -> list[Finished]:
        self.until(lambda: all(not job.n_unfinished for job in jobs))
        return [self.of(job, Finished)[-1] for job in jobs]

    def of(self, job: Job, kind: type) -> list[Any]:
        return [event for event in self.told.get(job, []) if isinstance(event, kind)]

    def text(self, job: Job, choice: int = 0) -> str:
        return "".join(piece.text for piece in self.of(job, Piece) if piece.choice == choice)


@pytest.fixture
def engine(runs: Path) -> Iterator[Engine]:
    made = Engine(runs)
    yield made
    made.stop()
    made.run()


def test_events_come_in_order(engine: Engine) -> None:
    job = engine.ask()
    (finished,) = engine.finish(job)
    kinds = [type(event) for event in engine.told[job]]
    kinds = [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind is not before]
    assert kinds == [Queued, Loading, Started, Piece, Finished] or kinds == [Queued, Started, Piece, Finished]
    assert finished.reason == "length"
    assert finished.usage.completion_tokens == 8
    assert sum(len(piece.tokens) for piece in engine.of(job, Piece)) == 8
    assert engine.of(job, Started)[0].prompt_tokens == finished.usage.prompt_tokens > 0


class TestQueue:
    def test_positions_count_down(self, engine: Engine) -> None:
        engine.finish(engine.ask())
        jobs = [engine.ask(f"it was {i}") for i in range(5)]
        engine.round()
        assert [[event.position for event in engine.of(job, Queued)] for job in jobs] == [[], [], [1], [2], [3]]
        engine.finish(*jobs)
        assert [event.position for event in engine.of(jobs[4], Queued)] == [3, 1]

    def test_a_full_queue_refuses(self, runs: Path) -> None:
        engine = Engine(runs, queue=3)
        jobs = [engine.ask() for _ in range(3)]
        with pytest.raises(BusyError, match="too many people are waiting, 3"):
            engine.ask()
        assert "queue full" in engine.degraded()
        engine.finish(*jobs)
        assert engine.counters["refused"] == 1
        engine.finish(engine.ask())
        assert engine.degraded() == ()

    def test_while_many_wait_answers_are_shorter(self, runs: Path) -> None:
        engine = Engine(runs, queue=4, busy_max_tokens=3)
        jobs = [engine.ask(f"a {i}") for i in range(4)]
        finished = engine.finish(*jobs)
        assert [f.usage.completion_tokens for f in finished] == [3, 3, 8, 8]
        assert engine.of(jobs[0], Started)[0].degraded == ("busy",)
        assert engine.of(jobs[3], Started)[0].degraded == ()

    def test_models_write_side_by_side(self, engine: Engine) -> None:
        jobs = [engine.ask(), engine.ask(model="other")]
        engine.until(lambda: all(engine.of(job, Piece) for job in jobs))
        assert not any(engine.of(job, Finished) for job in jobs)
        engine.finish(*jobs)
        assert engine.text(jobs[0]) != engine.text(jobs[1])


class TestEnds:
    def test_cancelled_while_it_writes_and_while_it_waits(self, engine: Engine) -> None:
        long = replace(GREEDY, max_new_tokens=10**6)
        jobs = [engine.ask(sampling=long) for _ in range(3)]
        engine.until(lambda: len(engine.of(jobs[0], Piece)) > 2)
        engine.cancel(jobs[0])
        engine.cancel(jobs[2])
        first, last = engine.finish(jobs[0], jobs[2])
        assert first.reason == last.reason == "cancelled"
        assert first.usage.completion_tokens == len(engine.of(jobs[0], Piece))
        assert not engine.of(jobs[2], Started)
        engine.cancel(jobs[1])
        engine.finish(jobs[1])
        assert engine.n_running == engine.n_waiting == 0

    def test_a_text_runs_until_it_is_counted(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Status is read from other threads: between running and finished a text must never be neither."""
        seen = []
        remove = Batch.remove

        def look(*args: Any) -> None:
            seen.append((engine.n_running, engine.counters["finished_cancelled"]))
            remove(*args)

        job = engine.ask()
        engine.until(lambda: bool(engine.of(job, Piece)))
        monkeypatch.setattr(Batch, "remove", look)
        engine.cancel(job)
        engine.finish(job)
        assert seen == [(1, 0)]
        assert (engine.n_running, engine.counters["finished_cancelled"]) == (0, 1)

    def test_time_limits(self, engine: Engine) -> None:
        long = replace(GREEDY, max_new_tokens=10**6)
        jobs = [engine.ask(sampling=long, time_limit=limit) for limit in (5, None)]
        engine.until(lambda: all(engine.of(job, Piece) for job in jobs))
        for job, now in zip(jobs, (5.1, 300.1), strict=True):
            engine.now = now - 0.2
            engine.round()
            assert not engine.of(job, Finished)
            engine.now = now
            (finished,) = engine.finish(job)
            assert finished.reason == "length"
            assert finished.timings.total == now

    def test_who_waits_too_long_is_told(self, engine: Engine) -> None:
        long = replace(GREEDY, max_new_tokens=10**6)
        jobs = [engine.ask(sampling=long, time_limit=1000) for _ in range(3)]
        engine.until(lambda: bool(engine.of(jobs[1], Started)))
        engine.now = 301
        (finished,) = engine.finish(jobs[2])
        assert finished.reason == "error"
        assert finished.error == "the model had no time for this within 300 seconds"
        for job in jobs:
            engine.cancel(job)
        engine.finish(*jobs)

    def test_what_cannot_be_answered_says_why(self, engine: Engine) -> None:
        asked = {
            "the prompt's tokens must be ids below 263, the vocabulary's size, got 999": engine.ask([1, 999]),
            "stop_tokens must be ids below 263": engine.ask(sampling=replace(GREEDY, stop_tokens=(5000,))),
            "are more than the context of 64": engine.ask([1] * 60, sampling=replace(GREEDY, overflow="error")),
            "n must be at most 2 for base, got 3": engine.ask(n=3),
        }
        for error, job in asked.items():
            (finished,) = engine.finish(job)[-1:]
            assert finished.reason == "error"
            assert error in finished.error
        assert engine.degraded() == (), "the model is not to blame"

    def test_a_prompt_that_breaks_the_tokenizer_ends_alone(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*given: object) -> None:
            raise RecursionError("too deep")

        with monkeypatch.context() as patch:
            patch.setattr("chat_ui.engine.lane.encode", broken)
            (finished,) = engine.finish(engine.ask())
        assert finished.error == "too deep"
        assert engine.finish(engine.ask())[0].reason == "length"


class TestRepeated:
    def test_an_equal_request_is_not_computed_again(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        seeded = Sampling(temperature=1, seed=4, max_new_tokens=6, logit_bias={3: -1.0})
        first = engine.ask(sampling=seeded, logprobs=2)
        engine.finish(first)
        monkeypatch.setattr(Batch, "step", None)
        again = engine.ask(sampling=seeded, logprobs=2)
        (finished,) = engine.finish(again)
        assert finished.cached
        assert finished.usage.completion_tokens == 6
        assert engine.text(again) == engine.text(first)
        tokens = [token for piece in engine.of(first, Piece) for token in piece.tokens]
        assert list(engine.of(again, Piece)[0].tokens) == tokens

    @pytest.mark.parametrize("change", [{"seed": 5}, {"max_new_tokens": 7}, {"logit_bias": {}}, {"stop": ("x",)}])
    def test_another_request_is(self, engine: Engine, change: dict[str, Any]) -> None:
        seeded = Sampling(temperature=1, seed=4, max_new_tokens=6, logit_bias={3: -1.0})
        engine.finish(engine.ask(sampling=seeded))
        assert not engine.finish(engine.ask(sampling=replace(seeded, **change)))[0].cached

    def test_chance_is_not_repeated(self, engine: Engine) -> None:
        chance = Sampling(temperature=1, max_new_tokens=3)
        assert not any(engine.finish(engine.ask(sampling=chance))[0].cached for _ in range(2))

    def test_choices_draw_with_seeds_of_their_own(self, engine: Engine) -> None:
        sampling = Sampling(temperature=2, seed=7, max_new_tokens=10, stop_tokens=())
        job = engine.ask(sampling=sampling, n=2)
        engine.finish(job)
        second = engine.ask(sampling=replace(sampling, seed=8))
        assert engine.finish(second)[0].cached
        assert engine.text(second) == engine.text(job, 1) != engine.text(job, 0)


class TestConversations:
    def test_a_tuned_model_reads_its_template(self, engine: Engine) -> None:
        conversation = Conversation.ask("it was", system="acknowledged")
        job = engine.ask(conversation, "tuned", replace(GREEDY, stop_tokens=None))
        engine.finish(job)
        loaded = engine.lanes["tuned"].batch.loaded
        assert loaded.template.name == "chatml"
        assert engine.of(job, Started)[0].prompt_tokens == len(loaded.template.prompt(conversation, loaded.tokenizer))

    def test_the_oldest_turns_are_forgotten(self, engine: Engine) -> None:
        conversation = Conversation.ask("a truth " * 5)
        for i in range(4):
            conversation = conversation.then("assistant", f"it was {i}").then("user", "universally " * 3)
        job = engine.ask(conversation, "tuned")
        engine.finish(job)
        started = engine.of(job, Started)[0]
        assert started.forgotten_turns in (2, 4, 6)
        assert started.prompt_tokens <= 128 - 8

    def test_a_base_model_continues_the_turns_as_one_text(self, engine: Engine) -> None:
        turns = Conversation.ask("it was").then("assistant", " a truth").then("user", "acknowledged")
        jobs = [engine.ask(turns), engine.ask("it was a truth\nacknowledged")]
        engine.finish(*jobs)
        assert engine.text(jobs[0]) == engine.text(jobs[1])

    def test_a_huge_prompt_is_cut_before_it_is_encoded(self, engine: Engine) -> None:
        engine.finish(engine.ask())
        tokenizer = engine.lanes["base"].batch.loaded.tokenizer
        text = "universally " * 100_000
        jobs = [engine.ask(text), engine.ask(tokenizer.encode(text[-3000:]))]
        engine.finish(*jobs)
        assert engine.text(jobs[0]) == engine.text(jobs[1])


class TestFaults:
    def test_a_failing_step_ends_the_texts_and_not_the_engine(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = engine.ask(model="other", sampling=replace(GREEDY, max_new_tokens=40))
        job = engine.ask()
        engine.until(lambda: bool(engine.of(job, Piece)))

        def broken() -> None:
            raise RuntimeError("out of luck")

        monkeypatch.setattr(engine.lanes["base"].batch, "step", broken)
        (finished,) = engine.finish(job)
        assert (finished.reason, finished.error) == ("error", "out of luck")
        assert engine.finish(other)[0].reason == "length"
        again = engine.ask()
        assert engine.finish(again)[0].reason == "length"

    def test_a_broken_model_rests_and_another_one_answers(self, runs: Path) -> None:
        weights = runs / "frail" / "model.safetensors"
        write_run(runs / "frail", seed=3)
        good = weights.read_bytes()
        weights.write_bytes(good[:100])
        try:
            engine = Engine(runs, fallback="other")
            for _ in range(FAILURES):
                job = engine.ask(model="frail")
                assert engine.finish(job)[0].reason == "length"
                started = engine.of(job, Started)[0]
                assert (started.model, started.degraded) == ("other", ("fallback",))
            assert engine.degraded() == ("broken frail",)
            weights.write_bytes(good)
            job = engine.ask(model="frail")
            engine.finish(job)
            assert engine.of(job, Started)[0].model == "other", "it is not even tried"
            engine.now += SECONDS
            job = engine.ask(model="frail")
            engine.finish(job)
            assert engine.of(job, Started)[0].model == "frail"
            assert engine.degraded() == ()
        finally:
            weights.unlink()

    def test_without_a_fallback_an_error_names_the_file(self, runs: Path) -> None:
        weights = runs / "frail" / "model.safetensors"
        write_run(runs / "frail", seed=3)
        weights.write_bytes(b"{}")
        try:
            engine = Engine(runs)
            (finished,) = engine.finish(engine.ask(model="frail"))
            assert finished.reason == "error"
            assert "model.safetensors is damaged" in finished.error
        finally:
            weights.unlink()

    def test_weights_that_were_trained_on_answer_from_then_on(self, runs: Path) -> None:
        engine = Engine(runs)
        write_run(runs / "growing", seed=4)
        first = engine.ask(model="growing", sampling=replace(GREEDY, max_new_tokens=30))
        engine.until(lambda: bool(engine.of(first, Piece)))
        write_run(runs / "growing", seed=5)
        engine.models._looked = -10.0
        second = engine.ask(model="growing")
        engine.finish(first, second)
        assert engine.counters["model_loads"] == 2
        write_run(runs / "same", seed=5)
        engine.models._looked = -10.0
        third = engine.ask(model="same")
        engine.finish(third)
        assert engine.text(second) == engine.text(third)

    def test_files_that_are_deleted_while_it_answers(self, runs: Path) -> None:
        engine = Engine(runs)
        folder = write_run(runs / "gone", seed=6)
        engine.finish(engine.ask(model="gone"))
        for file in folder.iterdir():
            file.unlink()
        engine.models._looked = -10.0
        assert engine.finish(engine.ask("a truth", model="gone"))[0].reason == "length", "it is still in memory"
        engine.models.unload("gone")
        (finished,) = engine.finish(engine.ask("it", model="gone"))
        assert finished.error.startswith("there is no model 'gone'")


class TestMemory:
    def test_the_least_recently_used_leaves(self, runs: Path) -> None:
        info = Models(runs, gpt2=False).info("base")
        # two rows and the desk; what is kept of earlier texts is a part of the whole, and so is what is left over
        needed = info.nbytes + cache_bytes(info.config, 3, 64, torch.float32)
        engine = Engine(runs, memory=int(3.1 * needed))
        for name in ("base", "other", "base", "tuned"):
            engine.finish(engine.ask(name, model=name))
        assert engine.models.loaded() == ["base", "tuned"]
        assert engine.lanes["other"].batch is None

    def test_one_in_use_stays_and_the_next_one_waits(self, runs: Path) -> None:
        engine = Engine(runs, memory=10)
        long = engine.ask(sampling=replace(GREEDY, max_new_tokens=100))
        engine.until(lambda: bool(engine.of(long, Piece)))
        other = engine.ask(model="other")
        assert engine.finish(other, long)[0].reason == "length"
        assert engine.models.loaded() == ["other"]

    def test_unknown_names(self, engine: Engine) -> None:
        with pytest.raises(UnknownModelError, match=r"no model '\.\./base'; there are: tuned, .*base"):
            engine.models.info("../base")
