"""`prepare` as it is killed: a module that is imported in no time by the many processes that end so."""

import os
import signal
import sys

from working_with_text_data import prepare

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def prepare_until(n: int, config: prepare.Config) -> None:
    """Prepare, but kill this process when it is about to do its n-th renaming, deletion or new folder."""
    left = n

    def count(event: str, arguments: object) -> None:
        nonlocal left
        if event in CHANGES:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    prepare.main(config)
