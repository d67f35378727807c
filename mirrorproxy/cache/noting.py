"""From which endpoint each download came, until it is stored and that is put down."""

from mirrorproxy.names import Digest, Repository
from mirrorproxy.registry import Source, Transfer
from mirrorproxy.store.memory import Recent

_DOWNLOADS = 1024  # more than run at once


class Noting:
    """A `Source` that remembers which endpoint brought what. Of several, the one that was asked last."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._endpoints: Recent[Digest, str] = Recent(_DOWNLOADS)

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Transfer:
        """See `Source`."""
        transfer = await self._source.blob(repository, digest, start, end)
        if transfer.outcome.endpoint is not None:
            self._endpoints.put(digest, transfer.outcome.endpoint)
        return transfer

    def brought(self, digest: Digest) -> str | None:
        """Who brought it, which is told once."""
        return self._endpoints.drop(digest)
