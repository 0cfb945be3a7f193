"""Web addresses from which nothing is taken, such as those of block lists."""

from pathlib import Path
from urllib.parse import urlsplit

from utils.files import InputError


def read_block_list(file: Path) -> frozenset[str]:
    """Return the hosts and domains in a file, one on each line; what follows a # is a remark.

    Raises:
        InputError: if the file cannot be read as UTF-8 text.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a list of hosts: {error}") from error
    return frozenset(host for line in lines if (host := line.split("#")[0].strip().lower().strip(".")))


def is_blocked(url: str, blocked: frozenset[str]) -> bool:
    """Return whether the host of an address is on the list, or belongs to a domain on it.

    >>> is_blocked("https://ads.Example.com:8080/page", frozenset({"example.com"}))
    True
    >>> is_blocked("https://notexample.com/", frozenset({"example.com"}))
    False
    """
    try:
        host = (urlsplit(url).hostname or "").strip(".")
    except ValueError:  # brackets that hold no address
        return False
    parts = host.split(".")
    return any(".".join(parts[start:]) in blocked for start in range(len(parts)))
