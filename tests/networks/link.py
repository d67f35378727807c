"""Two network namespaces with a cable between them: what the kernel does to packets there is as real as it gets."""

import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.clients.netns import Namespace

_FAR = "10.99.0.2"
_ENDS = ("near", "10.99.0.1"), ("far", _FAR)
_PORT = 5000


class Link:
    """The cable, as a context manager. Needs root. A program runs `within` the near end; `listener` is at the far one.

    Neither end knows any other network, and the machine's own knows nothing of them.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._near, self._far = (stack.enter_context(Namespace()) for _ in _ENDS)
            near, far = self._near._inside, self._far._inside
            cable = f"ip link add near netns {near} type veth peer name far netns {far}"
            subprocess.run(cable.split(), check=True)
            for place, (name, address) in zip((self._near, self._far), _ENDS, strict=True):
                place.run(["ip", "address", "add", f"{address}/24", "dev", name])
                place.run(["ip", "link", "set", name, "up"])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def within(self) -> tuple[str, ...]:
        """The command that runs another one at the near end. Files, unix sockets too, are those of the machine."""
        return ("nsenter", "--target", self._near._inside, "--net", "--")

    def listener(self) -> socket.socket:
        """A socket that listens at the far end, for whoever is at the near one."""
        with ThreadPoolExecutor(1, initializer=self._far._enter) as there:
            return there.submit(socket.create_server, (_FAR, _PORT)).result()

    def sent(self) -> int:
        """Bytes that left the far end, packets' heads and all."""
        (device,) = json.loads(self._far.run(["ip", "-json", "-statistics", "link", "show", "dev", "far"]))
        return int(device["stats64"]["tx"]["bytes"])

    def lose(self, share: float) -> None:
        """Lose this share of the packets, in each direction: of those that leave the far end, and that arrive there."""
        for chain in ("INPUT", "OUTPUT"):
            self._far.run(["iptables", "--flush", chain])
            if share:
                random = f"--match statistic --mode random --probability {share}" if share < 1 else ""
                self._far.run(f"iptables --append {chain} {random} --jump DROP".split())

    def narrow(self, rate: int) -> None:
        """Let so many bytes a second leave the far end."""
        self._far.run(f"tc qdisc replace dev far root tbf rate {rate * 8}bit burst 64kb latency 100ms".split())
