"""Every overlay: valid for Kubernetes, as strict as it can be, and a configuration that mirrorproxy takes."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml

from mirrorproxy.config import Settings, load
from tests.documents import snippets
from tests.k8s.manifests import (
    ON_NODES,
    OVERLAYS,
    ROOT,
    VERSIONS,
    Failed,
    Object,
    container,
    kustomize,
    objects,
    one,
    pods,
    settings,
    tool,
)

DOCUMENT = ROOT / "docs" / "kubernetes.md"
_BEGIN_WITH = re.compile(r"^\| (`[^|]+) \| `(mirrorproxy-\w+)` \| `(k8s/[\w/.-]+)`", re.MULTILINE)

overlays = pytest.mark.parametrize("overlay", [f"overlays/{name}" for name in OVERLAYS])
serving = pytest.mark.parametrize("overlay", [f"overlays/{name}" for name in OVERLAYS if name != "cleanup"])
on_nodes = pytest.mark.parametrize("overlay", [f"overlays/{name}" for name in ON_NODES])


@pytest.fixture
def rendered(tmp_path: Path) -> list[Path]:
    """A file for each overlay."""
    paths = []
    for name in OVERLAYS:
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(kustomize(f"overlays/{name}"))
    return paths


def loaded(text: str, folder: Path) -> Settings:
    """What mirrorproxy's own loader makes of a configuration; not a word of warning from it."""
    path = folder / "config.yaml"
    path.write_text(text)
    result = load(path, {})
    assert result.warnings == []
    return result.settings


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_them(rendered: list[Path], version: str) -> None:
    """No field that this version does not know, or that has the wrong type."""
    said = tool("kubernetes-validate", "--strict", "-k", version, *rendered)
    assert said.count(" passed for resource ") == sum(len(objects(f"overlays/{name}")) for name in OVERLAYS)


def test_the_validation_finds_something(tmp_path: Path) -> None:
    """A misspelt field of a probe is found."""
    path = tmp_path / "broken.yaml"
    path.write_text(kustomize("overlays/node-local").replace("failureThreshold: 60", "failureTreshold: 60"))
    with pytest.raises(Failed, match="failureTreshold"):
        tool("kubernetes-validate", "--strict", "-k", VERSIONS[-1], path)


def test_checkov_has_nothing_to_say(rendered: list[Path]) -> None:
    """But for what tests/k8s/checkov.yaml explains."""
    files = [word for path in rendered for word in ("-f", str(path))]
    tool("checkov", "--config-file", ROOT / "tests" / "k8s" / "checkov.yaml", *files)


def test_yamllint_has_nothing_to_say() -> None:
    """Of what is written by hand: the chart's templates are no YAML before they are rendered."""
    written = [ROOT / "k8s", ROOT / "monitoring", *(ROOT / "charts" / "mirrorproxy").glob("*.yaml")]
    assert tool("yamllint", "--strict", "-c", ROOT / "tests" / "k8s" / "yamllint.yaml", *written) == ""


@serving
def test_mirrorproxy_takes_its_configuration(overlay: str, tmp_path: Path) -> None:
    """As it is in the ConfigMap; its ports are the containers', its cache is on a volume, its end is awaited."""
    configurations = dict(settings(overlay))
    assert configurations
    for name, pod in pods(overlay):
        config = loaded(configurations[name], tmp_path)
        serves = container(pod, "mirrorproxy")
        ports = {port["name"]: port["containerPort"] for port in serves["ports"]}
        assert [address.port for address in config.server.listen] == [ports["registry"]]
        assert [address.port for address in config.server.metrics_listen] == [ports["metrics"]]
        mounts = {mount["mountPath"]: mount for mount in serves["volumeMounts"]}
        assert str(config.cache.directory.parent) in mounts
        assert not mounts[str(config.cache.directory.parent)].get("readOnly")
        assert pod["terminationGracePeriodSeconds"] > config.server.grace
        assert f"{mounts['/etc/mirrorproxy']['mountPath']}/config.yaml" in serves["args"][1]
        assert mounts["/etc/mirrorproxy"]["readOnly"]


def test_two_tiers_serve_the_same_registries(tmp_path: Path) -> None:
    """Each first by the cluster's cache, under the name of its Service, then by where it is asked without one."""
    built_in = load(None, {"HOME": "/"}).settings.upstreams
    port = one("overlays/two-tier", "Service", "mirrorproxy-central")["spec"]["ports"][0]["port"]
    upstreams = loaded(dict(settings("overlays/two-tier"))["mirrorproxy-node"], tmp_path).upstreams
    assert upstreams.keys() == built_in.keys()
    for name, upstream in upstreams.items():
        assert upstream.endpoints == (f"http://mirrorproxy-central:{port}/{name}", *built_in[name].endpoints)
        assert upstream.default == built_in[name].default


@serving
def test_probes(overlay: str) -> None:
    """Ready asks whether it is; alive only whether the process turns, and seldom gives up on it."""
    for _, pod in pods(overlay):
        serves = container(pod, "mirrorproxy")
        probes = {name: serves[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
        assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
            "startup": "/readyz",
            "readiness": "/readyz",
            "liveness": "/livez",
        }
        assert {probe["httpGet"]["port"] for probe in probes.values()} == {"metrics"}
        assert probes["liveness"]["periodSeconds"] * probes["liveness"]["failureThreshold"] >= 60
        assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 180


@overlays
def test_pods_may_nothing(overlay: str) -> None:
    """What Pod Security calls restricted, but for hostPath, hostPort, and root in the init containers that need it."""
    for _, pod in pods(overlay):
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC", "automountServiceAccountToken"))
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["securityContext"]["runAsNonRoot"]
        for each in pod["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        for each in pod.get("initContainers", ()):
            context = each["securityContext"]
            assert context["runAsUser"] == 0
            assert context["readOnlyRootFilesystem"]
            assert context["capabilities"]["drop"] == ["ALL"]
            assert context["capabilities"].get("add", []) == (["CHOWN"] if each["name"] == "cache-directory" else [])


@overlays
def test_namespaces_say_what_their_pods_need(overlay: str) -> None:
    """`privileged` where a hostPath is, else `restricted`."""
    volumes = [volume for _, pod in pods(overlay) for volume in pod["volumes"]]
    needs = "privileged" if any("hostPath" in volume for volume in volumes) else "restricted"
    labels = one(overlay, "Namespace", "mirrorproxy")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == needs


@overlays
def test_no_rights_in_the_cluster(overlay: str) -> None:
    """No role, and no token in any pod: mirrorproxy never asks the Kubernetes API."""
    assert not {found["kind"] for found in objects(overlay)} & {"Role", "ClusterRole", "RoleBinding"}
    assert one(overlay, "ServiceAccount", "mirrorproxy")["automountServiceAccountToken"] is False


@serving
def test_who_may_connect(overlay: str) -> None:
    """Everybody to the registry's port, the monitoring's namespace alone to the other; nothing is let in besides."""
    policy = one(overlay, "NetworkPolicy", "mirrorproxy")["spec"]
    by_port = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}
    assert by_port.keys() == {"registry", "metrics"}
    assert by_port["registry"] is None
    assert by_port["metrics"]
    for found in objects(overlay):
        if "template" in found.get("spec", {}):
            labels = found["spec"]["template"]["metadata"]["labels"]
            assert policy["podSelector"]["matchLabels"].items() <= labels.items()


@on_nodes
def test_nodes_are_set_up_for_where_the_cache_is(overlay: str) -> None:
    """The mirror's URL is the hostPort on loopback, or the Service's node port on the node's own address."""
    pod = one(overlay, "DaemonSet", "mirrorproxy-node")["spec"]["template"]["spec"]
    words = container(pod, "containerd")["args"]
    assert [each["name"] for each in pod["initContainers"]] == ["cache-directory", "containerd"]
    port = next(port for port in container(pod, "mirrorproxy")["ports"] if port["name"] == "registry")
    if overlay == "overlays/node-port":
        service = one(overlay, "Service", "mirrorproxy-node")["spec"]
        assert service["trafficDistribution"] == "PreferSameNode"
        assert f"--mirror=http://$(NODE_IP):{service['ports'][0]['nodePort']}" in words
        assert "hostPort" not in port
    else:
        assert port["hostIP"] == "127.0.0.1"
        assert f"--mirror=http://127.0.0.1:{port['hostPort']}" in words


def test_services_find_their_pods() -> None:
    """Selectors are labels of the pods, target ports are names of their ports, budgets count them."""
    for overlay in ("overlays/node-port", "overlays/central", "overlays/two-tier"):
        makers = [found for found in objects(overlay) if "template" in found.get("spec", {})]
        for found in objects(overlay):
            if found["kind"] not in {"Service", "PodDisruptionBudget"}:
                continue
            selector = found["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            (maker,) = (m for m in makers if wanted.items() <= m["spec"]["template"]["metadata"]["labels"].items())
            ports = container(maker["spec"]["template"]["spec"], "mirrorproxy")["ports"]
            assert {port["targetPort"] for port in found["spec"].get("ports", ())} <= {port["name"] for port in ports}


@serving
def test_own_image(overlay: str, tmp_path: Path) -> None:
    """The kustomization of docs/kubernetes.md differs from the overlay by the image alone."""
    name = overlay.removeprefix("overlays/")
    made = documented("mine", tmp_path, name)
    assert images(made) == {"registry.example.com/mirrorproxy@sha256:" + "0" * 64}
    shipped = objects(overlay)
    images(shipped)
    assert made == shipped


@serving
def test_own_settings(overlay: str, tmp_path: Path) -> None:
    """The file that docs/kubernetes.md has one begin with is the overlay's: as it is, nothing changes but the image."""
    name = overlay.removeprefix("overlays/")
    begin_with = {of: file for among, of, file in _BEGIN_WITH.findall(DOCUMENT.read_text()) if f"`{name}`" in among}
    assert begin_with.keys() == {of for of, _ in settings(overlay)}
    for of, file in begin_with.items():
        folder = tmp_path / of
        made = documented("mine", folder, name, {f"{of}.yaml": (ROOT / file).read_text()}, {"mirrorproxy-node": of})
        shipped = objects(overlay)
        images(made)
        images(shipped)
        assert without_labels(made) == without_labels(shipped)
        other = documented(
            "mine", folder / "other", name, {f"{of}.yaml": "scrub: {every: 1d}\n"}, {"mirrorproxy-node": of}
        )
        assert [each["data"] for each in other if each["metadata"]["name"].startswith(f"{of}-") and "data" in each] == [
            {"config.yaml": "scrub: {every: 1d}\n"}
        ]


@on_nodes
def test_own_words(overlay: str, tmp_path: Path) -> None:
    """The patch of docs/kubernetes.md is for the init container that sets containerd up, and adds to its words."""
    text = next(each.text for each in snippets("docs/kubernetes.md") if "--registry=docker.io" in each.text)
    made = documented("mine", tmp_path, overlay.removeprefix("overlays/"), added=text)
    (daemons,) = (found for found in made if found["kind"] == "DaemonSet")
    words = container(daemons["spec"]["template"]["spec"], "containerd")["args"]
    shipped = one(overlay, "DaemonSet", "mirrorproxy-node")["spec"]["template"]["spec"]
    assert words == [*container(shipped, "containerd")["args"], "--registry=docker.io"]


def test_own_cleanup(tmp_path: Path) -> None:
    """The removal's overlay differs from the one in k8s/ by the image alone."""
    made = documented("mine-cleanup", tmp_path)
    assert images(made) == {"registry.example.com/mirrorproxy@sha256:" + "0" * 64}
    shipped = objects("overlays/cleanup")
    images(shipped)
    assert made == shipped


def documented(
    name: str,
    folder: Path,
    overlay: str = "",
    files: Mapping[str, str] = MappingProxyType({}),
    renamed: Mapping[str, str] = MappingProxyType({}),
    added: str = "",
) -> list[Object]:
    """What the kustomization of that name in docs/kubernetes.md comes to, for another overlay where one is named: with
    these files beside it and the block about settings, for the ConfigMap that is `renamed`, or with another block.
    """
    texts = [each.text for each in snippets("docs/kubernetes.md")]
    text = next(each for each in texts if each.startswith(f"# {name}/kustomization.yaml\n"))
    if files:
        added = next(each for each in texts if "configMapGenerator:" in each)
        for given, wanted in renamed.items():
            added = added.replace(given, wanted)
    work = folder / name
    work.mkdir(parents=True)
    text = text.replace("../mirrorproxy/k8s", "../k8s").replace("overlays/node-local", f"overlays/{overlay}")
    (work / "kustomization.yaml").write_text(text + added)
    for file, content in files.items():
        (work / file).write_text(content)
    (folder / "k8s").symlink_to(ROOT / "k8s")
    return list(yaml.safe_load_all(tool("kubectl", "kustomize", work)))


def images(made: list[Object]) -> set[str]:
    """Takes the images out of all containers, the first ones included; what they were."""
    pod_of = (found.get("spec", {}).get("template", {}).get("spec", {}) for found in made)
    all_of = (each for pod in pod_of for key in ("initContainers", "containers") for each in pod.get(key, ()))
    return {each.pop("image") for each in all_of}


def without_labels(made: list[Object]) -> list[Object]:
    """The objects without the labels of ConfigMaps, which nothing selects by."""
    for found in made:
        if found["kind"] == "ConfigMap":
            found["metadata"].pop("labels", None)
    return made
