"""Several registries as one: each repository is asked of its own registry, and of no other."""

import asyncio
import inspect
from typing import Any

import pytest

from mirrorproxy import manifests
from mirrorproxy.errors import BlobUnknown, NameUnknown, ServerFailed
from mirrorproxy.names import Digest, Tag, repository
from mirrorproxy.registry import Registry
from mirrorproxy.tasks import Tasks
from mirrorproxy.unified import Unified
from tests.fakes.memory import MemoryRegistry

METHODS = [name for name, value in vars(Registry).items() if inspect.iscoroutinefunction(value)]
ALPINE = repository("docker.io", "library/alpine")
TOOL = repository("ghcr.io", "team/tool")
MISSING = Digest.of(b"missing")
INDEX = b'{"schemaVersion": 2, "manifests": []}'


class Parts:
    """Two registries, each with one repository, and both as one."""

    def __init__(self) -> None:
        self.hub, self.ghcr = MemoryRegistry(), MemoryRegistry()
        self.index = self.hub.put_manifest(ALPINE, INDEX, manifests.OCI_INDEX, "3.20")
        self.ghcr.put_manifest(TOOL, INDEX, manifests.OCI_INDEX, "v1")
        self.blob = self.ghcr.put_blob(TOOL, b"0123456789")
        self.unified = Unified({"docker.io": self.hub, "ghcr.io": self.ghcr})


@pytest.fixture
async def parts() -> Parts:
    """Fresh ones."""
    return Parts()


def test_every_method_is_there_with_the_same_parameters() -> None:
    """Spelled out, so that one that is added to the contract is added here."""
    assert len(METHODS) == 6
    for name in METHODS:
        assert inspect.signature(getattr(Unified, name)) == inspect.signature(getattr(Registry, name))


async def test_each_is_asked_of_its_own(parts: Parts) -> None:
    """With everything that the caller said."""
    await parts.unified.resolve(ALPINE, Tag("3.20"), fresh=True)
    found = await parts.unified.manifest(ALPINE, Tag("3.20"), fresh=True)
    await parts.unified.manifest(ALPINE, parts.index)
    await parts.unified.tags(ALPINE, "n=1")
    await parts.unified.referrers(ALPINE, parts.index, "artifactType=x")
    await parts.unified.stat(TOOL, parts.blob)
    await (await parts.unified.blob(TOOL, parts.blob)).aclose()
    await (await parts.unified.blob(TOOL, parts.blob, 2, 5)).aclose()
    assert found.body == INDEX
    assert parts.hub.asked == [
        f"resolve {ALPINE} 3.20 fresh",
        f"manifest {ALPINE} 3.20 fresh",
        f"manifest {ALPINE} {parts.index}",
        f"tags {ALPINE} n=1",
        f"referrers {ALPINE} {parts.index} artifactType=x",
    ]
    assert parts.ghcr.asked == [
        f"stat {TOOL} {parts.blob}",
        f"blob {TOOL} {parts.blob} 0-",
        f"blob {TOOL} {parts.blob} 2-5",
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("registry", ["evil.example", "docker.io:443", "169.254.169.254", "localhost:5000"])
async def test_the_world_is_closed(parts: Parts, method: str, registry: str) -> None:
    """Any other registry is unknown, and nobody is asked."""
    arguments: list[Any] = [] if method == "tags" else [MISSING]
    with pytest.raises(NameUnknown, match="is not one of the configured registries"):
        await getattr(parts.unified, method)(repository(registry, "library/alpine"), *arguments)
    assert parts.hub.asked == parts.ghcr.asked == []


async def test_errors_pass_unchanged(parts: Parts) -> None:
    """An outage of one is no matter of the other."""
    outage = ServerFailed("down", retry_after=3.0)
    parts.hub.fail("resolve", outage)
    with pytest.raises(ServerFailed) as caught:
        await parts.unified.resolve(ALPINE, Tag("3.20"))
    assert caught.value is outage
    with pytest.raises(BlobUnknown):
        await parts.unified.blob(TOOL, MISSING)
    assert (await parts.unified.resolve(TOOL, Tag("v1"))).descriptor.size == len(INDEX)


async def test_a_key_error_within_a_registry_is_not_an_unknown_name(parts: Parts) -> None:
    """Only the choice of the registry can be unknown here: a fault stays a fault."""
    parts.hub.fail("tags", KeyError("a fault"))
    with pytest.raises(KeyError, match="a fault"):
        await parts.unified.tags(ALPINE)


async def test_after_a_reload_the_new_ones_are_asked(parts: Parts) -> None:
    """The old ones no more; who is under way keeps what it has."""
    gate, tasks = parts.ghcr.hold("resolve"), Tasks()
    under_way = tasks.start(parts.unified.resolve(TOOL, Tag("v1")), name="under way")
    while not parts.ghcr.asked:
        await asyncio.sleep(0)
    configured = {"docker.io": MemoryRegistry()}
    parts.unified.replace(configured)
    with pytest.raises(NameUnknown):
        await parts.unified.resolve(TOOL, Tag("v1"))
    with pytest.raises(NameUnknown):
        await parts.unified.tags(ALPINE)
    assert configured["docker.io"].asked == [f"tags {ALPINE}"]
    assert parts.hub.asked == []
    gate.set()
    assert (await under_way).descriptor.size == len(INDEX)


async def test_the_mapping_is_its_own(parts: Parts) -> None:
    """What the caller does with the mapping afterwards changes nothing."""
    configured: dict[str, Registry] = {"docker.io": parts.hub}
    unified = Unified(configured)
    configured.clear()
    await unified.tags(ALPINE)
    configured["ghcr.io"] = parts.ghcr
    unified.replace(configured)
    configured.clear()
    await unified.tags(TOOL)
    assert len(parts.hub.asked) == len(parts.ghcr.asked) == 1
