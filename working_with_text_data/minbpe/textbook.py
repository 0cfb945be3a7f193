"""Byte-pair encoding as a textbook has it: nothing remembered, everything counted anew.

Too slow for more than a page or two, and easy to believe. The tests hold the fast code against it, and
`python -m working_with_text_data.benchmark` measures what each step from here to there gains.
"""

from collections.abc import Iterable, Mapping

from working_with_text_data.minbpe.base import Pair, count_pairs, merge
from working_with_text_data.minbpe.regex import RegexTokenizer


def learn_merges(pieces: Iterable[bytes] | Mapping[bytes, int], n_merges: int) -> dict[Pair, int]:
    """The first merges of a text: count every pair, merge the most frequent, count every pair again.

    Ties go to the greater pair of byte strings, as in `trainer.py`.

    Args:
        pieces: of the text, each as often as it occurs; or, to save work, how often each occurs.
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


def encode(text: str, tokenizer: RegexTokenizer, merges: dict[Pair, int]) -> list[int]:
    """Token ids of a text: in each piece, merge the pair learned first, until none is left that was learned.

    Args:
        text: any string.
        tokenizer: splits the text, and has the ids of the bytes.
        merges: the tokenizer's own, `tokenizer.merges`.
    """
    encoded = []
    for piece in tokenizer.split(text):
        ids = [tokenizer.ranks[bytes([byte])] for byte in piece.encode("utf-8")]
        while len(ids) > 1:
            pair = min(count_pairs(ids), key=lambda pair: merges.get(pair, len(tokenizer.vocab)))
            if pair not in merges:
                break
            ids = merge(ids, pair, merges[pair])
        encoded += ids
    return encoded
