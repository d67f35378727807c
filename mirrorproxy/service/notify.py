"""What systemd is told of the service's life, and the watchdog that it keeps.

Source: sd_notify(3), sd_watchdog_enabled(3). Away from systemd all of it is nothing.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


class Notifier:
    """Tells whoever listens on $NOTIFY_SOCKET: a file's path, or @ and an abstract name."""

    def __init__(self, address: str, watchdog: float | None = None) -> None:
        """An empty `address` is nobody. `watchdog`: seconds within which a sign of life is expected."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog = watchdog
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Notifier":
        """What this process was given; taken out of `environ`, since it is not for the programs that we start."""
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        for_us = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        expects = for_us and microseconds.isdecimal() and int(microseconds) > 0
        return cls(address, int(microseconds) / 1e6 if expects else None)

    def ready(self, status: str) -> None:
        """The service serves, after the start or after a reload."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """The configuration is being loaded anew; `ready` ends that."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=loading the configuration anew")

    def stopping(self, status: str, seconds: float) -> None:
        """The service ends, within `seconds`: systemd waits for so long, if the unit says less."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}\nSTATUS={status}")

    async def keep_watchdog(self) -> None:
        """Give signs of life for as long as the event loop turns: a task, so that a loop that is stuck gives none."""
        if self._watchdog is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 3)  # a sign may be late, or lost, and nothing happens

    def close(self) -> None:
        """Tell nobody any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:  # it is their loss: no reason to serve worse
            log.warning("systemd cannot be told (%s)", error)
