"""Modal, as the scripts of this chapter use it: one-line errors, its volumes, and what is pinned into images.

Nothing here talks to Modal when it is imported.
"""

import logging
import os
import socket
import threading
import urllib.parse
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
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
BESIDE = (
    "README.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml", "requirements.lock", "tests", "results",
)  # fmt: skip
STAYS_HERE = {"solutions", "figures", "stand_in"}


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
        ConnectionError: if there is none within a few seconds to any of their addresses.
    """
    if any(name.lower() == "https_proxy" for name in os.environ):
        return  # then the proxy is asked, and not we
    addresses = [text.strip() for text in modal.config.config["server_url"].split(",")]
    failures = []
    for text in addresses:
        try:
            _connect(urllib.parse.urlsplit(text))
            return
        except OSError as error:
            failures.append(f"{text}: {error.strerror or error}")
    raise ConnectionError("; ".join(failures))


def _connect(address: urllib.parse.SplitResult) -> None:
    if address.scheme == "unix":
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address.path)
    else:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=10).close()


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(" .") or type(error).__name__


def add_project(image: modal.Image, *, for_people: bool = False) -> modal.Image:
    """Return the image with this project's own files in /root, added when a container starts, not built in.

    Args:
        image: what they are added to.
        for_people: also add what programs do not need: notebooks, pages, tests.
    """
    for name in (*PACKAGES, *BESIDE) if for_people else PACKAGES:
        path = ROOT / name
        if path.is_file():
            image = image.add_local_file(path, str(HOME / name))
        else:
            image = image.add_local_dir(path, str(HOME / name), ignore=is_hidden if for_people else stays_here)
    return image


def is_hidden(path: Path) -> bool:
    """Return whether a file never leaves this machine: what begins with a dot, such as .env, and Python's caches."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def stays_here(path: Path) -> bool:
    """Return whether programs can do without a file: hidden ones, notebooks, what is made of code."""
    return is_hidden(path) or path.suffix == ".ipynb" or not STAYS_HERE.isdisjoint(path.parts)


def base_image() -> modal.Image:
    """Return Debian with exactly the packages of requirements.lock, and restic."""
    return (
        modal.Image.debian_slim(python_version=PYTHON)
        .apt_install("git", "restic")
        .uv_pip_install(requirements=[str(ROOT / "requirements.lock")])
    )


def machine(gpu: str, cpus: float, memory_gib: float) -> dict[str, Any]:
    """Return how Modal is asked for a machine. Cores and memory are limits, too: Modal bills use beyond a request."""
    mebibytes = int(memory_gib * 1024)
    return {"gpu": None if gpu == "none" else gpu, "cpu": (cpus, cpus), "memory": (mebibytes, mebibytes)}


def deploy(app: modal.App) -> None:
    """Deploy an app, and show what Modal says meanwhile: the first time it builds an image, for minutes."""
    with modal.enable_output():
        app.deploy()


def unfinished(call: str | None) -> modal.FunctionCall | None:
    """Return a call by its id if it has not ended, and None if it has, or if there was none.

    Raises:
        ConnectionError: if Modal cannot be reached, and nobody knows.
    """
    if call is None:
        return None
    found = modal.FunctionCall.from_id(call)
    try:
        found.get(timeout=0)
    except TimeoutError:
        return found
    except (ConnectionError, AuthError, ServiceError):
        raise
    except Exception:
        pass  # whatever it ended with, it has ended
    return None


def show_logs(entries: Iterable[Any]) -> None:
    """Print what a call has said, and says until it ends or Ctrl-C is pressed.

    Raises:
        KeyboardInterrupt: at Ctrl-C.
    """
    shown: Future[None] = Future()

    def show() -> None:
        try:
            for entry in entries:
                print(entry.message, end="", flush=True)
            shown.set_result(None)
        except Exception as error:
            shown.set_exception(error)

    # In a thread, since Modal's client makes various errors of a Ctrl-C while it waits for the next entry.
    threading.Thread(target=show, daemon=True).start()
    try:
        shown.result()
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # or a traceback, as Python ends, of what was cut off
        raise


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
