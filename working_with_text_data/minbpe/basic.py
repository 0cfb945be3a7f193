"""The simplest byte-pair tokenizer: merges run over the raw bytes of the whole text.

Nothing keeps a token from spanning words: trained on English it learns "of the ", "to the " and "in the "
beside "the ", and spends its vocabulary on the same word in many surroundings. `regex.py` mends that.
"""

from collections import Counter
from collections.abc import Iterable

from working_with_text_data.minbpe.base import Tokenizer, documents, merge_by_rank


class BasicTokenizer(Tokenizer):
    """Byte-pair encoding without splitting the text first."""

    def train(self, text: str | Iterable[str], vocab_size: int, *, progress: bool = False) -> None:
        pieces = Counter(document.encode("utf-8") for document in documents(text))
        self._learn(pieces, vocab_size, progress)

    def encode_ordinary(self, text: str) -> list[int]:
        return merge_by_rank(list(text.encode("utf-8")), self.merges)
