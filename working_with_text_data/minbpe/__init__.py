"""Byte-pair encoding tokenizers, from the simplest that works to the ones large models use.

Read in this order:
1. `merging.py` and `textbook.py`: all of byte-pair encoding, on two pages.
2. `base.py`, `basic.py`, `regex.py`: tokenizers that are trained, without and with splitting the text first;
   `splitting.py` and `special_tokens.py` are their parts.
3. `ranks.py`, `gpt2.py`, `gpt4.py`: OpenAI's own; `unicode_classes.py` says what they take for a letter.
4. `trie.py`: another way to use a vocabulary.
5. `files.py`, `opening.py`, `interop.py`, `rectangles.py`: to and from files, other libraries, models.
6. `fast/`: what makes training and encoding fast.

A module imports those before it, never those after it, `fast/` excepted, which knows `merging.py` only.
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
