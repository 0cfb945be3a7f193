"""Special tokens: strings such as <|endoftext|> with an id of their own, which no merging makes."""

import re
from collections.abc import Collection, Mapping
from typing import Literal

from utils.files import InputError

ID_LIMIT = 2**31  # ids are below it, so that they fit wherever ids are stored


def assign_ids(
    wanted: Mapping[str, int | None], special_tokens: Mapping[str, int], vocab: Mapping[int, bytes], next_id: int
) -> dict[str, int]:
    """Return the ids of those wanted special tokens that are not there yet.

    Args:
        wanted: the id of each, or None for the next free one.
        special_tokens: those there are.
        vocab: all tokens there are.
        next_id: above all ids in use.

    Raises:
        InputError: if a token is empty or holds a lone surrogate, or its id is impossible or taken.
    """
    added: dict[int, str] = {}
    for special, id_ in wanted.items():
        if not special:
            raise InputError("a special token must not be empty")
        check_surrogates(special, f"the special token {special!r}")
        there = special_tokens.get(special)
        if there is not None and id_ in (None, there):
            continue
        id_ = next_id if id_ is None else id_
        if type(id_) is not int or not 0 <= id_ < ID_LIMIT:
            raise InputError(f"the special token {special!r} must have an id from 0 to {ID_LIMIT - 1:,}, got {id_!r}")
        if there is not None:
            raise InputError(f"the special token {special!r} has the id {there} already, so it cannot have {id_}")
        if (owner := vocab.get(id_, added.get(id_))) is not None:
            raise InputError(f"the special token {special!r} has the id {id_}, which {owner!r} has already")
        added[id_] = special
        next_id = max(next_id, id_ + 1)
    return {special: id_ for id_, special in added.items()}


def check_allowed(
    text: str,
    special_tokens: Collection[str],
    allowed_special: Collection[str] | Literal["all"],
    disallowed_special: Collection[str] | Literal["all"],
) -> set[str]:
    """Return the special tokens that are to become their control id in a text; see `Tokenizer.encode`.

    Raises:
        InputError: if the text holds a disallowed special token, or one is allowed that does not exist.
    """
    allowed = set(special_tokens) if allowed_special == "all" else set(allowed_special)
    if unknown := allowed - set(special_tokens):
        raise InputError(f"unknown special token {min(unknown)!r}; there are {sorted(special_tokens)}")
    disallowed = set(special_tokens) - allowed if disallowed_special == "all" else set(disallowed_special)
    for special in sorted(disallowed):
        if special in text:
            raise InputError(
                f"the text holds the special token {special!r}: pass it in allowed_special to encode it as "
                "a control token, or disallowed_special=() to encode it as plain text"
            )
    return allowed


def split_at(text: str, separators: Collection[str]) -> list[str]:
    """Cut `text` before and after each separator, the longest first where several begin at one place.

    split_at("a<x>b", {"<x>"}) -> ["a", "<x>", "b"]; empty parts are left out.
    """
    if not separators:
        return [text] if text else []
    pattern = "|".join(re.escape(s) for s in sorted(separators, key=len, reverse=True))
    return [part for part in re.split(f"({pattern})", text) if part]


def check_surrogates(text: str, what: str = "the text") -> None:
    """Check that UTF-8 can hold a text.

    Raises:
        InputError: if there is a lone surrogate in it.
    """
    at = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
    if at is not None:
        raise InputError(
            f"{what} holds a lone surrogate, {text[at]!r}, at position {at:,}: it is half of a character, no text"
        )
