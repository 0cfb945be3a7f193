"""All stages, one after another: filter, select, encode, mix and shuffle into shards.

What a stage has finished stays in a folder, under a name that says from what it was made. So a run with other weights
or another seed filters nothing anew, and one that was killed goes on where it was.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pretraining.corpus.documents import Source
from pretraining.corpus.encoding import Tokens, encode
from pretraining.corpus.filtering import Filtered
from pretraining.corpus.mixing import Portion, draw, hold_out, limiting, plan, shuffled
from pretraining.corpus.packing import Packing
from pretraining.corpus.screen import Screen
from pretraining.corpus.selection import Selection, select
from utils.files import sha256, write_atomically
from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.resumable_folder import OURS, ResumableFolder
from working_with_text_data.text_files import END_OF_TEXT

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CORPUS_FILES = (MANIFEST, *OURS)
RULES_VERSION = 1  # raised whenever the same settings give another result
PACKAGES = ("numpy", "py3langid", "rensa")  # those that decide what is kept


@dataclass(frozen=True)
class Mixture:
    """How documents become a corpus."""

    shares: Mapping[str, float]
    n_tokens: int
    """Of the training split; 0 for as many as the epochs allow."""
    max_epochs: float
    held_out: float
    seed: int
    pack: int
    """Tokens of a row in which documents are packed; 0 to lay them end to end."""


def filter_sources(
    sources: Sequence[Source],
    screens: Mapping[str, Screen],
    work: Path,
    workers: int,
    *,
    strict: bool = False,
    keep_rejected: bool = False,
) -> dict[str, Filtered]:
    """Judge all documents of all sources, as far as that is not done yet. Raises as `Filtered.make`."""
    made = {}
    for source in sources:
        decides = [RULES_VERSION, source.identity(), screens[source.name].identity(), keep_rejected]
        filtered = Filtered(work / f"filtered-{source.name}-{fingerprint(decides)}")
        statistics = filtered.make(source, screens[source.name], workers, strict=strict, keep_rejected=keep_rejected)
        log.info(
            "%s: %s of %s documents passed, %s rows were damaged",
            source.name, f"{statistics.n_kept:,}", f"{statistics.n_read:,}", f"{statistics.n_damaged:,}",
        )  # fmt: skip
        if statistics.damaged:
            log.warning("the first that was damaged: %s", statistics.damaged[0])
        made[source.name] = filtered
    return made


def encode_sources(
    sources: Mapping[str, Filtered], selection: Selection, tokenizer: Tokenizer, identity: str, work: Path, workers: int
) -> dict[str, Tokens]:
    """Make tokens of what was selected, as far as that is not done yet.

    Args:
        sources: filtered.
        selection: what stays of them.
        tokenizer: one that has the end-of-text token.
        identity: what tells the tokenizer from others.
        work: where the files go.
        workers: processes that encode.
    """
    tokens = {}
    for name, filtered in sources.items():
        kept = selection.kept[name]
        decides = [filtered.folder.name, hashlib.sha256(kept.tobytes()).hexdigest(), identity]
        folder = work / f"tokens-{name}-{fingerprint(decides)}"
        encode(filtered, kept, tokenizer, folder, workers)
        tokens[name] = Tokens(folder, tokenizer.special_tokens[END_OF_TEXT])
    return tokens


def write_corpus(folder: ResumableFolder, tokens: Mapping[str, Tokens], mixture: Mixture, shard_tokens: int) -> dict:
    """Draw, shuffle and write the shards of both splits, from where the folder stands; return what to report.

    Raises:
        InputError: if nothing is left of a source.
    """
    names = list(mixture.shares)
    held_out = {
        name: hold_out(len(tokens[name].lengths), mixture.held_out, mixture.seed, number)
        for number, name in enumerate(names)
    }
    available = {name: int(tokens[name].lengths[~held_out[name]].sum()) for name in names}
    portions = plan(available, mixture.shares, mixture.n_tokens, mixture.max_epochs)
    chosen: dict[str, dict[int, np.ndarray]] = {"train": {}, "val": {}}
    for number, name in enumerate(names):
        of_training = np.flatnonzero(~held_out[name])
        drawn = draw(tokens[name].lengths[of_training], portions[name].n_tokens, mixture.seed, number)
        chosen["train"][number] = of_training[drawn]
        chosen["val"][number] = np.flatnonzero(held_out[name])
    report: dict[str, Any] = {"mixture": _described(portions, chosen["train"], tokens), "packing": {}}
    writers = folder.writers(shard_tokens)
    for split, writer in writers.items():
        packing = Packing(mixture.pack) if mixture.pack else None
        first = folder.positions[split].document
        documents = _documents(tokens, names, *shuffled(chosen[split], mixture.seed, split))
        rows = packing.rows(documents) if packing else documents
        with writer:
            for number, row in enumerate(rows):
                if number >= first:
                    writer.add(number, row)
        if packing:
            report["packing"][split] = packing.report()
    _warn_of_limits(portions, mixture)
    return report


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write what a corpus is made of, and the size and hash of each shard, beside the shards."""
    shards = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.glob("*.bin"))
    }
    versions = {name: version(name) for name in PACKAGES}
    with write_atomically(folder / MANIFEST) as file:
        file.write(json.dumps({**content, "shards": shards, "versions": versions}, indent=1).encode())


def statistics(sources: Mapping[str, Filtered], selection: Selection) -> dict[str, Any]:
    """Return what became of the documents of each source, filter by filter."""
    return {
        name: {**filtered.statistics().to_json(), "selected": selection.statistics[name]}
        for name, filtered in sources.items()
    }


def select_documents(
    sources: Mapping[str, Filtered], screens: Mapping[str, Screen], percentile: float, near: bool = True
) -> Selection:
    """Choose among all documents that passed: `select`, with a message."""
    prose = frozenset(name for name, screen in screens.items() if screen.prose)
    selection = select(sources, percentile=percentile, prose=prose, near=near)
    for name, counts in selection.statistics.items():
        log.info("%s: %s", name, ", ".join(f"{reason} {count:,}" for reason, count in counts.items()))
    return selection


def fingerprint(decides: Any) -> str:
    """Return twelve digits that stand for what decides a result."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def _documents(
    tokens: Mapping[str, Tokens], names: Sequence[str], sources: np.ndarray, numbers: np.ndarray
) -> Iterator[np.ndarray]:
    for source, number in tqdm(
        zip(sources.tolist(), numbers.tolist(), strict=True), "writing", len(numbers), unit="document", leave=False
    ):
        yield tokens[names[source]].document(number)


def _described(
    portions: Mapping[str, Portion], drawn: Mapping[int, np.ndarray], tokens: Mapping[str, Tokens]
) -> dict[str, dict[str, float]]:
    """Return what was wanted of each source, and what it came to in whole documents."""
    counts = {
        name: int(tokens[name].lengths[documents].sum())
        for name, documents in zip(portions, drawn.values(), strict=True)
    }
    total = sum(counts.values())
    return {
        name: {
            **asdict(portion),
            "n_tokens": counts[name],
            "share_of_tokens": counts[name] / total,
            "epochs": counts[name] / portion.n_available,
        }
        for name, portion in portions.items()
    }


def _warn_of_limits(portions: Mapping[str, Portion], mixture: Mixture) -> None:
    total = sum(portion.n_tokens for portion in portions.values())
    name = limiting(portions)
    if mixture.n_tokens and total < 0.999 * mixture.n_tokens:
        log.warning(
            "only %s of %s tokens: %s has %s, each read %.2f times; give --max-epochs, more of it, or less weight",
            f"{total:,}", f"{mixture.n_tokens:,}", name, f"{portions[name].n_available:,}", portions[name].epochs,
        )  # fmt: skip
