"""Reading, cleaning and splitting labelled texts, and what a wrong file is told."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from finetuning.classification.near_duplicates import first_of_each
from finetuning.classification.reviews import SENTENCES, Reviews, clean, read_reviews, split
from utils.files import InputError, sha256

DATA_README = SENTENCES.with_name("README.md")


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def some_reviews(n: int = 40) -> list[tuple[str, str]]:
    return [
        (f"film {number} has {number**3} scenes of kind {number**2}", ["good", "bad"][number % 2])
        for number in range(n)
    ]


def test_the_sentences_are_those_that_their_page_describes() -> None:
    page = DATA_README.read_text(encoding="utf-8")
    assert sha256(SENTENCES) in page
    reviews = read_reviews(SENTENCES)
    assert np.bincount(reviews.labels).tolist() == [5326, 5242]
    assert reviews.names == ("negative", "positive")
    assert ((reviews.ratings > 0) == reviews.labels).all()
    with gzip.open(SENTENCES, "rt", encoding="utf-8", newline="") as file:
        assert sum(1 for _ in csv.reader(file)) == 1 + 10_605


def test_a_split_has_all_texts_once_and_each_class_in_proportion(tmp_path: Path) -> None:
    rows = sorted(some_reviews(200), key=lambda row: row[1])  # sorted by label, as the hub's file is
    reviews = read_reviews(write_csv(tmp_path / "sorted.csv", rows))
    splits = split(reviews, seed=3)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    assert {name: len(part) for name, part in parts.items()} == {"train": 160, "val": 20, "test": 20}
    assert sorted(text for part in parts.values() for text in part.texts) == sorted(text for text, _ in rows)
    for part in parts.values():
        assert np.bincount(part.labels).tolist() == [len(part) // 2] * 2
        assert {(t, part.names[label]) for t, label in zip(part.texts, part.labels, strict=True)} <= set(rows)
        assert len(set(part.labels[: len(part) // 2])) == 2, "shuffled, so that a part of the part has both"
    assert split(reviews, seed=3).test.texts == splits.test.texts
    assert split(reviews, seed=4).test.texts != splits.test.texts


def test_doubles_and_near_doubles_are_removed_and_others_are_not() -> None:
    text = " ".join(f"word{number}" for number in range(60))
    near = text.replace("word30", "another")  # three of 58 shingles differ
    half = " ".join(f"word{number}" for number in range(30)) + " and then it goes on in quite another way " * 4
    texts = [text, "fine", near, text.upper() + "!", half, "Fine.", "bad", "", "!!!", "?!"]
    assert first_of_each(texts) == [0, 1, 4, 6, 7, 8, 9]


def test_near_duplicates_are_found_at_the_similarity_that_is_promised() -> None:
    """Against the plain definition, comparing each with each."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{w}" for w in rng.integers(40, size=30)) for _ in range(30)]
    for text in texts[:15]:
        words = text.split()
        for at in rng.choice(30, size=rng.integers(1, 6), replace=False):
            words[at] = "changed"
        texts.append(" ".join(words))

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = [*text.split(), "", ""]
        return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}

    kept: list[int] = []
    for index, text in enumerate(texts):
        mine = shingles(text)
        if all(len(mine & shingles(texts[i])) / len(mine | shingles(texts[i])) < 0.7 for i in kept):
            kept.append(index)
    assert len(kept) < len(texts)
    assert first_of_each(texts) == kept


def test_tags_of_line_breaks_are_cleaned() -> None:
    assert clean("A <br /><BR>  film\twith <b>tags</b>.<br/>") == "A \nfilm with <b>tags</b>."


def test_other_forms_of_the_file_are_read(tmp_path: Path) -> None:
    rows = [(label, text, "") for text, label in some_reviews()]
    path = write_csv(tmp_path / "other.csv", rows, header=("Sentiment", " review", "rating"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Excel writes UTF-8
    packed = tmp_path / "other.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        reviews = read_reviews(file)
        assert (len(reviews), reviews.names, reviews.ratings) == (40, ("bad", "good"), None)


def test_a_review_of_a_hundred_thousand_words_is_read(tmp_path: Path) -> None:
    long = "word " * 100_000
    reviews: Reviews = read_reviews(write_csv(tmp_path / "long.csv", [*some_reviews(), (long, "good")]))
    assert len(reviews.texts[-1].split()) == 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column text or review or sentence; its columns are: none"),
        ("title,label\na,b\n", "no column text or review or sentence; its columns are: title, label"),
        ("text,stars\na,b\n", "no column label or sentiment; its columns are: text, stars"),
        ("text,label\n", "at least two classes, but there are none"),
        ("text,label\n" + "".join(f"{t},same\n" for t in range(30)), "at least two classes, but all are 'same'"),
        ("text,label\n" + "".join(f"{t},{t % 2}\n" for t in range(30)) + ",1\n", "line 32: the text is empty"),
        ("text,label\n" + "".join(f"{t},{t}\n" for t in range(30)), "30 different labels for 30 texts"),
        (
            "text,label\n" + "".join(f"{t},{t % 2}\n" for t in range(30)) + "x,2\n",
            "1 texts of class '2': give at least 10",
        ),
        ("text,label\nalone\n", "line 2: has 1 of the header's 2 columns"),
        ('text,label\n"open,1\n', "is not a CSV file: unexpected end of data after line"),
        ("text,label,rating\na,b,ten\n", "line 2: the rating must be a number, got 'ten'"),
        (b"text,label\nfine,1\ncaf\xe9,1\n", "is not UTF-8 text: byte 0xe9"),
        (b"\x1f\x8bdamaged", "is damaged after line 0"),
    ],
)
def test_wrong_files_are_told_in_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    content = content.encode() if isinstance(content, str) else content
    path = tmp_path / ("bad.csv.gz" if content[:2] == b"\x1f\x8b" else "bad.csv")
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_reviews(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_consists_of_doubles_is_refused(tmp_path: Path) -> None:
    rows = [*some_reviews(), *[("always the same words", "odd")] * 12]
    with pytest.raises(InputError, match="without doubles there are 1 texts of class 'odd'"):
        split(read_reviews(write_csv(tmp_path / "doubles.csv", rows)), seed=0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere.csv is not a file"):
        read_reviews(tmp_path / "nowhere.csv")
