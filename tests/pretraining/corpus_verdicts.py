"""Documents to hold our rules against datatrove's, and what datatrove says of them.

python -m tests.pretraining.corpus_verdicts       # writes the verdicts that the tests compare with; needs spaCy
"""

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from pretraining.corpus.repetition import gopher_repetition
from pretraining.corpus.rules import c4, fineweb, gopher_quality
from pretraining.corpus.words import count_sentences, split_words

STORED = Path(__file__).parents[2] / "pretraining" / "results" / "corpus_verdicts.json"
FILES = ("web_digitalgov", "edu_d2l", "papers_acl", "code_python_stdlib")
N_REAL = 60  # of each file
N_CHANGED = 10  # of each file, in each of the ways below
N_DOCUMENTS = len(FILES) * (N_REAL + 4 * N_CHANGED)
LONGEST = 20_000  # characters
Verdict = str | None

OURS: dict[str, Callable[[str], Verdict]] = {
    "gopher_quality": lambda text: gopher_quality(text, split_words(text)),
    "gopher_repetition": lambda text: gopher_repetition(text, split_words(text)),
    "fineweb": lambda text: fineweb(text, split_words(text)),
    "c4": lambda text: c4(text)[0],
    "c4_as_in_fineweb": lambda text: c4(text, only_whole_sentences=False)[0],
}


def changed(text: str, rng: random.Random) -> Iterator[str]:
    """The same document as what filters are for: repeated, without grammar, full of marks, a list."""
    lines = text.split("\n")
    yield "\n".join(lines[:10] * 4)
    yield " ".join(rng.choice(text.split()[:40]) for _ in range(150))
    yield text.replace(" ", " # ", 60 + rng.randrange(200))
    yield "\n".join(f"- {line} ..." if rng.random() < 0.95 else line for line in lines)


def documents(data: Path) -> list[str]:
    """Return 400 documents: real ones of four kinds, and some that were spoilt."""
    texts = []
    rng = random.Random(0)
    for name in FILES:
        with gzip.open(data / "text" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line)["text"][:LONGEST] for line in lines]
        rows = [row for row in rows if len(row.split()) > 20]
        texts += [rows[number * len(rows) // N_REAL] for number in range(N_REAL)]
        for number in range(N_CHANGED):
            texts += changed(rows[number * len(rows) // N_CHANGED + 1], rng)
    return texts


def datatrove_says(texts: list[str], *, our_words: bool) -> dict[str, list[Verdict]]:
    """Return datatrove's verdicts, with spaCy's words and sentences or with ours."""
    import datatrove.pipeline.filters as filters
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        c4_filters,
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    if our_words:
        for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
            module.split_into_words = lambda text, language: split_words(text)
        c4_filters.split_into_sentences = lambda text, language: [""] * count_sentences(text)
    theirs = {
        "gopher_quality": filters.GopherQualityFilter(),
        "gopher_repetition": filters.GopherRepetitionFilter(),
        "fineweb": filters.FineWebQualityFilter(),
        "c4": filters.C4QualityFilter(),
        "c4_as_in_fineweb": filters.C4QualityFilter(filter_no_terminal_punct=False),
    }
    said: dict[str, list[Verdict]] = {}
    for name, rule in theirs.items():
        verdicts = [rule.filter(Document(text=text, id="")) for text in texts]
        said[name] = [verdict[1] if isinstance(verdict, tuple) else None for verdict in verdicts]
    return said


def stored() -> dict[str, dict[str, list[Verdict]]]:
    """Return the stored verdicts, one per document: with spaCy's words, and with ours."""
    content = json.loads(STORED.read_bytes())
    verdicts: dict[str, dict[str, list[Verdict]]] = {}
    for kind, rules in content.items():
        for name, reasons in rules.items():
            said: list[Verdict] = [None] * N_DOCUMENTS
            for reason, numbers in reasons.items():
                for number in numbers:
                    said[number] = reason
            verdicts.setdefault(kind, {})[name] = said
    return verdicts


def main() -> None:
    """Store which documents datatrove rejects for which reason."""
    texts = documents(Path(os.environ["TEST_DATA"]))
    content: dict[str, dict[str, dict[str, list[int]]]] = {}
    for kind, our_words in (("with_spacy", False), ("with_our_words", True)):
        for name, verdicts in datatrove_says(texts, our_words=our_words).items():
            rejected = sorted({verdict for verdict in verdicts if verdict})
            numbers = {reason: [i for i, said in enumerate(verdicts) if said == reason] for reason in rejected}
            content.setdefault(kind, {})[name] = numbers
    STORED.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
