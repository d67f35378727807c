"""The scrub: all content is read and hashed every few days, in the background. See docs/storage.md.

It goes through the content in the order of digests. `scrub.json` says where it is, so that a restart goes on there:

    {"begun": 1764000000.0, "after": "sha256:3f..", "ended": null}

What it finds wrong is put into quarantine and fetched again. What cannot be read, twice, is treated as wrong; but when
several files in a row cannot be read it is the disk that is broken: then nothing is moved, and the scrub rests.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from mirrorproxy.audit.checker import Checker, State, Verdict
from mirrorproxy.audit.quarantine import Quarantine
from mirrorproxy.audit.refetch import Fate
from mirrorproxy.errors import CacheFailed, DigestInvalid
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.files import disk_errors, write_whole
from mirrorproxy.tasks import within

log = logging.getLogger(__name__)

_LOOK_EVERY = 60.0  # seconds between looks at whether a pass is due
_SAVE_EVERY = 30.0  # seconds of reading that a crash may cost
_BATCH = 5000  # digests known at a time: half a MiB
_IN_A_ROW = 3  # files that cannot be read, and it is the disk
_REST = 3600.0  # seconds to leave such a disk alone


@dataclass
class _Pass:
    """One pass, or the last one: Unix seconds, and the digest looked at last. `ended` 0: there was none yet."""

    begun: float
    after: Digest | None = None
    ended: float | None = None


class Scrub:
    """The scrub of one cache directory. `run` it as a task.

    `every`: seconds from one pass's beginning to the next one's, 0 for never; it may be changed at any time, as may
    the rate of the `checker`. `refetch` gets content again. `tidied` is told the bytes that are in quarantine.
    """

    def __init__(
        self,
        directory: Path,
        blobs: BlobStore,
        checker: Checker,
        quarantine: Quarantine,
        metrics: Metrics,
        refetch: Callable[[Digest], Awaitable[Fate]],
        *,
        every: float,
        tidied: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        look_every: float = _LOOK_EVERY,
    ) -> None:
        self.every = every
        self._directory = directory
        self._blobs = blobs
        self._checker = checker
        self._quarantine = quarantine
        self._metrics = metrics
        self._refetch = refetch
        self._tidied = tidied
        self._clock = clock
        self._look_every = look_every
        self._suspects: dict[Digest, None] = {}
        self._wake = asyncio.Event()
        self._unreadable: list[tuple[Digest, Verdict]] = []
        self.last_ended: float | None = None
        """When the last pass came to its end, in Unix seconds; None: none has yet."""

    async def run(self) -> None:
        """Scrub whenever it is due, for ever."""
        state = await asyncio.to_thread(self._load)
        while True:
            self.last_ended = state.ended or None
            try:
                await self._turn(state)
            except CacheFailed as error:
                log.error("the scrub rests for %.0f minutes: %s", _REST / 60, error)
                await asyncio.sleep(_REST)

    async def _turn(self, state: _Pass) -> None:
        """Go on with a pass, or begin one, or wait for a while where none is due. Raises `CacheFailed`."""
        self._tidied(await self._quarantine.tidy())
        now = self._clock()
        if not self.every or (state.ended is not None and 0 <= now - state.begun < self.every):
            left = self.every - (now - state.begun) if self.every else self._look_every
            await self._pause(min(self._look_every, left))
            return
        if state.ended is not None:
            state.begun, state.after, state.ended = now, None, None
        await self._work(state)

    def suspect(self, digest: Digest) -> None:
        """Look at this content soon: a reader could not read it."""
        if len(self._suspects) < _BATCH:
            self._suspects[digest] = None
            self._wake.set()

    async def _pause(self, seconds: float) -> None:
        """Wait for so long, or for a suspect."""
        with contextlib.suppress(TimeoutError):
            await within(seconds, self._wake.wait())
        await self._look_at_suspects()

    async def _look_at_suspects(self) -> None:
        """Those that are wrong are replaced, and the few that cannot be read: many, and it is the disk."""
        self._wake.clear()
        bad = []
        while self._suspects:
            digest, _ = self._suspects.popitem()
            verdict = await self._checker.check(self._blobs.path(digest), digest)
            self._count(verdict)
            if verdict.state in (State.WRONG, State.UNREADABLE):
                bad.append((digest, verdict))
        if sum(verdict.state is State.UNREADABLE for _, verdict in bad) >= _IN_A_ROW:
            log.error("%d files that clients wanted cannot be read: is the disk broken?", len(bad))
            bad = [(digest, verdict) for digest, verdict in bad if verdict.state is State.WRONG]
        for digest, verdict in bad:
            await self._replace(digest, verdict)

    def _count(self, verdict: Verdict) -> None:
        if verdict.state is not State.GONE:
            self._metrics.scrubbed.labels(verdict.state).inc()
            self._metrics.scrubbed_bytes.inc(verdict.size)

    async def _work(self, state: _Pass) -> None:
        """Go on with a pass up to its end. Raises `CacheFailed`."""
        log.info("scrub: %s", "a pass begins" if state.after is None else f"goes on behind {state.after}")
        started, counts = monotonic(), dict.fromkeys(State, 0)
        saved, at = started, state.after
        try:
            while batch := await asyncio.to_thread(self._blobs.names, at, _BATCH):
                for at in batch:
                    await self._look_at_suspects()
                    verdict = await self._checker.check(self._blobs.path(at), at)
                    counts[verdict.state] += 1
                    await self._judge(at, verdict)
                    if not self._unreadable:
                        state.after = at
                    if monotonic() - saved >= _SAVE_EVERY:
                        saved = monotonic()
                        await asyncio.to_thread(self._save, state)
            await self._settle()
            state.after, state.ended = None, self._clock()
        finally:
            await asyncio.shield(asyncio.to_thread(self._save, state))
        log.info(
            "scrub: done; %d right, %d wrong, %d unreadable, in %.0f s since it (re)started",
            *(counts[each] for each in (State.RIGHT, State.WRONG, State.UNREADABLE)),
            monotonic() - started,
        )

    async def _judge(self, digest: Digest, verdict: Verdict) -> None:
        self._count(verdict)
        match verdict.state:
            case State.UNREADABLE:
                self._unreadable.append((digest, verdict))
                if len(self._unreadable) >= _IN_A_ROW:
                    self._unreadable.clear()
                    raise CacheFailed(f"{_IN_A_ROW} files in a row cannot be read, the last is {verdict.reason}")
            case State.WRONG:
                await self._settle()
                await self._replace(digest, verdict)
            case _:
                await self._settle()

    async def _settle(self) -> None:
        """The disk can be read; so those that could not be read are what is broken."""
        unreadable, self._unreadable = self._unreadable, []
        for digest, verdict in unreadable:
            await self._replace(digest, verdict)

    async def _replace(self, digest: Digest, verdict: Verdict) -> None:
        if verdict.identity is None:
            return
        if await self._blobs.condemn(digest, verdict.reason, verdict.identity):
            self._tidied(await self._quarantine.tidy())
            if await self._refetch(digest) is Fate.REFETCHED:
                self._metrics.scrubbed.labels("refetched").inc()

    # In a thread.

    def _load(self) -> _Pass:
        """The pass to go on with. Where none is known one is due after a whole interval, as if one had just ended."""
        try:
            row = json.loads((self._directory / "scrub.json").read_bytes())
            begun, ended = float(row["begun"]), None if row["ended"] is None else float(row["ended"])
            if math.isfinite(begun) and (ended is None or math.isfinite(ended)):
                return _Pass(begun, None if row["after"] is None else Digest(row["after"]), ended)
        except (OSError, ValueError, TypeError, KeyError, RecursionError, DigestInvalid):
            pass
        state = _Pass(self._clock(), ended=0.0)
        self._save(state)
        return state

    def _save(self, state: _Pass) -> None:
        row = {"begun": state.begun, "after": state.after, "ended": state.ended}
        try:
            with disk_errors("keep where the scrub is"):
                write_whole(
                    self._directory / "scrub.json",
                    [json.dumps(row).encode(), b"\n"],
                    scratch=self._directory / "partial",
                    mode=0o600,
                )
        except CacheFailed as error:
            log.warning("%s", error)
