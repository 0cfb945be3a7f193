"""Byte-pair encoding tokenizers, from the simplest that works to the ones large models use.

Read in this order:
1. `textbook.py`, with `count_pairs` and `merge` from `merging.py`: all of byte-pair encoding. The rest of `merging.py`
   does the same to a piece of text faster.
2. `base.py`, `basic.py`, `regex.py`: tokenizers to train, without and with splitting the text first. Their parts are
   `files.py`, `special_tokens.py`, `splitting.py` and `unicode_classes.py`.
3. `ranks.py`, `gpt2.py`, `gpt4.py`: OpenAI's own.
4. `trie.py`: another way to use a vocabulary.
5. `opening.py`, `interop.py`, `rectangles.py`: from a name, for other libraries, for models.
6. `fast/`: what makes training and encoding fast. It knows `merging.py` and no tokenizer.
"""

from working_with_text_data.minbpe.base import Tokenizer
from working_with_text_data.minbpe.basic import BasicTokenizer
from working_with_text_data.minbpe.gpt2 import GPT2Tokenizer
from working_with_text_data.minbpe.gpt4 import GPT4Tokenizer
from working_with_text_data.minbpe.interop import from_tiktoken, to_huggingface, to_tiktoken
from working_with_text_data.minbpe.opening import open_tokenizer
from working_with_text_data.minbpe.ranks import RankTokenizer
from working_with_text_data.minbpe.rectangles import rectangle
from working_with_text_data.minbpe.regex import GPT2_PATTERN, GPT4_PATTERN, RegexTokenizer

__all__ = [
    "GPT2_PATTERN", "GPT4_PATTERN", "BasicTokenizer", "GPT2Tokenizer", "GPT4Tokenizer", "RankTokenizer",
    "RegexTokenizer", "Tokenizer", "from_tiktoken", "open_tokenizer", "rectangle", "to_huggingface", "to_tiktoken",
]  # fmt: skip
