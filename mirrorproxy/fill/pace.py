"""How many connections a download should have: one more for as long as that makes it faster. Pure; time comes in."""

_LOOK = 0.3  # seconds over which a rate is measured before and after a change
_WORTH = 1.15  # one more connection has to bring that much
_LEAST_LEFT = 2.0  # seconds of download: below that another connection comes too late


class Pace:
    """The number of connections for one blob, from 1 to `most`.

    Starts with one. Where a connection more made the whole faster, the next one is tried, within half a second each;
    where it did not, it is given up, and that is the end of trying. Those for readers far ahead stay in any case.
    `spreads`: work is worth spreading over several, as one more pays, or is just being tried.
    """

    def __init__(self, most: int) -> None:
        self.wanted = 1
        self._most = most
        self._least = 1
        self._since: float | None = None
        self._bytes = 0
        self._before = 0.0  # the rate with fewer connections; 0: not known
        self._final = most <= 1
        self._pays = False

    def cap(self, most: int) -> None:
        """No more than that from now on: the upstream ignores ranges, or asked for less."""
        self._most = most
        self.wanted, self._least = min(self.wanted, most), min(self._least, most)
        self._final = self.wanted >= most

    def allow(self) -> None:
        """One more for a reader that waits far ahead, whatever it brings in speed. Trying goes on from there."""
        self.wanted = self._least = min(self.wanted + 1, self._most)
        self._since = None

    @property
    def spreads(self) -> bool:
        """See the class."""
        return self._pays or not self._final

    def arrived(self, size: int) -> None:
        """Bytes came."""
        self._bytes += size

    def look(self, now: float, running: int, left: int) -> None:
        """Decide again. `running`: connections on which bytes come, `left`: bytes still to come."""
        if self._final:
            return
        if running < self.wanted or self._since is None:
            self._since, self._bytes = now, 0  # a connection that is being made says nothing yet
            return
        passed = now - self._since
        if passed < _LOOK:
            return
        rate = self._bytes / passed
        self._since, self._bytes = now, 0
        if rate < self._before * _WORTH:
            self.wanted = max(self.wanted - 1, self._least)
            self._final = True
            return
        self._pays = self._before > 0
        if self.wanted < self._most and left > rate * _LEAST_LEFT:
            self._before = rate
            self.wanted += 1
            self._since = None
        elif self.wanted >= self._most:
            self._final = True
