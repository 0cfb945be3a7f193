"""Turn text into token shards that a trainer reads.

    python -m working_with_text_data.prepare --text my_books/ --tokenizer my_tokenizer.json --out my_data

The folder it writes holds `train_000000.bin`, ..., `val_000000.bin`, ... and the tokenizer, `bpe.json`.
It is the same, byte for byte, however many processes encode and however often the work was interrupted.
"""

import hashlib
import json
import logging
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tqdm import tqdm

from utils.files import InputError, printable, sha256
from utils.locks import alone
from utils.outputs import check_output_folder
from utils.ranges import Range, Share, check_ranges
from working_with_text_data.minbpe import Tokenizer, open_tokenizer
from working_with_text_data.minbpe.fast.parallel import encode_stream
from working_with_text_data.resumable_folder import OURS, ResumableFolder
from working_with_text_data.shards import MOST_TOKENS
from working_with_text_data.sure_cuts import at_sure_cuts, encoding_where_cut
from working_with_text_data.text_files import CORPUS, END_OF_TEXT, HELD_OUT, Part, find_files, split_documents
from working_with_text_data.train_tokenizer import CORES, Workers

log = logging.getLogger(__name__)


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
    separator: str = ""
    """What divides a plain text file into documents, if it holds several: often "<|endoftext|>"."""
    tokenizer: Literal["gpt2", "gpt4"] | Path = Path("runs/tokenizer.json")
    """GPT-2's or GPT-4's tokenizer, or a file that `train_tokenizer` saved."""
    out: Path = Path("runs/data")
    """The folder to write. An existing one is kept unless --overwrite is given. Until the new one is
    complete, it is made beside it under a hidden name."""
    overwrite: bool = False
    """Replace an existing folder of shards, once the new one is complete. One that holds anything else is
    never replaced. If unfinished work was begun with other settings or another text, start over instead
    of refusing."""
    held_out: Share = HELD_OUT
    """Share of the text that goes to the validation shards: the end of each plain text file; of the
    documents in JSON lines, parquet files and text with separators, whole ones, evenly spread."""
    shard_tokens: Annotated[int, Range(1000, MOST_TOKENS)] = 100_000_000
    """Tokens per shard, the last one excepted. After an interruption the documents from the last finished
    shard of each split on are encoded again."""
    workers: Workers = CORES
    """Processes that encode documents, by default one per core. Their number changes the speed only."""

    def __post_init__(self) -> None:
        check_ranges(self)


PRESETS = {"demo": Config(text=CORPUS, tokenizer=Path("runs/demo-tokenizer.json"), out=Path("runs/demo-data"))}


def main(config: Config) -> dict[str, int]:
    """Write the folder; return the tokens of each split.

    Raises:
        InputError: for a text or a tokenizer that cannot be read, an existing folder, unfinished work with
            other settings, or another process that writes the same folder.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    files = find_files(config.text)
    inputs = [config.text, *files, Path(config.tokenizer)]
    check_output_folder(config.out, OURS, overwrite=config.overwrite, inputs=inputs)
    folder = ResumableFolder(config.out, what_decides(config, files))
    started = time.perf_counter()
    with alone(config.out, "making"):
        folder.open(config.overwrite)
        try:
            _write_shards(config, tokenizer, folder, n_bytes=sum(file.stat().st_size for file in files))
            tokenizer.save(folder.data / "bpe.json")
            folder.finish()
        except BaseException:
            folder.leave()
            raise
    counts = {split: position.n_tokens for split, position in folder.positions.items()}
    where = printable(str(config.text))
    if config.held_out and not counts["val"]:
        log.warning("nothing was held out: %s is too little for --held-out %s, raise it", where, config.held_out)
    if not counts["train"]:
        log.warning("all of %s was held out: lower --held-out %s, or give more text", where, config.held_out)
    log.info(
        "data: %s training and %s held-out tokens in %.1f s -> %s",
        f"{counts['train']:,}", f"{counts['val']:,}", time.perf_counter() - started, printable(str(config.out)),
    )  # fmt: skip
    return counts


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """Return GPT-2's or GPT-4's tokenizer by name, or one from a file; it has the token that separates documents.

    Raises:
        InputError: if there is none at the path, it is damaged, or it lacks <|endoftext|>.
    """
    tokenizer = open_tokenizer(name_or_path)
    if END_OF_TEXT not in tokenizer.special_tokens:
        raise InputError(f"the tokenizer {name_or_path} has no special token {END_OF_TEXT}, which separates documents")
    return tokenizer


def what_decides(config: Config, files: list[Path]) -> dict[str, Any]:
    """Return all that the result depends on, by the name a user knows it under. The text itself is not read for it."""
    described = []
    for file in files:
        stat = file.stat()
        described.append((file.relative_to(config.text.parent).as_posix(), stat.st_size, stat.st_mtime_ns))
    return {
        "--text (of its files, name, size and time count)": hashlib.sha256(json.dumps(described).encode()).hexdigest(),
        "--separator": config.separator,
        "--tokenizer": name if (name := str(config.tokenizer)) in ("gpt2", "gpt4") else sha256(Path(name)),
        "--held-out": config.held_out,
        "--shard-tokens": config.shard_tokens,
    }


def _write_shards(config: Config, tokenizer: Tokenizer, folder: ResumableFolder, n_bytes: int) -> None:
    writers = folder.writers(config.shard_tokens)
    first = {split: position.document for split, position in folder.positions.items()}
    in_work: deque[Part] = deque()  # what the encoder has taken, without its text, in the order it comes back

    text_or_ids = encoding_where_cut(tokenizer)

    def take(part: Part) -> str | np.ndarray:
        in_work.append(part._replace(text=""))
        return text_or_ids(part)

    parts = split_documents(config.text, config.held_out, config.separator)
    needed = (part for part in parts if part.document >= first[part.split])
    texts = map(take, at_sure_cuts(needed, tokenizer))
    end_of_text = np.array([tokenizer.special_tokens[END_OF_TEXT]], dtype=tokenizer.array_dtype)
    begun = dict.fromkeys(writers, -1)  # the document of each split that has its end-of-text token
    with (
        writers["train"],
        writers["val"],
        tqdm(desc="encoding", total=n_bytes, unit="B", unit_scale=True, leave=False) as progress,
        closing(encode_stream(tokenizer, texts, config.workers)) as encoded,
    ):
        for tokens in encoded:
            part = in_work.popleft()
            if begun[part.split] != part.document:
                begun[part.split] = part.document
                tokens = np.concatenate([end_of_text, tokens])
            writers[part.split].add(part.document, tokens)
            progress.update(part.position - progress.n)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
