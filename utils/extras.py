"""Packages that only some scripts need: what is said where one is missing, with the command that brings it."""

import importlib.util

from utils.files import InputError


def missing(package: str, extra: str, purpose: str) -> InputError:
    """Return the error that says what needs a package, and how to install the extra that has it."""
    install = f"pip install -c requirements.lock -e '.[{extra}]'"
    return InputError(f"{purpose} needs the package {package}, which is not installed: {install}")


def check_installed(package: str, extra: str, purpose: str) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        InputError: if it is not.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # of a folder that only has the package's name, there is no origin
        raise missing(package, extra, purpose)
