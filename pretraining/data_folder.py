"""Whether shards, the tokenizer beside them, and a run belong together.

Token ids say nothing by themselves: 17 is another text with another tokenizer. Reading shards with a model that was
trained on another tokenizer's gives a loss that looks like one, so it is checked instead.
"""

from pathlib import Path

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
            "shards and bpe.json are not from one another"
        )
    return tokenizer


def check_same_tokenizer(run: Path, ours: Tokenizer, folder: Path, theirs: Tokenizer) -> None:
    """Check that a run and a folder of shards have the same tokenizer; equal sizes would not be enough.

    Raises:
        InputError: if they give the same text different ids, or the same ids different texts.
    """
    if not same_tokenizer(ours, theirs):
        raise InputError(f"{run} and {folder} have different tokenizers: give the --data that the run was trained on")


def same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
    """Return whether two tokenizers give every text the same ids; how their files are laid out does not matter."""
    return (
        type(one) is type(other)
        and one.settings() == other.settings()
        and one.tokens_as_json() == other.tokens_as_json()
        and one.special_tokens == other.special_tokens
    )
