"""The simplest byte-pair tokenizer: merges run over the raw bytes of the whole text.

Nothing keeps a token from spanning words: trained on English it learns "of the ", "to the " and "in the "
beside "the ", and spends its vocabulary on the same word in many surroundings. `regex.py` mends that.
"""

from collections import Counter
from collections.abc import Iterable

from working_with_text_data.minbpe.base import Tokenizer
from working_with_text_data.minbpe.fast.long_pieces import encode_piece


class BasicTokenizer(Tokenizer):
    """Byte-pair encoding without splitting the text first."""

    def _count_pieces(self, documents: Iterable[str], workers: int) -> dict[bytes, int]:
        return Counter(document.encode("utf-8") for document in documents)  # nothing to share among workers

    def _encode_text(self, text: str) -> list[int]:
        return [*encode_piece(text.encode("utf-8"), self.ranks, self.vocab)]
