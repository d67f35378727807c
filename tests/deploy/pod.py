"""The pods of `k8s/`, run by podman as the kubelet has them run: image, words, user, capabilities, volumes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.clients.netns import Namespace
from tests.deploy.image import Engine
from tests.k8s.manifests import Object, container


class Pod:
    """The containers of one pod specification, in one network namespace.

    `volumes` are the folders that stand for hostPath and ConfigMap volumes, by name.
    """

    def __init__(self, engine: Engine, pod: Object, network: str, volumes: Mapping[str, Path]) -> None:
        self._engine = engine
        self._pod = pod
        self._network = network
        self._volumes = volumes

    def run(self, name: str) -> str:
        """Run an init container to its end; what it printed."""
        return self._engine.podman(*self._flags(name), "--rm", *self._command(name))

    def start(self, name: str, as_name: str, **environ: str) -> None:
        """Start a container, as podman's `as_name`. `environ` comes on top of what it has."""
        more = [f"--env={variable}={value}" for variable, value in environ.items()]
        self._engine.podman(*self._flags(name), "--detach", f"--name={as_name}", *more, *self._command(name))

    def is_ready(self, name: str, namespace: Namespace) -> bool:
        """What its readiness probe says, asked from a namespace with the pod's network."""
        each = container(self._pod, name)
        probe = each["readinessProbe"]["httpGet"]
        (port,) = (port["containerPort"] for port in each["ports"] if port["name"] == probe["port"])
        try:
            return namespace.request("GET", f"http://127.0.0.1:{port}{probe['path']}").status == 200
        except OSError:
            return False

    def _flags(self, name: str) -> list[str]:
        each = container(self._pod, name)
        context: Mapping[str, Any] = {**self._pod["securityContext"], **each["securityContext"]}
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        flags = ["run", f"--network={self._network}", "--read-only", "--read-only-tmpfs=false", "--pull=never"]
        flags += ["--security-opt=no-new-privileges", "--health-interval=disable"]
        flags += ["--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"]  # what runc may set where the tests run
        flags += [f"--user={context['runAsUser']}:{context['runAsGroup']}"]
        flags += [f"--cap-drop={each}" for each in context["capabilities"]["drop"]]
        flags += [f"--cap-add={each}" for each in context["capabilities"].get("add", ())]
        if "fsGroup" in context:
            flags += [f"--group-add={context['fsGroup']}"]
        return flags + [self._mount(mount) for mount in each.get("volumeMounts", ())]

    def _mount(self, mount: Mapping[str, Any]) -> str:
        (volume,) = (each for each in self._pod["volumes"] if each["name"] == mount["name"])
        if "emptyDir" in volume:
            return f"--tmpfs={mount['mountPath']}:mode=1777"
        mode = "ro" if mount.get("readOnly") else "rw"
        return f"--volume={self._volumes[mount['name']]}:{mount['mountPath']}:{mode}"

    def _command(self, name: str) -> list[str]:
        each = container(self._pod, name)
        program, *words = each["command"]
        return [f"--entrypoint={program}", self._engine.image, *words, *each.get("args", ())]
