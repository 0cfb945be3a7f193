"""The tokenizer that lies beside a model in Hugging Face layout, as ours.

    tokenizer.json            all of it: what `minbpe.to_huggingface` writes, and GPT-2's
    vocab.json, merges.txt    the older form: ids, and merges in order

Only byte-level byte-pair encoding is read, with a split pattern that we know: GPT-2's or GPT-4's. Their files store
merges, ours ranks, so each token must be merged of the same two in both; then the ids are the same for every text.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt_model.model_files import read_object
from utils.files import InputError, refuse_lfs_pointer
from working_with_text_data.minbpe import GPT2_PATTERN, GPT4_PATTERN, RankTokenizer
from working_with_text_data.minbpe.interop import byte_letters

END_OF_TEXT = "<|endoftext|>"
OTHER_WAYS = ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")  # of byte-pair encoding
# As `tokenizers` takes it: `{1,3}+` would be a repetition of a repetition there.
PATTERNS = {pattern.replace("{1,3}+", "{1,3}"): pattern for pattern in (GPT2_PATTERN, GPT4_PATTERN)}


def read_tokenizer(folder: Path) -> RankTokenizer:
    """Return the tokenizer of a folder.

    Raises:
        InputError: if there is none, or it is damaged or not of a kind that we compute.
    """
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        return _from_whole(whole)
    if not (vocab.is_file() and merges.is_file()):
        raise InputError(
            f"{folder} has no tokenizer, neither {whole.name} nor {vocab.name} and {merges.name}: put there the one "
            "that the model was trained with, or, if it was exported from a run, name that run"
        )
    refuse_lfs_pointer(merges)
    lines = merges.read_text(encoding="utf-8", errors="replace").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return _build(vocab, _vocabulary(vocab, read_object(vocab)), pairs, GPT2_PATTERN, {END_OF_TEXT}, None)


def _from_whole(path: Path) -> RankTokenizer:
    content = read_object(path)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or any(map(model.get, OTHER_WAYS)):
        raise InputError(f"{path}: 'model' must be byte-pair encoding, the only one that we compute")
    vocab = _vocabulary(path, model.get("vocab"))
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise InputError(f"{path} is damaged: 'merges' must be a list")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    specials = set()
    for token in content.get("added_tokens") or ():
        if not isinstance(token, dict) or not isinstance(name := token.get("content"), str) or not token.get("special"):
            raise InputError(f"{path}: 'added_tokens' must all be special, got {token}")
        specials.add(name)
        vocab[name] = token.get("id")
    normalizer = content.get("normalizer")
    normal_form = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
    return _build(path, vocab, pairs, _pattern(path, content.get("pre_tokenizer")), specials, normal_form)


def _vocabulary(path: Path, vocab: Any) -> dict[str, Any]:
    if not isinstance(vocab, dict):
        raise InputError(f"{path} is damaged: the vocabulary must be an object")
    return dict(vocab)


def _pattern(path: Path, found: Any) -> str:
    """Return our pattern for what splits a text there."""
    steps = found.get("pretokenizers") if isinstance(found, dict) and found.get("type") == "Sequence" else [found]
    kinds = [step.get("type") if isinstance(step, dict) else None for step in steps] if isinstance(steps, list) else []
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space"):
        return GPT2_PATTERN
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True) and not steps[1].get("add_prefix_space"):
        pattern = steps[0].get("pattern")
        written = pattern.get("Regex") if isinstance(pattern, dict) else None
        if written in PATTERNS and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
            return PATTERNS[written]
    raise InputError(f"{path}: 'pre_tokenizer' must split text as GPT-2's or GPT-4's tokenizer does")


def _build(
    path: Path, vocab: dict[str, Any], pairs: list[Any], pattern: str, specials: set[str], normal_form: Any
) -> RankTokenizer:
    """Return the tokenizer, after the checks that make its ids those of the file's owner.

    Args:
        path: for messages.
        vocab: the id of each token, as it is spelled there.
        pairs: the two tokens of each merge, in order.
        pattern: splits a text into pieces.
        specials: which tokens are special.
        normal_form: NFC and the like, or None.
    """
    most = 2 * len(vocab)  # some ids may be left out, but one of 2**60 would ask for a table of that size
    for token, id_ in vocab.items():
        if not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ <= most:
            raise InputError(f"{path} is damaged: the id of {token!r} must be from 0 to {most:,}, got {id_!r}")
    if len(set(vocab.values())) < len(vocab):
        raise InputError(f"{path} is damaged: two tokens have the same id")
    ordinary = vocab.keys() - specials
    for pair in pairs:
        right = isinstance(pair, list) and len(pair) == 2 and all(isinstance(half, str) for half in pair)
        if not right or "" in pair or not ordinary.issuperset(pair):
            raise InputError(f"{path} is damaged: a merge must be of two tokens, got {pair}")
    merged = ["".join(pair) for pair in pairs]
    letters = {letter: bytes([byte]) for byte, letter in enumerate(byte_letters())}
    if unknown := (ordinary ^ set(merged)) - letters.keys():
        raise InputError(f"{path}: {min(unknown)!r} must be in both vocabulary and merges, or in neither")
    if any(vocab[a] >= vocab[b] for a, b in pairwise(merged)):
        raise InputError(f"{path}: ids must be in the order of merges")
    ranks = {b"".join(letters[letter] for letter in token): vocab[token] for token in ordinary}
    try:
        tokenizer = RankTokenizer(ranks, pattern, {name: vocab[name] for name in specials & vocab.keys()}, normal_form)
        same = tokenizer.merges.keys() == {(vocab[a], vocab[b]) for a, b in pairs}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not same:
        raise InputError(f"{path}: each token must be merged of the two that merging by rank leaves, and some are not")
    return tokenizer
