"""Learn byte-pair merges fast: after each merge, touch only the places where it applied.

The textbook trainer recounts every pair of the whole text after each merge. Here
- equal pieces are counted once and weigh as much as they occur;
- all pieces lie end to end in one linked list of tokens, and every pair knows the positions of its
  left token, so that a merge visits those and corrects the counts of their neighbours alone;
- the most frequent pair comes from a heap. An entry goes stale when its count falls; it is put back
  with the true count when it is popped.

Ties go to the lexicographically greater pair of byte strings, so the result depends neither on the
order of the text nor on how the counting was divided.
"""

import heapq
from collections import defaultdict
from collections.abc import Mapping

from tqdm import tqdm

from working_with_text_data.minbpe.merging import Pair

GONE = -1  # a position merged into the one on its left
BETWEEN = -2  # a position between two pieces: no pair includes it


def learn_merges(
    pieces: Mapping[bytes, int], n_merges: int, *, min_frequency: int = 1, progress: bool = False
) -> dict[Pair, int]:
    """Return the first `n_merges` merges, in order, each with the token it makes (256 and up).

    Args:
        pieces: how often each piece of text occurs; merges never cross from one piece to another.
        n_merges: fewer are returned when no pair is left before that.
        min_frequency: stop when the most frequent pair occurs less often than this.
        progress: show a progress bar.
    """
    pairs = PairTable(pieces)
    merges: dict[Pair, int] = {}
    for new_id in tqdm(range(256, 256 + n_merges), desc="merges", disable=not progress, leave=False):
        pair = pairs.most_frequent()
        if pair is None or pairs.counts[pair] < min_frequency:
            break
        pairs.merge(pair, new_id)
        merges[pair] = new_id
    return merges


class PairTable:
    """The tokens of all pieces, the weighted count of each pair, and where each pair stands."""

    def __init__(self, pieces: Mapping[bytes, int]) -> None:
        self.tokens: list[int] = [BETWEEN]
        self.weights: list[int] = [0]
        for piece, count in pieces.items():
            self.tokens.extend(piece)
            self.tokens.append(BETWEEN)
            self.weights.extend([count] * (len(piece) + 1))
        self.right = list(range(1, len(self.tokens) + 1))
        self.left = list(range(-1, len(self.tokens) - 1))

        self.counts: dict[Pair, int] = defaultdict(int)
        self.positions: dict[Pair, list[int]] = defaultdict(list)  # may hold stale positions
        for i in range(len(self.tokens) - 1):
            a, b = self.tokens[i], self.tokens[i + 1]
            if a >= 0 and b >= 0:
                self.counts[a, b] += self.weights[i]
                self.positions[a, b].append(i)

        # Sorting these keys upwards sorts the byte strings downwards, a longer one before its prefix.
        self.keys = [chr(255 - byte) + chr(256) for byte in range(256)]
        self.heap = [self._entry(pair) for pair in self.counts]
        heapq.heapify(self.heap)

    def _entry(self, pair: Pair) -> tuple[int, str, str, Pair]:
        return (-self.counts[pair], self.keys[pair[0]], self.keys[pair[1]], pair)

    def most_frequent(self) -> Pair | None:
        """Return the pair to merge next, or None if no two tokens stand side by side any more."""
        while self.heap:
            entry = heapq.heappop(self.heap)
            pair = entry[-1]
            count = self.counts.get(pair, 0)
            if count == -entry[0]:
                return pair
            if count:  # stale: it lost occurrences to other merges
                heapq.heappush(self.heap, self._entry(pair))
        return None

    def merge(self, pair: Pair, new_id: int) -> None:
        """Make every occurrence of `pair` the token `new_id`, and correct the neighbours' counts."""
        first, second = pair
        tokens, weights, left, right = self.tokens, self.weights, self.left, self.right
        counts, positions = self.counts, self.positions
        self.keys.append(self.keys[first][:-1] + self.keys[second])
        made: set[Pair] = set()
        # Positions were appended from left to right only within one merge: sort, so that "aaa" merges
        # as (aa)a. A position is stale if another merge has since taken one of its two tokens.
        for i in sorted(positions.pop(pair)):
            j = right[i]
            if tokens[i] != first or tokens[j] != second:
                continue
            before, after, weight = left[i], right[j], weights[i]
            if tokens[before] >= 0:
                counts[tokens[before], first] -= weight
                counts[tokens[before], new_id] += weight
                positions[tokens[before], new_id].append(before)
                made.add((tokens[before], new_id))
            if tokens[after] >= 0:
                counts[second, tokens[after]] -= weight
                counts[new_id, tokens[after]] += weight
                positions[new_id, tokens[after]].append(i)
                made.add((new_id, tokens[after]))
            tokens[i], tokens[j] = new_id, GONE
            right[i] = after
            left[after] = i
        del counts[pair]
        for new_pair in made:
            if counts[new_pair]:
                heapq.heappush(self.heap, self._entry(new_pair))
