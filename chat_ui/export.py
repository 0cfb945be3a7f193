"""A conversation as a file: JSON with all that is known, or Markdown to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException, Request, Response

from chat_ui.history import History
from chat_ui.logins import Logins
from chat_ui.texts import plain

if TYPE_CHECKING:
    from chainlit.types import ThreadDict


def router(history: History, logins: Logins) -> APIRouter:
    """Return the route /export/THREAD.json or .md, for the one whose thread it is."""
    routes = APIRouter()

    @routes.get("/export/{thread_id}.{kind}")
    async def export(thread_id: str, kind: str, request: Request) -> Response:
        user = await logins.page_user(request)
        if kind not in ("json", "md") or await history.get_thread_author(thread_id) != user:
            raise HTTPException(404, "there is no such conversation")
        thread = await history.get_thread(thread_id)
        if thread is None:
            raise HTTPException(404, "there is no such conversation")
        if kind == "json":
            content, media_type = json.dumps(as_data(thread), ensure_ascii=False, indent=1), "application/json"
        else:
            content, media_type = as_markdown(thread), "text/markdown"
        headers = {"Content-Disposition": f'attachment; filename="conversation-{thread_id[:8]}.{kind}"'}
        return Response(content.encode(), media_type=f"{media_type}; charset=utf-8", headers=headers)

    return routes


def as_data(thread: ThreadDict) -> dict[str, Any]:
    """Return a conversation as JSON data: its messages in their order, each answer with model and figures."""
    return {"name": thread["name"], "id": thread["id"], "messages": list(_messages(thread))}


def as_markdown(thread: ThreadDict) -> str:
    """Return a conversation as Markdown, what was said quoted, so that its own marks change nothing around it."""
    parts = [f"# {thread['name'] or 'Conversation'}"]
    for message in _messages(thread):
        if message["role"] == "user":
            parts += ["## You", _quoted(message["text"])]
        for answer in message.get("answers", ()):
            parts += [f"## {plain(answer['label'])}", _quoted(answer["text"]), f"*{' · '.join(answer['figures'])}*"]
    return "\n\n".join(parts) + "\n"


def _messages(thread: ThreadDict) -> Iterator[dict[str, Any]]:
    for step in thread["steps"]:
        facts: Mapping[str, Any] = step["metadata"] or {}
        if step["type"] == "user_message":
            yield {"role": "user", "text": step["output"], "time": step["createdAt"]}
        elif step["type"] == "assistant_message" and not facts.get("notice"):
            answers = facts.get("sides") or [{**facts, "text": step["output"]}]
            kept = [
                {name: answer.get(name) for name in ("model", "label", "text", "reason", "error")}
                | {"figures": answer.get("figures") or []}
                for answer in answers
            ]
            yield {"role": "assistant", "answers": kept, "time": step["createdAt"]}


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))
