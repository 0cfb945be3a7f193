"""Turn text into token shards that a trainer reads.

    python -m working_with_text_data.prepare --text my_books/ --tokenizer my_tokenizer.json --out my_data

The folder it writes holds `train_000000.bin`, ..., `val_000000.bin`, ... and the tokenizer, `bpe.json`.
It is the same, byte for byte, however many processes encode and however often the work was interrupted.
"""

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from utils.files import InputError, sha256
from working_with_text_data.minbpe import Tokenizer, open_tokenizer
from working_with_text_data.minbpe.fast.parallel import encode_stream
from working_with_text_data.text_files import CORPUS, HELD_OUT, check_share, find_files, split_documents
from working_with_text_data.train_tokenizer import END_OF_TEXT
from working_with_text_data.unfinished import SPLITS, UnfinishedFolder, alone

log = logging.getLogger(__name__)

BYTES_A_TOKEN = 4  # about, to show progress


def usable_cores() -> int:
    """Cores this process may run on, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Config:
    """Turn text into token shards that a trainer reads.

    Each document begins with <|endoftext|>. A share of the text is held out into shards of its own.
    Interrupted, even by a kill or a power cut, the same command goes on after the last finished shard.
    """

    text: Path
    """What to read: a .txt file, one document; a .jsonl, .jsonl.gz or .parquet file, a document in the
    "text" field of each line or row; or a folder, of which all files of these kinds are read in name
    order. Any other file is read as plain text. All text is UTF-8."""
    tokenizer: Literal["gpt2", "gpt4"] | Path = Path("runs/tokenizer.json")
    """GPT-2's or GPT-4's tokenizer, or a file that `train_tokenizer` saved."""
    out: Path = Path("runs/data")
    """The folder to write. An existing one is kept unless --overwrite is given. Until the new one is
    complete, it is made beside it under a hidden name."""
    overwrite: bool = False
    """Replace an existing folder, once the new one is complete. If unfinished work was begun with other
    settings or another text, start over instead of refusing."""
    held_out: float = HELD_OUT
    """Share of the text that goes to the validation shards: the end of each plain text file; of the
    documents in JSON lines and parquet files, whole ones, evenly spread."""
    shard_tokens: int = 100_000_000
    """Tokens of a shard, the last one excepted. After an interruption at most that many of each split
    are encoded again."""
    workers: int = usable_cores()
    """Processes that encode documents, by default one a core. Their number changes the speed only."""


PRESETS = {"demo": Config(text=CORPUS, tokenizer=Path("runs/demo-tokenizer.json"), out=Path("runs/demo-data"))}


def main(config: Config) -> dict[str, int]:
    """Write the folder; return the tokens of each split.

    Raises:
        InputError: for a text or a tokenizer that cannot be read, an existing folder, unfinished work with
            other settings, or another process that writes the same folder.
    """
    if not config.out.name:
        raise InputError(f"--out must name a folder, got {config.out}")
    for flag, count in [("--shard-tokens", config.shard_tokens), ("--workers", config.workers)]:
        if count < 1:
            raise InputError(f"{flag} must be at least 1, got {count}")
    check_share(config.held_out)
    tokenizer = load_tokenizer(config.tokenizer)
    started = time.perf_counter()
    with alone(config.out):
        folder = UnfinishedFolder(config.out, what_decides(config))
        folder.open(config.overwrite)
        try:
            _write_shards(config, tokenizer, folder)
            tokenizer.save(folder.data / "bpe.json")
        except BaseException:
            folder.leave()
            raise
        folder.finish()
    counts = {split: position.n_tokens for split, position in folder.positions.items()}
    if config.held_out and not counts["val"]:
        log.warning("nothing was held out: %s documents are too few for a share of %s", config.text, config.held_out)
    log.info(
        "data: %s training and %s held-out tokens in %.1f s -> %s",
        f"{counts['train']:,}", f"{counts['val']:,}", time.perf_counter() - started, config.out,
    )  # fmt: skip
    return counts


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """GPT-2's or GPT-4's tokenizer by name, or one from a file; it has the token that separates documents.

    Raises:
        InputError: if there is none at the path, it is damaged, or it lacks <|endoftext|>.
    """
    tokenizer = open_tokenizer(name_or_path)
    if END_OF_TEXT not in tokenizer.special_tokens:
        raise InputError(f"the tokenizer {name_or_path} has no special token {END_OF_TEXT}, which separates documents")
    return tokenizer


def what_decides(config: Config) -> dict[str, Any]:
    """All that the result depends on, by the name a user knows it under; files as far as one sees without reading.

    Raises:
        InputError: if there is no text.
    """
    files = []
    for file in find_files(config.text):
        stat = file.stat()
        files.append((file.relative_to(config.text.parent).as_posix(), stat.st_size, stat.st_mtime_ns))
    return {
        "--text (of its files, name, size and time count)": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "--tokenizer": name if (name := str(config.tokenizer)) in ("gpt2", "gpt4") else sha256(Path(name)),
        "--held-out": config.held_out,
        "--shard-tokens": config.shard_tokens,
    }


def _write_shards(config: Config, tokenizer: Tokenizer, folder: UnfinishedFolder) -> None:
    writers = folder.writers(config.shard_tokens)
    first = {split: position.document for split, position in folder.positions.items()}
    in_work: deque[tuple[int, str, int]] = deque()  # what the encoder has taken, in the order it comes back

    def texts() -> Iterator[str]:
        for number, document in enumerate(split_documents(config.text, config.held_out)):
            for split, text in zip(SPLITS, (document.learned, document.held_out), strict=True):
                if text and number >= first[split]:
                    in_work.append((number, split, document.position))
                    yield text

    end_of_text = np.array([tokenizer.special_tokens[END_OF_TEXT]], dtype=tokenizer.array_dtype)
    total = sum(file.stat().st_size for file in find_files(config.text))
    with tqdm(desc="encoding", total=total, unit="B", unit_scale=True, leave=False) as progress:

        def show(n_tokens: int) -> None:
            """Parts of a long document move the bar by about their size, its end sets it right."""
            progress.update(max(0, min(n_tokens * BYTES_A_TOKEN, in_work[0][2] - progress.n)))

        with closing(encode_stream(tokenizer, texts(), config.workers, on_part=show)) as encoded:
            for tokens in encoded:
                number, split, position = in_work.popleft()
                writers[split].add(number, np.concatenate([end_of_text, tokens]))
                progress.update(position - progress.n)
    for writer in writers.values():
        writer.close()


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
