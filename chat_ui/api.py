"""The API that OpenAI's clients speak: /v1/completions, /v1/chat/completions and /v1/models.

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
stream = client.completions.create(model="demo", prompt="Emma was", max_tokens=50, stream=True)
for chunk in stream:
    print(chunk.choices[0].text, end="")
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from chat_ui.audit import Audit
from chat_ui.engine import Answer, BusyError, Event, Finished, Piece, Service, Started, UnknownModelError
from chat_ui.limits import RateLimit
from chat_ui.openai_format import ChatRequest, Common, CompletionRequest, Writer, model_object, parse
from utils.files import InputError

SECONDS_BETWEEN_LOOKS = 0.5  # at whether a client that waits for a whole answer is still there
RETRY_SECONDS = 2

Awaited = TypeVar("Awaited")
Authorize = Callable[[Request], Awaitable[None]]
Refuse = Callable[[str], str | None]


def gate(find_user: Callable[[Request], Awaitable[str]], rate: RateLimit, audit: Audit) -> Authorize:
    """Return what lets in requests of known users, so many per minute, and writes each into the audit log.

    Args:
        find_user: returns who sent a request; raises HTTPException if nobody knows.
        rate: how many requests each user may make.
        audit: the log.
    """

    async def authorize(request: Request) -> None:
        user = await find_user(request)
        allowed = rate.allow(user)
        audit.write("api" if allowed else "rate limited", user=user, path=request.url.path)
        if not allowed:
            seconds = str(math.ceil(rate.wait(user)))
            raise HTTPException(429, f"wait {seconds} seconds", {"Retry-After": seconds})

    return authorize


class ApiError(Exception):
    """What a client is told, with a status and a kind of OpenAI's."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}


def router(
    service: Service, *, authorize: Authorize | None = None, refuse: Refuse | None = None, longest: int = 4096
) -> APIRouter:
    """Return the routes, to be included in an app.

    Args:
        service: the engine.
        authorize: called with each request before anything else; raises HTTPException for one that may not be made.
        refuse: a content filter: given each text of a prompt, and each answer so far, returns why it is refused, or
            None.
        longest: tokens of an answer at most; a request for more gets that many.
    """
    routes = APIRouter()
    api = _Api(service, refuse, longest)

    def add(path: str, method: str, handle: Callable[[Request], Awaitable[Response]]) -> None:
        async def guarded(request: Request) -> Response:
            try:
                if authorize is not None:
                    await authorize(request)
                return await handle(request)
            except ApiError as error:
                retry = {"Retry-After": str(RETRY_SECONDS)} if error.status == 429 else None
                return JSONResponse(error.body, error.status, retry)
            except HTTPException as error:
                kind = "rate_limit_error" if error.status_code == 429 else "invalid_request_error"
                return JSONResponse(
                    ApiError(error.status_code, str(error.detail), kind).body, error.status_code, error.headers
                )

        routes.add_route(path, guarded, methods=[method])

    add("/v1/models", "GET", api.models)
    add("/v1/models/{name:path}", "GET", api.model)
    add("/v1/completions", "POST", api.completions)
    add("/v1/chat/completions", "POST", api.chat)
    return routes


class _Api:
    """The handlers; see `router`."""

    def __init__(self, service: Service, refuse: Refuse | None, longest: int) -> None:
        self.service = service
        self.refuse = refuse
        self.longest = longest

    async def models(self, request: Request) -> Response:
        data = [model_object(info) for info in self.service.models.available() if info.kind != "classifier"]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        try:
            return JSONResponse(model_object(self.service.models.writer(request.path_params["name"])))
        except InputError as error:
            raise ApiError(404, str(error), code="model_not_found") from error

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, CompletionRequest)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ChatRequest)

    async def _answer(self, request: Request, kind: type[Common]) -> Response:
        try:
            body = parse(kind, await request.json())
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not JSON: {error}") from error
        except InputError as error:
            raise ApiError(400, str(error)) from error
        answers = await self._submit(body)
        writer = Writer(
            self.service.models.info(body.model), kind is ChatRequest, body.stream, body.stream and body.includes_usage
        )
        if body.stream:
            return await self._open_stream(request, answers, writer)
        results = await _while_connected(request, asyncio.gather(*(answer.results() for answer in answers)))
        choices = [result for prompt in results for result in prompt]
        for result in choices:
            self._check(result.finished, result.text)
        return JSONResponse(writer.whole(choices, len(answers)))

    async def _open_stream(self, request: Request, answers: Sequence[Answer], writer: Writer) -> Response:
        """Return a response that streams; an error that comes before the first word can still be a status."""
        merged = _merge(answers)
        try:
            first = await _while_connected(request, asyncio.ensure_future(anext(merged)))
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        stream = self._stream(merged, first, answers, writer)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _submit(self, body: Any) -> list[Answer]:
        """Hand a request to the engine.

        Raises:
            ApiError: if it does not take it.
        """
        answers: list[Answer] = []
        try:
            info = self.service.models.info(body.model)
            requests = body.requests(info, self.longest)
            if self.refuse is not None:
                for reason in map(self.refuse, await asyncio.to_thread(self._texts, body)):
                    if reason is not None:
                        raise ApiError(400, reason, code="content_filter")
            for request in requests:
                answers.append(self.service.submit(request))
        except UnknownModelError as error:
            raise ApiError(404, str(error), code="model_not_found") from error
        except InputError as error:
            raise ApiError(400, str(error)) from error
        except BusyError as error:
            for answer in answers:
                answer.cancel()
            raise ApiError(429, str(error), "rate_limit_error", "queue_full") from error
        return answers

    def _texts(self, body: Any) -> list[str]:
        """Return the texts that somebody sent, also those sent as ids of tokens, as the model reads them.

        Raises:
            InputError: if the ids are for a model without a tokenizer.
        """
        if isinstance(body, ChatRequest):
            return [message.text for message in body.messages]
        if isinstance(body.prompts[0], str):
            return list(body.prompts)
        tokenizer = self.service.models.tokenizer(body.model)
        return [tokenizer.decode(ids) for ids in body.prompts]

    def _check(self, finished: Finished, text: str) -> None:
        """Check that an answer may be given.

        Raises:
            ApiError: if it failed, or the content filter refuses it.
        """
        if finished.reason == "error":
            raise _failure(finished)
        if finished.reason == "cancelled":
            raise ApiError(503, "the server is shutting down", "server_error")
        if self.refuse is not None and (reason := self.refuse(text)) is not None:
            raise ApiError(400, reason, code="content_filter")

    async def _stream(
        self,
        events: AsyncIterator[tuple[int, Event]],
        first: tuple[int, Event],
        answers: Sequence[Answer],
        writer: Writer,
    ) -> AsyncIterator[str]:
        """Yield server-sent events."""
        n = answers[0].request.n
        texts = [""] * (n * len(answers))
        finished: dict[int, Finished] = {}
        try:
            async for prompt, event in _chain(first, events):
                if isinstance(event, Started):
                    openings = (writer.opening(prompt * n + choice) for choice in range(n))
                    for opening in openings:
                        if opening is not None:
                            yield _sse(opening)
                elif isinstance(event, Piece):
                    index = prompt * n + event.choice
                    before = len(texts[index])
                    texts[index] += event.text
                    if self.refuse is not None and (reason := self.refuse(texts[index])) is not None:
                        raise ApiError(400, reason, code="content_filter")
                    yield _sse(writer.piece(index, event.text, event.tokens, before))
                elif isinstance(event, Finished):
                    index = prompt * n + event.choice
                    self._check(event, texts[index])
                    finished[index] = event
                    yield _sse(writer.closing(index, event.reason))
            if writer.includes_usage:
                yield _sse(writer.total([finished[index] for index in sorted(finished)], len(answers)))
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _sse(error.body)
        finally:  # the client may have left
            for answer in answers:
                answer.cancel()


def _failure(finished: Finished) -> ApiError:
    """Return what a client is told of an answer that failed."""
    message = finished.error or "the model failed"
    return ApiError(400, message) if finished.is_invalid else ApiError(500, message, "server_error")


def _sse(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _chain(first: tuple[int, Event], rest: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[tuple[int, Event]]:
    yield first
    async for item in rest:
        yield item


async def _merge(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, Event]]:
    """Yield the events of several answers as they come, each with the number of its answer, from `Started` on.

    Raises:
        ApiError: if the first event is an error, before any is yielded.
    """
    queue: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()

    async def read(number: int, answer: Answer) -> None:
        async for event in answer:
            if isinstance(event, Started | Piece | Finished):
                queue.put_nowait((number, event))
        queue.put_nowait(None)

    readers = [asyncio.create_task(read(number, answer)) for number, answer in enumerate(answers)]
    try:
        n_open, is_first = len(readers), True
        while n_open:
            item = await queue.get()
            if item is None:
                n_open -= 1
                continue
            if is_first and isinstance(item[1], Finished) and item[1].reason == "error":
                raise _failure(item[1])
            is_first = False
            yield item
    finally:
        for reader in readers:
            reader.cancel()


async def _while_connected(request: Request, waiting: asyncio.Future[Awaited]) -> Awaited:
    """Wait for a result; if the client leaves before, stop the work for it.

    Raises:
        ApiError: if it has left; nobody will read it.
    """
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=SECONDS_BETWEEN_LOOKS)
        if not waiting.done() and await request.is_disconnected():
            waiting.cancel()
            raise ApiError(499, "the client has left")
    return waiting.result()
