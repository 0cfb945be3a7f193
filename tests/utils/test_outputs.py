"""What the project did not make, it never replaces or deletes."""

import os
from pathlib import Path

import pytest

from utils.files import InputError
from utils.outputs import check_output_file, check_output_folder, check_writable, delete_ours

OURS = ("config.json", "*_*.bin", "state/step_*/weights", "state/.step_*.tmp/*")


def is_ours(path: Path) -> bool:
    return path.read_bytes().startswith(b"ours")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing in it but ours, what killed writers left included."""
    names = ["config.json", "train_0.bin", ".train_1.bin.123.tmp", "state/step_1/weights", "state/.step_2.tmp/half"]
    for name in names:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ours")
    return tmp_path / "out"


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_our_own_folder_is_deleted(folder: Path) -> None:
    check_output_folder(folder, OURS, overwrite=True)
    delete_ours(folder, OURS)
    assert not folder.exists()
    delete_ours(folder, OURS)  # nothing there: nothing to do


@pytest.mark.parametrize(
    "name", ["notes.txt", ".git/HEAD", "state/notes", "state/step_1/mine", "sub/train_0.bin", "state/x"]
)
def test_a_foreign_file_keeps_all_of_the_folder(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("theirs")
    before = contents(folder)
    for refuse in (lambda: delete_ours(folder, OURS), lambda: check_output_folder(folder, OURS, overwrite=True)):
        with pytest.raises(InputError, match=f"holds {name.split('/')[0]}.*, which is not ours to delete"):
            refuse()
    assert contents(folder) == before


def test_a_folder_under_the_name_of_a_file_is_foreign(folder: Path) -> None:
    (folder / "val_0.bin").mkdir()
    with pytest.raises(InputError, match="not ours to delete"):
        delete_ours(folder, OURS)


def test_links_are_neither_followed_nor_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "config.json").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "books")
    with pytest.raises(InputError, match="link is not a folder"):
        delete_ours(tmp_path / "link", OURS)
    (folder / "val_0.bin").symlink_to(tmp_path / "books" / "config.json")
    with pytest.raises(InputError, match=r"val_0\.bin, which is not ours to delete"):
        delete_ours(folder, OURS)
    (folder / "val_0.bin").unlink()
    (folder / "state" / "step_9").symlink_to(tmp_path / "books")
    with pytest.raises(InputError, match="step_9, which is not ours to delete"):
        delete_ours(folder, OURS)
    assert (tmp_path / "books" / "config.json").read_text() == "theirs"


def test_the_file_that_names_the_folder_goes_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path: (gone.append(path.name), unlink(path)))
    delete_ours(folder, OURS)
    assert gone[-1] == "config.json"
    assert len(gone) == 5


def test_an_output_never_holds_an_input(folder: Path, tmp_path: Path) -> None:
    for given in (folder, folder / "train_0.bin", folder / ".." / "out" / "state"):
        with pytest.raises(InputError, match=r"out holds .*, which is read"):
            check_output_folder(folder, OURS, overwrite=True, inputs=[None, given])
    check_output_folder(folder / "new", OURS, overwrite=True, inputs=[folder / "config.json"])
    with pytest.raises(InputError, match=r"config\.json holds .*config\.json, which is read"):
        check_output_file(folder / "config.json", overwrite=True, is_ours=is_ours, inputs=[folder / "config.json"])


def test_files(tmp_path: Path) -> None:
    ours, theirs, link = tmp_path / "ours", tmp_path / "theirs", tmp_path / "link"
    ours.write_text("ours")
    theirs.write_text("theirs")
    link.symlink_to(ours)
    check_output_file(tmp_path / "new" / "file", overwrite=False, is_ours=is_ours)
    check_output_file(ours, overwrite=True, is_ours=is_ours)
    for path, message in [
        (ours, "exists: choose another --out, or give --overwrite"),
        (theirs, "exists: choose another --out, or give --overwrite"),
    ]:
        with pytest.raises(InputError, match=message):
            check_output_file(path, overwrite=False, is_ours=is_ours)
    with pytest.raises(InputError, match="was not written by this command"):
        check_output_file(theirs, overwrite=True, is_ours=is_ours)
    for path in (link, tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="is not a regular file"):
            check_output_file(path, overwrite=True, is_ours=is_ours)


def test_what_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "below" / "out")
    with pytest.raises(InputError, match="must name a file or a folder, got '.'"):
        check_writable(Path())
    (tmp_path / "closed").mkdir(mode=0o555)
    if os.geteuid():  # root may write everywhere
        with pytest.raises(InputError, match="closed does not allow it"):
            check_writable(tmp_path / "closed" / "out")
    assert not (tmp_path / "file" / "below").exists()
