"""`Remote`: the core's registries, as a worker has them."""

from collections import OrderedDict
from time import monotonic
from typing import Any

from mirrorproxy import tracing
from mirrorproxy.errors import MirrorproxyError
from mirrorproxy.names import Digest, Reference, Repository
from mirrorproxy.registry import Blob, Listing, Manifest, Outcome, Resolved, Result
from mirrorproxy.tasks import within
from mirrorproxy.web.probes import TEXT
from mirrorproxy.workers.files import NUMBERS, Download, GrowingFile, Held, Streamed, WholeFile
from mirrorproxy.workers.line import Line, close
from mirrorproxy.workers.words import Opened

_FOR = (
    1.0  # seconds that a file is kept for those who ask next; then the core is asked again: is it here, who may see it
)
_HIT = Outcome(Result.HIT, stored=True)
_ANSWER_WITHIN = 5.0  # seconds for a health page


class Remote:
    """A `Registry`, a `Catalog` and the `Pages`, by asking the core.

    Content is kept open for a second, as answers are in `web.again`: what many nodes ask for at once is one question.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._held: OrderedDict[tuple[Repository, Digest], tuple[Held, float]] = OrderedDict()  # the oldest first
        self._downloads: dict[int, Download] = {}
        self._generation = 0  # of what is cached
        self.keep_open = 256
        """How many files are kept so."""

    async def resolve(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Resolved:
        """See `Registry.resolve`."""
        found: Resolved = await self._ask("resolve", repository, reference, fresh)
        return found

    async def manifest(self, repository: Repository, reference: Reference, *, fresh: bool = False) -> Manifest:
        """See `Registry.manifest`."""
        found: Manifest = await self._ask("manifest", repository, reference, fresh)
        return found

    async def stat(self, repository: Repository, digest: Digest) -> Resolved:
        """See `Registry.stat`."""
        found: Resolved = await self._ask("stat", repository, digest)
        return found

    async def tags(self, repository: Repository, query: str = "") -> Listing:
        """See `Registry.tags`."""
        found: Listing = await self._ask("tags", repository, query)
        return found

    async def referrers(self, repository: Repository, digest: Digest, query: str = "") -> Listing:
        """See `Registry.referrers`."""
        found: Listing = await self._ask("referrers", repository, digest, query)
        return found

    async def catalog(self, registry: str | None, n: int, last: str | None) -> tuple[list[str], bool]:
        """See `Catalog`."""
        found: tuple[list[str], bool] = await self._ask("catalog", registry, n, last)
        return found

    async def live(self) -> tuple[int, str, bytes]:
        """See `Pages`: this process lives, and so does the core, if it answers."""
        return await self._page("live")

    async def ready(self, *, verbose: bool) -> tuple[int, str, bytes]:
        """See `Pages`."""
        return await self._page("ready", verbose)

    async def metrics(self, accept: str) -> tuple[int, str, bytes]:
        """See `Pages`: of all processes."""
        page: tuple[int, str, bytes] = await self._ask("metrics", accept)
        return page

    async def blob(self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> Blob:
        """See `Registry.blob`."""
        self.let_go()
        if (kept := self._held.get((repository, digest))) is not None:
            return WholeFile(self._line, repository, digest, kept[0], _HIT)
        number, generation = next(NUMBERS), self._generation
        try:
            answer = await self._line.call("blob", number, repository, digest, start, end, tracing.carried())
        except BaseException:
            self._line.tell("close", number)
            raise
        opened: Opened = answer.value
        if opened.download is not None:
            download = self._download(opened.download)
            download.learn(start, opened.ready, opened.size, answer.fd)
            return GrowingFile(self._line, number, digest, opened, download)
        if answer.fd is not None and opened.size is not None:
            held = Held(self._line, number, answer.fd, opened.size)
            if generation == self._generation:
                self._keep(repository, digest, held)
            blob = WholeFile(self._line, repository, digest, held, opened.outcome)
            held.drop()
            return blob
        return Streamed(self._line, number, digest, opened)

    def let_go(self, *, all_of_them: bool = False) -> None:
        """Keep open no longer what was kept for a second; or nothing at all, since what is cached has changed."""
        self._generation += all_of_them
        now = monotonic()
        while self._held:
            key, (held, until) = next(iter(self._held.items()))
            if now < until and not all_of_them and len(self._held) <= self.keep_open:
                return
            del self._held[key]
            held.drop()

    def _keep(self, repository: Repository, digest: Digest, held: Held) -> None:
        if (old := self._held.pop((repository, digest), None)) is not None:
            old[0].drop()
        self._held[repository, digest] = held.take(), monotonic() + _FOR

    def _download(self, number: int) -> Download:
        if (download := self._downloads.get(number)) is None:
            download = self._downloads[number] = Download(self._line, lambda: self._left(number))
        return download

    def _left(self, number: int) -> None:
        del self._downloads[number]

    async def _ask(self, name: str, *arguments: object) -> Any:
        answer = await self._line.call(name, *arguments, tracing.carried())
        close(answer.fd)
        return answer.value

    async def _page(self, name: str, *arguments: object) -> tuple[int, str, bytes]:
        try:
            page: tuple[int, str, bytes] = await within(_ANSWER_WITHIN, self._ask(name, *arguments))
        except (TimeoutError, MirrorproxyError):
            return 503, TEXT, b"the process that downloads and keeps the cache does not answer\n"
        return page
