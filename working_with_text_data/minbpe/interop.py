"""Our tokenizers as tiktoken's and Hugging Face's, and tiktoken's as ours.

Hugging Face's byte-level tokenizers write each byte as a printable character, so that a vocabulary is a
table of strings: those that are printable stand for themselves, the others for the characters from U+0100
on. Radford et al. 2019, https://github.com/openai/gpt-2, src/encoder.py, `bytes_to_unicode`.
"""

from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import InputError, write_atomically
from working_with_text_data.minbpe.base import SAMPLE
from working_with_text_data.minbpe.files import brief
from working_with_text_data.minbpe.gpt2 import GPT2Tokenizer
from working_with_text_data.minbpe.gpt4 import GPT4Tokenizer
from working_with_text_data.minbpe.ranks import RankTokenizer
from working_with_text_data.minbpe.regex import CUTS, RegexTokenizer
from working_with_text_data.minbpe.splitting import covering
from working_with_text_data.minbpe.unicode_classes import compile_pattern

if TYPE_CHECKING:
    import tiktoken

OURS = {"gpt2": GPT2Tokenizer, "r50k_base": GPT2Tokenizer, "cl100k_base": GPT4Tokenizer}


def from_tiktoken(name_or_encoding: str | tiktoken.Encoding) -> RankTokenizer:
    """Return the tokenizer with the ids of a tiktoken encoding.

    Args:
        name_or_encoding: one of tiktoken's names, such as "o200k_base", or an `Encoding`. "gpt2",
            "r50k_base" and "cl100k_base" are here; for others tiktoken downloads the ranks.

    Raises:
        InputError: for a name that tiktoken does not know.
    """
    if isinstance(name_or_encoding, str):
        if name_or_encoding in OURS:
            return OURS[name_or_encoding]()
        import tiktoken

        try:
            encoding = tiktoken.get_encoding(name_or_encoding)
        except ValueError as error:
            known = ", ".join(tiktoken.list_encoding_names())
            raise InputError(f"tiktoken has no encoding {name_or_encoding!r}; it has {known}") from error
    else:
        encoding = name_or_encoding
    return RankTokenizer(dict(encoding._mergeable_ranks), encoding._pat_str, dict(encoding._special_tokens))


def to_tiktoken(tokenizer: RegexTokenizer, name: str = "ours") -> tiktoken.Encoding:
    """Return a tiktoken encoding with the same ids.

    Raises:
        InputError: if the tokenizer normalises, which tiktoken does not, or tiktoken splits differently by its pattern.
    """
    import tiktoken

    if tokenizer.normalization:
        raise InputError(f"tiktoken does not normalise text, and this tokenizer does, to {tokenizer.normalization}")
    try:
        encoding = tiktoken.Encoding(
            name,
            pat_str=_covering_pattern(tokenizer),
            mergeable_ranks=tokenizer.ranks,
            special_tokens=tokenizer.special_tokens,
        )
    except ValueError as error:
        raise InputError(f"tiktoken cannot split by the pattern {brief(tokenizer.pattern)}: {error}") from error
    if encoding.encode_ordinary(SAMPLE) != tokenizer.encode_ordinary(SAMPLE):
        raise InputError(f"tiktoken does not split as we do by the pattern {brief(tokenizer.pattern)}")
    return encoding


def _covering_pattern(tokenizer: RegexTokenizer) -> str:
    """Return a pattern that makes others keep what we keep: characters that the tokenizer's does not match.

    Raises:
        InputError: if it matches the empty string somewhere, where others lose text or crash.
    """
    if tokenizer.pattern in CUTS:
        return tokenizer.pattern
    if not all(match.group() for match in compile_pattern(tokenizer.pattern).finditer(SAMPLE)):
        raise InputError(
            f"the splitting pattern {brief(tokenizer.pattern)} can match the empty string, where others lose text: "
            "write it so that each match has a character"
        )
    return covering(tokenizer.pattern)


def to_huggingface(tokenizer: RegexTokenizer, folder: str | Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` reads.

    Raises:
        InputError: if a token is not merged from two others, since their format stores merges; or if they would
            read a special token as other text than we do. Nothing is written then.
    """
    letters = byte_letters()
    spelling = {id_: "".join(letters[byte] for byte in token) for token, id_ in tokenizer.ranks.items()}
    ordinary = {spelled: id_ for id_, spelled in spelling.items()}
    _check_spellings(tokenizer, ordinary, letters)
    specials = tokenizer.special_tokens
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pattern = {"Regex": _for_oniguruma(_covering_pattern(tokenizer))}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(special, i) for special, i in sorted(specials.items(), key=lambda item: item[1])],
        "normalizer": {"type": tokenizer.normalization} if tokenizer.normalization else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is that token
            "vocab": ordinary | specials,  # the special ones too, or ids that leave a gap would be moved
            "merges": [[spelling[a], spelling[b]] for a, b in tokenizer.merges],
        },
    }
    end_of_text = {"eos_token": "<|endoftext|>"} if "<|endoftext|>" in specials else {}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **end_of_text}
    for name, json_ in (("tokenizer.json", content), ("tokenizer_config.json", settings)):
        with write_atomically(Path(folder) / name) as file:
            file.write(json.dumps(json_, ensure_ascii=False, indent=1).encode("utf-8"))


def byte_letters() -> list[str]:
    """Return the character that stands for each of the 256 bytes: "A" for 65, "Ġ" for the space."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _check_spellings(tokenizer: RegexTokenizer, ordinary: dict[str, int], letters: list[str]) -> None:
    """Check that each spelling in their table has one id, and each special token is decoded to itself."""
    bytes_of = {letter: byte for byte, letter in enumerate(letters)}
    for special, id_ in tokenizer.special_tokens.items():
        if special in ordinary:
            raise InputError(
                f"the special token {special!r}, {id_}, is spelled in their files like the token "
                f"{tokenizer.vocab[ordinary[special]]!r}, {ordinary[special]}: choose another special token"
            )
        read = [bytes_of.get(letter, -1) for letter in special]  # a token all of such letters is decoded to bytes
        if min(read) >= 0 and bytes(read) != special.encode("utf-8"):
            raise InputError(
                f"the special token {special!r}, {id_}, would be decoded by their files to the bytes "
                f"{bytes(read)!r}: choose another special token"
            )


def _added_token(special: str, id_: int) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": special, **plain, "special": True}


def _for_oniguruma(pattern: str) -> str:
    """Return the pattern for the engine of `tokenizers`, which reads `{1,3}+` as a repetition of a repetition.

    Taken as plain `{1,3}` it finds the same pieces: nothing follows it that could make it give way.
    """
    return re.sub(r"(\{\d+(?:,\d*)?\})\+", r"\1", pattern)
