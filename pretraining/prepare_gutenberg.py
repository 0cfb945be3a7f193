"""Make a corpus of the books of Project Gutenberg: whole books for training, others for validation and for testing.

    python -m pretraining.prepare_gutenberg --input runs/gutenberg --out runs/books

Headers and licences are cut off; books in other languages and second editions of the same book are left out. The
folder it writes holds `train.jsonl`, `val.jsonl` and `test.jsonl`, a book on each line, and `manifest.json`, which says
what became of every book; with --tokenizer also the shards that a trainer reads.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from pretraining.corpus.encoding import Tokens, encode
from pretraining.corpus.filtering import Filtered, check_packages
from pretraining.corpus.gutenberg import Books
from pretraining.corpus.gutenberg_download import MIRRORS, download_books
from pretraining.corpus.pipeline import (
    CORPUS_FILES,
    RULES_VERSION,
    filter_sources,
    fingerprint,
    statistics,
    write_manifest,
)
from pretraining.corpus.screen import Screen
from pretraining.corpus.selection import select
from utils.files import InputError, sha256, write_atomically
from utils.locks import alone
from utils.outputs import check_output_folder, check_writable
from utils.ranges import Range, Seed, Share, check_ranges
from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.prepare import load_tokenizer
from working_with_text_data.resumable_folder import ResumableFolder
from working_with_text_data.shards import MOST_TOKENS
from working_with_text_data.text_files import END_OF_TEXT
from working_with_text_data.train_tokenizer import CORES, Workers

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
OURS = (*CORPUS_FILES, *(f"{split}.jsonl" for split in SPLITS))


@dataclass(frozen=True)
class Config:
    """Make a corpus of the books of Project Gutenberg, divided by book. Killed, the same command goes on."""

    input: Path = Path("runs/gutenberg")
    """The books as Project Gutenberg has them: a folder of .txt files, or a .zip or .tar archive of them."""
    out: Path = Path("runs/books")
    """The folder to write."""
    work: Path | None = None
    """Where finished stages stay; by default beside --out, as OUT-stages."""
    overwrite: bool = False
    """Replace an existing --out once the new one is complete."""
    download: Annotated[int, Range(0, 10**6)] = 0
    """First download this many books of the catalogue into --input, those that are not there yet. All books in
    English are about 55,000, some 20 GB."""
    mirrors: tuple[str, ...] = MIRRORS
    """Where to download from, in this order."""
    pause: Annotated[float, Range(0, 3600)] = 2.0
    """Seconds between two downloads; Project Gutenberg asks for two at least."""
    language: str = "en"
    """Keep books in this language, as an ISO 639-1 code; '' keeps all."""
    val: Share = 0.05
    """Share of the books for validation."""
    test: Share = 0.05
    """Share of the books for testing."""
    tokenizer: Literal["gpt2", "gpt4"] | Path | None = None
    """Write shards of the first two splits too, with GPT-2's or GPT-4's tokenizer or one from a file."""
    shard_tokens: Annotated[int, Range(1000, MOST_TOKENS)] = 100_000_000
    """Tokens per shard, the last one excepted."""
    seed: Seed = 0
    """Of the division into splits, and of the order of the books."""
    strict: bool = False
    """Stop at the first file that is no book, instead of counting and naming it."""
    workers: Workers = CORES
    """Processes that read and encode. Their number changes the speed only."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.val + self.test >= 1:
            raise InputError(f"val and test together must be below 1, got {self.val} and {self.test}")


def main(config: Config) -> dict[str, Any]:
    """Make the corpus; return what the manifest says of it.

    Raises:
        InputError: for books or a tokenizer that cannot be read, too few books, an existing folder, or another
            process that writes the same folder.
    """
    work = config.work or config.out.with_name(f"{config.out.name}-stages")
    check_output_folder(config.out, OURS, overwrite=config.overwrite, inputs=[config.input])
    check_writable(work, "--work")
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    screen = Screen(prose=False, language=config.language, replace_personal=False)
    check_packages([screen])
    if config.download:
        download_books(config.input, config.download, config.mirrors, config.pause, config.language)
    source = Books(config.input)
    screens = {source.name: screen}
    settings = {
        "--input (of its files, name, size and time count)": source.identity(),
        "filters": fingerprint([RULES_VERSION, screens[source.name].identity()]),
        "--val": config.val,
        "--test": config.test,
        "--tokenizer": _identity(config.tokenizer),
        "--shard-tokens": config.shard_tokens,
        "--seed": config.seed,
    }
    folder = ResumableFolder(config.out, settings, ours=OURS)
    with alone(config.out, "making"), alone(work, "writing"):
        filtered = filter_sources([source], screens, work, config.workers, strict=config.strict)
        selection = select(filtered)
        books = filtered[source.name]
        splits = divide(selection.kept[source.name], config.val, config.test, config.seed)
        folder.open(config.overwrite)
        try:
            named = write_texts(folder.data, books, splits)
            counts = {}
            if tokenizer:
                tokens_folder = work / f"tokens-books-{fingerprint([books.folder.name, settings['--tokenizer']])}"
                encode(books, np.ones(len(splits), dtype=bool), tokenizer, tokens_folder, config.workers)
                counts = write_shards(folder, tokens_folder, tokenizer, splits, config)
            documents = statistics(filtered, selection)
            manifest = {"settings": settings, "documents": documents, "books": named, "tokens": counts}
            write_manifest(folder.data, manifest)
            folder.finish()
        except BaseException:
            folder.leave()
            raise
    log.info("%s -> %s", ", ".join(f"{len(named[split])} books to {split}" for split in SPLITS), config.out)
    return manifest


def divide(kept: np.ndarray, val: float, test: float, seed: int) -> np.ndarray:
    """Return the split of each book, as an index into `SPLITS`, or -1 for those that are left out.

    Args:
        kept: whether each book stays.
        val: share of the books for validation; at least one book, if it is above 0.
        test: likewise for testing.
        seed: of the division.

    Raises:
        InputError: if there are too few books.
    """
    chosen = np.flatnonzero(kept)
    order = np.random.default_rng(seed).permutation(chosen)
    n_val, n_test = (max(round(share * len(chosen)), int(share > 0)) for share in (val, test))
    if n_val + n_test >= len(chosen):
        raise InputError(f"{len(chosen)} books are too few for {n_val} to validate and {n_test} to test: give more")
    splits = np.full(len(kept), -1)
    splits[order] = 0
    splits[order[:n_val]] = 1
    splits[order[n_val : n_val + n_test]] = 2
    return splits


def write_texts(folder: Path, books: Filtered, splits: np.ndarray) -> dict[str, list[str]]:
    """Write the books of each split as JSON lines, and return their names."""
    named: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number, split in enumerate(SPLITS):
        place = 0
        with write_atomically(folder / f"{split}.jsonl") as file:
            for unit in books.units():
                for book in books.documents(unit):
                    if splits[place] == number:
                        named[split].append(book["where"])
                        file.write(json.dumps(book, ensure_ascii=False).encode("utf-8") + b"\n")
                    place += 1
    return named


def write_shards(
    folder: ResumableFolder, tokens_folder: Path, tokenizer: Tokenizer, splits: np.ndarray, config: Config
) -> dict[str, int]:
    """Write the shards of the first two splits, their books in random order; return the tokens of each."""
    tokens = Tokens(tokens_folder, tokenizer.special_tokens[END_OF_TEXT])
    for split, writer in folder.writers(config.shard_tokens).items():
        chosen = np.flatnonzero(splits == SPLITS.index(split))
        first = folder.positions[split].document
        with writer:
            for number, book in enumerate(np.random.default_rng([config.seed, 1]).permutation(chosen).tolist()):
                if number >= first:
                    writer.add(number, tokens.document(book))
    tokenizer.save(folder.data / "bpe.json")
    return {split: position.n_tokens for split, position in folder.positions.items()}


def _identity(tokenizer: str | Path | None) -> str | None:
    if tokenizer is None or str(tokenizer) in ("gpt2", "gpt4"):
        return str(tokenizer) if tokenizer else None
    return sha256(Path(tokenizer))


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
