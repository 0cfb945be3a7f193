"""OpenAI's GPT-2 in its four sizes, from the Hugging Face Hub into a folder of your own.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf.

A revision is pinned for each size, so everybody has the same bytes, and a folder that was completed once is used from
then on without a single request. To prepare a machine that has no connection, download elsewhere and copy the folder:

    python -m utils.gpt2_download --size gpt2-medium
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from utils import hub_download
from utils.files import InputError, read_json, write_atomically
from utils.hub_download import NoConnectionError
from utils.outputs import check_writable

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
FILES = ("config.json", "vocab.json", "merges.txt", "tokenizer.json", WEIGHTS)  # the small ones come first
MOST_BYTES = {name: 10 * 2**30 if name == WEIGHTS else 32 * 2**20 for name in FILES}
ELSEWHERE = "set XDG_CACHE_HOME to a folder that can be written"
RECORD = "download.json"  # size and SHA-256 of each file that was completed


@dataclass(frozen=True)
class Release:
    """Where a size is found, and what its weights must be."""

    name: str
    revision: str
    sha256: str | None  # of the weights; None: the server says

    @property
    def repo(self) -> str:
        return f"openai-community/{self.name}"


_SMALL = Release(
    "gpt2",
    "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
)
_MEDIUM = Release(
    "gpt2-medium",
    "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd",
)
_LARGE = Release("gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519", None)
_XL = Release(
    "gpt2-xl",
    "15ea56dee5df4983c59b2538573817e1667135e2",
    "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
)
SIZES = {
    **dict.fromkeys(("gpt2", "gpt2-small", "small", "124M"), _SMALL),
    **dict.fromkeys(("gpt2-medium", "medium", "355M"), _MEDIUM),
    **dict.fromkeys(("gpt2-large", "large", "774M"), _LARGE),
    **dict.fromkeys(("gpt2-xl", "xl", "1558M"), _XL),
}


class ModelManager:
    """Keeps GPT-2's files in a cache folder.

    Args:
        cache_dir: by default `language-model-from-scratch` in $XDG_CACHE_HOME or, where that is not set, in ~/.cache.
            Hugging Face's own cache is left alone: it has another layout.

    Raises:
        InputError: if it is in the home folder, and there is none.
    """

    def __init__(self, cache_dir: str | Path | None = None) -> None:
        if cache_dir is None:
            cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "language-model-from-scratch"
        try:
            self.cache_dir = Path(cache_dir).expanduser()
        except RuntimeError as error:
            raise InputError(f"there is no home folder to keep downloads in: {ELSEWHERE}") from error

    def is_here(self, size: str) -> bool:
        """Return whether all files of a size are here, so that nothing needs to be downloaded.

        Raises:
            InputError: if there is no such size.
        """
        release = _find_release(size)
        return not _missing(self._folder(release, release.revision))

    def _folder(self, release: Release, revision: str) -> Path:
        return self.cache_dir / release.name / quote(revision, safe="")

    def download_gpt2_model(
        self,
        size: str,
        *,
        force_download: bool = False,
        revision: str | None = None,
        progress: hub_download.Progress | None = None,
    ) -> Path:
        """Return a folder in Hugging Face layout: config.json, weights, vocab.json, merges.txt, tokenizer.json.

        What was begun before, by any process, is continued; while another process downloads, this one waits for it.

        Args:
            size: gpt2, gpt2-medium, gpt2-large or gpt2-xl, or another of the names in `SIZES`.
            force_download: fetch all files again; each old one stays until the new one is complete and verified.
            revision: a commit, branch or tag instead of the pinned commit. A branch is fetched once and then stays.
            progress: called as the weights come, which are nearly all of it.

        Raises:
            InputError: if there is no such size, or the cache cannot be written.
            NoConnectionError: if files are missing and there is no connection, or HF_HUB_OFFLINE is set.
            DownloadError: if the download cannot be completed.
        """
        release = _find_release(size)
        revision = release.revision if revision is None else revision
        if not re.fullmatch(r"\w[\w./-]*", revision):
            raise InputError(f"revision must be a commit, branch or tag, got {revision!r}")
        folder = self._folder(release, revision)
        if not force_download and not _missing(folder):
            return folder
        try:
            hub_download.require_online()
            _check_writable(folder)
            with _lock(folder):
                for name in FILES if force_download else _missing(folder):
                    if not force_download and (folder / name).exists():
                        log.warning("%s is not as it was downloaded: fetching it again", folder / name)
                    _fetch(release, revision, folder, name, progress if name == WEIGHTS else None)
        except NoConnectionError as error:
            wanted = ", ".join(_missing(folder)) or "a fresh copy of its files"
            command = f"python -m utils.gpt2_download --size {release.name}"
            if revision != release.revision:
                command += f" --revision {revision}"
            raise NoConnectionError(
                f"{error}, but {folder} needs {wanted}: run `{command}` where there is a connection and copy the "
                "folder here"
            ) from error
        return folder


def _fetch(release: Release, revision: str, folder: Path, name: str, progress: hub_download.Progress | None) -> None:
    """Download a file and note that it is complete."""
    pinned = release.sha256 if name == WEIGHTS and revision == release.revision else None
    sha256 = hub_download.download(
        release.repo, revision, name, folder / name, pinned, most_bytes=MOST_BYTES[name], progress=progress
    )
    _record(folder, name, sha256)


def _find_release(size: str) -> Release:
    if size not in SIZES:
        raise InputError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    return SIZES[size]


def _check_writable(folder: Path) -> None:
    try:
        check_writable(folder)
    except InputError as error:
        raise InputError(f"{error}; {ELSEWHERE}") from None


def _recorded(folder: Path) -> dict[str, dict[str, int | str]]:
    """Return what is known of the completed files. A record that cannot be read is as good as none."""
    try:
        record = read_json(folder / RECORD)
    except (FileNotFoundError, InputError):
        return {}
    files = record if isinstance(record, dict) else {}
    return {name: entry for name, entry in files.items() if isinstance(entry, dict) and "bytes" in entry}


def _record(folder: Path, name: str, sha256: str) -> None:
    record = {**_recorded(folder), name: {"bytes": (folder / name).stat().st_size, "sha256": sha256}}
    with write_atomically(folder / RECORD) as file:
        file.write(json.dumps(record, indent=2).encode())


def _missing(folder: Path) -> list[str]:
    """Return the files that have not been completed here, or no longer have the size they had then."""
    recorded = _recorded(folder)
    sizes = {name: (folder / name).stat().st_size for name in FILES if (folder / name).is_file()}
    return [name for name in FILES if name not in recorded or sizes.get(name) != recorded[name]["bytes"]]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder for ourselves; the operating system lets go of it should the process die."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process is downloading to %s: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Config:
    """Download OpenAI's GPT-2, weights and tokenizer, and print the folder; one that is complete is left as it is."""

    size: str = "gpt2"
    """gpt2 (0.5 GB), gpt2-medium (1.5 GB), gpt2-large (3.2 GB) or gpt2-xl (6.4 GB)."""
    cache_dir: Path | None = None
    """Where the sizes are kept; None: language-model-from-scratch in $XDG_CACHE_HOME, or in ~/.cache."""
    revision: str | None = None
    """A commit, branch or tag; None: the commit that everything here was tested with."""
    force_download: bool = False
    """Fetch all files again; the old ones stay until the new ones are complete and verified."""


def main(config: Config) -> Path:
    """Download what is missing; print the folder and return it."""
    manager = ModelManager(config.cache_dir)
    folder = manager.download_gpt2_model(config.size, force_download=config.force_download, revision=config.revision)
    sys.stdout.write(f"{folder}\n")
    return folder


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
