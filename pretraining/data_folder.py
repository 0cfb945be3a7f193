"""Whether shards, the tokenizer beside them, and a run belong together.

Token ids say nothing by themselves: 17 stands for another text with another tokenizer. A model that reads the shards
of a tokenizer it was not trained with gives a loss that looks like any other, so it must be checked.
"""

from pathlib import Path

from gpt_model.run_directory import identity, is_made_with, load_tokenizer
from utils.files import InputError
from working_with_text_data.minbpe import Tokenizer

TOKENIZER = "bpe.json"


def open_data_tokenizer(folder: Path, largest_id: int) -> Tokenizer:
    """Load the tokenizer that lies beside shards.

    Args:
        folder: what `python -m working_with_text_data.prepare` wrote.
        largest_id: the largest token id in the shards that are going to be read.

    Raises:
        InputError: if there is none, it is damaged, or the shards hold tokens that it does not have.
    """
    path = folder / TOKENIZER
    if not path.exists():
        raise InputError(f"{folder} has no tokenizer, bpe.json: python -m working_with_text_data.prepare writes both")
    tokenizer = Tokenizer.load(path)
    if largest_id >= tokenizer.vocab_size:
        raise InputError(
            f"{folder} holds the token {largest_id:,} but its tokenizer has only {tokenizer.vocab_size:,}: "
            "shards and bpe.json do not belong together"
        )
    return tokenizer


def check_same_tokenizer(run: Path, folder: Path, tokenizer: Tokenizer) -> None:
    """Check that a run was made with the tokenizer of a folder of shards; equal sizes would not be enough.

    Args:
        run: the run directory; it may have no tokenizer, if its process was killed as it began.
        folder: where the shards are.
        tokenizer: of the folder.

    Raises:
        InputError: if the run's gives the same text different ids, or the same ids different texts.
    """
    same = is_made_with(run, tokenizer)
    if same and (run / TOKENIZER).exists():  # a run may not say what it was made with
        same = identity(load_tokenizer(run)) == identity(tokenizer)
    if not same:
        raise InputError(f"{run} and {folder} have different tokenizers: give the --data that the run was trained on")
