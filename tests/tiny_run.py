"""Settings of a training run that takes a second or two, and a tokenizer that it was not trained with."""

import contextlib
import os
from pathlib import Path

from pretraining import simple
from pretraining.config import Config
from working_with_text_data.minbpe import RegexTokenizer
from working_with_text_data.train_tokenizer import END_OF_TEXT


def tiny(data: Path, out: Path, **changes: object) -> Config:
    """A tiny run, with some settings changed."""
    settings = {
        "context_length": 32, "d_model": 32, "n_layers": 2, "n_heads": 2, "position": "learned",
        "steps": 12, "batch_size": 4, "schedule": "cosine", "precision": "float32", "compile": "off", "device": "cpu",
        "eval_every": 5, "eval_blocks": 8, "checkpoint_every": 4,
    }  # fmt: skip
    return Config(data=data, out=out, **{**settings, **changes})


def train_silently(config: Config) -> None:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        simple.main(config)


def other_tokenizer(path: Path, vocab_size: int = 512) -> None:
    """Save a tokenizer that gives other ids than the one of the tests' data; by default it has as many."""
    tokenizer = RegexTokenizer()
    tokenizer.train("".join(f"{number} squared is {number**2}. " for number in range(1000)), vocab_size - 1)
    tokenizer.add_special_tokens(END_OF_TEXT)
    assert tokenizer.vocab_size == vocab_size
    tokenizer.save(path)
