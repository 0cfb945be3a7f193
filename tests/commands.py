"""Commands as a user types them, each in a process of its own that need not import PyTorch again."""

import os
import resource
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).parent.parent

_server = get_context("forkserver")
# What takes long to import, and is the same whatever a test has done: the server is a new process, and runs no test.
_server.set_forkserver_preload(["torch", "tyro"])


def run(module: str, *arguments: object, file_size: int | None = None) -> CompletedProcess[str]:
    """Run `python -m module arguments` in the project's root; its standard input is empty.

    Args:
        file_size: in bytes; the kernel refuses to let any file that it writes grow larger.
    """
    command = [module, *map(str, arguments)]
    readers, writers = zip(*(_server.Pipe(duplex=False) for _ in ("stdout", "stderr")), strict=True)
    process = _server.Process(target=_become, args=(command, *writers, file_size))
    process.start()
    for writer in writers:
        writer.close()
    with ThreadPoolExecutor(2) as threads:  # both at once: a full pipe would stop the command
        stdout, stderr = threads.map(_read, readers)
    process.join()
    assert process.exitcode is not None
    return CompletedProcess(command, process.exitcode, stdout, stderr)


def _become(command: list[str], stdout: Connection, stderr: Connection, file_size: int | None) -> None:
    """Be the command, in a process that the server has forked."""
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    # The server's own streams take their files for what they were when it began.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    os.chdir(ROOT)
    sys.argv = command
    code: str | int | None = None
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
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
