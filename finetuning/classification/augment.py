"""More training texts than there are: changed copies that mean about the same.

synonyms    a tenth of the words become synonyms
insert      synonyms of some words are put somewhere else
swap        some words change places
delete      a tenth of the words go (all four: Wei & Zou 2019, https://arxiv.org/abs/1901.11196)
sentences   sentences change their order
translate   into another language and back (Sennrich et al. 2016, https://arxiv.org/abs/1511.06709)

Only training texts are ever changed: a model that is tested on copies of what it learned knows the answers. Nothing
promises that a copy still means the same: without its "not", a review says the opposite. Whether copies help has to be
measured; see `ablations.py`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from utils.files import InputError, read_json, write_atomically

log = logging.getLogger(__name__)

Method = Literal["synonyms", "insert", "swap", "delete", "sentences", "translate"]
SHARE = 0.1  # of the words that are changed, at least one
MOST_SYNONYMS = 5  # of a word, the most usual ones
TRANSLATED_AT_ONCE = 16  # texts
LONGEST_TRANSLATION = 512  # tokens

WORD = re.compile(r"[A-Za-z]+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def augmented(
    texts: Sequence[str], method: Method, seed: int, cache: Path, models: tuple[str, str] | None = None
) -> list[str]:
    """Return a changed copy of each text: the same ones for the same texts, method and seed.

    Args:
        texts: what is learned from.
        method: how they are changed.
        seed: decides which words, and by what.
        cache: a folder in which copies are kept for the next run.
        models: for "translate": two models of `transformers` for translation, there and back, by name or folder.

    Raises:
        InputError: if WordNet or a model is not there.
    """
    key = json.dumps([method, seed, models, list(texts)]).encode()
    path = cache / f"{method}-{hashlib.sha256(key).hexdigest()[:16]}.json"
    if path.exists():
        copies = read_json(path)
        if not isinstance(copies, list) or len(copies) != len(texts) or not all(isinstance(x, str) for x in copies):
            raise InputError(f"{path} is damaged: delete it")
        return copies
    if method == "translate":
        if models is None:
            raise InputError("to augment by translation, name two models: --translators MODEL_THERE MODEL_BACK")
        copies = back_translated(texts, *models)
    else:
        change = CHANGES[method]
        rngs = (np.random.default_rng((seed, number)) for number in range(len(texts)))
        copies = [change(text, rng) for text, rng in zip(tqdm(texts, desc=method), rngs, strict=False)]
    with write_atomically(path) as file:
        file.write(json.dumps(copies).encode())
    return copies


def with_synonyms(text: str, rng: np.random.Generator) -> str:
    """Return a text in which some words are replaced by synonyms, where they have any."""
    words = text.split(" ")
    places = [at for at in rng.permutation(len(words)) if synonyms(_bare(words[at]))]
    for at in places[: _count(words)]:
        bare = _bare(words[at])
        words[at] = words[at].replace(bare, str(rng.choice(synonyms(bare))), 1)
    return " ".join(words)


def with_insertions(text: str, rng: np.random.Generator) -> str:
    """Return a text with synonyms of some of its words at random places."""
    words = text.split(" ")
    places = [at for at in rng.permutation(len(words)) if synonyms(_bare(words[at]))]
    for word in [str(rng.choice(synonyms(_bare(words[at])))) for at in places[: _count(words)]]:
        words.insert(int(rng.integers(len(words) + 1)), word)
    return " ".join(words)


def with_swaps(text: str, rng: np.random.Generator) -> str:
    """Return a text in which some pairs of words have changed places."""
    words = text.split(" ")
    if len(words) > 1:
        for _ in range(_count(words)):
            a, b = rng.choice(len(words), size=2, replace=False)
            words[a], words[b] = words[b], words[a]
    return " ".join(words)


def with_deletions(text: str, rng: np.random.Generator) -> str:
    """Return a text without some of its words; of a single word, the text."""
    words = text.split(" ")
    gone = set(rng.permutation(len(words))[: _count(words)].tolist()) if len(words) > 1 else ()
    return " ".join(word for at, word in enumerate(words) if at not in gone)


def with_sentences_shuffled(text: str, rng: np.random.Generator) -> str:
    """Return a text with its sentences in another order."""
    sentences = SENTENCE_END.split(text)
    return " ".join(sentences[at] for at in rng.permutation(len(sentences)))


CHANGES: dict[str, Callable[[str, np.random.Generator], str]] = {
    "synonyms": with_synonyms,
    "insert": with_insertions,
    "swap": with_swaps,
    "delete": with_deletions,
    "sentences": with_sentences_shuffled,
}


def _count(words: Sequence[str]) -> int:
    return max(1, round(SHARE * len(words)))


def _bare(word: str) -> str:
    """Return a word without what stands around it."""
    found = WORD.search(word)
    return found[0] if found else ""


@functools.cache
def synonyms(word: str) -> tuple[str, ...]:
    """Return the most usual synonyms of a word that are single words, in WordNet's order; none for short words.

    Raises:
        InputError: if WordNet is not there.
    """
    if len(word) < 3:
        return ()
    from nltk.corpus import wordnet  # here only: whoever augments nothing need not have it

    try:
        senses = wordnet.synsets(word)
    except LookupError as error:
        raise InputError(
            "WordNet is not there: python -m nltk.downloader wordnet, or set NLTK_DATA to a folder that has it"
        ) from error
    names = (name for sense in senses for name in sense.lemma_names())
    others = dict.fromkeys(name for name in names if name.lower() != word.lower() and WORD.fullmatch(name))
    return tuple(others)[:MOST_SYNONYMS]


def back_translated(texts: Sequence[str], there: str, back: str) -> list[str]:
    """Return texts that were translated by one model, and back by another: the same words seldom come back.

    Args:
        texts: in a language that the first model reads.
        there: a sequence-to-sequence model of `transformers`, such as Helsinki-NLP/opus-mt-en-de, or a folder.
        back: one for the other way.

    Raises:
        InputError: if `transformers` or a model is not there.
    """
    for name in (there, back):
        texts = _translated(texts, name)
    return list(texts)


def _translated(texts: Sequence[str], name: str) -> list[str]:
    import torch

    try:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSeq2SeqLM.from_pretrained(name).eval()
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"texts cannot be translated with {name}: {reason}") from error
    translations: list[str] = []
    with torch.inference_mode(), tqdm(total=len(texts), desc=f"translating with {name}", unit="text") as bar:
        for start in range(0, len(texts), TRANSLATED_AT_ONCE):
            batch = tokenizer(
                list(texts[start : start + TRANSLATED_AT_ONCE]),
                return_tensors="pt", padding=True, truncation=True, max_length=LONGEST_TRANSLATION,
            )  # fmt: skip
            ids = model.generate(**batch, max_new_tokens=LONGEST_TRANSLATION, num_beams=1, do_sample=False)
            translations += tokenizer.batch_decode(ids, skip_special_tokens=True)
            bar.update(len(ids))
    return translations
