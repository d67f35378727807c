"""How a command asks the running service: one request on the admin socket. Blocks; knows no aiohttp."""

import http.client
import json
import socket
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from mirrorproxy import __version__
from mirrorproxy.admin import place
from mirrorproxy.errors import CacheFailed

_SILENCE = 60.0  # seconds; the service says every 10 that it is still at work


class NoService(Exception):
    """Nobody listens on the directory's socket."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, directory: Path) -> None:
        super().__init__("mirrorproxy", timeout=_SILENCE)
        self._directory = directory

    def connect(self) -> None:
        """Connect to the directory's socket. Raises `NoService`."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        try:
            with place.address(self._directory) as address:
                self.sock.connect(address)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise NoService from error


def ask(directory: Path, name: str, arguments: Mapping[str, object]) -> Generator[dict[str, Any], None, None]:
    """Have the service of `directory` carry out an operation: its events, as documents.

    Closing the iterator ends the operation. Raises `NoService`, and `CacheFailed` where the service does not answer,
    does not know the operation, or ends in the middle of it.
    """
    with closing(_Connection(directory)) as connection:
        try:
            connection.request("POST", f"/operations/{name}", json.dumps(arguments))
            response = connection.getresponse()
            if response.status != 200:
                raise CacheFailed(_words(name, response))
            last = ""
            for line in response:
                if line.strip():
                    event = json.loads(line)
                    last = event["kind"]
                    yield event
            if last not in ("end", "failed"):
                raise CacheFailed("the service ended before the answer was complete")
        except TimeoutError as error:
            raise CacheFailed(f"the service has said nothing for {_SILENCE:.0f} s") from error
        except PermissionError as error:
            raise CacheFailed(f"{directory / place.NAME} may not be opened: run this as the service's user") from error
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise CacheFailed(f"the service cannot be asked: {type(error).__name__} {error}") from error


def _words(name: str, response: http.client.HTTPResponse) -> str:
    theirs = response.headers.get("Mirrorproxy-Version", "an unknown version")
    if response.status == 404 and theirs != __version__:
        return (
            f"the running service is mirrorproxy {theirs} and does not know {name}; this is {__version__}: restart it"
        )
    try:
        message = json.loads(response.read(64 << 10))["message"]
    except (ValueError, KeyError, TypeError):
        message = "no reason given"
    return f"the running service (mirrorproxy {theirs}) answers {response.status}: {message}"
