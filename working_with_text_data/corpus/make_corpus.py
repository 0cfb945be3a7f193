"""Make the six novel files of this folder from Debian's package of the R data set `janeaustenr`.

    apt-get download r-cran-janeaustenr && dpkg-deb -x r-cran-janeaustenr_*.deb unpacked
    python -m working_with_text_data.corpus.make_corpus --unpacked unpacked

R keeps a package's data in one `.rdb` file: entry after entry, each a 4-byte big-endian length of the
unpacked data and then a zlib stream. A novel's entry unpacks to R's serialization format (R Internals,
section 1.8) of a vector of strings, one string per line of the printed book.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.files import InputError

DATA_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
STRING_VECTOR, STRING = 16, 9  # R's type codes STRSXP and CHARSXP
TITLES = {
    "SENSE AND SENSIBILITY": "sense_and_sensibility",
    "PRIDE AND PREJUDICE": "pride_and_prejudice",
    "MANSFIELD PARK": "mansfield_park",
    "EMMA": "emma",
    "NORTHANGER ABBEY": "northanger_abbey",
    "PERSUASION": "persuasion",
}


@dataclass(frozen=True)
class Config:
    """Write Jane Austen's six novels into this folder, in place of those that are there."""

    unpacked: Path
    """The folder into which Debian's package was unpacked."""


def entries(data: bytes) -> Iterator[bytes]:
    """Unpack the entries of an .rdb file one after the other."""
    while data:
        (size,) = struct.unpack(">I", data[:4])
        stream = zlib.decompressobj()
        entry = stream.decompress(data[4:])
        if len(entry) != size:
            raise ValueError(f"an entry says {size} bytes and unpacks to {len(entry)}")
        yield entry
        data = stream.unused_data


def string_vector(entry: bytes) -> list[str] | None:
    """Return the strings of a serialized R character vector, or None if the entry holds something else."""
    if entry[:2] != b"X\n":
        raise ValueError("not R's XDR serialization: it must begin with 'X\\n'")
    version = struct.unpack_from(">i", entry, 2)[0]
    at = 14
    if version == 3:  # version 3 adds the name of the native encoding
        at += 4 + struct.unpack_from(">i", entry, at)[0]
    flags, count = struct.unpack_from(">ii", entry, at)
    if flags & 0xFF != STRING_VECTOR:
        return None
    at += 8
    strings = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", entry, at)
        if flags & 0xFF != STRING:
            raise ValueError(f"expected a string (type {STRING}) at byte {at}, found type {flags & 0xFF}")
        at += 8
        strings.append(entry[at : at + length].decode("utf-8"))
        at += length
    return strings


def main(config: Config) -> None:
    """Write the novels that are in the package, and print the size of each.

    Raises:
        InputError: if the folder does not hold the package.
    """
    data = config.unpacked / DATA_FILE
    if not data.is_file():
        raise InputError(f"{config.unpacked} does not hold the unpacked package: there is no {data}")
    for entry in entries(data.read_bytes()):
        lines = string_vector(entry)
        if lines and lines[0].upper() in TITLES:
            path = Path(__file__).with_name(f"{TITLES[lines[0].upper()]}.txt")
            path.write_bytes(("\n".join(lines) + "\n").encode())
            print(f"{path.name}: {len(lines):,} lines, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
