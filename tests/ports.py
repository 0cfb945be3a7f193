"""Ports for servers that begin to listen seconds later, in another process."""

import errno
import random
import socket


def free_port() -> int:
    """Return a port that is free now and stays so until a server gets there.

    The system gives ports from 32768 on, on Linux, or from 49152 on, elsewhere, to whoever asks for any, servers and
    clients alike: one of those could be somebody else's by then.
    """
    while True:
        # Drawn anew in each process that runs tests, whatever seed a test has set. Browsers refuse port 10080.
        port = random.SystemRandom().randrange(10_100, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
