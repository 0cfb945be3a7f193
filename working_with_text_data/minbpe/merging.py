"""The two operations that all byte-pair encoding is made of, and merging by rank, which is all of encoding.

A byte-pair tokenizer begins with the 256 bytes as its tokens and learns *merges*: the pair of neighbouring
tokens seen most often becomes a token of its own, again and again, until the vocabulary is as large as wanted.
Gage 1994, "A New Algorithm for Data Compression"; for language models Sennrich et al. 2016,
https://arxiv.org/abs/1508.07909, section 3.2; on bytes Radford et al. 2019 (GPT-2), section 2.2.

*Merging by rank* encodes: the earlier a token was learned, the lower its rank. Always make the token with the
lowest rank, the leftmost first, until no two neighbours make one.
"""

import heapq
from collections.abc import Iterable
from itertools import pairwise

Pair = tuple[int, int]

HEAP_LENGTH = 100  # pieces of more bytes are merged with a heap; below it the plain loop is faster
NEVER = 1 << 62  # the rank of what is not a token
BYTES = [bytes([i]) for i in range(256)]


def count_pairs(ids: Iterable[int], weight: int = 1, counts: dict[Pair, int] | None = None) -> dict[Pair, int]:
    """Count neighbouring pairs: [1, 2, 3, 1, 2] -> {(1, 2): 2, (2, 3): 1, (3, 1): 1}.

    Args:
        ids: token ids in order.
        weight: what one occurrence counts for.
        counts: add to this dictionary instead of a new one.
    """
    counts = {} if counts is None else counts
    for pair in pairwise(ids):
        counts[pair] = counts.get(pair, 0) + weight
    return counts


def merge(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each occurrence of `pair`, from the left: ([1, 2, 3, 1, 2], (1, 2), 4) -> [4, 3, 4]."""
    merged: list[int] = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def merge_by_rank(piece: bytes, ranks: dict[bytes, int], below: int = NEVER) -> list[bytes]:
    """Return the tokens of a piece of text: merge from single bytes on, the lowest rank first.

    That two neighbours spell a token is enough for them to be merged, whichever pair the token was
    learned from. For trained tokenizers this makes no difference: neighbours that spell a token always
    are the pair it was learned from, since merging the same bytes by the same lower ranks has left the
    same two. For tokenizers published as ranks alone it is the definition.

    Args:
        piece: UTF-8, or any bytes.
        ranks: the rank of each token. It holds all single bytes.
        below: merge only what has a lower rank than this.
    """
    if len(piece) > HEAP_LENGTH:
        return _merge_with_heap(piece, ranks, below)
    rank_of = ranks.get
    parts = [*map(BYTES.__getitem__, piece)]
    waiting = [rank_of(piece[i : i + 2], NEVER) for i in range(len(piece) - 1)]  # of part i and the next
    while waiting and (rank := min(waiting)) < below:
        i = waiting.index(rank)
        del waiting[i]
        merged = parts[i] = parts[i] + parts.pop(i + 1)
        if i:
            waiting[i - 1] = rank_of(parts[i - 1] + merged, NEVER)
        if i < len(waiting):
            waiting[i] = rank_of(merged + parts[i + 1], NEVER)
    return parts


def _merge_with_heap(piece: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Return the same in O(n log n): keep a linked list of tokens, and a heap of the merges in sight.

    Entries of the heap go stale as their tokens are merged away; they are recognised when popped.
    """
    parts = [*map(BYTES.__getitem__, piece)]
    end = len(parts)
    right = list(range(1, end + 1))  # position of the next token still there
    left = list(range(-1, end - 1))
    heap: list[tuple[int, int]] = []

    def consider(i: int) -> None:
        if i >= 0 and right[i] != end:
            rank = ranks.get(parts[i] + parts[right[i]], NEVER)
            if rank < below:
                heapq.heappush(heap, (rank, i))

    for i in range(end):
        consider(i)
    while heap:
        rank, i = heapq.heappop(heap)
        j = right[i]
        if not parts[i] or j == end or ranks.get(parts[i] + parts[j]) != rank:
            continue  # stale
        parts[i], parts[j] = parts[i] + parts[j], b""
        right[i] = right[j]
        if right[j] != end:
            left[right[j]] = i
        consider(i)
        consider(left[i])
    return [part for part in parts if part]
