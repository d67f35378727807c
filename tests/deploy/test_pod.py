"""`node-local` and `cleanup` on a node: their pods from the built image, a real containerd, a registry; nothing else.

All of it is in a network namespace, in which the port of a container is as near as the hostPort of a pod.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients import images
from tests.clients.clients import ContainerdSetUp
from tests.clients.netns import HarnessError, Namespace
from tests.clients.registry import Registry
from tests.deploy.image import Engine
from tests.deploy.pod import Pod
from tests.k8s.manifests import pods, settings

pytestmark = [pytest.mark.clients, pytest.mark.xdist_group("deploy image")]


@dataclass
class Node:
    """A node with containerd, and what a kubelet would mount of it."""

    namespace: Namespace
    containerd: ContainerdSetUp
    registry: Registry
    volumes: dict[str, Path]


@pytest.fixture
def node() -> Iterator[Node]:
    """Running, with a file of somebody else's among containerd's."""
    with tempfile.TemporaryDirectory(prefix="mirrorproxy-") as folder, Namespace() as namespace:
        here = Path(folder)
        here.chmod(0o755)  # pytest's own folders are closed to the user of the pod
        registry = Registry(namespace, here / "registry", 5001)
        registry.start()
        containerd = ContainerdSetUp(namespace, here / "containerd", "127.0.0.1:5000")
        containerd.start()
        volumes = {"cache": here / "cache", "config": here / "config", "certs": containerd.hosts}
        volumes["cache"].mkdir()
        volumes["config"].mkdir()
        yield Node(namespace, containerd, registry, volumes)
        containerd.stop()


def pod(engine: Engine, node: Node, overlay: str) -> Pod:
    """The pod of an overlay's DaemonSet on that node."""
    ((_, specification),) = pods(f"overlays/{overlay}")
    return Pod(engine, specification, f"ns:{node.namespace.network}", node.volumes)


def test_a_node_from_the_first_pod_to_the_cleanup(engine: Engine, node: Node) -> None:
    """Init containers, service, pull through, a second pod on the same node, and everything as it was before."""
    name = f"mirrorproxy-node-{os.getpid()}"
    image = images.image("node")
    node.registry.push("library/app", image, "1")
    theirs = node.containerd.hosts / "r.example.com" / "hosts.toml"
    theirs.parent.mkdir()
    theirs.write_text('server = "https://r.example.com"\n')
    (configuration,) = (text for _, text in settings("overlays/node-local"))
    (node.volumes["config"] / "config.yaml").write_text(configuration)
    upstreams = json.dumps({"docker.io": {"endpoints": [node.registry.url]}})
    local, cleanup = pod(engine, node, "node-local"), pod(engine, node, "cleanup")

    for said in ("write ", "nothing to change"):  # the second pod finds the cache of the first
        local.run("cache-directory")
        assert said in local.run("containerd")
        # The disk is that of whatever runs the tests: below a fifth free, a node's cache would rightly keep nothing.
        local.start("mirrorproxy", name, MIRRORPROXY__UPSTREAMS=upstreams, MIRRORPROXY__CACHE__MIN_FREE="0")
        try:
            while not local.is_ready("mirrorproxy", node.namespace):
                node.namespace.run(["sleep", "0.05"])
            assert engine.podman("exec", name, "id", "--user").strip() == "65532"
            assert node.containerd.pull("docker.io/library/app:1") == image.digest
            node.containerd.remove("docker.io/library/app:1")
        finally:
            engine.remove(name)
    blobs = [request for request in node.registry.pulls("library/app") if "/blobs/" in request.path]
    assert len(blobs) == len(image.blobs)

    assert "remove " in cleanup.run("containerd")
    assert [path for path in node.containerd.hosts.rglob("*") if path.is_file()] == [theirs]
    with pytest.raises(HarnessError):
        node.containerd.pull("docker.io/library/app:1")
