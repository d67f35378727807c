"""The settings of `two-tier`, run for real: two nodes' services and the cluster's, each in a process of its own.

Only addresses and directories differ from what is in the ConfigMaps.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.proxy import Proxy, own_address
from tests.fakes.hub import Hub
from tests.k8s.manifests import settings

OVERLAY = dict(settings("overlays/two-tier"))


@pytest.fixture(autouse=True)
def _no_task_left() -> None:
    """The services have processes of their own; what runs here is the hub."""


def service(name: str, folder: Path, addresses: dict[str, str], **upstream: Any) -> Proxy:
    """A service with the settings of that ConfigMap, in which each address has been replaced by one here."""
    text = OVERLAY[name]
    for theirs, ours in addresses.items():
        text = text.replace(theirs, ours)
    config: dict[str, Any] = yaml.safe_load(text)
    config["server"] |= {"listen": [own_address()], "metrics_listen": []}
    del config["cache"]
    if upstream:
        config["upstreams"] = {"docker.io": upstream}
    return Proxy(folder, config)


async def pull(proxy: Proxy, tag: str = "1") -> list[int]:
    """The statuses of a manifest by its tag, as containerd names it, and of the blobs in it."""
    answer = await proxy.ask(f"/v2/team/app/manifests/{tag}?ns=docker.io")
    manifest = json.loads(answer.body)
    digests = [blob["digest"] for blob in (manifest["config"], *manifest["layers"])]
    blobs = [await proxy.ask(f"/v2/team/app/blobs/{digest}?ns=docker.io") for digest in digests]
    return [answer.status, *(blob.status for blob in blobs)]


async def test_two_nodes_cost_one_transfer(tmp_path: Path) -> None:
    """What one node pulled comes to the other from the cluster; without the cluster's cache they ask the registry."""
    async with Hub() as hub:
        image = hub.add_image("team/app", "1", os.urandom(50_000), os.urandom(100), config=os.urandom(100))
        hub.add_image("team/app", "2", os.urandom(1000), config=os.urandom(100))
        realms = {"token_realms": [hub.token_service.origin]}
        central = service("mirrorproxy-central", tmp_path / "central", {}, endpoints=[hub.url], **realms)
        async with central:
            addresses = {"mirrorproxy-central:5000": central.address, "https://registry-1.docker.io": hub.url}
            first, second = (service("mirrorproxy-node", tmp_path / name, addresses) for name in ("first", "second"))
            for node in (first, second):
                node.settings["upstreams"]["docker.io"] |= realms
            async with first, second:
                assert await pull(first) == [200, 200, 200, 200]
                asked = hub.count()
                given = [seen for seen in hub.seen("blob", "GET") if seen.status != 401]
                assert len(given) == len((image.config, *image.layers))
                assert await pull(second) == [200, 200, 200, 200]
                assert hub.count() == asked

                await central.stop()
                assert await pull(second, "2") == [200, 200, 200]
                assert hub.count() > asked
                assert await pull(first) == [200, 200, 200, 200]
            await central.start()
