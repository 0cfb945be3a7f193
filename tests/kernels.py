"""Jupyter kernels, each in a process of its own that need not import PyTorch again."""

import os
import sys
from pathlib import Path

import nbformat
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.forked import fork


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of a run from top to bottom.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, km=_Kernel(path.parent), startup_timeout=300).execute(cleanup_kc=True)
    return notebook


class _Kernel(AsyncKernelManager):
    """A kernel as Jupyter starts it, only that its process is forked."""

    has_kernel = True  # nbclient need not start one

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.write_connection_file()
        self._process = fork(_become, self.connection_file, folder)

    async def _async_is_alive(self) -> bool:
        """Return whether the process still runs; clients of Jupyter ask by this name, others by the public one."""
        return self._process.is_alive()

    is_alive = _async_is_alive  # type: ignore[assignment]

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
        """End the process."""
        self._process.kill()
        self._process.join()


def _become(connection_file: str, folder: Path) -> None:
    """Be a kernel that works in this folder, in a process that the server has forked."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # where there is a network, no lesson downloads gigabytes here
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.chdir(folder)
    sys.argv = ["ipykernel_launcher.py"]
    IPKernelApp.launch_instance(["-f", connection_file, "--HistoryManager.hist_file=:memory:"])
