"""The registry in memory keeps the contract: what is shown over it holds over the others."""

from typing import Literal

import pytest

from mirrorproxy.registry import Registry
from tests.contracts.registry_contract import SAMPLE, RegistryContract
from tests.fakes.memory import MemoryRegistry


class TestMemoryRegistry(RegistryContract):
    """In each of its shapes."""

    @pytest.fixture(params=["file", "memory", "stream"])
    def registry(self, request: pytest.FixtureRequest) -> Registry:
        """The sample, in memory."""
        blobs_are: Literal["file", "memory", "stream"] = request.param
        return serving_sample(MemoryRegistry(blobs_are))


def serving_sample(registry: MemoryRegistry) -> MemoryRegistry:
    """Put the sample in."""
    tags = {digest: [tag for tag, named in SAMPLE.tags.items() if named == digest] for digest in SAMPLE.manifests}
    for digest, (media_type, body) in SAMPLE.manifests.items():
        registry.put_manifest(SAMPLE.repository, body, media_type, *tags[digest])
    for data in SAMPLE.blobs.values():
        registry.put_blob(SAMPLE.repository, data)
    return registry
