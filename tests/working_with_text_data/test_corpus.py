"""The six novels, and how text is read and held out."""

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.files import InputError
from working_with_text_data.text_files import CORPUS, read_documents, split_held_out

NOVELS = ["emma", "mansfield_park", "northanger_abbey", "persuasion", "pride_and_prejudice", "sense_and_sensibility"]


def test_the_six_novels_are_there_as_their_readme_says() -> None:
    readme = (CORPUS / "README.md").read_text(encoding="utf-8")
    assert sorted(path.stem for path in CORPUS.glob("*.txt")) == NOVELS
    for path in CORPUS.glob("*.txt"):
        content = path.read_bytes()
        row = re.search(rf"\| `{path.name}` \| ([\d,]+) \| `([0-9a-f]+)` \|", readme)
        assert row, path.name
        assert int(row[1].replace(",", "")) == len(content)
        assert row[2] == hashlib.sha256(content).hexdigest()
        assert b"\r" not in content
        assert "jane austen" in content.decode("utf-8")[:200].lower()
        assert "Gutenberg" not in content.decode("utf-8")


def test_novels_agree_with_an_independent_edition(real_data: Path) -> None:
    """Project Gutenberg's text of Emma has the same words, give or take an edition's spelling."""
    ours = re.findall(r"[a-z]+", (CORPUS / "emma.txt").read_text(encoding="utf-8").lower())
    text = (real_data / "gutenberg" / "austen-emma.txt").read_text(encoding="utf-8")
    theirs = re.findall(r"[a-z]+", text.split("*** START")[1].split("*** END")[0].lower())
    assert abs(len(ours) - len(theirs)) < 0.01 * len(theirs)
    runs = {tuple(theirs[i : i + 5]) for i in range(len(theirs))}
    assert sum(tuple(ours[i : i + 5]) in runs for i in range(len(ours))) > 0.9 * len(ours)


@given(st.text(max_size=300), st.floats(0, 0.99))
def test_held_out_text_is_the_end_and_nothing_is_lost(text: str, share: float) -> None:
    learned, held_out = split_held_out(text, share)
    assert learned + held_out == text


def test_held_out_text_begins_with_a_line_and_is_the_share_asked_for(persuasion: str) -> None:
    learned, held_out = split_held_out(persuasion, 0.05)
    assert learned.endswith("\n")
    assert len(held_out) == pytest.approx(0.05 * len(persuasion), abs=100)
    assert split_held_out(persuasion, 0) == (persuasion, "")


@pytest.mark.parametrize("share", [-0.1, 1, 2])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(InputError, match="at least 0 and below 1"):
        split_held_out("text", share)


def test_folders_are_read_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"second\r\n")
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "c.md").write_text("not text")
    assert list(read_documents(tmp_path)) == ["first\n", "second\n"]
    assert list(read_documents(tmp_path / "a.txt")) == ["first\n"]


def test_bad_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder .*missing"):
        list(read_documents(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"holds no \.txt file"):
        list(read_documents(tmp_path))
    (tmp_path / "empty.txt").write_text(" \n ")
    with pytest.raises(InputError, match=r"empty\.txt is empty"):
        list(read_documents(tmp_path))
    (tmp_path / "empty.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"empty\.txt is not UTF-8 text: byte 3 is 0xe9"):
        list(read_documents(tmp_path))
