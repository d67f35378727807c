"""Asking a running service on this machine how it is, over the address that its settings have."""

import http.client
import socket
import ssl
from typing import NamedTuple

from mirrorproxy.config import ListenAddress, ServerSettings

_TIMEOUT = 4.0  # seconds for each step; a container's health check has 5 s in all
_LONGEST = 80  # bytes of the answer that are read


class Health(NamedTuple):
    """Is it well, and what to say of it in one line?"""

    well: bool
    text: str


def ask(server: ServerSettings, path: str) -> Health:
    """Ask the service that has these settings for `path`. Blocks, for some seconds at most; raises nothing."""
    own = server.metrics_listen  # without TLS, and answers while the service ends, too
    address = next((each for each in own or server.listen if each.path is not None or each.port != 0), None)
    if address is None:
        return Health(False, "the service listens on port 0, any free one: name the port with --listen")
    try:
        status, text = _answer(address, path, tls=server.tls is not None and not own)
    except OSError as error:
        return Health(False, f"no answer at {address}: {error.strerror or error}")
    except http.client.HTTPException:
        return Health(False, f"no answer at {address}: it does not speak HTTP")
    return Health(status == http.client.OK, f"{text} ({status} at {address})")


def _answer(address: ListenAddress, path: str, *, tls: bool) -> tuple[int, str]:
    with _connected(address) as plain, _over_tls(plain) if tls else plain as connected:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = connected
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(_LONGEST).decode(errors="replace").partition("\n")[0]


def _connected(address: ListenAddress) -> socket.socket:
    if address.path is None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104  # all addresses
        return socket.create_connection((host, address.port), _TIMEOUT)
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(_TIMEOUT)
    try:
        connected.connect(str(address.path))
    except OSError:
        connected.close()
        raise
    return connected


def _over_tls(plain: socket.socket) -> ssl.SSLSocket:
    """TLS with whoever is there: a certificate is for the names that clients use, and nothing secret is sent."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(plain)
