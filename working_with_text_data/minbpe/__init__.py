"""Byte-pair encoding tokenizers, from the simplest that works to the ones large models use.

Read `base.py`, `basic.py` and `regex.py`, then `ranks.py`, `gpt2.py` and `gpt4.py`. How it is made fast is in
`trainer.py` (training) and `units.py` (encoding). `trie.py` is another way to use a vocabulary.
"""

from working_with_text_data.minbpe.base import Tokenizer
from working_with_text_data.minbpe.basic import BasicTokenizer
from working_with_text_data.minbpe.files import open_tokenizer
from working_with_text_data.minbpe.gpt2 import GPT2Tokenizer
from working_with_text_data.minbpe.gpt4 import GPT4Tokenizer
from working_with_text_data.minbpe.interop import from_tiktoken
from working_with_text_data.minbpe.ranks import RankTokenizer
from working_with_text_data.minbpe.rectangles import rectangle
from working_with_text_data.minbpe.regex import GPT2_PATTERN, GPT4_PATTERN, RegexTokenizer

__all__ = [
    "GPT2_PATTERN", "GPT4_PATTERN", "BasicTokenizer", "GPT2Tokenizer", "GPT4Tokenizer", "RankTokenizer",
    "RegexTokenizer", "Tokenizer", "from_tiktoken", "open_tokenizer", "rectangle",
]  # fmt: skip
