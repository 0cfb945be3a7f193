"""The rules of Gopher, C4 and FineWeb say what datatrove says; and what else a document goes through by itself."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from pretraining.corpus.addresses import read_block_list
from pretraining.corpus.contamination import Contamination, read_test_set
from pretraining.corpus.documents import Document
from pretraining.corpus.perplexity import N_KINDS, CharacterModel, fold
from pretraining.corpus.repetition import repeated_characters, top_characters
from pretraining.corpus.rules import c4
from pretraining.corpus.screen import Screen, without_addresses
from pretraining.corpus.words import Phrases, plain_words, split_words
from tests.pretraining import corpus_verdicts
from utils.files import InputError


@pytest.fixture(scope="module")
def texts(real_data: Path) -> list[str]:
    return corpus_verdicts.documents(real_data)


def test_the_rules_say_what_datatrove_said_given_the_same_words(texts: list[str]) -> None:
    """And with spaCy's words, which are nearly ours, nearly the same."""
    stored = corpus_verdicts.stored()
    for name, rule in corpus_verdicts.OURS.items():
        ours = [rule(text) for text in texts]
        assert ours == stored["with_our_words"][name], name
        same = sum(one == other for one, other in zip(ours, stored["with_spacy"][name], strict=True))
        assert same >= 0.99 * len(texts), (name, same)


@pytest.mark.slow
def test_the_stored_verdicts_are_datatroves(texts: list[str]) -> None:
    pytest.importorskip("datatrove")
    theirs = corpus_verdicts.datatrove_says(texts, our_words=True)
    assert theirs == corpus_verdicts.stored()["with_our_words"]
    assert sum(len(set(verdicts)) for verdicts in theirs.values()) >= 20  # many rules had their say


def test_c4_drops_lines_that_are_no_prose() -> None:
    prose = "One two three. Four five six. And so it goes on.\nMore of it here! And here? And here."
    menu = "Home\nEnable JavaScript to see this.\nOur privacy policy applies here.\nA line without an end"
    assert c4(f"{menu}\n{prose}[12]") == (None, prose)
    assert c4(f"{menu}\n{prose}", only_whole_sentences=False) == (None, f"A line without an end\n{prose}")
    assert c4(prose + "\nfunction() { return. }. Yes it is.")[0] == "curly_bracket"


@pytest.mark.parametrize("vocabulary", [3, 30])
def test_repeated_phrases_are_counted_as_by_reading(rng: random.Random, vocabulary: int) -> None:
    """The slow and obvious way: whether the text of each phrase has been there before."""
    for _ in range(30):
        words = [rng.choice(["a", "b", "ab", "bc", "c", *map(str, range(vocabulary))]) for _ in range(80)]
        phrases = Phrases(words)
        for n in (2, 3, 5):
            seen: set[str] = set()
            total = place = 0
            while place + n <= len(words):
                phrase = "".join(words[place : place + n])
                total += len(phrase) if phrase in seen else 0
                place += n if phrase in seen else 1
                seen.add(phrase)
            assert repeated_characters(phrases, n) == total
            spoken = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
            commonest = max(spoken, key=spoken.count)  # the first of equals
            assert top_characters(phrases, n)[0] == len(commonest) * spoken.count(commonest)


def test_words_of_any_text_are_found_in_no_time() -> None:
    assert split_words("Mr. Lee can't pay $5.50, e.g. for U.S. well-known cat's food...") == [
        "Mr.", "Lee", "ca", "n't", "pay", "$", "5.50", ",", "e.g.", "for", "U.S.", "well", "-", "known",
        "cat", "'s", "food", "...",
    ]  # fmt: skip
    for hostile in ("(" * 200_000, "." * 200_000, "a-" * 100_000, "x." * 100_000, "'s" * 100_000, "", "\u2028 \x00"):
        assert "".join(split_words(hostile)) == "".join(hostile.split())


def test_personal_addresses_are_replaced_and_versions_are_not() -> None:
    text = "a.b@c.org, see (x@y.co.uk) and 8.8.8.8:53. But 1.2.3.4.5, 300.1.1.1, user@host, 10.1.2 and @c.org stay."
    replaced, n_replaced = without_addresses(text)
    assert n_replaced == 3
    assert replaced == (
        "email@example.com, see (email@example.com) and 192.0.2.1:53. "
        "But 1.2.3.4.5, 300.1.1.1, user@host, 10.1.2 and @c.org stay."
    )


def test_a_model_of_characters_is_surprised_by_what_is_no_prose(persuasion: str, tmp_path: Path) -> None:
    model = CharacterModel.train([persuasion[:300_000]])
    table = 2 ** -model._bits.reshape(-1, N_KINDS).astype(np.float64)
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-4)
    held_out = persuasion[300_000:310_000]
    shuffled = "".join(random.Random(0).sample(held_out, len(held_out)))
    code = "for (int i = 0; i < n_rows; ++i) { sum[i] += x[i] * w[3 * i]; }\n" * 10
    prose, *others = map(model.surprise, (held_out, code, shuffled, "1 | 22 | 3,4 || 7 |\n" * 20))
    assert prose < 2.6
    assert min(others) > prose + 1
    model.save(tmp_path / "model.npy")
    assert CharacterModel.load(tmp_path / "model.npy").surprise(code) == others[0]
    (tmp_path / "other.npy").write_bytes(b"something else")
    with pytest.raises(InputError, match="holds no model"):
        CharacterModel.load(tmp_path / "other.npy")
    assert fold("Aé字7—\t")[[0, 3, 5]].tolist() == [fold("a")[0], fold("0")[0], 0]
    assert model.surprise("ab") == 0


def test_documents_that_share_a_phrase_with_a_test_set_are_found(persuasion: str, tmp_path: Path) -> None:
    words = re.findall(r"\w+", persuasion)
    examples = [" ".join(words[1000:1040]), "too short to tell"]
    file = tmp_path / "test.jsonl"
    file.write_text(f'{{"ctx": "{examples[0]}", "endings": ["yes", "no"]}}\n{{"text": "{examples[1]}"}}\n')
    assert list(read_test_set(file)) == [f"{examples[0]} yes", f"{examples[0]} no", examples[1]]
    contamination = Contamination(read_test_set(file))
    screen = Screen(prose=False, language="", contamination=contamination)
    for text, is_in in (
        (" ".join(words[900:1013]), True), (" ".join(words[900:1012]), False),
        (" ".join(words[1020:1033]).upper().replace(" ", ", "), True), (examples[1], False),
    ):  # fmt: skip
        assert contamination.is_in(plain_words(text)) == is_in
        assert (screen.judge(Document(text)).reason == "contaminated") == is_in
    with pytest.raises(InputError, match="no test set"):
        list(read_test_set(tmp_path / "test.csv"))


def test_the_first_reason_counts(tmp_path: Path, persuasion: str) -> None:
    block_list = tmp_path / "hosts"
    block_list.write_text("# bad ones\nbad.example  # this\n\n")
    screen = Screen(blocked=read_block_list(block_list))
    prose = persuasion[20_000:24_000]
    for document, reason in (
        (Document(" \n"), "empty"),
        (Document(prose, "https://www.bad.example/a"), "url"),
        (Document("Der Hund und die Katze gingen gemeinsam in den Wald, um Pilze zu suchen. " * 9), "language"),
        (Document("The same line of the text.\n" * 60), "dup_line_frac"),
        (Document(prose[:200], "https://good.example"), "gopher_short_doc"),
    ):
        assert screen.judge(document).reason == reason
    verdict = screen.judge(Document(prose.replace("\n", " ").replace("  ", "\n"), "http://[bad"))
    assert verdict.reason == ""
    assert len(verdict.shingles) == len(plain_words(verdict.text)) - 4
