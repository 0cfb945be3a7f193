"""Open a shell in which Modal is this machine, so that jobs and the chat can be tried without an account.

    python -m deployment.stand_in

Commands of this chapter work there as they do with Modal, but for GPUs: give --gpu none. With the end of the shell all
that was uploaded, trained and served there is gone.
"""

import logging
import os
import subprocess
from dataclasses import dataclass

from deployment.stand_in.containers import why_not
from deployment.stand_in.control_plane import ControlPlane
from utils.files import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Open a shell in which Modal is this machine: training, downloads and the chat work there with --gpu none.

    When the shell ends, all that was uploaded, trained and served there is gone.
    """


def main(_: Config) -> None:
    """Run the user's shell until it ends.

    Raises:
        InputError: if containers cannot be made here.
    """
    if reason := why_not():
        raise InputError(f"Modal cannot be stood in for: {reason}")
    with ControlPlane.signed_in():
        log.info("in this shell, Modal is this machine; `exit` ends it, and forgets all")
        subprocess.run([os.environ.get("SHELL") or "/bin/sh"], check=False)


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
