"""Open a tokenizer by its name or its file."""

from pathlib import Path

from utils.files import InputError
from working_with_text_data.minbpe.base import Tokenizer
from working_with_text_data.minbpe.gpt2 import GPT2Tokenizer
from working_with_text_data.minbpe.gpt4 import GPT4Tokenizer

KNOWN = {"gpt2": GPT2Tokenizer, "gpt4": GPT4Tokenizer}


def open_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """Return GPT-2's or GPT-4's tokenizer for the name "gpt2" or "gpt4", or one from a file.

    Raises:
        InputError: if there is no file, or it is damaged.
    """
    if (known := KNOWN.get(str(name_or_path))) is not None:
        return known()
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"there is no tokenizer {path}: make one with python -m working_with_text_data.train_tokenizer, "
            f"or name a known one, {' or '.join(KNOWN)}"
        )
    return Tokenizer.load(path)
