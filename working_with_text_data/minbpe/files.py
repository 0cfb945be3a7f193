"""Tokenizers as files: one JSON file that keeps everything, and says what is wrong with it."""

import json
from pathlib import Path
from typing import Any

from utils.files import InputError, write_atomically
from working_with_text_data.minbpe.base import Tokenizer

FORMAT = "minbpe"
VERSION = 2  # 1 had neither "tokens" nor a normalization


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer; see `Tokenizer.save`."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "type": type(tokenizer).__name__,
        "settings": tokenizer.settings(),
        "special_tokens": tokenizer.special_tokens,
        **tokenizer.tokens_as_json(),
    }
    with write_atomically(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))


def load(path: Path) -> Tokenizer:
    """Read a tokenizer; see `Tokenizer.load`."""
    content = _read(path)
    try:
        tokenizer = Tokenizer.types[content["type"]].from_json(content)
        for text, id_ in content["special_tokens"].items():
            tokenizer._add_special(str(text), int(id_))
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__} {error}") from error
    return tokenizer


def open_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """GPT-2's or GPT-4's tokenizer by the name "gpt2" or "gpt4", or one from a file.

    Raises:
        InputError: if there is no file, or it is damaged.
    """
    from working_with_text_data.minbpe.gpt2 import GPT2Tokenizer
    from working_with_text_data.minbpe.gpt4 import GPT4Tokenizer

    known = {"gpt2": GPT2Tokenizer, "gpt4": GPT4Tokenizer}
    if str(name_or_path) in known:
        return known[str(name_or_path)]()
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"there is no tokenizer {path}: make one with python -m working_with_text_data.train_tokenizer, "
            f"or name a known one, {' or '.join(known)}"
        )
    return Tokenizer.load(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # bad JSON, or not UTF-8
        raise InputError(f"{path} is not a tokenizer file, or is cut short: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'{path} is not a tokenizer file: it lacks the entry "format": "{FORMAT}"')
    if content.get("version") not in range(1, VERSION + 1):
        raise InputError(
            f"{path} has version {content.get('version')}, this code reads versions up to {VERSION}: "
            "it was written by a newer release"
        )
    return content
