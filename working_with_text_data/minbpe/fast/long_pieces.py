"""Encode a piece of text of any length: in time that grows with it, and without keeping all of its ids.

*Blocks.* Each merge looks at all tokens of a piece, so a long piece is merged block by block, and anew across a
seam where two blocks do not fit. If merging x ends with the token t, merging y begins with the token u, and merging
t + u leaves these two, then merging x + y gives the tokens of x and those of y. For the first merge across the seam,
of two tokens p and q, would have to happen while p is the end of t and q the beginning of u; until then, what happens
inside t and u is what happens when t + u is merged alone; and there p and q, having the lowest rank of all, would be
merged too.

*Ids that are sure.* Where each token comes from merging two of lower ranks, merging by rank is the same as one round
per token, in the order of ranks: in each, the two tokens are merged wherever they stand side by side, from the left.
Whether they are merged at a place depends on what earlier rounds have left up to the end of that place, so a round
looks ahead by less than its token's length. All rounds together look ahead by less than the length of all tokens:
what ends further than that from the end of the text so far is the same whatever follows.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache

from working_with_text_data.minbpe.merging import merge_by_rank

BLOCK_LENGTH = 48  # bytes of a long piece that are merged together
BLOCKS_LENGTH = 512  # pieces of more bytes are merged in blocks
MOST_REMEMBERED = 4096  # blocks, and pairs of neighbours


def encode_piece(piece: bytes, ranks: dict[bytes, int], vocab: Mapping[int, bytes]) -> Sequence[int]:
    """Return the token ids of a piece of text: its own id if it is a token, else those that `merge_by_rank` leads to.

    Args:
        piece: UTF-8, or any bytes, of any length: the time grows with it, the memory is two or four bytes per token.
        ranks: the id of each token. It holds all single bytes.
        vocab: the token of each id.
    """
    rank = ranks.get(piece)
    if rank is not None:
        return [rank]
    if len(piece) > BLOCKS_LENGTH:
        return PieceEncoder(ranks, vocab, math.inf).encode(piece, goes_on=False)
    return [ranks[token] for token in merge_by_rank(piece, ranks)]


class PieceEncoder:
    """Encodes pieces of text that come in stretches, and gives ids away as soon as they are sure.

    Args:
        ranks: the id of each token. It holds all single bytes.
        vocab: the token of each id.
        look_ahead: how many bytes must follow a token for it to be sure: as many as all tokens have together if each
            comes from merging two of lower ranks, else infinitely many.
    """

    def __init__(self, ranks: dict[bytes, int], vocab: Mapping[int, bytes], look_ahead: float) -> None:
        def merged(block: bytes) -> list[int]:
            return [ranks[token] for token in merge_by_rank(block, ranks)]

        def fit(left: int, right: int) -> bool:
            pair = [vocab[left], vocab[right]]
            return merge_by_rank(b"".join(pair), ranks) == pair

        self.vocab = vocab
        self.look_ahead = look_ahead
        self._ids = array("H")  # two bytes each, for as long as that is enough
        self._merged = merged
        self._merged_before = lru_cache(MOST_REMEMBERED)(merged)  # a run of one character is the same block throughout
        self._fit = lru_cache(MOST_REMEMBERED)(fit)

    def encode(self, stretch: bytes, goes_on: bool) -> Sequence[int]:
        """Return the next ids of a piece: those that are sure if it goes on, all that are left if it does not.

        Args:
            stretch: of the piece. One that comes in several stretches is longer than any token.
            goes_on: the next stretch belongs to the same piece.
        """
        start = 0
        length = BLOCK_LENGTH
        while start < len(stretch):
            longest = self._add(stretch[start : start + length])
            start += length
            length = max(length, longest)  # shorter ones would change a long token again and again
        ids = self._ids
        n_sure = self._n_sure() if goes_on else len(ids)
        self._ids = ids[n_sure:] if goes_on else array("H")
        del ids[n_sure:]
        return ids

    def _add(self, block: bytes) -> int:
        """Add a block, merged with the last tokens as far as it changes them; return the first new one's length."""
        ids, vocab = self._ids, self.vocab
        new = self._merged_before(block)
        n_back = 1
        while ids and not self._fit(ids[-1], new[0]):
            block = b"".join([vocab[id_] for id_ in ids[-n_back:]]) + block
            del ids[-n_back:]
            n_back *= 2
            new = self._merged_before(block) if len(block) <= BLOCKS_LENGTH else self._merged(block)
        if ids.typecode == "H" and max(new) >= 2**16:
            ids = self._ids = array("I", ids)
        ids.extend(new)
        return len(vocab[new[0]])

    def _n_sure(self) -> int:
        """Return how many of the ids are those of the piece whatever follows."""
        n_bytes = 0  # that follow
        for n_sure in range(len(self._ids), 0, -1):
            if n_bytes >= self.look_ahead:
                return n_sure
            n_bytes += len(self.vocab[self._ids[n_sure - 1]])
        return 0
