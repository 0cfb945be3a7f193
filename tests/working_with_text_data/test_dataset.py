"""Blocks of shards, windows of a text, and the documents inside them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data_loading import ResumableLoader
from utils.files import InputError
from working_with_text_data.dataset import BlockDataset, WindowDataset, document_ids, document_positions
from working_with_text_data.shards import write_shard

END_OF_TEXT = 0


def shards(folder: Path, *lengths: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, length in enumerate(lengths):
        write_shard(folder / f"train_{number:06d}.bin", np.arange(start, start + length, dtype=np.uint16))
        start += length
    return folder


class TestBlocks:
    @given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4), block=st.integers(1, 20))
    @settings(deadline=None, max_examples=50)
    def test_cover_each_shard_once(
        self, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], block: int
    ) -> None:
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

    def test_a_folder_without_shards(self, tmp_path: Path) -> None:
        for split in ("train", "val"):
            with pytest.raises(InputError, match=rf"holds no {split}_\*\.bin: .*prepare makes them"):
                BlockDataset(tmp_path, split, 8)

    def test_a_corpus_too_small_for_the_held_out_share(self, tmp_path: Path) -> None:
        shards(tmp_path, 30)
        with pytest.raises(InputError, match=r"holds no val_\*\.bin: .* run it again with a larger --held-out"):
            BlockDataset(tmp_path, "val", 8)
        write_shard(tmp_path / "val_000000.bin", np.arange(8, dtype=np.uint16))
        with pytest.raises(InputError, match="8 val tokens in a row, .*or prepare the text with a larger --held-out"):
            BlockDataset(tmp_path, "val", 8)

    def test_go_to_another_process_without_their_tokens(self, tmp_path: Path) -> None:
        dataset = BlockDataset(shards(tmp_path, 30_000, 5000), "train", 10)
        pickled = pickle.dumps(dataset)
        assert len(pickled) < 1000
        assert torch.equal(torch.cat(pickle.loads(pickled)[3300]), torch.cat(dataset[3300]))

    def test_a_document_ends_with_a_target_and_begins_with_an_input(self, tmp_path: Path) -> None:
        write_shard(tmp_path / "train_0.bin", np.array([0, 5, 6, 0, 7, 8, 9], dtype=np.uint16))
        ids, targets = BlockDataset(tmp_path, "train", 6)[0]
        assert ids.tolist() == [0, 5, 6, 0, 7, 8]
        assert targets.tolist() == [5, 6, 0, 7, 8, 9]

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_become_batches_of_ids_and_targets(self, tmp_path: Path, workers: int) -> None:
        dataset = BlockDataset(shards(tmp_path, 61, 41), "train", 10)
        loader = ResumableLoader(dataset, 5, seed=0, workers=workers)
        batches = [loader.next() for _ in range(2)]
        ids, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        assert ids.shape == (10, 10)
        assert ids.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, ids + 1)
        assert sorted(ids[:, 0].tolist()) == [0, 10, 20, 30, 40, 50, 61, 71, 81, 91]
        loader.close()


class TestWindows:
    @given(data=st.data(), ids=st.lists(st.integers(0, 60_000), min_size=2, max_size=40))
    @settings(deadline=None)
    def test_are_the_slices_that_a_loop_finds(self, data: st.DataObject, ids: list[int]) -> None:
        length = data.draw(st.integers(1, len(ids) - 1))
        stride = data.draw(st.integers(1, length))
        expected, start = [], 0
        while start + length + 1 <= len(ids):
            expected.append((ids[start : start + length], ids[start + 1 : start + length + 1]))
            start += stride
        for given_as in (ids, tuple(ids), np.array(ids), np.array(ids, dtype=np.uint16), torch.tensor(ids)):
            dataset = WindowDataset(given_as, length, stride)
            assert len(dataset) == len(expected)
            assert [(i.tolist(), t.tolist()) for i, t in dataset] == expected  # iterating ends, too
            assert all(tensor.dtype == torch.int64 for tensor in dataset[0])

    @given(n=st.integers(2, 60), length=st.integers(1, 20))
    @settings(deadline=None, max_examples=30)
    def test_without_overlap_are_the_blocks_of_a_shard(
        self, tmp_path_factory: pytest.TempPathFactory, n: int, length: int
    ) -> None:
        length = min(length, n - 1)
        blocks = BlockDataset(shards(tmp_path_factory.mktemp("shards"), n), "train", length)
        windows = WindowDataset(np.arange(n), length, stride=length)
        assert len(windows) == len(blocks)
        assert all(torch.equal(torch.cat(w), torch.cat(b)) for w, b in zip(windows, blocks, strict=True))

    def test_changing_one_leaves_the_text_as_it_was(self) -> None:
        dataset = WindowDataset(np.arange(10), 4, stride=1)
        dataset[0][1].fill_(-100)
        assert dataset[0][1].tolist() == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("n", "length", "stride", "message"),
        [
            (4, 4, 1, "the text has 4 tokens, fewer than the 5 of one window and its targets"),
            (0, 1, 1, "the text has 0 tokens, fewer than the 2"),
            (9, 0, 1, "length must be at least 1, got 0"),
            (9, 4, 0, "stride must be from 1 to the window's length, 4, got 0"),
            (9, 4, 5, "stride must be from 1 to the window's length, 4, got 5"),
        ],
    )
    def test_that_cannot_be_cut_are_refused(self, n: int, length: int, stride: int, message: str) -> None:
        with pytest.raises(InputError, match=message):
            WindowDataset(list(range(n)), length, stride)


def slow_documents(block: list[int]) -> tuple[list[int], list[int]]:
    """The number of each token's document, and its place in it, token by token."""
    documents: list[int] = []
    positions: list[int] = []
    document = position = 0
    for i, token in enumerate(block):
        if token == END_OF_TEXT and i > 0:
            document, position = document + 1, 0
        documents.append(document)
        positions.append(position)
        position += 1
    return documents, positions


class TestDocuments:
    @given(
        st.integers(1, 30).flatmap(
            lambda length: st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1)
        )
    )
    @settings(deadline=None)
    def test_are_those_that_a_loop_finds(self, blocks: list[list[int]]) -> None:
        ids_BT = torch.tensor(blocks)
        expected = [torch.tensor(rows) for rows in zip(*map(slow_documents, blocks), strict=True)]
        for find, expected_BT in zip((document_ids, document_positions), expected, strict=True):
            found_BT = find(ids_BT, END_OF_TEXT)
            assert found_BT.dtype == torch.int64
            assert torch.equal(found_BT, expected_BT)
            assert torch.equal(find(ids_BT[0], END_OF_TEXT), expected_BT[0])

    def test_a_block_inside_one_document_is_one_document(self) -> None:
        ids = torch.tensor([5, 6, 7])
        assert document_ids(ids, END_OF_TEXT).tolist() == [0, 0, 0]
        assert document_positions(ids, END_OF_TEXT).tolist() == [0, 1, 2]

    def test_positions_are_those_of_the_document_alone(self) -> None:
        documents = [torch.tensor(document) for document in ([0, 5, 6], [0], [0, 7, 8, 9])]
        found = document_positions(torch.cat(documents), END_OF_TEXT)
        assert torch.equal(found, torch.cat([document_positions(alone, END_OF_TEXT) for alone in documents]))
