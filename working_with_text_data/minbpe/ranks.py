"""Tokenizers that come as ranks: a list of tokens in the order they were learned, and nothing else.

This is how OpenAI publishes its tokenizers. The ids are the ranks, and the 256 bytes are among them in an
order of their own. Which two tokens each was merged from can be found out: merge its bytes by lower ranks
alone, and two tokens are left.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any, Self

from utils.files import InputError
from working_with_text_data.minbpe.base import Normalization
from working_with_text_data.minbpe.files import brief, entry
from working_with_text_data.minbpe.merging import BYTES, Pair, merge_by_rank
from working_with_text_data.minbpe.regex import RegexTokenizer

DATA = Path(__file__).parent / "data"


def read_ranks(path: Path, sha256: str) -> dict[bytes, int]:
    """Return the ranks of a `.tiktoken` file, which holds one token in base 64 and its rank per line.

    Raises:
        InputError: if its SHA-256 is not that one.
    """
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise InputError(f"{path} is damaged: its SHA-256 is {found}, not {sha256}; get it anew from the repository")
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}


class RankTokenizer(RegexTokenizer):
    """A tokenizer made of ranks: from tiktoken, by `interop.from_tiktoken`, or one of its subclasses.

    Args:
        ranks: the id of each token; all 256 single bytes are there.
        pattern: the regular expression that splits a text into pieces.
        special_tokens: the id of each.
        normalization: see `Tokenizer`.

    Raises:
        InputError: if a byte has no rank, or the pattern is not a regular expression.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        pattern: str,
        special_tokens: dict[str, int],
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__(pattern, normalization)
        if missing := [byte.hex() for byte in BYTES if byte not in ranks]:
            raise InputError(f"the byte 0x{missing[0]} has no rank: there must be one for each of the 256")
        self._set_ranks(ranks)
        self.add_special_tokens(special_tokens)

    def train(self, *_: Any, **__: Any) -> None:
        """Refuse: the tokens are given.

        Raises:
            InputError: always.
        """
        raise InputError(f"a {type(self).__name__} has its tokens already: train a RegexTokenizer")

    @property
    def merges(self) -> dict[Pair, int]:
        """The two tokens that each token was merged from, in the order of ranks, found out anew at each call.

        Raises:
            InputError: if a token cannot come from merging two others.
        """
        found = {}
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            if len(token) > 1:
                halves = merge_by_rank(token, self.ranks, below=rank)
                if len(halves) != 2:
                    raise InputError(f"the token {token!r} is not merged from two others, but from {halves}")
                found[self.ranks[halves[0]], self.ranks[halves[1]]] = rank
        return found

    @merges.setter
    def merges(self, value: dict[Pair, int]) -> None:
        """Ranks decide here; the base class sets none but an empty table."""

    def tokens_as_json(self) -> dict[str, Any]:
        """Return the tokens by id, each byte as the character of that number; null where an id has no token."""
        tokens: list[str | None] = [None] * (max(self.ranks.values()) + 1)
        for token, rank in self.ranks.items():
            tokens[rank] = token.decode("latin-1")
        return {"tokens": tokens}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        tokenizer = cls.__new__(cls)  # the subclasses' own __init__ would read the ranks that they come with
        ranks: dict[bytes, int] = {}
        for i, token in enumerate(entry(content, "tokens", list)):
            if token is None:
                continue
            if type(token) is not str or not token or max(token) > "\xff":
                raise InputError(f"the token {i} must be a text of characters up to U+00FF, got {brief(token)}")
            if (first := ranks.setdefault(token.encode("latin-1"), i)) != i:
                raise InputError(f"the token {i}, {brief(token)}, is the token {first} already")
        RankTokenizer.__init__(tokenizer, ranks, special_tokens={}, **entry(content, "settings", dict))
        return tokenizer
