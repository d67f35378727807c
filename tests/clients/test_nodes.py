"""What the DaemonSets of `k8s/` do on a node, run for real: their init containers' words, on a real containerd."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.clients import images
from tests.clients.clients import ContainerdSetUp
from tests.clients.netns import HarnessError, Namespace
from tests.clients.place import Place, with_clients
from tests.k8s.manifests import container, pods

pytestmark = pytest.mark.clients


def run(overlay: str, name: str, namespace: Namespace, volumes: dict[str, Path]) -> str:
    """Runs an init container of an overlay as the kubelet would: as root, with the capabilities it has, and no other.

    `volumes`: what stands for the hostPath volumes, by name.
    """
    ((_, pod),) = pods(overlay)
    init = container(pod, name)
    assert init["securityContext"]["runAsUser"] == 0
    kept = "".join(f",+{each.lower()}" for each in init["securityContext"]["capabilities"].get("add", ()))
    words = [*init["command"], *init.get("args", ())]
    for mount in init["volumeMounts"]:
        words = [word.replace(mount["mountPath"], str(volumes[mount["name"]])) for word in words]
    program = [sys.executable, "-m", "mirrorproxy"] if words[0] == "mirrorproxy" else [words[0]]
    return namespace.run(["setpriv", "--inh-caps=-all", f"--bounding-set=-all{kept}", *program, *words[1:]])


@with_clients(ContainerdSetUp)
def test_node_local_and_cleanup(client: ContainerdSetUp, place: Place, name: str, tmp_path: Path) -> None:
    """The first pod sets containerd up, a later one changes nothing, cleanup has everything as it was before."""
    theirs = client.hosts / "r.example.com" / "hosts.toml"
    theirs.parent.mkdir()
    theirs.write_text('server = "https://r.example.com"\n')
    place.origin.push(f"library/{name}", images.image(name), "1")
    reference = f"docker.io/library/{name}:1"
    volumes = {"cache": tmp_path / "cache", "certs": client.hosts}
    volumes["cache"].mkdir()
    try:
        run("overlays/node-local", "cache-directory", place.namespace, volumes)
        run("overlays/node-local", "cache-directory", place.namespace, volumes)
        assert volumes["cache"].stat().st_uid == volumes["cache"].stat().st_gid == 65532

        assert "write " in run("overlays/node-local", "containerd", place.namespace, volumes)
        assert run("overlays/node-local", "containerd", place.namespace, volumes) == "nothing to change\n"
        client.pull(reference)
        client.remove(reference)

        assert "remove " in run("overlays/cleanup", "containerd", place.namespace, volumes)
        with pytest.raises(HarnessError):
            client.pull(reference)
        assert [path for path in client.hosts.rglob("*") if path.is_file()] == [theirs]
    finally:
        shutil.rmtree(theirs.parent)
