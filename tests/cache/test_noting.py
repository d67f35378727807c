"""Which endpoint brought what."""

from dataclasses import dataclass
from typing import cast

from mirrorproxy.cache.noting import Noting
from mirrorproxy.names import Digest, Repository, repository
from mirrorproxy.registry import Outcome, Result, Source, Transfer

ALPINE = repository("docker.io", "alpine")
ONE, TWO = Digest.of(b"1"), Digest.of(b"2")


@dataclass
class Sent:
    """A transfer, as far as it matters here."""

    outcome: Outcome


class Endpoints:
    """A source whose answers come from these endpoints, one after the other."""

    def __init__(self, *names: str | None) -> None:
        self._names = list(names)

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Transfer:
        """See `Source`."""
        return cast("Transfer", Sent(Outcome(Result.MISS, endpoint=self._names.pop(0))))


async def test_the_last_one_that_was_asked_counts_and_is_told_once() -> None:
    """A download may go on at another endpoint; two downloads do not mix; what nobody told is not known."""
    noting = Noting(cast("Source", Endpoints("first", "second", "other", None)))
    for digest in (ONE, ONE, TWO):
        await noting.blob(ALPINE, digest)
    assert (noting.brought(ONE), noting.brought(ONE), noting.brought(TWO)) == ("second", None, "other")
    await noting.blob(ALPINE, ONE)
    assert noting.brought(ONE) is None
