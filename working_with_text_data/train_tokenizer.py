"""Train a byte-pair tokenizer on your own text.

python -m working_with_text_data.train_tokenizer --text my_books/ --vocab-size 8192 --out my_tokenizer.json
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from utils.files import InputError, printable, read_json
from utils.outputs import check_output_file
from utils.ranges import Count, Range, Share, check_ranges
from working_with_text_data.minbpe import GPT2_PATTERN, GPT4_PATTERN, RegexTokenizer
from working_with_text_data.minbpe.files import FORMAT
from working_with_text_data.sure_cuts import at_sure_cuts
from working_with_text_data.text_files import CORPUS, END_OF_TEXT, HELD_OUT, Part, find_files, split_documents

log = logging.getLogger(__name__)

# that this process may run on, which can be fewer than the machine has
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Workers = Annotated[int, Range(1, 8 * CORES)]  # more than a few per core only take memory
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
    separator: str = ""
    """What divides a plain text file into documents, if it holds several: often "<|endoftext|>"."""
    vocab_size: Annotated[int, Range(257, 10**6)] = 4096
    """Tokens in all: 256 bytes, <|endoftext|>, and merges for the rest. Larger means fewer tokens per
    text but a bigger embedding table. Training stops earlier when no pair is left to merge."""
    pattern: Literal["gpt2", "gpt4"] = "gpt2"
    """How text is split into the pieces that merges stay inside. GPT-4's pattern cuts numbers after three
    digits, and joins line ends to the punctuation before them and any sign to the word after it."""
    min_frequency: Count = 1
    """Stop when the most frequent pair left occurs less often than this. 2 or more keeps words that
    occur once out of the vocabulary."""
    normalization: Literal["none", "NFC", "NFD", "NFKC"] = "none"
    """Bring text to one of Unicode's normal forms before it is split, here and whenever the tokenizer
    encodes. NFC writes an accented letter as one character, NFD as two; NFKC also makes ligatures and
    full-width letters plain ones. With any of them decoding gives the normal form, not the bytes read."""
    out: Path = Path("runs/tokenizer.json")
    """Where the tokenizer is saved. An existing file is kept unless --overwrite is given."""
    overwrite: bool = False
    """Replace an existing tokenizer. Any other file is never replaced."""
    held_out: Share = HELD_OUT
    """Share of the text that is left unread, so that it can test a model later: the end of each plain
    text file; of the documents in JSON lines, parquet files and text with separators, whole ones, evenly
    spread. Give `prepare` the same."""
    workers: Workers = 1
    """Processes that count the pieces of the text. Their number changes the speed only."""

    def __post_init__(self) -> None:
        check_ranges(self)


PRESETS = {"demo": Config(text=CORPUS, vocab_size=4096, out=Path("runs/demo-tokenizer.json"))}


def main(config: Config) -> RegexTokenizer:
    """Train, save and return the tokenizer.

    Raises:
        InputError: for a text that cannot be read, or an existing file that may not be replaced.
    """
    inputs = [config.text, *find_files(config.text)]
    check_output_file(config.out, overwrite=config.overwrite, is_ours=_is_tokenizer, inputs=inputs)
    started = time.perf_counter()
    normalization = None if config.normalization == "none" else config.normalization
    tokenizer = RegexTokenizer(PATTERNS[config.pattern], normalization)
    parts = split_documents(config.text, config.held_out, config.separator)
    learned = (part for part in parts if part.split == "train")
    tokenizer.train(
        _beginnings(at_sure_cuts(learned, tokenizer)),
        config.vocab_size - 1,
        min_frequency=config.min_frequency,
        workers=config.workers,
        progress=True,
    )
    tokenizer.add_special_tokens(END_OF_TEXT)
    tokenizer.save(config.out)
    seconds = time.perf_counter() - started
    if tokenizer.vocab_size < config.vocab_size:
        log.info(
            "no pair was left to merge after %s tokens (--min-frequency %s)",
            f"{tokenizer.vocab_size:,}", config.min_frequency,
        )  # fmt: skip
    log.info("tokenizer: %s tokens in %.1f s -> %s", f"{tokenizer.vocab_size:,}", seconds, printable(str(config.out)))
    return tokenizer


def _beginnings(parts: Iterable[Part]) -> Iterator[str]:
    """Yield the text of the parts; of a piece so long that it is cut only what stands in the first of its parts."""
    goes_on = False
    for part in parts:
        if not goes_on:
            yield part.text
        goes_on = part.goes_on


def _is_tokenizer(path: Path) -> bool:
    """Return whether a file is a tokenizer that we saved."""
    try:
        content = read_json(path)
    except InputError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
