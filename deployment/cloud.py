"""Modal, as the scripts of this chapter use it: one-line errors, its volumes, and what is pinned into images.

Nothing here talks to Modal when it is imported.
"""

import os
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import grpclib
import modal
from modal.exception import (
    AlreadyExistsError,
    AuthError,
    ConnectionError,
    Error,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
    ServiceError,
)

from utils.files import InputError

ROOT = Path(__file__).parent.parent
HOME = PurePosixPath("/root")  # where a container's Python finds the project
PYTHON = "3.11"
PACKAGES = (
    "utils", "working_with_text_data", "attention_mechanisms", "gpt_model", "pretraining", "finetuning", "chat_ui",
    "deployment",
)  # fmt: skip
STAYS_HERE = {"solutions", "figures", "__pycache__"}


@contextmanager
def one_line_errors(doing: str) -> Iterator[None]:
    """Turn what Modal raises into an InputError that says what could not be done, why, and what would help.

    Raises:
        InputError: for no account, no network, what Modal refuses, what it does not find.
    """
    try:
        _reach()
        yield
    except AuthError as error:
        raise InputError(
            f"cannot {doing}: this machine is not signed in to Modal ({_short(error)}): run python -m modal setup"
        ) from error
    except (ConnectionError, ServiceError, grpclib.exceptions.StreamTerminatedError) as error:
        raise InputError(f"cannot {doing}: Modal cannot be reached ({_short(error)}): is there a network?") from error
    except NotFoundError as error:
        raise InputError(f"cannot {doing}: Modal does not have it: {_short(error)}") from error
    except (InvalidError, AlreadyExistsError, PermissionDeniedError, Error) as error:
        raise InputError(f"cannot {doing}: Modal refuses: {_short(error)}") from error


def _reach() -> None:
    """Open and close a connection to Modal's servers: its client would try for a minute.

    Raises:
        ConnectionError: if there is none within a few seconds.
    """
    address = urllib.parse.urlsplit(modal.config.config["server_url"])
    if any(name.lower() == "https_proxy" for name in os.environ):
        return  # then the proxy is asked, and not we
    try:
        if address.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(address.path)
        else:
            port = address.port or (443 if address.scheme == "https" else 80)
            socket.create_connection((address.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"{address.geturl()}: {error.strerror or error}") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(" .") or type(error).__name__


def add_project(image: modal.Image) -> modal.Image:
    """Return the image with this project's own files in /root, added when a container starts, not built in."""
    for name in PACKAGES:
        folder = ROOT / name
        if folder.is_dir():
            image = image.add_local_dir(folder, str(HOME / name), ignore=stays_here)
    return image


def stays_here(path: Path) -> bool:
    """Return whether a file is not uploaded: notebooks, what is made of code, and all that is hidden, such as .env."""
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.suffix == ".ipynb" or not STAYS_HERE.isdisjoint(path.parts)


def base_image() -> modal.Image:
    """Return Debian with exactly the packages of requirements.lock, and restic."""
    return (
        modal.Image.debian_slim(python_version=PYTHON)
        .apt_install("git", "restic")
        .uv_pip_install(requirements=[str(ROOT / "requirements.lock")])
    )


def upload(volume: modal.Volume, folder: Path, target: str) -> None:
    """Upload a folder to a volume, files that are there already included; hidden files stay here."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    with volume.batch_upload(force=True) as batch:
        for path in shown:
            batch.put_file(path, f"/{target}/{path.relative_to(folder).as_posix()}")


def listing(volume: modal.Volume, folder: str) -> list[Any]:
    """Return the files below a folder of a volume; none if there is no such folder.

    Raises:
        NotFoundError: if there is no such volume.
    """
    volume.hydrate()
    try:
        entries = volume.listdir(f"/{folder}", recursive=True)
    except (NotFoundError, FileNotFoundError):
        return []
    return [entry for entry in entries if entry.type.name == "FILE"]
