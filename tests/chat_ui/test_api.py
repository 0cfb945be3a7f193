"""The API, as the real `openai` client sees it over loopback."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from openai import OpenAI

from chat_ui import api, limits, load, server
from chat_ui.engine import Models, Options, Service
from chat_ui.engine.batch import Batch
from gpt_model import TextGenerator
from tests.chat_ui.small_runs import loaded, tokenizer, write_classifier, write_run
from utils.files import InputError

HALF = rb'{"model": "base", "prompt": "\ud83d", "messages": [{"role": "user", "content": "\ud83d"}]}'
NEVER = {str(tokenizer().special_tokens["<|endoftext|>"]): -100}  # as a bias: the text does not end


class Served:
    """An API on a port of this machine, with its engine."""

    def __init__(self, runs: Path) -> None:
        self.service = Service(Models(runs, gpt2=False), Options(rows=4, queue=4, prefix_mib=1))
        self.refused: list[str] = []
        self.stranger = False
        app = FastAPI()
        app.include_router(api.router(self.service, authorize=self.authorize, refuse=self.refuse, longest=50_000))
        settings = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
        self.server = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self.client = OpenAI(base_url=self.url, api_key="none", max_retries=0)

    async def authorize(self, request: Request) -> None:
        if self.stranger:
            raise HTTPException(401, "who are you?")

    def refuse(self, text: str) -> str | None:
        return "not this" if any(word in text for word in self.refused) else None

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/{path}", json=body)

    def until_cancelled(self, times: int) -> None:
        """Wait until so many texts were cancelled since the start, and nothing is left to do."""
        end = time.monotonic() + 60
        while (found := self._cancelled_running_waiting()) != (times, 0, 0):
            assert time.monotonic() < end, found
            time.sleep(0.01)

    def _cancelled_running_waiting(self) -> tuple[int, int, int]:
        status = self.service.status()
        return status.counters.get("finished_cancelled", 0), status.running, status.waiting

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join()
        self.service.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Served]:
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs / "base")
    write_run(runs / "tuned", seed=2, template="chatml", context_length=128)
    write_classifier(runs / "mood")
    made = Served(runs)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_special(served: Served) -> Iterator[None]:
    yield
    served.refused = []
    served.stranger = False


def greedy(prompt: str, n: int) -> str:
    small = loaded(precise=False)
    return TextGenerator(small.model, tokenizer()).generate(prompt, temperature=0, max_new_tokens=n)


class TestModels:
    def test_tuned_ones_come_first(self, served: Served) -> None:
        models = served.client.models.list().data
        assert [model.id for model in models] == ["tuned", "base"]
        assert served.client.models.retrieve("base").created == models[1].created > 1e9

    def test_an_unknown_one(self, served: Served) -> None:
        with pytest.raises(openai.NotFoundError, match="there is no model 'x'; there are: tuned, base") as info:
            served.client.models.retrieve("x")
        assert info.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            served.client.completions.create(model="x", prompt="a")

    def test_a_classifier_is_none_of_them(self, served: Served) -> None:
        with pytest.raises(openai.NotFoundError, match="mood writes no text, it is a classifier"):
            served.client.models.retrieve("mood")
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="mood writes no text, it is a classifier") as info:
                served.client.completions.create(model="mood", prompt="a", stream=stream)
            assert info.value.type == "invalid_request_error"


class TestCompletions:
    def test_is_what_the_generator_writes(self, served: Served) -> None:
        answer = served.client.completions.create(model="base", prompt="it was", temperature=0, max_tokens=20)
        assert answer.choices[0].text == greedy("it was", 20)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 20
        assert answer.usage.prompt_tokens == len(tokenizer().encode("it was"))
        default = served.client.completions.create(model="base", prompt="it was", temperature=0)
        assert default.usage.completion_tokens == 16

    def test_a_stream_has_the_same_text_and_one_reason(self, served: Served) -> None:
        options: dict[str, Any] = {"model": "base", "prompt": "it was", "temperature": 0.9, "seed": 3, "n": 2}
        whole = served.client.completions.create(**options, max_tokens=20)
        stream = list(
            served.client.completions.create(
                **options, max_tokens=20, stream=True, stream_options={"include_usage": True}
            )
        )
        *chunks, last = stream
        texts = ["", ""]
        for chunk in chunks:
            texts[chunk.choices[0].index] += chunk.choices[0].text
            assert chunk.usage is None
        assert texts == [choice.text for choice in whole.choices]
        for index in (0, 1):
            reasons = [c.choices[0].finish_reason for c in chunks if c.choices[0].index == index]
            assert reasons == [None] * (len(reasons) - 1) + ["length"]
        assert last.choices == []
        assert last.usage.completion_tokens == whole.usage.completion_tokens == 40
        assert last.usage.prompt_tokens == whole.usage.prompt_tokens
        assert len({chunk.id for chunk in stream}) == 1

    def test_without_include_usage_nothing_follows_the_reason(self, served: Served) -> None:
        stream = list(served.client.completions.create(model="base", prompt="it", max_tokens=3, stream=True))
        assert stream[-1].choices[0].finish_reason == "length"
        assert "usage" not in stream[0].model_fields_set

    def test_stop_strings_across_chunks(self, served: Served) -> None:
        text = greedy("it was", 40)
        stop = text[7:12]
        stream = served.client.completions.create(
            model="base", prompt="it was", temperature=0, max_tokens=40, stop=[stop, "nowhere"], stream=True
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"

    def test_logprobs(self, served: Served) -> None:
        choice = served.client.completions.create(
            model="base", prompt="it was", temperature=0, max_tokens=6, logprobs=3
        ).choices[0]
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 6
        for name, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
            assert logprob == max(top.values()) == top[name] <= 0
            assert len(top) == 3
        assert logprobs.text_offset == sorted(logprobs.text_offset)

    def test_prompts_as_lists_and_ids(self, served: Served) -> None:
        prompts = ["it was", "a truth"]
        both = served.client.completions.create(model="base", prompt=prompts, temperature=0, max_tokens=9, n=2)
        assert [choice.text for choice in both.choices] == [greedy(p, 9) for p in prompts for _ in range(2)]
        assert both.usage.prompt_tokens == sum(len(tokenizer().encode(prompt)) for prompt in prompts)
        ids = tokenizer().encode("it was")
        for prompt in (ids, [ids]):
            one = served.client.completions.create(model="base", prompt=prompt, temperature=0, max_tokens=9)
            assert one.choices[0].text == greedy("it was", 9)

    def test_settings_that_openai_does_not_have(self, served: Served) -> None:
        answer = served.client.completions.create(
            model="base", prompt="it was", max_tokens=9, extra_body={"top_k": 1, "repetition_penalty": 1.0}
        )
        assert answer.choices[0].text == greedy("it was", 9)

    def test_seeds(self, served: Served) -> None:
        texts = [
            served.client.completions.create(model="base", prompt="it", max_tokens=9, seed=seed).choices[0].text
            for seed in (1, 1, 2)
        ]
        assert texts[0] == texts[1] != texts[2]


class TestChat:
    def test_a_conversation_with_a_tuned_model(self, served: Served) -> None:
        messages: Any = [
            {"role": "system", "content": "acknowledged"},
            {"role": "user", "content": [{"type": "text", "text": "it was"}]},
        ]
        answer = served.client.chat.completions.create(
            model="tuned", messages=messages, temperature=0, max_completion_tokens=10, logprobs=True, top_logprobs=2
        )
        choice = answer.choices[0]
        assert choice.message.role == "assistant"
        tokens = choice.logprobs.content
        assert len(tokens) == answer.usage.completion_tokens
        assert all(len(token.top_logprobs) == 2 for token in tokens)
        assert bytes(b for token in tokens for b in token.bytes).decode(errors="replace") == choice.message.content
        stream = served.client.chat.completions.create(
            model="tuned", messages=messages, temperature=0, max_completion_tokens=10, stream=True
        )
        chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
        assert [chunk.choices[0].finish_reason for chunk in chunks][:-1] == [None] * (len(chunks) - 1)
        assert chunks[-1].choices[0].finish_reason == choice.finish_reason
        turn: Any = [*messages, {"role": "assistant", "content": choice.message.content}]
        second = served.client.chat.completions.create(
            model="tuned", messages=[*turn, {"role": "user", "content": "a truth"}], max_tokens=5
        )
        assert second.usage.prompt_tokens_details.cached_tokens >= answer.usage.prompt_tokens

    def test_helpers_of_the_client_understand_the_stream(self, served: Served) -> None:
        messages: Any = [{"role": "user", "content": "it was"}]
        whole = served.client.chat.completions.create(model="tuned", messages=messages, max_tokens=9, temperature=0)
        text = whole.choices[0].message.content
        with served.client.chat.completions.stream(
            model="tuned", messages=messages, max_tokens=9, temperature=0, stop=text[4:6]
        ) as stream:
            final = stream.get_final_completion()  # raises an error for an answer that ended by its length
        assert final.choices[0].message.content == text[: text.index(text[4:6])]

    def test_who_spoke_last(self, served: Served) -> None:
        messages: Any = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        with pytest.raises(openai.BadRequestError, match="the last turn must be the user's"):
            served.client.chat.completions.create(model="tuned", messages=messages)


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
            ({"temperature": "nan"}, "temperature: "),
            ({"max_tokens": 0}, "max_tokens: "),
            ({"n": 17}, "n: "),
            ({"prompt": []}, "prompt must hold from 1 to 16 prompts, got 0"),
            ({"prompt": {"a": 1}}, "prompt"),
            ({"stop": ["a"] * 17}, "stop must have at most 16 strings, got 17"),
            ({"stop": [""]}, "a stop string must not be empty"),
            ({"seed": -1}, "seed must be at least 0"),
            ({"top_p": 0}, "top_p must be above 0"),
            ({"logit_bias": {"1": 1e31}}, "logit_bias must be below 1e+30"),
            ({"echo": True}, "echo is not supported by this server"),
            ({"tools": [{}]}, "tools is not supported by this server"),
            ({"model": None}, "model: Input should be a valid string"),
        ],
    )
    def test_what_is_wrong_is_named(self, served: Served, change: dict[str, Any], message: str) -> None:
        response = served.post("completions", **{"model": "base", "prompt": "it was", **change})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert message in error["message"]

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": NaN}', HALF])
    def test_what_is_no_request(self, served: Served, body: bytes) -> None:
        for path in ("completions", "chat/completions"):
            response = httpx.post(f"{served.url}/{path}", content=body)
            assert response.status_code == 400
            assert response.json()["error"]["message"]

    def test_ids_that_there_are_not(self, served: Served) -> None:
        for stream in (False, True):
            response = served.post("completions", model="base", prompt=[1, 999], stream=stream)
            assert response.status_code == 400
            assert "ids below 263" in response.json()["error"]["message"]

    def test_strangers_and_the_content_filter(self, served: Served) -> None:
        served.refused = ["forbidden"]
        with pytest.raises(openai.BadRequestError, match="not this") as info:
            served.client.completions.create(model="base", prompt="a forbidden word")
        assert info.value.code == "content_filter"
        ids = tokenizer().encode("a forbidden word")
        for model in ("base", "tuned"):  # as ids of tokens, whether the model is in memory or not
            served.service.models.unload("tuned")
            for prompt in (ids, [tokenizer().encode("a word"), ids]):
                with pytest.raises(openai.BadRequestError, match="not this"):
                    served.client.completions.create(model=model, prompt=prompt)
            assert "tuned" not in served.service.models.loaded()
        served.refused = [greedy("it was", 9)[5:9]]
        with pytest.raises(openai.BadRequestError, match="not this"):
            served.client.completions.create(model="base", prompt="it was", temperature=0, max_tokens=9)
        with pytest.raises(openai.APIError, match="not this"):
            list(served.client.completions.create(model="base", prompt="it was", temperature=0, stream=True))
        served.stranger = True
        with pytest.raises(openai.AuthenticationError, match=r"who are you\?"):
            served.client.models.list()

    def test_a_full_queue(self, served: Served) -> None:
        async def ask() -> list[Any]:
            client = openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0)
            async with client:
                calls = [client.completions.create(model="base", prompt=f"{i}", max_tokens=60, n=4) for i in range(12)]
                return await asyncio.gather(*calls, return_exceptions=True)

        results = asyncio.run(ask())
        refused = [result for result in results if isinstance(result, Exception)]
        assert 0 < len(refused) < 12
        for error in refused:
            assert isinstance(error, openai.RateLimitError)
            assert error.code == "queue_full"
            assert error.response.headers["Retry-After"] == "2"

    def test_a_failing_model(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(batch: Batch) -> None:
            raise RuntimeError("out of luck")

        with monkeypatch.context() as patch:
            patch.setattr(Batch, "step", broken)
            with pytest.raises(openai.InternalServerError, match="out of luck"):
                served.client.completions.create(model="base", prompt="it was")
            with pytest.raises(openai.APIError, match="out of luck"):
                list(served.client.completions.create(model="base", prompt="it was", stream=True))
        assert served.client.completions.create(model="base", prompt="it was").choices


class TestClientsThatLeave:
    def test_in_the_middle_of_a_stream(self, served: Served) -> None:
        before = served.service.status().counters.get("finished_cancelled", 0)
        stream = served.client.completions.create(
            model="base", prompt="it was", max_tokens=50_000, stream=True, logit_bias=NEVER
        )
        for _ in zip(range(5), stream, strict=False):
            pass
        stream.close()
        served.until_cancelled(before + 1)

    def test_while_they_wait_for_the_whole(self, served: Served) -> None:
        before = served.service.status().counters.get("finished_cancelled", 0)
        body = {"model": "base", "prompt": "it was", "max_tokens": 50_000, "logit_bias": NEVER}

        async def leave() -> None:
            async with httpx.AsyncClient(timeout=60) as client:
                waiting = asyncio.create_task(client.post(f"{served.url}/completions", json=body))
                while not served.service.status().running:
                    assert not waiting.done(), waiting.result()
                    await asyncio.sleep(0.01)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

        asyncio.run(leave())
        served.until_cancelled(before + 1)


def test_server_sent_events_as_they_are(served: Served) -> None:
    body = {"model": "base", "prompt": "it was", "max_tokens": 2, "stream": True}
    with httpx.stream("POST", f"{served.url}/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])


def test_the_server_offers_it_and_counts_requests(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    config = server.Config(runs=tmp_path, state=tmp_path / "state", requests_per_minute=3)
    app = server.build(config, served.service.models, served.service)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000/v1") as client:
            body = {"model": "base", "prompt": "it was", "max_tokens": 3}
            return [await client.get("/models"), *[await client.post("/completions", json=body) for _ in range(3)]]

    responses = asyncio.run(ask())
    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    assert responses[3].headers["Retry-After"] == "60"
    assert responses[3].json()["error"]["type"] == "rate_limit_error"
    app.state.chat.audit.close()
    assert (tmp_path / "state" / "audit.jsonl").read_text().count("/v1/completions") == 3


class TestLoad:
    def test_users_who_wait_and_some_who_are_refused(
        self, served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "load.json"
        config = load.Config(users=(1, 30), url=served.url, model="base", messages=2, max_tokens=20, out=out)
        alone, many = load.main(config)
        assert (alone["answers"], alone["failed"]) == (2, 0)
        assert 0 < alone["first_token_ms"]["median"] <= alone["response_ms"]["median"] <= alone["response_ms"]["p95"]
        assert many["answers"] + many["failed"] == 60
        assert many["failed"] > 0, "the queue holds 4"
        assert any(failure.startswith("429 ") for failure in many["failures"])
        assert "| 30 | " in capsys.readouterr().out
        assert json.loads(out.read_text())["rows"] == [alone, many]
        load.main(load.Config(users=(1,), url=served.url, model="base", messages=1, max_tokens=2, out=out))
        assert len(json.loads(out.read_text())["rows"]) == 1

    def test_what_it_cannot_measure(self, served: Served, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="the server has no model x: it offers tuned, base"):
            load.main(load.Config(url=served.url, model="x"))
        with pytest.raises(InputError, match="is not the API of a chat server"):
            load.main(load.Config(url=served.url.removesuffix("/v1")))
        with pytest.raises(InputError, match="users must be at least 1"):
            load.Config(users=(0,))
        note = tmp_path / "note.json"
        note.write_text("{}")
        with pytest.raises(InputError, match="was not written by this command"):
            load.main(load.Config(url=served.url, out=note))

    @pytest.mark.slow
    def test_a_server_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_run(tmp_path / "runs" / "base")
        (row,) = load.main(load.Config(users=(3,), runs=tmp_path / "runs", messages=1, max_tokens=5))
        assert (row["model"], row["answers"], row["failed"]) == ("base", 3, 0)
        monkeypatch.setattr(load, "SECONDS_TO_START", 0.0)
        with pytest.raises(InputError, match="the server did not start"):
            load.main(load.Config(runs=tmp_path / "runs"))
