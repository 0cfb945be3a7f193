"""Train a byte-pair tokenizer on your own text.

python -m working_with_text_data.train_tokenizer --text my_books/ --vocab-size 8192 --out my_tokenizer.json
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from utils.files import InputError
from working_with_text_data.minbpe import GPT2_PATTERN, RegexTokenizer
from working_with_text_data.text_files import CORPUS, HELD_OUT, read_documents, split_held_out

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Config:
    """Train a byte-pair tokenizer on your own text.

    The result is one JSON file. Its last token is <|endoftext|>, which stands between documents.
    """

    text: Path
    """A UTF-8 text file, or a folder whose .txt files are read in name order, each one document."""
    vocab_size: int = 4096
    """Tokens in all: 256 bytes, <|endoftext|>, and merges for the rest. Larger means fewer tokens a
    text but a bigger embedding table. Training stops earlier when no pair is left to merge."""
    out: Path = Path("runs/tokenizer.json")
    """Where the tokenizer is saved. An existing file is kept unless --overwrite is given."""
    overwrite: bool = False
    """Replace an existing file."""
    held_out: float = HELD_OUT
    """Share at the end of each document that is not looked at, so that it can test a model later.
    Give `prepare` the same."""


PRESETS = {"demo": Config(text=CORPUS, vocab_size=4096, out=Path("runs/demo-tokenizer.json"))}


def main(config: Config) -> RegexTokenizer:
    """Train, save and return the tokenizer.

    Raises:
        InputError: for a text that cannot be read, a vocabulary below 257, or an existing file.
    """
    if config.vocab_size < 257:
        raise InputError(f"--vocab-size must be at least 257 (256 bytes and {END_OF_TEXT}), got {config.vocab_size}")
    if config.out.exists() and not config.overwrite:
        raise InputError(f"{config.out} exists: choose another --out, or give --overwrite to replace it")
    started = time.perf_counter()
    texts = (split_held_out(text, config.held_out)[0] for text in read_documents(config.text))
    tokenizer = RegexTokenizer(GPT2_PATTERN)
    tokenizer.train(texts, config.vocab_size - 1, progress=True)
    tokenizer.add_special_tokens(END_OF_TEXT)
    tokenizer.save(config.out)
    seconds = time.perf_counter() - started
    if tokenizer.vocab_size < config.vocab_size:
        log.info("no pair was left to merge after %s tokens", f"{tokenizer.vocab_size:,}")
    log.info("tokenizer: %s tokens in %.1f s -> %s", f"{tokenizer.vocab_size:,}", seconds, config.out)
    return tokenizer


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
