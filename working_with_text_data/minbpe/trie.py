"""Longest match: another way to encode with the same vocabulary, to set beside merging by rank.

From the left, always take the longest token that the text goes on with ("maximum munch"). This is how
WordPiece, BERT's tokenizer, encodes: Wu et al. 2016, https://arxiv.org/abs/1609.08144, section 4.1; Song et al.
2021, https://arxiv.org/abs/2012.15524. A *trie* finds that token: a tree of the beginnings of all tokens.

What it gets right: a piece that is a token becomes that token; decoding gives the text back; and it needs
neither merges nor ranks, so it serves a vocabulary made in any way.

Where its ids differ from BPE's, and why: BPE goes by what was *learned* first, longest match by what stands
*first*. GPT-2 learned "ions" long before " attention", so its BPE writes " attent|ions", where longest match
takes " attention" and has "s" left, which reads better. But it never looks ahead, and the rest may fall to
bits: for BPE's "under|stand" it takes "unders", the longest token, and is left with "tan|d". So the tokens
are not always fewer, nor the fewest there could be. And the two are not interchangeable: a model taught
one spelling does not know the other. `compare` counts how often they differ.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from working_with_text_data.minbpe.base import Tokenizer
from working_with_text_data.minbpe.merging import merge_by_rank
from working_with_text_data.minbpe.regex import RegexTokenizer
from working_with_text_data.minbpe.special_tokens import check_surrogates

Spelling = tuple[bytes, ...]


class Trie:
    """Tokens as paths from a root: each node is the beginning of some token, each step adds a byte.

    "in", "into" and "is" share their first step:

        root -i-> . -n-> (in) -t-> . -o-> (into)
                    -s-> (is)
    """

    def __init__(self) -> None:
        self.children: list[dict[int, int]] = [{}]  # of each node, which is a number; the root is 0
        self.ids: list[int | None] = [None]  # of the token that ends at each node, if one does

    def insert(self, token: bytes, id_: int) -> None:
        """Add a token, of at least one byte."""
        node = 0
        for byte in token:
            children = self.children[node]
            if byte not in children:
                children[byte] = len(self.children)
                self.children.append({})
                self.ids.append(None)
            node = children[byte]
        self.ids[node] = id_

    def longest_match(self, data: bytes, start: int = 0) -> tuple[int, int] | None:
        """Return the id of the longest token that `data` goes on with at `start`, and its end; None if none does."""
        node = 0
        found = None
        for end in range(start + 1, len(data) + 1):
            child = self.children[node].get(data[end - 1])
            if child is None:
                break
            node = child
            if (id_ := self.ids[node]) is not None:
                found = id_, end
        return found


class LongestMatchEncoder:
    """Text to token ids by longest match, with the vocabulary and the pieces of a tokenizer.

    The text is brought to the tokenizer's normal form and split by its pattern, if it has them, so that the
    one thing that differs from the tokenizer's own encoding is how a piece is divided. The tokenizer
    decodes: `tokenizer.decode(encoder.encode_ordinary(text))`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.trie = Trie()
        for token, id_ in tokenizer.ranks.items():
            self.trie.insert(token, id_)

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the token ids of `text`, special tokens in it treated as the plain text they look like.

        Raises:
            InputError: for a lone surrogate, which no UTF-8 text can hold.
        """
        return [id_ for piece in pieces(self.tokenizer, text) for id_ in self.encode_piece(piece)]

    def encode_piece(self, piece: bytes) -> Iterator[int]:
        """Yield the token ids of bytes that no pattern is to split."""
        start = 0
        while start < len(piece):
            match = self.trie.longest_match(piece, start)
            assert match is not None  # every single byte is a token
            id_, start = match
            yield id_


@dataclass(frozen=True)
class Difference:
    """A piece that longest match divides in another way than merging by rank."""

    piece: bytes
    count: int
    """How often it occurs."""
    merged: Spelling
    """Its tokens by merging, BPE's."""
    longest: Spelling
    """Its tokens by longest match."""


@dataclass(frozen=True)
class Comparison:
    """Longest match against merging by rank, on one text."""

    pieces: int
    distinct_pieces: int
    tokens_merged: int
    """Tokens of the whole text by merging."""
    tokens_longest: int
    """Tokens of the whole text by longest match."""
    differences: tuple[Difference, ...]
    """One for each distinct piece where the two differ, the most frequent first."""

    @property
    def differing_pieces(self) -> int:
        """How many of all pieces the two divide in different ways."""
        return sum(difference.count for difference in self.differences)


def pieces(tokenizer: Tokenizer, text: str) -> Iterator[bytes]:
    """Yield the pieces that no token reaches beyond: those of a RegexTokenizer's pattern; for others the whole text.

    Raises:
        InputError: for a lone surrogate, which no UTF-8 text can hold.
    """
    normal = tokenizer.normalize(text)
    try:
        for piece in tokenizer.split(normal) if isinstance(tokenizer, RegexTokenizer) else [normal]:
            yield piece.encode("utf-8")
    except UnicodeEncodeError:
        check_surrogates(normal)
        raise


def compare(tokenizer: Tokenizer, text: str) -> Comparison:
    """Divide each distinct piece of a text both ways.

    Raises:
        InputError: for a lone surrogate in the text.
    """
    encoder = LongestMatchEncoder(tokenizer)
    n_merged = n_longest = 0
    differences = []
    counts = Counter(pieces(tokenizer, text))
    for piece, count in counts.most_common():
        merged = (piece,) if piece in tokenizer.ranks else tuple(merge_by_rank(piece, tokenizer.ranks))
        longest = tuple(tokenizer.vocab[id_] for id_ in encoder.encode_piece(piece))
        n_merged += count * len(merged)
        n_longest += count * len(longest)
        if merged != longest:
            differences.append(Difference(piece, count, merged, longest))
    return Comparison(counts.total(), len(counts), n_merged, n_longest, tuple(differences))
