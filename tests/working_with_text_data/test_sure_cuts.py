"""A document read and encoded in parts gives the ids of the whole, whatever the parts are."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from working_with_text_data import sure_cuts, text_files
from working_with_text_data.minbpe import (
    GPT2_PATTERN,
    BasicTokenizer,
    GPT2Tokenizer,
    GPT4Tokenizer,
    RegexTokenizer,
    Tokenizer,
)
from working_with_text_data.minbpe.fast import unit_encoder
from working_with_text_data.minbpe.fast.parallel import encode_stream
from working_with_text_data.minbpe.regex import SHORT_TEXT
from working_with_text_data.sure_cuts import at_sure_cuts, encoding_where_cut
from working_with_text_data.text_files import SPLITS, Part, read_documents, split_documents, split_held_out

TOKENIZERS: list[Tokenizer] = [
    GPT2Tokenizer(), GPT4Tokenizer(), RegexTokenizer(GPT2_PATTERN), RegexTokenizer(normalization="NFC"),
    RegexTokenizer(normalization="NFKC"), RegexTokenizer(r"\w+|\W+"), BasicTokenizer(),
]  # fmt: skip
for each in TOKENIZERS[2:]:
    each.train("a word, aa  bb\n\n\n\t  \n .... 111234 !!\r\n\r\n" * 3, 280)  # short tokens, which are sure soon
look_ahead = functools.cache(sure_cuts._look_ahead)  # of GPT-2's and GPT-4's it takes seconds
# what pieces, normal forms, line ends, UTF-8 and the byte-order mark could be cut in the middle of
FRAGMENTS = st.sampled_from([
    "word", " the", "a", " ", "  ", "\n", "\r\n", "\r", "\t", "1", "234", "'s", "'", ".", "!\n", "<|endof", "\ufeff",
    "e\u0301", "\u0301", "\u1100", "\u1161", "\u3000", "\u00a0", "\u00e9", "\u4e2d", "\ufb01", "\U0001f600",
])  # fmt: skip
TEXTS = st.lists(FRAGMENTS, max_size=60).map("".join)


@given(
    text=TEXTS.filter(lambda text: text.strip("\ufeff").strip()),
    block_size=st.sampled_from([1, 2, 3, 7, 64]),
    part_length=st.sampled_from([1, 2, 5, 16, 50]),
    share=st.sampled_from([0, 0.05, 0.3, 0.9]),
    number=st.integers(0, len(TOKENIZERS) - 1),
)
@settings(deadline=None)
def test_a_file_read_in_blocks_gives_the_ids_of_its_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, block_size: int, part_length: int, share: float, number: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "blocks.txt"
    file.write_bytes(text.encode())
    whole = file.read_text(encoding="utf-8").removeprefix("\ufeff")
    tokenizer = TOKENIZERS[number]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sure_cuts, "_look_ahead", look_ahead)
        patch.setattr(text_files, "BLOCK_SIZE", block_size)
        patch.setattr(sure_cuts, "PART_LENGTH", part_length)
        assert list(read_documents(file)) == [whole]
        parts = list(split_documents(file, share))
        for split, expected in zip(SPLITS, split_held_out(whole, share), strict=True):
            assert "".join(part.text for part in parts if part.split == split) == expected
            cut = [*map(encoding_where_cut(tokenizer), (p for p in at_sure_cuts(parts, tokenizer) if p.split == split))]
            assert [i for ids in encode_stream(tokenizer, cut) for i in ids] == tokenizer.encode_ordinary(expected)


def test_parts_are_about_as_long_as_asked_for(persuasion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sure_cuts, "PART_LENGTH", 1000)
    blocks = [Part(persuasion[i : i + 700], "train", 0, i) for i in range(0, 100_000, 700)]
    lengths = [len(part.text) for part in at_sure_cuts(blocks, GPT2Tokenizer())]
    assert sum(lengths) == sum(len(block.text) for block in blocks)
    assert len(lengths) > 50
    assert max(lengths) < 2000


def test_without_any_cut_the_time_grows_with_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sure_cuts, "PART_LENGTH", 10)
    tokenizer = RegexTokenizer(r"\w+|\W+")
    looked_at = 0
    look = tokenizer.split_for_workers

    def count(text: str, size: int) -> "object":
        nonlocal looked_at
        looked_at += len(text)
        return look(text, size)

    monkeypatch.setattr(tokenizer, "split_for_workers", count)
    (part,) = at_sure_cuts([Part("a" * 10, "train", 0, 0)] * 1000, tokenizer)
    assert part.text == "a" * 10_000
    assert looked_at < 3 * len(part.text)


@given(texts=st.lists(TEXTS, max_size=12), chunk=st.sampled_from([1, 5, 30, 2**18]), number=st.integers(0, 1))
@settings(deadline=None)
def test_short_texts_encoded_together_give_the_ids_of_each(texts: list[str], chunk: int, number: int) -> None:
    tokenizer = TOKENIZERS[number]
    texts = [*texts, "so that they are long enough together " * (SHORT_TEXT // 30)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_encoder, "CHUNK", chunk)
        arrays = tokenizer.encode_to_arrays(texts)
    assert [array.tolist() for array in arrays] == [tokenizer.encode_ordinary(text) for text in texts]
    assert {array.dtype for array in arrays} == {np.dtype(tokenizer.array_dtype)}
