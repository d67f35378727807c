"""The Helm chart says what the Kustomize overlays say, and refuses values that it does not know."""

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirrorproxy.config import load
from tests.documents import snippets
from tests.k8s.manifests import OVERLAYS, ROOT, VERSIONS, Object, objects, tool

CHART = ROOT / "charts" / "mirrorproxy"
HELMS_OWN = {"app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"}


def helm(*values: Object) -> Any:
    """What tests/k8s/helm.py says."""
    return json.loads(tool("python", ROOT / "tests" / "k8s" / "helm.py", given=json.dumps(values)))


def rendered(values: Object) -> list[Object]:
    """The objects of the chart. Fails where it does not render."""
    (files,) = helm(values)["rendered"]
    assert "error" not in files, files["error"]
    texts = (text for name, text in files.items() if not name.endswith("NOTES.txt"))
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def normalised(found: Iterable[Object]) -> dict[tuple[str, str], Object]:
    """By kind and name, without what is either tool's own way: hashes, Helm's labels, the order of keys in settings."""
    result = {}
    for each in copy.deepcopy(list(found)):
        if each["kind"] == "Namespace":
            continue  # Helm's comes from --create-namespace
        _plain(each)
        if each["kind"] == "ConfigMap" and "config.yaml" in each["data"]:
            each["data"]["config.yaml"] = yaml.safe_load(each["data"]["config.yaml"])
        result[each["kind"], each["metadata"]["name"]] = each
    return result


def _plain(value: Any) -> None:
    """Takes out of an object what is compared by no one."""
    if isinstance(value, list):
        for each in value:
            _plain(each)
    if not isinstance(value, dict):
        return
    for key, below in list(value.items()):
        if key in HELMS_OWN or key == "checksum/config":
            del value[key]
        elif (
            key == "name" and isinstance(below, str) and below.startswith(("mirrorproxy-node-", "mirrorproxy-central-"))
        ):
            value[key] = below.rpartition("-")[0]
        else:
            _plain(below)
            if key == "annotations" and not below:
                del value[key]


def test_lint() -> None:
    """Helm's own lint, strict, has no warning; the icon it recommends there is none of."""
    said = helm()["lint"]
    assert said["errors"] == []
    assert [message["error"] for message in said["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_same_as_the_overlay(overlay: str) -> None:
    """Object for object."""
    by_helm, by_kustomize = normalised(rendered({"mode": overlay})), normalised(objects(f"overlays/{overlay}"))
    assert by_helm.keys() == by_kustomize.keys()
    for key, found in by_kustomize.items():
        assert by_helm[key] == found


def test_its_default_is_node_local() -> None:
    """`helm install` without a word is the first overlay of the documentation."""
    assert rendered({}) == rendered({"mode": "node-local"})


EVERYTHING: Object = {
    "mode": "two-tier",
    "image": {"repository": "registry.example.com/mirrorproxy", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "pull"}],
    "node": {
        "setupArguments": ["--registry=docker.io", "--replace"],
        "seLinuxOptions": {"type": "spc_t"},
        "resourceQuota": False,
        "priorityClassName": "",
        "volumes": [{"name": "hub", "secret": {"secretName": "hub"}}],
        "volumeMounts": [{"name": "hub", "mountPath": "/run/secrets/hub", "readOnly": True}],
    },
    "twoTier": {"registries": ["docker.io", "r.example.com"]},
    "central": {
        "replicas": 2,
        "storage": {"size": "1Ti", "className": "fast"},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "system-cluster-critical",
        "volumes": [{"name": "hub", "secret": {"secretName": "hub"}}],
        "volumeMounts": [{"name": "hub", "mountPath": "/run/secrets/hub", "readOnly": True}],
    },
}


def test_every_value_arrives(tmp_path: Path) -> None:
    """Values of all kinds render to what Kubernetes takes, and are where they belong."""
    found = {(each["kind"], each["metadata"]["name"]): each for each in rendered(EVERYTHING)}
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(found.values()))
    tool("kubernetes-validate", "--strict", "-k", VERSIONS[-1], path)
    assert ("ResourceQuota", "mirrorproxy") not in found
    node = found["DaemonSet", "mirrorproxy-node"]["spec"]["template"]["spec"]
    assert "priorityClassName" not in node
    assert node["initContainers"][1]["args"][-2:] == ["--registry=docker.io", "--replace"]
    assert node["containers"][0]["image"] == "registry.example.com/mirrorproxy@sha256:" + "0" * 64
    assert node["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    config = yaml.safe_load(found["ConfigMap", "mirrorproxy-node"]["data"]["config.yaml"])
    assert config["upstreams"]["r.example.com"]["endpoints"] == [
        "http://mirrorproxy-central:5000/r.example.com",
        "https://r.example.com",
    ]
    central = found["StatefulSet", "mirrorproxy-central"]["spec"]
    assert central["replicas"] == 2
    assert central["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"
    assert "/run/secrets/hub" in [
        mount["mountPath"] for mount in central["template"]["spec"]["containers"][0]["volumeMounts"]
    ]
    assert found["Service", "mirrorproxy-central"]["spec"]["type"] == "LoadBalancer"


def test_the_document_s_values(tmp_path: Path) -> None:
    """They render, and mirrorproxy takes the settings in them."""
    text = next(each.text for each in snippets("docs/kubernetes.md") if each.text.startswith("# values.yaml"))
    found = {(each["kind"], each["metadata"]["name"]): each for each in rendered(yaml.safe_load(text))}
    pod = found["DaemonSet", "mirrorproxy-node"]["spec"]["template"]["spec"]
    (secret,) = (volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    assert secret == {"secretName": "docker-hub", "defaultMode": 0o440}
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]  # whose the files then are
    config = found["ConfigMap", "mirrorproxy-node"]["data"]["config.yaml"]
    (tmp_path / "password").write_text("secret")
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "config.yaml").write_text(config.replace("/run/secrets/hub", str(tmp_path)))
    loaded = load(tmp_path / "config.yaml", {})
    assert loaded.settings.upstreams.keys() == {"docker.io", "ghcr.io"}
    assert loaded.warnings == []


def test_no_quota_without_a_class() -> None:
    """A quota that names no class would be refused by Kubernetes."""
    found = rendered({"node": {"priorityClassName": ""}})
    assert "ResourceQuota" not in {each["kind"] for each in found}


def test_without_setup() -> None:
    """`node.setup: false`: nothing of the node's containerd is mounted."""
    (daemons,) = (each for each in rendered({"node": {"setup": False}}) if each["kind"] == "DaemonSet")
    pod = daemons["spec"]["template"]["spec"]
    assert [each["name"] for each in pod["initContainers"]] == ["cache-directory"]
    assert "certs" not in [volume["name"] for volume in pod["volumes"]]


def test_changed_settings_restart_the_pods() -> None:
    """By the annotation with their hash."""
    before, after = (
        next(each for each in rendered(values) if each["kind"] == "DaemonSet")["spec"]["template"]["metadata"]
        for values in ({}, {"node": {"config": {"log": {"level": "debug"}}}})
    )
    assert before["annotations"] != after["annotations"]


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "nodelocal"},
        {"node": {"hostport": 5000}},
        {"node": {"hostPort": "5000"}},
        {"image": {"digest": "sha256:1"}},
        {"central": {"replicas": 0}},
        {"networkpolicy": {}},
    ],
    ids=json.dumps,
)
def test_wrong_values_are_refused(values: Object) -> None:
    """By values.schema.json, before anything is rendered."""
    (answer,) = helm(values)["rendered"]
    assert "error" in answer


def test_every_default_is_in_the_schema() -> None:
    """And nothing is in the schema that has no default, but `global`, which is Helm's."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["properties"].keys() - {"global"} == values.keys()
    for name, below in values.items():
        if isinstance(below, dict):
            assert schema["properties"][name]["properties"].keys() == below.keys()


def test_versions_are_the_programs() -> None:
    """The chart, its default image and the overlays' are of the version in pyproject.toml."""
    from mirrorproxy import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    for name in OVERLAYS:
        overlay = yaml.safe_load((ROOT / "k8s" / "overlays" / name / "kustomization.yaml").read_text())
        assert overlay["images"] == [{"name": "mirrorproxy", "newTag": __version__}]
