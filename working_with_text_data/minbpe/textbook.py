"""Byte-pair encoding on one page, as a textbook has it: nothing remembered, everything counted anew.

Three rounds of training on one word. Each counts all pairs and writes a new token, 256 and up, for the best one:

    a a a b d a a a b a c       "a" + "a" occurs 4 times, overlaps counted
    aa a b d aa a b a c         "aa" + "a" and "a" + "b" occur twice each; of equals, the greater first half is taken
    aaa b d aaa b a c           "aaa" + "b" occurs twice
    aaab d aaab a c

    >>> merges = train([b"aaabdaaabac"], n_merges=3)
    >>> merges
    {(97, 97): 256, (256, 97): 257, (257, 98): 258}
    >>> encode(b"aaabdaaabac", merges)
    [258, 100, 258, 97, 99]

It is too slow for more than a page or two of text, and easy to believe. The tests hold the fast code against it.
"""

from collections.abc import Iterable, Mapping

from working_with_text_data.minbpe.merging import NEVER, Pair, count_pairs, merge


def train(pieces: Iterable[bytes] | Mapping[bytes, int], n_merges: int) -> dict[Pair, int]:
    """Return the first merges of a text, in order: count every pair, merge the most frequent, start over.

    Of equally frequent pairs the one with the greater first half is taken, as byte strings compare; if the first
    halves are equal too, the one with the greater second half.

    Args:
        pieces: of the text; no merge spans two of them. Or, to save work, how often each distinct piece occurs.
        n_merges: fewer are returned when no pair is left before that.
    """
    weighted = pieces.items() if isinstance(pieces, Mapping) else ((piece, 1) for piece in pieces)
    text = [(list(piece), weight) for piece, weight in weighted]
    spelling = {i: bytes([i]) for i in range(256)}
    merges: dict[Pair, int] = {}
    for new_id in range(256, 256 + n_merges):
        counts: dict[Pair, int] = {}
        for ids, weight in text:
            count_pairs(ids, weight, counts)
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], spelling[pair[0]], spelling[pair[1]]))
        merges[best] = new_id
        spelling[new_id] = spelling[best[0]] + spelling[best[1]]
        text = [(merge(ids, best, new_id), weight) for ids, weight in text]
    return merges


def encode(piece: Iterable[int], merges: Mapping[Pair, int]) -> list[int]:
    """Return the token ids of a piece of text: merge the pair learned first, until none is left that was learned.

    Args:
        piece: its bytes; for a tokenizer that numbers the bytes in another order, as GPT-2's does, their ids.
        merges: in the order in which they were learned, each with the id it makes.
    """
    ids = list(piece)
    while len(ids) > 1:
        pair = min(count_pairs(ids), key=lambda pair: merges.get(pair, NEVER))
        if pair not in merges:
            break
        ids = merge(ids, pair, merges[pair])
    return ids
