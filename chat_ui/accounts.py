"""People who may log in: names with hashed passwords, and keys for programs, in a file of the server's.

    python -m chat_ui.accounts --add alice       asks for a password, or reads a line from a pipe
    python -m chat_ui.accounts --key alice       prints a new key for the API, once
    python -m chat_ui.accounts --remove alice

Passwords are hashed with argon2id, so that whoever reads the file has none of them. A key is 256 random bits, for
which one SHA-256 is enough. A running server notices changes of the file.
"""

import getpass
import hashlib
import json
import re
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from utils.command_line import run
from utils.files import InputError, read_json, write_atomically
from utils.locks import alone

NAME = re.compile(r"[\w.@+-]{1,64}")
SHORTEST_PASSWORD = 10  # characters
LONGEST_PASSWORD = 1_000  # characters; hashing is meant to cost something, but not without bounds
HASHER = PasswordHasher()
NOBODYS_HASH = HASHER.hash(secrets.token_hex())  # checked for names that do not exist, so that they take as long
KEY_PREFIX = "chat-"


class Accounts:
    """The accounts in a file.

    Args:
        file: that may not be there yet.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read_at: float | None = None
        self._users: dict[str, dict[str, Any]] = {}

    def names(self) -> list[str]:
        """Return the names of those who may log in with a password."""
        return list(self._current())

    def verify(self, name: str, password: str) -> bool:
        """Return whether a password is right. Takes some 50 ms on purpose, whether there is such a name or not."""
        user = self._current().get(name)
        try:
            HASHER.verify(user["password"] if user else NOBODYS_HASH, password[:LONGEST_PASSWORD])
        except (VerificationError, InvalidHashError):
            return False
        return user is not None

    def holder(self, key: str) -> str | None:
        """Return the name of the user who holds a key for the API, if anybody does."""
        digest = _digest(key)
        for name, user in self._current().items():
            if any(secrets.compare_digest(digest, known) for known in user["keys"]):
                return name
        return None

    def add(self, name: str, password: str) -> None:
        """Make a user, or give one another password.

        Raises:
            InputError: for a name that is not one, or a password that is too short or no text.
        """
        if not NAME.fullmatch(name):
            raise InputError(f"a name has at most 64 letters, digits and any of _.@+-, got {name!r}")
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise InputError(f"a password has at least {SHORTEST_PASSWORD} characters, got {len(password)}")
        try:
            hashed = HASHER.hash(password)
        except UnicodeEncodeError as error:
            raise InputError("a password must be text in UTF-8") from error
        self._change(lambda users: users.setdefault(name, {"keys": []}).update(password=hashed))

    def remove(self, name: str) -> None:
        """Take a user's account away, and their keys with it.

        Raises:
            InputError: if there is none of that name.
        """
        self._check(name)
        self._change(lambda users: users.pop(name))

    def new_key(self, name: str) -> str:
        """Make a key for the API, and return it: it is not stored, only its digest.

        Raises:
            InputError: if there is no user of that name.
        """
        self._check(name)
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        self._change(lambda users: users[name]["keys"].append(_digest(key)))
        return key

    def _check(self, name: str) -> None:
        if name not in self._current():
            raise InputError(f"there is no user {name!r}; there are: {', '.join(self.names()) or 'none'}")

    def _change(self, change: Callable[[dict[str, dict[str, Any]]], Any]) -> None:
        with alone(self.file, "changing the accounts in", "--accounts"):
            users = self._current()
            change(users)
            with write_atomically(self.file) as file:
                file.write(json.dumps({"users": users}, indent=1).encode())
            self.file.chmod(0o600)
            self._read_at = None

    def _current(self) -> dict[str, dict[str, Any]]:
        try:
            changed = self.file.stat().st_mtime_ns
        except FileNotFoundError:
            return {}
        if changed != self._read_at:
            content = read_json(self.file)
            if not isinstance(content, dict) or not isinstance(content.get("users"), dict):
                raise InputError(f"{self.file} holds no accounts")
            self._users, self._read_at = content["users"], changed
        return self._users


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class Config:
    """Make, change and list the accounts of people who may log in to the chat."""

    add: str | None = None
    """The name of a user to make, or to give another password."""
    key: str | None = None
    """The name of a user to make a key for the API for; it is printed once."""
    remove: str | None = None
    """The name of a user whose account and keys to take away."""
    accounts: Path = Path("runs/chat/accounts.json")
    """The file of accounts, in the server's state folder unless it was given another one."""


def main(config: Config) -> None:
    """Do what is asked, and print the names of all users."""
    accounts = Accounts(config.accounts)
    if config.add is not None:
        accounts.add(config.add, _password(config.add))
    if config.key is not None:
        print(accounts.new_key(config.key))
        return
    if config.remove is not None:
        accounts.remove(config.remove)
    print("users:", ", ".join(accounts.names()) or "none")


def _password(name: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"Password for {name}: ")
    return sys.stdin.readline().rstrip("\n")


if __name__ == "__main__":
    run(main, Config)
