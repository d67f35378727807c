"""Listening sockets that another process opened for us: systemd's socket units.

So the service can have a port below 1024 without the right to open one, and no connection is refused while it restarts.
Source: sd_listen_fds(3).
"""

import os
import socket
from collections.abc import MutableMapping

_FIRST = 3  # after standard input, output and error


def take_over(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that were handed to this process, none where none were. Programs that we start do not get them.

    Takes what tells of them out of `environ`. Raises `OSError` for one that no connection can be accepted on.
    """
    told = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if told[0] != str(os.getpid()) or not told[1].isdecimal():
        return []
    return [
        _listening(number, names[position] if position < len(names) else "")
        for position, number in enumerate(range(_FIRST, _FIRST + int(told[1])))
    ]


def _listening(number: int, name: str) -> socket.socket:
    what = f"the socket {name or number} that was handed over (descriptor {number})"
    try:
        os.set_inheritable(number, False)
        taken = socket.socket(fileno=number)
    except OSError as error:
        raise OSError(f"{what} cannot be used: {error.strerror}") from None
    if taken.type != socket.SOCK_STREAM or not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(f"{what} does not listen; a socket unit for mirrorproxy has ListenStream= and not Accept=yes")
    taken.setblocking(False)
    return taken


def address_of(taken: socket.socket) -> str:
    """Where it listens, in the words of `server.listen`."""
    address = taken.getsockname()
    if taken.family == socket.AF_UNIX:
        path = os.fsdecode(address)
        return f"unix:/@{path[1:]}" if path.startswith("\0") else f"unix:{path}"  # @: no file, an abstract name
    host, port = address[:2]
    return f"[{host}]:{port}" if taken.family == socket.AF_INET6 else f"{host}:{port}"
