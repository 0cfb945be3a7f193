"""Token shards: the `.bin` format of llm.c, in which public corpora such as FineWeb are shared.

256 int32 numbers of header (magic, version, token count; the rest zero), then the tokens: uint16 for
vocabularies up to 65,536, uint32 above.  https://github.com/karpathy/llm.c, dev/data/data_common.py
"""

from pathlib import Path

import numpy as np

from utils.files import InputError, write_atomically

HEADER_LENGTH = 256
FORMATS = {  # token type -> (magic, version)
    np.dtype("<u2"): (20240520, 1),
    np.dtype("<u4"): (20240801, 7),
}


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write tokens (uint16 or uint32) with their header.

    Raises:
        InputError: for another dtype.
    """
    dtype = tokens.dtype.newbyteorder("<")
    if dtype not in FORMATS:
        raise InputError(f"a shard holds uint16 or uint32 tokens, got {tokens.dtype}")
    header = np.zeros(HEADER_LENGTH, dtype="<i4")
    header[:3] = *FORMATS[dtype], len(tokens)
    with write_atomically(path) as file:
        file.write(header.tobytes())
        file.write(tokens.astype(dtype, copy=False).data)


def open_shard(path: Path) -> np.ndarray:
    """The tokens of a shard, mapped from disk and read only when touched.

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
