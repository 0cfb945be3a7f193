"""Commands as a user types them, and functions, each in a process of its own that need not import PyTorch again."""

import os
import resource
import runpy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import CompletedProcess

from tests.forked import SERVER, fork

ROOT = Path(__file__).parent.parent


def run(module: str, *arguments: object, folder: Path = ROOT, file_size: int | None = None) -> CompletedProcess[str]:
    """Run `python -m module arguments`; its standard input is empty.

    Args:
        folder: where; the project's root by default.
        file_size: in bytes; the kernel refuses to let any file that it writes grow larger.
    """
    become = partial(runpy.run_module, module, run_name="__main__", alter_sys=True)
    return _finish([module, *map(str, arguments)], become, folder, file_size)


def call(function: Callable[..., object], *arguments: object, file_size: int | None = None) -> CompletedProcess[str]:
    """Call a function in the project's root; it and its arguments must be picklable. For `file_size` see `run`."""
    return _finish([], partial(function, *arguments), ROOT, file_size)


def _finish(
    command: list[str], become: Callable[[], object], folder: Path, file_size: int | None
) -> CompletedProcess[str]:
    readers, writers = zip(*(SERVER.Pipe(duplex=False) for _ in ("stdout", "stderr")), strict=True)
    process = fork(_become, command, become, *writers, folder, file_size)
    for writer in writers:
        writer.close()
    with ThreadPoolExecutor(2) as threads:  # both at once: a full pipe would stop the command
        stdout, stderr = threads.map(_read, readers)
    process.join()
    assert process.exitcode is not None
    return CompletedProcess(command, process.exitcode, stdout, stderr)


def _become(
    command: list[str],
    become: Callable[[], object],
    stdout: Connection,
    stderr: Connection,
    folder: Path,
    file_size: int | None,
) -> None:
    """Be the command, in a process that the server has forked."""
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    # The server's own streams take their files for what they were when it began.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    os.chdir(folder)
    sys.argv = command or sys.argv
    code: str | int | None = None
    try:
        become()
    except SystemExit as end:
        code = end.code
    # As where the interpreter ends: the exception is gone, and progress bars with it, when its last word is said.
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    os._exit(code or 0)


def _read(pipe: Connection) -> str:
    """Return all that comes until no process holds the other end."""
    with open(pipe.fileno(), encoding="utf-8", closefd=False) as file:
        return file.read()
