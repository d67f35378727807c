"""What lies between the origin and who asks it: how wide, how far, how reliable. Imitated with clocks, for loopback."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_CREDIT = 0.005
"""Seconds that a late wake-up may be made good for (what the interpreter's switch interval can cost)."""


class Link:
    """A link of `rate` bytes/s, as a clock: each piece reserves the next stretch of it and leaves when that is over."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free = 0.0
        self._lock = threading.Lock()

    def reserve(self, size: int) -> float:
        """Seconds to wait before `size` bytes may leave."""
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - _CREDIT) + size / self._rate
            return self._free - now


@dataclass(frozen=True)
class Network:
    """The way to the origin.

    `total` is the link that all connections share, `each` the bytes/s of every one, `round_trip` in seconds, `cut` the
    bytes of content after which a connection is closed, wherever that is. None or 0: nothing of the kind.
    """

    total: Link | None = None
    each: float | None = None
    round_trip: float = 0.0
    cut: int | None = None


class Way:
    """One connection's way through a network, which it keeps to its end.

    To connect costs a round trip, and each request one more before its answer begins. The system accepts connections
    by itself and at once, so the first of the two is waited for here too: the first answer begins two round trips after
    the connection was asked for. `wait` is `Event.wait` of what ends everything: true when it did.
    """

    def __init__(self, network: Network, wait: Callable[[float], bool]) -> None:
        self._wait = wait
        self._round_trip = network.round_trip
        self._made = time.monotonic() + network.round_trip
        self._links = [link for link in (network.total, Link(network.each) if network.each else None) if link]
        self._left = network.cut

    @property
    def step(self) -> int:
        """Bytes to hand over at once: many where nothing holds them back, few where a link is imitated."""
        return 64 << 10 if self._links else 1 << 20

    def turn(self) -> bool:
        """Wait from a request's arrival until its answer may begin; False: everything ends."""
        if not self._round_trip:
            return True
        now = time.monotonic()
        return not self._wait(max(self._made, now) + self._round_trip - now)

    def admit(self, size: int) -> int:
        """Wait for `size` bytes of content to have their way; how many of them may leave: 0 when that is over."""
        if self._left is not None:
            size = min(size, self._left)
            self._left -= size
        wait = max((link.reserve(size) for link in self._links), default=0.0)
        return 0 if wait > 0 and self._wait(wait) else size

    @property
    def over(self) -> bool:
        """Is the connection to be closed now?"""
        return self._left == 0
