"""Train a byte-pair tokenizer on your own text.

python -m working_with_text_data.train_tokenizer --text my_books/ --vocab-size 8192 --out my_tokenizer.json
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.files import InputError
from working_with_text_data.minbpe import GPT2_PATTERN, GPT4_PATTERN, RegexTokenizer
from working_with_text_data.text_files import CORPUS, HELD_OUT, check_share, split_documents

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN}


@dataclass(frozen=True)
class Config:
    """Train a byte-pair tokenizer on your own text.

    The result is one JSON file. Its last token is <|endoftext|>, which stands between documents.
    """

    text: Path
    """What to learn from: a .txt file, one document; a .jsonl, .jsonl.gz or .parquet file, a document in
    the "text" field of each line or row; or a folder, of which all files of these kinds are read in name
    order. Any other file is read as plain text. All text is UTF-8."""
    vocab_size: int = 4096
    """Tokens in all: 256 bytes, <|endoftext|>, and merges for the rest. Larger means fewer tokens a
    text but a bigger embedding table. Training stops earlier when no pair is left to merge."""
    pattern: Literal["gpt2", "gpt4"] = "gpt2"
    """How text is split into the pieces that merges stay inside. GPT-4's pattern cuts numbers after three
    digits, and joins line ends to the punctuation before them and any sign to the word after it."""
    min_frequency: int = 1
    """Stop when the most frequent pair left occurs less often than this. 2 or more keeps words that
    occur once out of the vocabulary."""
    normalization: Literal["none", "NFC", "NFD", "NFKC"] = "none"
    """Bring text to one of Unicode's normal forms before it is split, here and whenever the tokenizer
    encodes. NFC writes an accented letter as one character, NFD as two; NFKC also makes ligatures and
    full-width letters plain ones. With any of them decoding gives the normal form, not the bytes read."""
    out: Path = Path("runs/tokenizer.json")
    """Where the tokenizer is saved. An existing file is kept unless --overwrite is given."""
    overwrite: bool = False
    """Replace an existing file."""
    held_out: float = HELD_OUT
    """Share of the text that is not looked at, so that it can test a model later: the end of each plain
    text file; of the documents in JSON lines and parquet files, whole ones, evenly spread. Give
    `prepare` the same."""
    workers: int = 1
    """Processes that count the pieces of the text. Their number changes the speed only."""


PRESETS = {"demo": Config(text=CORPUS, vocab_size=4096, out=Path("runs/demo-tokenizer.json"))}


def main(config: Config) -> RegexTokenizer:
    """Train, save and return the tokenizer.

    Raises:
        InputError: for a text that cannot be read, a vocabulary below 257 or another impossible number, or
            an existing file.
    """
    if config.vocab_size < 257:
        raise InputError(f"--vocab-size must be at least 257 (256 bytes and {END_OF_TEXT}), got {config.vocab_size}")
    for flag, count in [("--min-frequency", config.min_frequency), ("--workers", config.workers)]:
        if count < 1:
            raise InputError(f"{flag} must be at least 1, got {count}")
    check_share(config.held_out)
    if config.out.exists() and not config.overwrite:
        raise InputError(f"{config.out} exists: choose another --out, or give --overwrite to replace it")
    started = time.perf_counter()
    texts = (document.learned for document in split_documents(config.text, config.held_out) if document.learned)
    normalization = None if config.normalization == "none" else config.normalization
    tokenizer = RegexTokenizer(PATTERNS[config.pattern], normalization)
    tokenizer.train(
        texts, config.vocab_size - 1, min_frequency=config.min_frequency, workers=config.workers, progress=True
    )
    tokenizer.add_special_tokens(END_OF_TEXT)
    tokenizer.save(config.out)
    seconds = time.perf_counter() - started
    if tokenizer.vocab_size < config.vocab_size:
        log.info(
            "no pair was left to merge after %s tokens (--min-frequency %s)",
            f"{tokenizer.vocab_size:,}", config.min_frequency,
        )  # fmt: skip
    log.info("tokenizer: %s tokens in %.1f s -> %s", f"{tokenizer.vocab_size:,}", seconds, config.out)
    return tokenizer


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
