"""Shards, the folder `prepare` writes, and the batches made from it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.files import InputError
from working_with_text_data import prepare, train_tokenizer
from working_with_text_data.dataset import BatchStream, BlockDataset
from working_with_text_data.minbpe import RegexTokenizer, Tokenizer
from working_with_text_data.shards import open_shard, write_shard
from working_with_text_data.text_files import CORPUS, split_held_out
from working_with_text_data.train_tokenizer import END_OF_TEXT


@pytest.mark.parametrize(("dtype", "magic", "version"), [(np.uint16, 20240520, 1), (np.uint32, 20240801, 7)])
def test_the_format_is_llm_cs(tmp_path: Path, dtype: type, magic: int, version: int) -> None:
    tokens = np.array([0, 1, np.iinfo(dtype).max, 50_256], dtype=dtype)
    write_shard(tmp_path / "t.bin", tokens)
    content = (tmp_path / "t.bin").read_bytes()
    # read as llm.c's own data loader does: 256 int32, then the tokens
    header = np.frombuffer(content[:1024], dtype=np.int32)
    assert header[:3].tolist() == [magic, version, 4]
    assert not header[3:].any()
    assert np.array_equal(np.frombuffer(content[1024:], dtype=dtype), tokens)
    assert np.array_equal(open_shard(tmp_path / "t.bin"), tokens)


def test_other_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uint16 or uint32 tokens, got int64"):
        write_shard(tmp_path / "t.bin", np.arange(3))
    assert not list(tmp_path.iterdir())


def test_damaged_shards_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    write_shard(path, np.arange(1000, dtype=np.uint16))
    whole = path.read_bytes()
    for length in (1024, 1025, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"t\.bin is damaged: its header says 1,000 tokens, 3,024 bytes"):
            open_shard(path)
    path.write_bytes(whole + b"\0\0")
    with pytest.raises(InputError, match=r"t\.bin is damaged"):
        open_shard(path)
    path.write_bytes(whole[:500])
    with pytest.raises(InputError, match=r"t\.bin is not a token shard: it is shorter than a header"):
        open_shard(path)
    path.write_bytes(b"not a shard" * 500)
    with pytest.raises(InputError, match=r"t\.bin is not a token shard: its header says"):
        open_shard(path)


def shards(folder: Path, *lengths: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, length in enumerate(lengths):
        write_shard(folder / f"train_{number:06d}.bin", np.arange(start, start + length, dtype=np.uint16))
        start += length
    return folder


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4), block=st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_blocks_cover_each_shard_once(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], block: int) -> None:
    folder = shards(tmp_path_factory.mktemp("shards"), *lengths)
    n_blocks = [max(0, length - 1) // block for length in lengths]
    if not sum(n_blocks):
        with pytest.raises(InputError, match=f"fewer than the {block + 1} of one block"):
            BlockDataset(folder, "train", block)
        return
    dataset = BlockDataset(folder, "train", block)
    assert len(dataset) == sum(n_blocks)
    targets = []
    for i in range(len(dataset)):
        ids, following = dataset[i]
        assert torch.equal(ids + 1, following)  # tokens count up within a shard: a target is the next token
        targets += following.tolist()
    starts = np.cumsum([0, *lengths])[:-1]
    expected = [s + 1 + t for s, n in zip(starts, n_blocks, strict=True) for t in range(n * block)]
    assert targets == expected


def test_an_epoch_visits_each_block_once_and_the_next_in_another_order(tmp_path: Path) -> None:
    stream = BatchStream(BlockDataset(shards(tmp_path, 101), "train", 10), batch_size=3, seed=7)
    firsts = [ids[row, 0].item() for _ in range(10) for ids, _ in [stream.next()] for row in range(3)]
    epochs = [firsts[i : i + 10] for i in (0, 10, 20)]
    assert all(Counter(epoch) == Counter(range(0, 100, 10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 9])
def test_a_stream_goes_on_where_its_cursor_stood(tmp_path: Path, taken: int) -> None:
    dataset = BlockDataset(shards(tmp_path, 101), "train", 10)
    first, second = BatchStream(dataset, 3, seed=1), BatchStream(dataset, 3, seed=1)
    for _ in range(taken):
        first.next()
    second.load_state_dict(first.state_dict())
    for _ in range(8):
        assert torch.equal(first.next()[0], second.next()[0])


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    dataset = BlockDataset(shards(tmp_path, 1001), "train", 10)
    assert not torch.equal(BatchStream(dataset, 9, seed=1).next()[0], BatchStream(dataset, 9, seed=2).next()[0])


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no train_\*\.bin"):
        BlockDataset(tmp_path, "train", 8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.json"
    train_tokenizer.main(train_tokenizer.Config(text=CORPUS / "persuasion.txt", vocab_size=400, out=path))
    return path


class TestPrepare:
    def test_shards_decode_to_the_text_in_two_parts(self, tokenizer: Path, tmp_path: Path) -> None:
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text(name + (CORPUS / "emma.txt").read_text(encoding="utf-8")[:20_000])
        out = tmp_path / "data"
        prepare.main(prepare.Config(text=tmp_path, tokenizer=tokenizer, out=out, shard_tokens=3000))
        loaded = Tokenizer.load(out / "bpe.json")
        assert len(list(out.glob("train_*.bin"))) > 3
        expected = [split_held_out((tmp_path / name).read_text()) for name in ("a.txt", "b.txt")]
        for split, parts in zip(("train", "val"), zip(*expected, strict=True), strict=True):
            tokens = np.concatenate([open_shard(path) for path in sorted(out.glob(f"{split}_*.bin"))])
            assert tokens[0] == loaded.special_tokens[END_OF_TEXT]
            assert loaded.decode(tokens.tolist()) == "".join(END_OF_TEXT + part for part in parts)

    def test_special_text_in_a_document_stays_text(self, tokenizer: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("before <|endoftext|> after\n" * 30)
        prepare.main(prepare.Config(text=tmp_path / "a.txt", tokenizer=tokenizer, out=tmp_path / "data", held_out=0))
        tokens = open_shard(tmp_path / "data" / "train_000000.bin")
        separator = Tokenizer.load(tokenizer).special_tokens[END_OF_TEXT]
        assert (tokens == separator).sum() == 1

    def test_nothing_is_replaced_unasked_nor_lost_on_failure(self, tokenizer: Path, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("some text\n" * 100)
        config = {"tokenizer": tokenizer, "out": tmp_path / "data"}
        prepare.main(prepare.Config(text=tmp_path / "a.txt", **config))
        before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
        with pytest.raises(InputError, match="data exists"):
            prepare.main(prepare.Config(text=tmp_path / "a.txt", **config))
        (tmp_path / "z.txt").write_bytes(b"good text, then \xff")
        with pytest.raises(InputError, match="not UTF-8"):
            prepare.main(prepare.Config(text=tmp_path, overwrite=True, **config))
        assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
        (tmp_path / "z.txt").write_text("other text\n" * 100)
        prepare.main(prepare.Config(text=tmp_path / "z.txt", overwrite=True, **config))
        assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} != before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "data", "z.txt"]  # no leftovers

    def test_tokenizers_that_cannot_be_used(self, tmp_path: Path) -> None:
        text = tmp_path / "a.txt"
        text.write_text("text")
        with pytest.raises(InputError, match="there is no tokenizer"):
            prepare.main(prepare.Config(text=text, tokenizer=tmp_path / "none.json", out=tmp_path / "data"))
        RegexTokenizer().save(tmp_path / "t.json")
        with pytest.raises(InputError, match=r"no special token <\|endoftext\|>"):
            prepare.main(prepare.Config(text=text, tokenizer=tmp_path / "t.json", out=tmp_path / "data"))


class TestTrainTokenizer:
    def test_never_sees_the_held_out_text(self, tmp_path: Path) -> None:
        text = "aa bb cc dd\n" * 200
        (tmp_path / "a.txt").write_text(text + "zzzzyyyy zzzzyyyy\n" * 5)
        (tmp_path / "b.txt").write_text(text)
        tokenizers = [
            train_tokenizer.main(
                train_tokenizer.Config(text=tmp_path / f"{name}.txt", vocab_size=280, out=tmp_path / f"{name}.json")
            )
            for name in "ab"
        ]
        assert not any(b"z" in spelling for i, spelling in tokenizers[0].vocab.items() if i > 255)
        assert tokenizers[0].merges == tokenizers[1].merges

    def test_the_vocabulary_has_the_size_asked_for(self, tmp_path: Path) -> None:
        config = train_tokenizer.Config(text=CORPUS / "persuasion.txt", vocab_size=300, out=tmp_path / "t.json")
        assert train_tokenizer.main(config).vocab_size == 300
        assert Tokenizer.load(tmp_path / "t.json").vocab_size == 300

    def test_bad_input(self, tmp_path: Path) -> None:
        text = CORPUS / "persuasion.txt"
        with pytest.raises(InputError, match="at least 257 .* got 255"):
            train_tokenizer.main(train_tokenizer.Config(text=text, vocab_size=255, out=tmp_path / "t.json"))
        (tmp_path / "t.json").write_text("precious")
        with pytest.raises(InputError, match=r"t\.json exists"):
            train_tokenizer.main(train_tokenizer.Config(text=text, out=tmp_path / "t.json"))
        assert (tmp_path / "t.json").read_text() == "precious"
