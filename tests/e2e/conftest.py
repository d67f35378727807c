"""Fixtures: an upstream and a service for all tests of a module, and a place in both for each test."""

import itertools
import os
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from mirrorproxy.names import Digest
from tests.e2e.proxy import RUNNING, Proxy, served_by
from tests.fakes.content import Image
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk, Seen
from tests.web.wire import Answer


def upstream(hub: Hub, **changes: Any) -> dict[str, Any]:
    """The settings of one upstream that is this hub. Every tag is checked each time, and no "no" is remembered."""
    return {
        "endpoints": [hub.url],
        "token_realms": [hub.token_service.origin],
        "tag_ttl": "0s",
        "negative_ttl": "0s",
        "connect_timeout": "2s",
        "header_timeout": "2s",
        "idle_timeout": "2s",
        "revalidate_timeout": "2s",
        "prefetch": "off",
        **changes,
    }


def settings(upstreams: Mapping[str, Mapping[str, Any]], **others: Any) -> dict[str, Any]:
    """The settings of a service with these upstreams, of which the first is the default."""
    first = next(iter(upstreams))
    return {
        "upstreams": {name: {**each, "default": name == first} for name, each in upstreams.items()},
        "fills": {"budget": "3s"},
        **others,
    }


@dataclass
class Place:
    """One registry of the service, and one repository in it, that no other test uses."""

    hub: Hub
    proxy: Proxy
    registry: str
    repository: str

    def image(self, *layers: bytes) -> Image:
        """Put in an image with the tag `1`, of layers (at random, one) and a config that no other has."""
        return self.hub.add_image(self.repository, "1", *(layers or (os.urandom(1000),)), config=os.urandom(100))

    def blob(self, data: bytes) -> Digest:
        """Put in a blob that no manifest names."""
        return self.hub.add_blob(self.repository, data)

    def path(self, kind: str, reference: str) -> str:
        """The path of a manifest, blob, list of tags or of referrers."""
        return f"/v2/{self.registry}/{self.repository}/{kind}/{reference}"

    async def get(self, kind: str, reference: str, **headers: str) -> Answer:
        """GET it, with headers whose names are written with underscores."""
        return await self.proxy.ask(
            self.path(kind, reference), headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    async def head(self, kind: str, reference: str) -> Answer:
        """HEAD it."""
        return await self.proxy.ask(self.path(kind, reference), "HEAD")

    def is_here(self, seen: Seen) -> bool:
        """Is a request that the upstream saw about this repository, or a blob of it?"""
        marks = [self.repository, quote(self.repository, safe="")]
        marks += [digest.hex for digest in self.hub.stock(self.repository).blobs]
        return any(mark in seen.target for mark in marks)

    def spoil(self, kind: str, quirk: Quirk) -> None:
        """From now on the upstream's answers of this kind, about this repository, have this quirk."""
        self.hub.script.when(kind, lambda seen: quirk if self.is_here(seen) else None)

    def seen(self, kind: str | None = None, method: str | None = None) -> list[Seen]:
        """The requests about this repository that the upstream saw."""
        return [seen for seen in self.hub.seen(kind, method) if self.is_here(seen)]

    def asked(self) -> list[str]:
        """What the upstream was asked, as `GET manifest`: but for tokens, and what only brought the want of one."""
        return [
            f"{seen.method} {seen.kind}"
            for seen in self.seen()
            if seen.kind != "token" and not (seen.status == 401 and seen.authorization is None)
        ]

    def kept(self, digest: Digest) -> Path:
        """Where the content is when the cache has it."""
        return self.proxy.cache / "blobs" / digest.algorithm / digest.hex


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a module's tests once for each of its `WORKERS`, where it has that."""
    if (several := getattr(metafunc.module, "WORKERS", None)) is not None:
        ids = [f"{count} workers" for count in several]
        metafunc.parametrize("workers", several, ids=ids, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def workers(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many workers the services have that are made from now on."""
    with served_by(getattr(request, "param", 1)) as workers:
        yield workers


@pytest.fixture(autouse=True)
def _no_task_left() -> None:
    """The service has a process of its own; what runs here is the hub, which serves a module's tests one by one."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[Hub]:
    """Docker Hub on loopback, with tokens and a storage of its own."""
    async with Hub() as hub:
        yield hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(
    hub: Hub, workers: int, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Proxy]:
    """The service, with many upstreams that are all this hub: each test has one of its own, and so nothing of what went
    wrong for another. A module's `UPSTREAM` has what is different in their settings, `PLACES` how many it takes.
    """
    changes = getattr(request.module, "UPSTREAM", {})
    upstreams = {f"r{number}.test": upstream(hub, **changes) for number in range(getattr(request.module, "PLACES", 40))}
    async with Proxy(tmp_path_factory.mktemp("proxy"), settings(upstreams)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def numbers(workers: int) -> "itertools.count[int]":
    """Of the tests of a module."""
    return itertools.count()


@pytest.fixture
def places(hub: Hub, proxy: Proxy, numbers: "itertools.count[int]") -> Callable[[], Place]:
    """Makes places: a registry and a repository of one's own. Nothing is scripted, nothing was asked."""
    hub.script.clear()
    hub.log.clear()

    def new() -> Place:
        number = next(numbers)
        assert f"r{number}.test" in proxy.settings["upstreams"], "the module needs more PLACES"
        return Place(hub, proxy, f"r{number}.test", f"team/image-{number:03}")

    return new


@pytest.fixture
def place(places: Callable[[], Place]) -> Place:
    """One place."""
    return places()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A word that no other test has."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows the ends of the logs with a failure."""
    report = yield
    if report.failed:
        for proxy in RUNNING:
            for log in (proxy.stderr, proxy.stdout):
                text = log.read_text(errors="replace")[-3000:]
                report.sections.append((f"mirrorproxy's {log.name} at {proxy.address}", text))
    return report
