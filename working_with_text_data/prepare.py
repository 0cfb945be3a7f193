"""Turn text into token shards that a trainer reads.

    python -m working_with_text_data.prepare --text my_books/ --tokenizer my_tokenizer.json --out my_data

The folder it writes holds `train_000000.bin`, ..., `val_000000.bin`, ... and the tokenizer, `bpe.json`.
"""

import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.files import InputError, sync_folder
from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.shards import write_shard
from working_with_text_data.text_files import CORPUS, HELD_OUT, read_documents, split_held_out
from working_with_text_data.train_tokenizer import END_OF_TEXT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Turn text into token shards that a trainer reads.

    Each document begins with <|endoftext|>. Its end is held out into shards of their own.
    """

    text: Path
    """A UTF-8 text file, or a folder whose .txt files are read in name order, each one document."""
    tokenizer: Path = Path("runs/tokenizer.json")
    """A tokenizer that `train_tokenizer` saved."""
    out: Path = Path("runs/data")
    """The folder to write. An existing one is kept unless --overwrite is given."""
    overwrite: bool = False
    """Replace an existing folder, once the new one is complete."""
    held_out: float = HELD_OUT
    """Share at the end of each document that goes to the validation shards."""
    shard_tokens: int = 100_000_000
    """Tokens of a shard, the last one excepted."""


PRESETS = {"demo": Config(text=CORPUS, tokenizer=Path("runs/demo-tokenizer.json"), out=Path("runs/demo-data"))}


class ShardWriter:
    """Collects documents and writes a shard each time there are enough tokens for one."""

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.waiting: list[np.ndarray] = []
        self.n_waiting = self.n_shards = self.n_tokens = 0

    def add(self, tokens: np.ndarray) -> None:
        self.waiting.append(tokens)
        self.n_waiting += len(tokens)
        while self.n_waiting >= self.shard_tokens:
            self._write(self.shard_tokens)

    def close(self) -> None:
        if self.n_waiting:
            self._write(self.n_waiting)

    def _write(self, count: int) -> None:
        tokens = np.concatenate(self.waiting)
        write_shard(self.folder / f"{self.split}_{self.n_shards:06d}.bin", tokens[:count])
        self.waiting = [tokens[count:]]
        self.n_waiting -= count
        self.n_shards += 1
        self.n_tokens += count


def main(config: Config) -> dict[str, int]:
    """Write the folder; return the tokens of each split.

    Raises:
        InputError: for a text or a tokenizer that cannot be read, or an existing folder.
    """
    if config.out.exists() and not config.overwrite:
        raise InputError(f"{config.out} exists: choose another --out, or give --overwrite to replace it")
    if config.shard_tokens < 1:
        raise InputError(f"--shard-tokens must be at least 1, got {config.shard_tokens}")
    tokenizer = load_tokenizer(config.tokenizer)
    started = time.perf_counter()
    unfinished = config.out.with_name(f".{config.out.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        counts = _write_shards(config, tokenizer, unfinished)
        tokenizer.save(unfinished / "bpe.json")
        _replace_folder(unfinished, config.out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    log.info(
        "data: %s training and %s held-out tokens in %.1f s -> %s",
        f"{counts['train']:,}", f"{counts['val']:,}", time.perf_counter() - started, config.out,
    )  # fmt: skip
    return counts


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer that has the token which separates documents.

    Raises:
        InputError: if there is none at `path`, it is damaged, or it lacks <|endoftext|>.
    """
    if not path.exists():
        raise InputError(
            f"there is no tokenizer {path}: make one with python -m working_with_text_data.train_tokenizer"
        )
    tokenizer = Tokenizer.load(path)
    if END_OF_TEXT not in tokenizer.special_tokens:
        raise InputError(f"the tokenizer {path} has no special token {END_OF_TEXT}, which separates documents")
    return tokenizer


def _write_shards(config: Config, tokenizer: Tokenizer, folder: Path) -> dict[str, int]:
    end_of_text = np.array([tokenizer.special_tokens[END_OF_TEXT]], dtype=tokenizer.array_dtype)
    writers = {split: ShardWriter(folder, split, config.shard_tokens) for split in ("train", "val")}
    progress = tqdm(desc="tokens", unit=" B", unit_scale=True, leave=False)
    for document in read_documents(config.text):
        for split, text in zip(writers, split_held_out(document, config.held_out), strict=True):
            if text:
                writers[split].add(np.concatenate([end_of_text, tokenizer.encode_to_array(text)]))
                progress.update(len(text.encode()))
    progress.close()
    for writer in writers.values():
        writer.close()
    return {split: writer.n_tokens for split, writer in writers.items()}


def _replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in the place of `target`; a kill between the two renames leaves both on disk."""
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)
    sync_folder(target.parent)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
