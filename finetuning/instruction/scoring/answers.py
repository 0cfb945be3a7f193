"""What models answer to the same questions, in a file that grows as they do, and that people and judges read later.

A line of `answers.jsonl` is a question with a reference and the answers of all models:

    {"number": 7, "category": "austen", "question": "Who wrote Emma?", "reference": "Jane Austen wrote Emma.",
     "answers": {"before": "Emma was ...", "after": "Jane Austen wrote Emma."}}
"""

import hashlib
import json
import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from finetuning.instruction.categories import category_of
from finetuning.instruction.records import Record
from finetuning.instruction.templates import Template
from gpt_model import GPT, TextGenerator
from utils.files import InputError, printable, write_atomically
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Answered:
    """A question, and what each model says to it."""

    number: int
    category: str
    question: str
    reference: str
    answers: dict[str, str]


@dataclass(frozen=True)
class System:
    """A model that is asked."""

    name: str
    model: GPT
    tokenizer: Tokenizer
    template: Template


def stratified(categories: Sequence[str], n: int, seed: int) -> list[int]:
    """Return the places of n questions at random, in order: of each category its share, and one at least while n lasts.

    Args:
        categories: of all questions.
        n: how many to draw; all if there are no more.
        seed: decides which.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(categories):
        groups[name].append(place)
    chance = random.Random(seed)
    queue = []
    for name in sorted(groups):
        places = chance.sample(groups[name], len(groups[name]))
        # the k-th of a category comes when that share of the category is due; the first ones of all come first
        queue += [(k / len(places) if k else -1.0, chance.random(), place) for k, place in enumerate(places)]
    return sorted(place for _, _, place in sorted(queue)[:n])


def category(record: Record) -> str:
    """Return the category that the data gives a record, or else the rules."""
    return record.category or category_of(record.prompt)


def room_for_prompt(system: System, max_new_tokens: int) -> int:
    """Return how many tokens of a question a model can see and still have room for its answer.

    Raises:
        InputError: if there is no room at all.
    """
    context = system.model.config.context_length
    if max_new_tokens >= context:
        raise InputError(
            f"--max-new-tokens {max_new_tokens} leaves no room for the question: it must be less than {context}, "
            f"the context of the model {system.name} tuning"
        )
    return context - max_new_tokens


def ask(system: System, records: Sequence[Record], path: Path, *, max_new_tokens: int, batch_size: int) -> list[str]:
    """Return a model's likeliest answer to each record's question; what is in the file already is not asked again.

    Args:
        system: the model, in evaluation mode.
        records: their last answer is the reference, and is not shown to the model.
        path: where answers are kept as they come; begun anew if it is of another model or other questions.
        max_new_tokens: where an answer is cut off.
        batch_size: questions that go through the model at once.

    Raises:
        InputError: if such answers leave no room for a question.
    """
    questions = [record.conversation.question for record in records]
    prompts = [system.template.prompt(question, system.tokenizer) for question in questions]
    # a prompt that is too long loses its beginning, and leaves room for the answer
    room = room_for_prompt(system, max_new_tokens)
    if n_cut := sum(len(prompt) > room for prompt in prompts):
        log.warning(
            "%s of %s prompts are cut to their last %s tokens for the model %s tuning: fewer --max-new-tokens would "
            "leave more room", f"{n_cut:,}", f"{len(prompts):,}", f"{room:,}", system.name,
        )  # fmt: skip
    prompts = [prompt[-room:] for prompt in prompts]
    stop = system.template.stop_tokens(system.tokenizer)
    settings = {"max_new_tokens": max_new_tokens, "temperature": 0.0, "stop_tokens": stop}
    identity = _identity(system.model, prompts, settings)
    answers = _known(path, identity)
    missing = sorted(set(range(len(prompts))) - answers.keys(), key=lambda row: len(prompts[row]))
    generator = TextGenerator(system.model, system.tokenizer)
    if missing and not answers:
        with write_atomically(path) as new:
            new.write(json.dumps({"identity": identity}).encode() + b"\n")
    progress = tqdm(total=len(missing), desc=f"answers of {system.name}", unit="answer", leave=False)
    with progress as bar, path.open("a", encoding="utf-8") as file:
        for start in range(0, len(missing), batch_size):
            rows = missing[start : start + batch_size]
            ids: list[list[int]] = [[] for _ in rows]
            for row, token in generator.tokens_batch([prompts[row] for row in rows], **settings):
                if token is not None:
                    ids[row].append(token)
            for row, tokens in zip(rows, ids, strict=True):
                answers[row] = system.tokenizer.decode(tokens).strip()
                file.write(json.dumps({"row": row, "answer": answers[row]}) + "\n")
            file.flush()
            bar.update(len(rows))
    return [answers[row] for row in range(len(prompts))]


def _identity(model: GPT, prompts: Sequence[Sequence[int]], settings: dict[str, Any]) -> str:
    """Return a checksum of all that decides the answers."""
    digest = hashlib.sha256(json.dumps([settings, prompts]).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _known(path: Path, identity: str) -> dict[int, str]:
    """Return the answers that a file has, by row; a last line that was not written to its end is forgotten."""
    if not path.is_file():
        return {}
    head, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        if json.loads(head)["identity"] != identity:
            return {}
        whole = [json.loads(line) for line in lines[:-1]]
        answers = {each["row"]: each["answer"] for each in whole}
    except (ValueError, KeyError, TypeError):
        return {}
    with write_atomically(path) as file:
        file.write("\n".join([head, *lines[:-1], ""]).encode())
    return answers


def write_answers(path: Path, records: Sequence[Record], answers: dict[str, list[str]]) -> list[Answered]:
    """Write questions, references and answers, one question per line, and return them."""
    result = []
    for place, record in enumerate(records):
        question = "\n\n".join(
            part for turn in record.conversation.question.turns for part in (turn.text, turn.input) if part
        )
        said = {name: texts[place] for name, texts in answers.items()}
        result.append(Answered(record.number, category(record), question, record.response, said))
    with write_atomically(path) as file:
        file.writelines(json.dumps(vars(each), ensure_ascii=False).encode() + b"\n" for each in result)
    return result


def read_answers(path: Path) -> list[Answered]:
    """Return what `write_answers` wrote.

    Raises:
        InputError: if the file is damaged, or no such file; the message names the line.
        OSError: if it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file")
    result: list[Answered] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            each = Answered(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is not a question with answers: {printable(str(error))}"
            ) from error
        texts = (each.category, each.question, each.reference)
        said = each.answers
        is_right = isinstance(said, dict) and all(isinstance(text, str) for text in (*texts, *said, *said.values()))
        if not is_right or not isinstance(each.number, int) or (result and said.keys() != result[0].answers.keys()):
            raise InputError(f"{path}: line {number} is not a question with answers of the same models as line 1")
        result.append(each)
    if not result:
        raise InputError(f"{path} holds no answers: make some with python -m finetuning.instruction.evaluate")
    return result
