"""Make a training corpus the way FineWeb and smollm-corpus are made: filter, deduplicate, mix and shuffle.

    python -m pretraining.prepare_smollm --tokens 10e9 --tokenizer gpt2 --out runs/web-data

The folder it writes is one that the trainers read: shards, the tokenizer, and `manifest.json`, which says what
became of every document. It is the same, byte for byte, however many processes worked and however often they were
killed. The order of this chapter's `corpus/` is the order of the work.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pretraining.corpus.addresses import read_block_list
from pretraining.corpus.contamination import Contamination, read_test_set
from pretraining.corpus.documents import Files, Source
from pretraining.corpus.filtering import check_packages
from pretraining.corpus.hub import KNOWN, HubData, parse_hub
from pretraining.corpus.mixing import parse_mix
from pretraining.corpus.perplexity import CharacterModel
from pretraining.corpus.pipeline import (
    CORPUS_FILES,
    RULES_VERSION,
    Mixture,
    encode_sources,
    filter_sources,
    fingerprint,
    select_documents,
    statistics,
    write_corpus,
    write_manifest,
)
from pretraining.corpus.screen import Screen
from utils.files import InputError, printable, sha256
from utils.locks import alone
from utils.outputs import check_output_folder, check_writable
from utils.ranges import Range, Seed, Share, check_ranges
from working_with_text_data.prepare import load_tokenizer
from working_with_text_data.resumable_folder import ResumableFolder
from working_with_text_data.shards import MOST_TOKENS
from working_with_text_data.text_files import find_files, read_documents
from working_with_text_data.train_tokenizer import CORES, Workers

log = logging.getLogger(__name__)

MOST_REFERENCE = 2**25  # characters that the small model of the perplexity filter reads


@dataclass(frozen=True)
class Config:
    """Make a training corpus of several sources: filtered, deduplicated, mixed by tokens and shuffled.

    Killed or interrupted, the same command goes on. With another mixture, seed or number of tokens nothing is
    filtered or encoded anew.
    """

    mix: str = "web=0.7,textbooks=0.2,code=0.1"
    """Each source and its weight in tokens."""
    sources: tuple[str, ...] = ()
    """What the names in --mix stand for: web=PATH, a file or folder of .jsonl, .jsonl.gz, .parquet or .txt, or
    web=hub:OWNER/NAME:CONFIG, a data set on the Hugging Face Hub. The names web, textbooks and code stand for the
    parts of smollm-corpus unless they are given."""
    tokens: Annotated[float, Range(0, 1e15)] = 0
    """Of the training shards, such as 10e9; 0 for as many as --max-epochs allows."""
    max_epochs: Annotated[float, Range(0, 100, open_below=True)] = 4
    """How often a source is read at most. One that is too small for its weight makes the whole corpus smaller."""
    tokenizer: Literal["gpt2", "gpt4"] | Path = Path("runs/tokenizer.json")
    """GPT-2's or GPT-4's tokenizer, or a file that `working_with_text_data.train_tokenizer` saved."""
    out: Path = Path("runs/data")
    """The folder to write."""
    work: Path | None = None
    """Where finished stages stay, about twice the size of the text; by default beside --out, as OUT-stages. Delete it
    when you are content."""
    overwrite: bool = False
    """Replace an existing --out once the new one is complete."""

    no_prose: tuple[str, ...] = ("code",)
    """Sources that are not prose: the rules of Gopher, C4 and FineWeb and the language are not applied to them."""
    language: str = "en"
    """Keep this language, as an ISO 639-1 code; '' keeps all."""
    block_list: Path | None = None
    """A file of hosts and domains, one on each line, from which nothing is kept."""
    reference: Path | None = None
    """Good prose, a file or folder: a small model learns its letters, and drops what surprises it most."""
    percentile: Annotated[float, Range(0, 100, open_below=True)] = 90
    """With --reference, how many percent of the documents of prose stay."""
    decontaminate: tuple[Path, ...] = ()
    """Test sets, as .jsonl, .json or .csv, also .gz: a document that shares 13 words in a row with one is dropped."""
    keep_personal: bool = False
    """Keep e-mail and IP addresses, which are replaced otherwise."""
    keep_near_duplicates: bool = False
    """Drop only documents that are the same, not those that are nearly the same."""
    keep_rejected: bool = False
    """Store the rejected documents, each with its reason, in --work, to be read."""
    strict: bool = False
    """Stop at the first damaged file or line, instead of counting and naming it."""

    held_out: Share = 0.005
    """Share of the documents of each source that go to the validation shards."""
    pack: Annotated[int, Range(0, 2**20)] = 0
    """Pack documents into rows of this many tokens that begin with the beginning of one, cropping the ends of some;
    0 lays them end to end. It must be the trainer's --context-length."""
    shard_tokens: Annotated[int, Range(1000, MOST_TOKENS)] = 100_000_000
    """Tokens per shard, the last one excepted; with --pack rounded down to whole rows."""
    seed: Seed = 0
    """Of the choice of documents and their order."""
    workers: Workers = CORES
    """Processes that filter and encode. Their number changes the speed only."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.pack and self.shard_tokens < self.pack:
            raise InputError(f"shard_tokens must be at least pack, {self.pack:,}, got {self.shard_tokens:,}")


def main(config: Config) -> dict[str, Any]:
    """Make the corpus; return what the manifest says of it.

    Raises:
        InputError: for sources, a tokenizer or a test set that cannot be read, an existing folder, unfinished work
            with other settings, a damaged row with --strict, or another process that writes the same folder.
    """
    started = time.perf_counter()
    shares = parse_mix(config.mix)
    sources = open_sources(shares, config.sources)
    tokenizer = load_tokenizer(config.tokenizer)
    work = config.work or config.out.with_name(f"{config.out.name}-stages")
    inputs = [source.path for source in sources if isinstance(source, Files)]
    inputs += [config.reference, config.block_list, *config.decontaminate, Path(config.tokenizer)]
    check_output_folder(config.out, CORPUS_FILES, overwrite=config.overwrite, inputs=inputs)
    check_writable(work, "--work")
    screens = make_screens(config, list(shares))
    check_packages(screens.values())
    settings = what_decides(config, sources, screens)
    folder = ResumableFolder(config.out, settings, ours=CORPUS_FILES)
    with alone(config.out, "making"), alone(work, "writing"):
        filtered = filter_sources(
            sources, screens, work, config.workers, strict=config.strict, keep_rejected=config.keep_rejected
        )
        percentile = config.percentile if config.reference else 100
        selection = select_documents(filtered, screens, percentile, near=not config.keep_near_duplicates)
        tokens = encode_sources(filtered, selection, tokenizer, settings["--tokenizer"], work, config.workers)
        mixture = Mixture(shares, round(config.tokens), config.max_epochs, config.held_out, config.seed, config.pack)
        folder.open(config.overwrite)
        try:
            report = write_corpus(folder, tokens, mixture, settings["--shard-tokens"])
            tokenizer.save(folder.data / "bpe.json")
            counts = {split: position.n_tokens for split, position in folder.positions.items()}
            manifest = {"tokens": counts, "settings": settings, "documents": statistics(filtered, selection), **report}
            write_manifest(folder.data, manifest)
            folder.finish()
        except BaseException:
            folder.leave()
            raise
    log.info(
        "data: %s training and %s held-out tokens in %.1f s -> %s",
        f"{counts['train']:,}", f"{counts['val']:,}", time.perf_counter() - started, printable(str(config.out)),
    )  # fmt: skip
    return manifest


def open_sources(shares: dict[str, float], given: tuple[str, ...]) -> list[Source]:
    """Return the source behind each name in the mixture.

    Raises:
        InputError: for one that is not known, given twice, or has no files.
    """
    places = dict(KNOWN)
    named = set()
    for entry in given:
        name, equals, place = entry.partition("=")
        if not equals or not place or name in named or not name.replace("-", "").replace("_", "").isalnum():
            raise InputError(f"--sources gives each name one place, as web=my_text/ does, got {entry!r}")
        if name not in shares:
            raise InputError(f"--sources gives {name}, which is not in --mix {','.join(shares)}")
        named.add(name)
        places[name] = place
    sources: list[Source] = []
    for name in shares:
        if name not in places:
            raise InputError(f"--mix has {name}, which is none of {', '.join(KNOWN)}: give --sources {name}=PATH")
        if places[name].startswith("hub:"):
            sources.append(HubData(name, *parse_hub(places[name])))
        else:
            find_files(Path(places[name]))  # before any work
            sources.append(Files(name, Path(places[name])))
    return sources


def make_screens(config: Config, names: list[str]) -> dict[str, Screen]:
    """Return the filters for each source. Raises InputError for a file of theirs that cannot be read."""
    for name in config.no_prose:
        if name not in (*names, "code"):
            raise InputError(f"--no-prose names {name}, which is not in --mix {','.join(names)}")
    blocked = read_block_list(config.block_list) if config.block_list else frozenset()
    texts = [text for file in config.decontaminate for text in read_test_set(file)]
    contamination = Contamination(texts) if texts else None
    model = None
    if config.reference:
        model = CharacterModel.train(_beginning(config.reference))
    return {
        name: Screen(
            prose=name not in config.no_prose,
            language="" if name in config.no_prose else config.language,
            replace_personal=not config.keep_personal,
            blocked=blocked,
            model=model,
            contamination=contamination,
        )
        for name in names
    }


def what_decides(config: Config, sources: list[Source], screens: dict[str, Screen]) -> dict[str, Any]:
    """Return all that the corpus depends on, by the name a user knows it under."""
    filters = [RULES_VERSION, {name: screen.identity() for name, screen in screens.items()}]
    tokenizer = str(config.tokenizer)
    return {
        "--sources (of files, name, size and time count)": {source.name: source.identity() for source in sources},
        "--mix": parse_mix(config.mix),
        "--tokens": round(config.tokens),
        "--max-epochs": config.max_epochs,
        "--tokenizer": tokenizer if tokenizer in ("gpt2", "gpt4") else sha256(Path(tokenizer)),
        "filters": fingerprint([filters, config.keep_rejected]),
        "--percentile": config.percentile if config.reference else 100,
        "--keep-near-duplicates": config.keep_near_duplicates,
        "--held-out": config.held_out,
        "--pack": config.pack,
        "--shard-tokens": config.shard_tokens // max(config.pack, 1) * max(config.pack, 1),
        "--seed": config.seed,
    }


def _beginning(path: Path) -> list[str]:
    """Return texts until there are enough for a model of characters."""
    texts: list[str] = []
    n_characters = 0
    for text in read_documents(path):
        texts.append(text)
        n_characters += len(text)
        if n_characters > MOST_REFERENCE:
            break
    return texts


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
