"""Shards: the format on disk, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from utils.files import InputError
from working_with_text_data.shards import open_shard, write_shard


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
    many = np.broadcast_to(np.uint16(0), 2**31)  # takes no memory
    with pytest.raises(InputError, match="at most 2,147,483,647 tokens, got 2,147,483,648"):
        write_shard(tmp_path / "t.bin", many)
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
