"""Tokenizers as files: one JSON object, which carries a checksum of itself and says what is wrong with it.

One wrong bit in the pattern or in a merge would give other ids to every text, so such a file is refused.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.files import InputError, printable, read_json, write_atomically
from working_with_text_data.minbpe.merging import Pair

FORMAT = "minbpe"
VERSION = 3  # 1 had neither "tokens" nor a normalization, 2 had no checksum
TYPE_NAMES = {dict: "an object", list: "a list", str: "a string"}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the entries of a tokenizer, with format, version and checksum."""
    content = {"format": FORMAT, "version": VERSION, **content}
    content["sha256"] = _checksum(content)
    with write_atomically(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))


def read(path: Path) -> dict[str, Any]:
    """Return the entries of a tokenizer file.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not a tokenizer file, is of a newer version, or does not have its checksum.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'{path} is not a tokenizer file: it lacks the entry "format": "{FORMAT}"')
    if (version := content.get("version")) not in range(1, VERSION + 1):
        raise InputError(
            f"{path} has version {brief(version)}, this code reads versions up to {VERSION}: "
            "it was written by a newer release"
        )
    if version >= 3 or "sha256" in content:
        found = _checksum({name: value for name, value in content.items() if name != "sha256"})
        if found != (right := content.get("sha256")):
            raise InputError(
                f"{path} is damaged: the checksum of its content is {found}, but its entry sha256 says {brief(right)}"
            )
    return content


def entry(content: dict[str, Any], name: str, type_: type) -> Any:
    """Return one entry.

    Raises:
        InputError: if it is not there or of another type.
    """
    if name not in content:
        raise InputError(f'the entry "{name}" is missing')
    if type(content[name]) is not type_:
        raise InputError(f'the entry "{name}" must be {TYPE_NAMES[type_]}, got {brief(content[name])}')
    return content[name]


def merges_of(content: dict[str, Any]) -> dict[Pair, int]:
    """Return the entry "merges", each pair of ids with the id it makes.

    Raises:
        InputError: if one is not two ids, is there twice, or has an id that is not made before it.
    """
    merges: dict[Pair, int] = {}
    for new_id, pair in enumerate(entry(content, "merges", list), 256):
        if type(pair) is not list or [type(half) for half in pair] != [int, int]:
            raise InputError(f"the merge that makes the token {new_id} must be two ids, got {brief(pair)}")
        if not all(0 <= half < new_id for half in pair):
            raise InputError(f"the merge that makes the token {new_id} must be of ids below it, got {brief(pair)}")
        if (first := merges.setdefault((pair[0], pair[1]), new_id)) != new_id:
            raise InputError(f"the merge that makes the token {new_id}, {pair}, has made the token {first} already")
    return merges


def brief(value: Any) -> str:
    """Return a value as an error message shows it: on one line, and not all of a long one."""
    shown = printable(repr(value))
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


class OnClassOnly(staticmethod):
    """A static method that an instance refuses, since there it would seem to change the instance."""

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        return super().__get__(instance, owner) if instance is None else self._refuse

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise InputError(
            f"{self.__name__} returns a tokenizer and changes none: write tokenizer = Tokenizer.{self.__name__}(path)"
        )


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
