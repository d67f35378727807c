"""What the overlays in `k8s/` come to, and the validators that look at it (in .venv/tools, see tests/tools.txt)."""

import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = Path(sys.prefix) / "tools" / "bin"
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())
ON_NODES = ("node-local", "node-port", "two-tier")
VERSIONS = ("1.30", "1.33", "1.37")
"""Of Kubernetes: the oldest with everything the manifests use, one between, the newest there are schemas of."""

Object = dict[str, Any]


class Failed(Exception):
    """A tool found something; the message is its output."""


def tool(*argv: str | Path, given: str | None = None) -> str:
    """Runs a validator; its standard output.

    Raises Failed: it ended with an error.
    """
    env = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}"}
    done = subprocess.run([str(TOOLS / argv[0]), *argv[1:]], input=given, capture_output=True, text=True, env=env)
    if done.returncode:
        raise Failed(done.stdout + done.stderr)
    return done.stdout


@functools.cache
def kustomize(folder: str) -> str:
    """The YAML of a kustomization: `overlays/node-local`."""
    return tool("kubectl", "kustomize", ROOT / "k8s" / folder)


def objects(folder: str) -> list[Object]:
    """The objects of a kustomization."""
    return [found for found in yaml.safe_load_all(kustomize(folder)) if found]


def one(folder: str, kind: str, name: str) -> Object:
    """The one object with a kind and a name; a generated name's hash does not count."""
    (found,) = (each for each in objects(folder) if each["kind"] == kind and _name(each) == name)
    return found


def pods(folder: str) -> Iterator[tuple[str, Object]]:
    """Every pod specification, with the name of what makes pods of it."""
    for found in objects(folder):
        if "template" in found.get("spec", {}):
            yield found["metadata"]["name"], found["spec"]["template"]["spec"]


def container(pod: Mapping[str, Any], name: str) -> Object:
    """A container of a pod, the first ones included."""
    (found,) = (each for each in (*pod.get("initContainers", ()), *pod["containers"]) if each["name"] == name)
    return dict(found)


def settings(folder: str) -> Iterator[tuple[str, str]]:
    """The configurations of mirrorproxy, with the names that they were generated from."""
    for found in objects(folder):
        if found["kind"] == "ConfigMap" and "config.yaml" in found["data"]:
            yield _name(found), found["data"]["config.yaml"]


def _name(found: Object) -> str:
    name: str = found["metadata"]["name"]
    generated = found["kind"] == "ConfigMap" and len(name.rpartition("-")[2]) == 10
    return name.rpartition("-")[0] if generated else name
