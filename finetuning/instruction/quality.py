"""Which examples are worth learning from, and why the others are not: checks that anybody can read.

A model that is tuned on a few thousand good examples beats one that is tuned on ten times as many of any kind (Zhou et
al. 2023, LIMA, https://arxiv.org/abs/2305.11206), and every mistake in them is learned as well. An example is removed
for the first of these reasons that holds:

empty          there is no answer, or no question
template       its text holds the template's own headings, so that nobody can tell where a turn ends
short, long    it has too few tokens to teach anything, or too many for any model here
refusal        the answer says that there will be none
language       the instruction is in another language
toxic          a classifier finds it insulting
low score      several small faults together; see `score`
duplicate      the same question has the same answer, capitals and spaces aside
near duplicate it shares most of its phrases with an earlier one
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any

import numpy as np

from finetuning.instruction.conversation import Conversation, Turn
from finetuning.instruction.records import Record
from finetuning.instruction.templates import Template
from finetuning.instruction.toxicity import TOXIC, toxicity
from pretraining.corpus.near_duplicates import Groups, band_keys, shingles
from pretraining.corpus.words import plain_words
from utils.extras import missing
from utils.files import InputError
from utils.ranges import Count, Range, check_ranges
from working_with_text_data.minbpe import Tokenizer

REASONS = (
    "empty", "template", "short", "long", "refusal", "language", "toxic", "low score", "duplicate", "near duplicate",
)  # fmt: skip

# What some data sets write where there is nothing.
_NO_INPUT = re.compile(r"\W*(?:no ?input(?: required| needed| provided)?|none|n/?a)\W*", re.IGNORECASE)
_NO_OUTPUT = re.compile(r"\W*(?:no ?output|no ?response|no ?answer|n/?a)\b.{0,200}", re.IGNORECASE | re.DOTALL)
_REFUSAL = re.compile(
    r"\W*(?:(?:i'?m |i am )?(?:very |so )?sorry,? (?:but )?|unfortunately,? "
    r"|as an? (?:ai|large|language)\b[^.]{0,80}?,? )?"
    r"(?:i (?:cannot|can't|can not|am unable to|'m unable to|am not able to|do not have the ability|don't have access)"
    r" (?:create|draw|generate|provide|answer|fulfil\w*|complete|set|do|help|assist|perform|show|access|give|make"
    r"|display|produce|comply|send|play|write|predict)\b"
    r"|(?:this|the|your) (?:task|request|instruction|type of instruction)\b[^.]{0,80}\b(?:cannot|can't|not possible"
    r"|not suitable|impossible))"
    r"|\bas an? (?:ai|large) language model\b|\bgpt (?:language )?models?\b[^.]{0,40}\b(?:cannot|can't|unable|not)\b"
    r"|\bnot possible for (?:a )?gpt\b|actions that gpt models",
    re.IGNORECASE,
)
_REFUSES_WITHIN = 300  # characters: a refusal comes at the beginning
_QUOTED = re.compile('["“«].*?["”»]', re.DOTALL)
_LANGUAGE_NEEDS = 40  # letters, fewer say too little
_SURE = 0.9  # of the language
ENDS = ".!?\"')]}>:;`%°"
"""How an answer may end that is whole."""
_SIMILAR = 0.8
"""Share of all phrases of two examples that they have in common: from here on they are near-duplicates."""


@dataclass(frozen=True)
class Limits:
    """What an example must keep to.

    Raises:
        InputError: for a number out of its range.
    """

    least_tokens: Count = 10
    most_tokens: Count = 2048
    languages: tuple[str, ...] = ("en",)
    most_toxic: Annotated[float, Range(0, 1)] = TOXIC
    least_score: Annotated[float, Range(0, 1)] = 0.45

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.least_tokens > self.most_tokens:
            raise InputError(f"least_tokens must not exceed most_tokens {self.most_tokens}, got {self.least_tokens}")


@dataclass(frozen=True)
class Verdict:
    """What the checks say of an example."""

    record: Record
    n_tokens: int
    score: float
    toxicity: float
    reason: str | None = None
    """Why it is removed, one of REASONS; None if it is kept."""
    detail: str = ""
    """What exactly is wrong."""


def judge(records: Sequence[Record], template: Template, tokenizer: Tokenizer, limits: Limits) -> list[Verdict]:
    """Return a verdict on each record, in order; nothing is changed but inputs that say "no input".

    Args:
        records: what a file held.
        template: what the examples will be written in.
        tokenizer: what they will be read with.
        limits: what they must keep to.

    Raises:
        InputError: if a package for a check is missing.
    """
    records = [without_placeholders(record) for record in records]
    texts = [text_of(record.conversation) for record in records]
    counts = [len(ids) for ids in tokenizer.encode_batch(texts)]
    verdicts = [
        Verdict(record, n_tokens, score(record), toxic)
        for record, n_tokens, toxic in zip(records, counts, toxicity(texts), strict=True)
    ]
    for number, verdict in enumerate(verdicts):
        for reason, detail in faults(verdict, template, limits):
            verdicts[number] = replace(verdict, reason=reason, detail=detail)
            break
    kept = [number for number, verdict in enumerate(verdicts) if verdict.reason is None]
    for place, (reason, earlier) in duplicates([texts[number] for number in kept]).items():
        number = kept[place]
        detail = f"of number {records[kept[earlier]].number}"
        verdicts[number] = replace(verdicts[number], reason=reason, detail=detail)
    return verdicts


def text_of(conversation: Conversation) -> str:
    """Return all that is said, without a template."""
    said = [conversation.system, *(text for turn in conversation.turns for text in (turn.text, turn.input))]
    return "\n".join(text for text in said if text)


def without_placeholders(record: Record) -> Record:
    """Return a record whose inputs that only say that there is none, such as "<noinput>", are empty."""
    turns = tuple(
        Turn(turn.role, turn.text, weight=turn.weight) if turn.input and _NO_INPUT.fullmatch(turn.input) else turn
        for turn in record.conversation.turns
    )
    if turns == record.conversation.turns:
        return record
    return replace(record, conversation=Conversation(turns, record.conversation.system))


def faults(verdict: Verdict, template: Template, limits: Limits) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with an example by itself: the reason, and the detail."""
    record = verdict.record
    if not record.is_answered or _NO_OUTPUT.fullmatch(record.response):
        yield "empty", "no answer"
    if not record.conversation.turns[0].text.strip():
        yield "empty", "no instruction"
    if not survives(record.conversation, template):
        yield "template", f"the text holds marks of the template {template.name}"
    if verdict.n_tokens < limits.least_tokens:
        yield "short", f"{verdict.n_tokens} tokens"
    if verdict.n_tokens > limits.most_tokens:
        yield "long", f"{verdict.n_tokens} tokens"
    if refusal := _REFUSAL.match(record.response[:_REFUSES_WITHIN]) or _REFUSAL.search(record.response[:100]):
        yield "refusal", " ".join(refusal[0].split())
    language, probability = language_of(record.conversation.turns[0].text)
    if probability >= _SURE and language not in limits.languages:
        yield "language", f"{language}, probability {probability:.2f}"
    if verdict.toxicity > limits.most_toxic:
        yield "toxic", f"probability {verdict.toxicity:.2f}"
    if verdict.score < limits.least_score:
        yield "low score", f"score {verdict.score:.2f}"


def survives(conversation: Conversation, template: Template) -> bool:
    """Return whether a conversation can be read back from its rendered text: no turn holds marks of the template."""
    rendered = template.render(conversation)
    try:
        parsed = template.parse(rendered)
    except InputError:
        return False
    return len(parsed.turns) == len(conversation.turns) and template.render(parsed) == rendered


def score(record: Record) -> float:
    """Return how good an example looks, from 0 to 1: the mean of five simple signs, each from 0 to 1.

    The answer has at least five words; it does not repeat itself; it is not the question again; it ends like a
    sentence, a list or a program; it is mostly letters and digits. Each has good exceptions ("Paris" answers a
    question), so that one sign alone never decides.
    """
    words = plain_words(record.response) or record.response.split()  # Morse code has no letters
    asked = set(plain_words(record.prompt))
    answer = record.response.strip()
    if not words:
        return 0.0
    trigrams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    visible = [character for character in answer if not character.isspace()]
    signs = (
        min(1.0, len(words) / 5),
        len(set(trigrams)) / len(trigrams) if trigrams else 1.0,
        1.0 if len(words) < 5 else 1 - max(0.0, len(asked & set(words)) / len(set(words)) - 0.5) * 2,
        1.0 if answer[-1] in ENDS or answer[-1].isdigit() else 0.0,
        min(1.0, sum(character.isalnum() for character in visible) / len(visible) / 0.6),
    )
    return sum(signs) / len(signs)


def language_of(text: str) -> tuple[str, float]:
    """Return the likeliest language, as two or three letters, and its probability; 0 if there is too little to go by.

    What stands in quotation marks does not count: it may be there to be translated.

    Raises:
        InputError: if py3langid is not installed.
    """
    text = _QUOTED.sub("", text)
    if sum(map(str.isalpha, text)) < _LANGUAGE_NEEDS:
        return "en", 0.0
    language, probability = _identifier().classify(text)
    return str(language), float(probability)


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # here only: it loads a model
    except ImportError as error:
        raise missing("py3langid", "finetune", "finding the language") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def duplicates(texts: Sequence[str]) -> dict[int, tuple[str, int]]:
    """Return which texts repeat an earlier one: the reason, and the earlier one's place.

    Candidates are found by MinHash, and then compared phrase by phrase.

    Raises:
        InputError: if rensa is not installed.
    """
    words = [text.lower().split() for text in texts]  # punctuation counts: 2 + 2 is not 2 - 2
    firsts: dict[str, int] = {}
    found: dict[int, tuple[str, int]] = {}
    for number, each in enumerate(words):
        first = firsts.setdefault(" ".join(each), number)
        if first != number:
            found[number] = "duplicate", first
    rest = list(firsts.values())
    phrases = [shingles(words[number]) for number in rest]
    groups = Groups(len(rest))
    for keys in band_keys(phrases).T:
        groups.join_equal(keys)
    kept: dict[int, list[int]] = {}
    for place, group in enumerate(groups.firsts().tolist()):
        others = kept.setdefault(group, [])
        near = next((other for other in others if similarity(phrases[place], phrases[other]) >= _SIMILAR), None)
        if near is None:
            others.append(place)
        else:
            found[rest[place]] = "near duplicate", rest[near]
    return found


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Jaccard similarity of two sets of phrases: what they have in common, as a share of all."""
    common = len(np.intersect1d(one, other))
    return common / max(1, len(np.union1d(one, other)))
