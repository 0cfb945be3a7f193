"""Who is who: nobody logs in on a machine's own address; elsewhere passwords or OAuth, and keys for the API.

A login is a signed token in a cookie. Chainlit's stays valid after the reader has logged out; here it is remembered as
revoked, in the history, for all servers.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import ipaddress
import time
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request

from chat_ui.accounts import NAME, Accounts
from chat_ui.audit import Audit
from chat_ui.history import History
from chat_ui.limits import RateLimit
from utils.files import InputError

if TYPE_CHECKING:
    import chainlit as cl

LOCAL_USER = "you"  # who uses a server that nobody logs in to
MOST_FAILURES = 10  # wrong passwords per name, within
FAILURE_SECONDS = 300
REVOKED_SECONDS = 5  # for which a server trusts what it knows of logins that other servers have ended


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Logins:
    """Decides who somebody is.

    Args:
        host: the address that the server listens on.
        accounts: people with passwords.
        oauth_allow: patterns of the names that an OAuth provider may vouch for, such as "*@example.org".
        history: where ended logins are remembered.
        audit: where logins are written down.

    Raises:
        InputError: if anybody on the network could use the server.
    """

    def __init__(
        self, host: str, accounts: Accounts, oauth_allow: tuple[str, ...], history: History, audit: Audit
    ) -> None:
        self.accounts = accounts
        self.history = history
        self.audit = audit
        self.oauth_allow = oauth_allow
        self.required = bool(accounts.names() or oauth_allow)
        if not self.required and not is_loopback(host):
            raise InputError(
                f"{host} can be reached from other machines, so people must log in: make a user with"
                " python -m chat_ui.accounts --add NAME, or set up OAuth and --oauth-allow"
            )
        self._failures = RateLimit(MOST_FAILURES, FAILURE_SECONDS)
        self._ended: dict[str, int] = {}
        """Digests of the logins that were ended here, with the Unix time at which they would have expired."""
        self._revoked: set[str] = set()
        """Digests of those that any server has ended, as the history had them at the last look."""
        self._revoked_at = 0.0

    def install(self) -> None:
        """Tell Chainlit how people log in.

        Raises:
            InputError: if OAuth users are allowed, but no provider is set up, or a provider without users.
        """
        import chainlit as cl
        from chainlit.oauth_providers import get_configured_oauth_providers

        providers = get_configured_oauth_providers()
        if bool(providers) != bool(self.oauth_allow):
            raise InputError(
                f"OAuth providers set up: {', '.join(providers) or 'none'}; allowed users: "
                f"{', '.join(self.oauth_allow) or 'none'}: give both, the OAUTH_... variables and --oauth-allow"
            )
        if not self.required:
            cl.header_auth_callback(self.local_user)
        if self.accounts.names():
            cl.password_auth_callback(self.with_password)
        if providers:
            cl.oauth_callback(self.with_oauth)

    async def local_user(self, headers: object = None) -> cl.User:
        """Return the one user of a server that nobody logs in to."""
        import chainlit as cl

        return cl.User(identifier=LOCAL_USER)

    async def with_password(self, username: str, password: str) -> cl.User | None:
        """Return the user whose name and password these are; None if they are not."""
        import chainlit as cl

        is_name = NAME.fullmatch(username) is not None  # what is none, and may be a megabyte long, is not remembered
        if is_name and self._failures.wait(username):
            self.audit.write("login refused", user=username, why="too many wrong passwords")
            raise HTTPException(429, "Too many wrong passwords: wait some minutes.")
        is_right = await asyncio.to_thread(self.accounts.verify, username, password)  # takes its time for any name
        if is_name and is_right:
            self._failures.forget(username)
            self.audit.write("login", user=username)
            return cl.User(identifier=username)
        if is_name:
            self._failures.allow(username)
        self.audit.write("login refused", user=username[:64], why="wrong password")
        return None

    async def with_oauth(self, provider: str, token: str, raw: dict[str, Any], user: cl.User) -> cl.User | None:
        """Return the user whom a provider vouches for, if such users are allowed."""
        import chainlit as cl

        allowed = any(fnmatch.fnmatchcase(user.identifier, pattern) for pattern in self.oauth_allow)
        self.audit.write("login" if allowed else "login refused", user=user.identifier[:200], provider=provider)
        return cl.User(identifier=user.identifier) if allowed else None

    async def revoke(self, token: str) -> None:
        """End a login for good."""
        payload = _payload(token)
        if payload is not None:
            digest = _digest(token)
            self._ended[digest] = int(payload["exp"])
            self.audit.write("logout", user=payload.get("identifier"))
            await self.history.revoke(digest, self._ended[digest])

    async def is_valid(self, token: str) -> bool:
        """Return whether a login was not ended, and its user still has an account."""
        payload = _payload(token)
        if payload is None:
            return False
        await self._refresh()
        digest = _digest(token)
        if digest in self._ended or digest in self._revoked:
            return False
        name = payload.get("identifier", "")
        if not self.required:
            return name == LOCAL_USER
        return name in self.accounts.names() or any(fnmatch.fnmatchcase(name, p) for p in self.oauth_allow)

    async def _refresh(self) -> None:
        if time.monotonic() - self._revoked_at > REVOKED_SECONDS:
            self._revoked_at = time.monotonic()
            now = int(time.time())
            self._ended = {digest: until for digest, until in self._ended.items() if until > now}
            try:
                self._revoked = await self.history.revoked(now)
            except HTTPException:
                return  # the database is gone: what is known already holds

    async def api_user(self, request: Request) -> str:
        """Return who calls the API: the holder of the key in the header; nobody needs one where nobody logs in.

        Raises:
            HTTPException: 401, if the key is missing or wrong.
        """
        if not self.required:
            return LOCAL_USER
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        name = self.accounts.holder(key) if scheme.lower() == "bearer" and key else None
        if name is None:
            raise HTTPException(
                401, "a key of python -m chat_ui.accounts --key NAME is needed", {"WWW-Authenticate": "Bearer"}
            )
        return name

    async def page_user(self, request: Request) -> str:
        """Return who looks at a page.

        Raises:
            HTTPException: 401, if nobody is logged in.
        """
        from chainlit.auth import get_token_from_cookies

        token = get_token_from_cookies(dict(request.cookies))
        payload = _payload(token) if token else None
        if payload is None:
            raise HTTPException(401, "log in first")
        return payload["identifier"]


def _digest(token: str) -> str:
    """Return a digest of what a token signs: its signature can be spelt in several ways, as with "=" at its end."""
    return hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()


def _payload(token: str) -> dict[str, Any] | None:
    """Return what a token says; None if we have not signed it, or it has expired."""
    import jwt
    from chainlit.auth.jwt import get_jwt_secret

    try:
        return jwt.decode(token, get_jwt_secret(), algorithms=["HS256"])
    except jwt.InvalidTokenError:
        return None
