"""Plain text from disk, one document a file, each with its end held out for evaluation."""

from collections.abc import Iterator
from pathlib import Path

from utils.files import InputError

CORPUS = Path(__file__).parent / "corpus"
HELD_OUT = 0.05


def read_documents(path: Path) -> Iterator[str]:
    """The text of a file, or of each .txt file of a folder in name order.

    Raises:
        InputError: before the first text, if there is nothing at `path`, or no .txt file in the folder;
            later, if a file is empty or not UTF-8. The message names the file.
    """
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise InputError(f"the folder {path} holds no .txt file")
    elif path.exists():
        files = [path]
    else:
        raise InputError(f"there is no file or folder {path}")
    for file in files:
        yield read_text(file)


def read_text(file: Path) -> str:
    """The UTF-8 text of one file, line ends made `\\n`.

    Raises:
        InputError: if it is empty or not UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 text: byte {error.start:,} is 0x{error.object[error.start]:02x}"
        ) from error
    if not text.strip():
        raise InputError(f"{file} is empty")
    return text


def split_held_out(text: str, share: float = HELD_OUT) -> tuple[str, str]:
    """Cut a text in two, at the beginning of a line: what is learned from, and the last `share` to be tested on.

    The tokenizer and the model both use this cut, so that neither ever sees the second part. A share
    of 0 holds nothing out.

    Raises:
        InputError: if share is not at least 0 and below 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"the share held out must be at least 0 and below 1, got {share}")
    at = len(text) - round(len(text) * share)
    line_end = text.find("\n", at)
    if share and line_end >= 0 and line_end + 1 < len(text):
        at = line_end + 1
    return text[:at], text[at:]
