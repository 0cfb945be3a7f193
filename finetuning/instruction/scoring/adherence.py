"""Whether an answer does what its instruction asks for, where a rule can tell: length, format, language, words.

Zhou et al. 2023 (IFEval, https://arxiv.org/abs/2311.07911) measure models on what can be verified by a program. Their
instructions are written for it; here, whatever instruction there is is searched for such demands. Most have none.
"""

import json
import re
from collections.abc import Iterator

from finetuning.instruction.quality import language_of
from pretraining.corpus.words import count_sentences

_NUMBERS = {
    "a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10,
}  # fmt: skip
_N = rf"(\d{{1,4}}|{'|'.join(_NUMBERS)})"
_AT_MOST = r"(?:less than|under|at most|no more than|not more than|fewer than|up to|within|maximum of|max(?:imum)?)"
_LANGUAGES = {
    "spanish": "es", "french": "fr", "german": "de", "italian": "it", "portuguese": "pt", "dutch": "nl",
    "chinese": "zh", "japanese": "ja", "russian": "ru", "arabic": "ar", "latin": "la", "english": "en",
}  # fmt: skip
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+\s*[.)])\s*(?=\S)", re.MULTILINE)
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|Prof)\.")
_NUMBERED = re.compile(r"^\s*\d+\s*[.)]", re.MULTILINE)
_LISTED = (
    rf"\b(?:list|name|give|suggest|generate|provide|write|identify|describe|create|find|recommend)(?: me)?(?: of)? {_N}"
    r" (?!words?\b|sentences?\b|paragraphs?\b|lines?\b|[\w-]+ (?:sentence|paragraph|essay|story|poem)\b)"
    r"(?:[\w-]+ ){0,3}?(?:\w+s|people|ideas)\b"
)


def demands(instruction: str, answer: str) -> Iterator[tuple[str, bool]]:
    """Yield each demand that is recognised in an instruction, and whether the answer meets it.

    >>> dict(demands('Describe the sea in at most five words, using the word "blue".', "It is blue and wide."))
    {'words': True, 'keywords': True}
    """
    asked = instruction.lower()
    yield from _lengths(asked, answer)
    yield from _formats(asked, answer)
    if found := re.search(rf"\b(?:in|into|to) ({'|'.join(_LANGUAGES)})\b(?! (?:literature|history|culture))", asked):
        language, probability = language_of(answer)
        if probability:
            yield "language", language == _LANGUAGES[found[1]]
    words = re.findall(
        r"\b(?:us(?:e|es|ing)|includ(?:e|es|ing)|contain(?:s|ing)?|with) the words? [\"“']([^\"”']+)", asked
    )
    if words:
        yield "keywords", all(word.strip(" ,.") in answer.lower() for word in words)
    if found := re.search(r"\b(?:start|begin)(?:s|ning|ing)? with [\"“']([^\"”']+)", asked):
        yield "beginning", answer.lower().lstrip(" \"“'").startswith(found[1].strip(" ,."))


def adherence(instruction: str, answer: str) -> float | None:
    """Return the share of recognised demands that an answer meets; None if there are none."""
    met = [is_met for _, is_met in demands(instruction, answer)]
    return sum(met) / len(met) if met else None


def count_items(answer: str) -> int:
    """Return how many things an answer lists: bullets or numbers, else lines, else what commas part.

    >>> count_items("1. Red 2"), count_items("red, green and blue")
    (1, 3)
    """
    if bullets := _BULLET.findall(answer):
        return len(bullets)
    lines = [line for line in answer.splitlines() if line.strip()]
    if len(lines) > 1:
        return len(lines)
    return len([part for part in re.split(r",\s*(?:and\s+|or\s+)?|;\s*|\s+and\s+", answer.strip(" .")) if part.strip()])


def _lengths(asked: str, answer: str) -> Iterator[tuple[str, bool]]:
    n_words = len(answer.split())
    if found := re.search(rf"\b{_AT_MOST} {_N}[- ]words?\b", asked):
        yield "words", n_words <= _number(found[1])
    elif found := re.search(rf"\b(?:at least|more than|minimum of) {_N}[- ]words?\b", asked):
        yield "words", n_words >= _number(found[1])
    elif found := re.search(rf"\b(?:exactly|in|of) {_N} words\b", asked):
        yield "words", n_words == _number(found[1])
    if found := re.search(
        rf"\b(?:in|with|using|of|to|exactly) (?:exactly |only |just )?{_N}[- ](?:\w+ )?sentences?\b", asked
    ):
        yield "sentences", count_sentences(_ABBREVIATION.sub(r"\1", answer)) == _number(found[1])
    if (found := re.search(_LISTED, asked)) and (n := _number(found[1])) > 1:
        yield "items", count_items(answer) == n


def _formats(asked: str, answer: str) -> Iterator[tuple[str, bool]]:
    text = answer.strip()
    if re.search(r"\b(?:in|as|to|into|valid) (?:a )?json\b", asked):
        yield "json", _is_json(text)
    if re.search(r"\bbullet(?:ed)?[- ](?:points?|lists?)\b", asked):
        yield "bullets", bool(_BULLET.search(text))
    if re.search(r"\bnumbered list\b", asked):
        yield "numbered list", bool(_NUMBERED.search(text))
    if found := re.search(r"\b(yes|true) or (no|false)\b", asked):
        yield "one of two", text.lower().startswith(found.groups())
    if re.search(r"\bin (?:all )?(?:caps|uppercase|upper case|capital letters)\b", asked):
        yield "capitals", text.isupper()
    if re.search(r"\bin (?:all )?(?:lowercase|lower case)\b", asked):
        yield "lower case", text.islower()


def _is_json(text: str) -> bool:
    try:
        json.loads(text.removeprefix("```json").strip("`\n "))
    except (ValueError, RecursionError):
        return False
    return True


def _number(text: str) -> int:
    return _NUMBERS.get(text) or int(text)
