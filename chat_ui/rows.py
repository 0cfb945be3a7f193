"""Rows of the history, and what Chainlit makes of them: its steps, elements and threads are dictionaries."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chat_ui.database import now
from chat_ui.texts import clean

if TYPE_CHECKING:
    from chainlit.element import ElementDict
    from chainlit.step import StepDict


def is_uuid(text: object) -> bool:
    """Return whether something is the usual form of a UUID: what every id in the history is."""
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text
    except ValueError:
        return False


def clean_json(value: Any) -> Any:
    """Return JSON data whose texts can be stored."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(name)): clean_json(inner) for name, inner in value.items()}
    return [clean_json(inner) for inner in value] if isinstance(value, list | tuple) else value


COLUMNS = {"id": "id", "threadId": "thread_id", "parentId": "parent_id", "type": "type", "name": "name"}


def step_row(step: StepDict) -> dict[str, Any]:
    """Return the row of a step."""
    row: dict[str, Any] = {column: clean_json(step.get(name)) for name, column in COLUMNS.items()}
    rest = {name: value for name, value in step.items() if name not in (*COLUMNS, "output", "createdAt", "feedback")}
    return row | {
        "output": clean(step.get("output") or ""),
        "created_at": step.get("createdAt") or now(),
        "rest": clean_json(rest),
    }


def step_of(row: Any) -> StepDict:
    """Return the step in a row."""
    step = {name: getattr(row, column) for name, column in COLUMNS.items()}
    return row.rest | step | {"output": row.output, "createdAt": row.created_at, "feedback": None}


def with_parents(steps: list[StepDict]) -> list[StepDict]:
    """Return steps with none of them below one that is not there: the page would not show it."""
    ids = {step["id"] for step in steps}
    return [step if step["parentId"] in ids else {**step, "parentId": None} for step in steps]


def element_row(element: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an element."""
    return {
        "id": element["id"],
        "thread_id": element["threadId"],
        "step_id": element["forId"],
        "name": element["name"],
        "props": clean_json(element["props"]),
    }


def element_of(row: Any) -> ElementDict:
    """Return the element in a row."""
    return {
        "id": row.id,
        "threadId": row.thread_id,
        "forId": row.step_id,
        "name": row.name,
        "props": row.props,
        "type": "custom",
        "display": "inline",
        "mime": "application/json",
    }


def thread_of(row: Any) -> dict[str, Any]:
    """Return the thread in a row that also holds its user's identifier; without what was said in it."""
    return {
        "id": row.id,
        "createdAt": row.updated_at,  # by which the page sorts, and puts under "Today" and "Yesterday"
        "name": row.name,
        "userId": row.user_id,
        "userIdentifier": row.identifier,
        "tags": [],
        "metadata": row.metadata,
        "steps": [],
        "elements": [],
    }
