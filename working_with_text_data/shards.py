"""Token shards: the `.bin` format of llm.c, in which public corpora such as FineWeb are shared.

256 int32 numbers of header (magic, version, token count; the rest zero), then the tokens: uint16 for
vocabularies up to 65,536, uint32 above.  https://github.com/karpathy/llm.c, dev/data/data_common.py
"""

from pathlib import Path

import numpy as np

from utils.files import InputError, write_atomically

HEADER_LENGTH = 256  # numbers of 4 bytes
MOST_TOKENS = 2**31 - 1  # that an int32 can count
FORMATS = {  # token type -> (magic, version)
    np.dtype("<u2"): (20240520, 1),
    np.dtype("<u4"): (20240801, 7),
}


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write tokens (uint16 or uint32) with their header.

    Raises:
        InputError: for another dtype, or more tokens than the header can count.
    """
    header = shard_header(tokens.dtype, len(tokens))
    with write_atomically(path) as file:
        file.write(header)
        file.write(tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).data)


def shard_header(dtype: np.dtype, count: int) -> bytes:
    """Return the header of a shard of `count` tokens. Raises as `write_shard`."""
    dtype = dtype.newbyteorder("<")
    if dtype not in FORMATS:
        raise InputError(f"a shard holds uint16 or uint32 tokens, got {dtype.newbyteorder('=')}")
    if count > MOST_TOKENS:
        raise InputError(f"a shard holds at most {MOST_TOKENS:,} tokens, got {count:,}")
    header = np.zeros(HEADER_LENGTH, dtype="<i4")
    header[:3] = *FORMATS[dtype], count
    return header.tobytes()


def open_shard(path: Path) -> np.ndarray:
    """Return the tokens of a shard, mapped from disk and read only when touched.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: for a wrong header or a file of another length than its header says.
    """
    header = np.fromfile(path, dtype="<i4", count=HEADER_LENGTH)
    if len(header) < HEADER_LENGTH:
        raise InputError(f"{path} is not a token shard: it is shorter than a header of {HEADER_LENGTH * 4:,} bytes")
    magic, version, count = (int(number) for number in header[:3])
    dtype = next((dtype for dtype, known in FORMATS.items() if known == (magic, version)), None)
    if dtype is None:
        known = " or ".join(f"{m} version {v}" for m, v in FORMATS.values())
        raise InputError(f"{path} is not a token shard: its header says {magic} version {version}, not {known}")
    expected, actual = HEADER_LENGTH * 4 + count * dtype.itemsize, path.stat().st_size
    if count < 0 or actual != expected:
        raise InputError(f"{path} is damaged: its header says {count:,} tokens, {expected:,} bytes; it has {actual:,}")
    if count == 0:
        return np.empty(0, dtype=dtype)  # nothing to map
    return np.memmap(path, dtype=dtype, mode="r", offset=HEADER_LENGTH * 4, shape=(count,))
