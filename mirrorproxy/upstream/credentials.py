"""The user name and secret of an upstream, from wherever the configuration says that they are, read when needed.

A source is a plain function that may block (a file, a program). `Credentials` runs it in a thread, keeps what it said
for a short while, and asks again as soon as the upstream refuses.
"""

import asyncio
import base64
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mirrorproxy.errors import Unauthorized
from mirrorproxy.tasks import SingleFlight

log = logging.getLogger(__name__)

_KEEP = 10.0  # seconds: how soon a changed file is seen, while a thread's hop for each request is saved
_PROCESS_KEY = secrets.token_bytes(16)  # so that an identity says nothing of its secret


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """A user name with its secret: a password, or with `identity` an OAuth2 refresh token (Docker: identity token)."""

    username: str
    secret: str
    identity: bool = False

    def __repr__(self) -> str:
        return "<Credential>"

    @property
    def fingerprint(self) -> str:
        """Tells this credential from others, in this process, without its secret."""
        words = "\0".join((self.username, self.secret, str(self.identity)))
        return hashlib.blake2b(words.encode(), key=_PROCESS_KEY, digest_size=8).hexdigest()

    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617; UTF-8)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.secret}".encode()).decode()


Source = Callable[[], Credential | None]
"""Reads a credential; None where there is none and requests go without. Blocks. Raises `Unreadable`."""


class Unreadable(Exception):
    """A credential that is configured cannot be had. The message says which file or program, and why; no secrets."""


def nothing() -> None:
    """The source of an upstream without credentials."""


def static(username: str, password: str) -> Source:
    """A password from the configuration itself."""
    credential = Credential(username, password)
    return lambda: credential


def from_file(username: str, path: Path) -> Source:
    """A password that is the content of a file, a final line break left out (Docker and Kubernetes secrets)."""

    def read() -> Credential:
        try:
            password = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise Unreadable(f"the password file {path} cannot be read: {reason}") from None
        return Credential(username, password.removesuffix("\n").removesuffix("\r"))

    return read


def from_environment(username: str, variable: str) -> Source:
    """A password from an environment variable."""

    def read() -> Credential:
        password = os.environ.get(variable)
        if password is None:
            raise Unreadable(f"the environment variable {variable} with the password is not set")
        return Credential(username, password)

    return read


class Credentials:
    """What a source says, for all requests of an upstream."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: Credential | None = None
        self._until = 0.0 if source is not nothing else float("inf")
        self._reading = SingleFlight[str, None]()

    async def get(self, *, refused: Credential | None = None) -> Credential | None:
        """The credential; read anew where it is the one that was `refused`. Raises `Unauthorized` where it cannot be.

        A source that fails later (a file that is just being replaced) leaves it as it was.
        """
        if time.monotonic() >= self._until or (refused is not None and refused == self._known):
            await self._reading.do("credential", self._read)
        return self._known

    async def _read(self) -> None:
        try:
            self._known = await asyncio.to_thread(self._source)
        except Unreadable as error:
            if self._known is None:
                log.error("%s", error)
                raise Unauthorized("the credentials for this registry cannot be read; the log says why") from None
            log.warning("%s; going on with what it was before", error)
        self._until = time.monotonic() + _KEEP

    async def aclose(self) -> None:
        """Stop reading."""
        await self._reading.aclose()
