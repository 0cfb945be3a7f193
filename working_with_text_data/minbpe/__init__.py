"""Byte-pair encoding tokenizers, from the simplest that works to the ones large models use.

Read `base.py`, then `basic.py`, `regex.py` and, for how training is made fast, `trainer.py`.
"""

from working_with_text_data.minbpe.base import Tokenizer
from working_with_text_data.minbpe.basic import BasicTokenizer
from working_with_text_data.minbpe.regex import GPT2_PATTERN, GPT4_PATTERN, RegexTokenizer

__all__ = ["GPT2_PATTERN", "GPT4_PATTERN", "BasicTokenizer", "RegexTokenizer", "Tokenizer"]
