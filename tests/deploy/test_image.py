"""The container image: its Dockerfile, what is locked, and a container of it with a read-only root."""

import asyncio
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mirrorproxy.config import load
from tests.deploy.image import LOCKS, ROOT, RUN, Engine
from tests.e2e.client import ask
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import own_address
from tests.fakes.hub import Hub

pytestmark = [pytest.mark.xdist_group("deploy image"), pytest.mark.timeout(600)]  # where the base is to be made

TOOLS = Path(sys.prefix) / "tools" / "bin"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _tool(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    """Not even a remark."""
    done = _tool(TOOLS / "hadolint", "--no-color", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_checkov_finds_nothing_in_the_dockerfile() -> None:
    """But for what the file itself says why not."""
    done = _tool(TOOLS / "checkov", "--skip-download", "--framework=dockerfile", "--file=Dockerfile", "--output=json")
    found = json.loads(done.stdout)["results"]
    assert [check["check_id"] for check in found["failed_checks"]] == []
    assert len(found["passed_checks"]) > 50
    assert [check["check_id"] for check in found["skipped_checks"]] == ["CKV_DOCKER_7"]


# What is locked.


def _locked(path: Path) -> dict[str, Requirement]:
    """The packages of a lock file by name, each with its one version and its hashes checked for."""
    found: dict[str, Requirement] = {}
    for entry in path.read_text().replace(" \\\n", " ").splitlines():
        if entry and not entry.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=sha256:", entry)
            parsed = Requirement(requirement)
            assert re.fullmatch(r"==[^*,]+", str(parsed.specifier))
            assert hashes
            assert all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes)
            found[canonicalize_name(parsed.name)] = parsed
    return found


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (LOCKS[0], PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["otel"]),
        (LOCKS[1], PROJECT["build-system"]["requires"]),
    ],
    ids=["runtime", "build"],
)
def test_the_lock_is_in_step_with_the_project(path: Path, wanted: list[str]) -> None:
    """Each dependency is locked at a version that the project takes, and so is what these need; nothing else is.

    `make lock` renews the files.
    """
    locked = _locked(path)
    for dependency in map(Requirement, wanted):
        (version,) = locked[canonicalize_name(dependency.name)].specifier
        assert dependency.specifier.contains(version.version), f"{dependency} is not met by {version}: make lock"
    if path == LOCKS[0]:  # what these need, as far as it is installed here
        assert {name for name, each in locked.items() if not each.marker} == _needed(map(Requirement, wanted))


def _needed(wanted: Iterator[Requirement]) -> set[str]:
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        each = todo.pop()
        name = canonicalize_name(each.name)
        if name not in found and (each.marker is None or each.marker.evaluate({"extra": ""})):
            found.add(name)
            todo += map(Requirement, importlib.metadata.requires(name) or [])
    return found


# The image.


def test_the_image_says_how_it_is_run(engine: Engine) -> None:
    """What engines and people read off it."""
    found = engine.configuration()
    assert (found["Entrypoint"], found["Cmd"]) == (["mirrorproxy"], ["serve"])
    assert (found["User"], found["StopSignal"]) == ("65532:65532", "SIGTERM")
    assert (list(found["Volumes"]), list(found["ExposedPorts"])) == (["/var/lib/mirrorproxy"], ["5000/tcp"])
    assert found["Healthcheck"]["Test"] == ["CMD", "mirrorproxy", "healthcheck"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in found["Labels"].items()}
    assert (labels["title"], labels["licenses"]) == ("mirrorproxy", PROJECT["project"]["license"])
    assert (labels["version"], labels["revision"]) == ("1.2.3", "abcdef")
    assert "A pull-through cache" in labels["description"]


def test_the_image_without_a_configuration_serves_all_of_its_port() -> None:
    """The well-known registries, from the volume."""
    text = (ROOT / "Dockerfile").read_text()
    assert "XDG_CACHE_HOME=/var/lib " in text
    assert f"ARG VERSION={PROJECT['project']['version']}\n" in text
    built_in = load(None, {"XDG_CACHE_HOME": "/var/lib"}).settings
    shipped = load(ROOT / "packaging/container/config.yaml", {"XDG_CACHE_HOME": "/var/lib"}).settings
    assert [str(address) for address in shipped.server.listen] == ["0.0.0.0:5000"]
    assert shipped == built_in.model_copy(update={"server": shipped.server})
    assert str(shipped.cache.directory) == "/var/lib/mirrorproxy"


def test_the_image_has_what_is_locked_and_nothing_else(engine: Engine) -> None:
    """No installer, no build tool, no tests; and all of it belongs to root."""
    program = (
        "import importlib.metadata as m, json, pathlib, sys; root = pathlib.Path('/opt/mirrorproxy');"
        "print(json.dumps([{d.name: d.version for d in m.distributions(path=[p for p in sys.path if 'opt' in p])},"
        "sorted(str(p) for p in root.rglob('*') if not p.is_symlink() and p.stat().st_uid)]))"
    )
    installed, foreign = json.loads(
        engine.podman("run", "--rm", *RUN, *STRICT, "--entrypoint=python", engine.image, "-c", program)
    )
    installed = {canonicalize_name(name): version for name, version in installed.items()}
    assert installed.pop("mirrorproxy") == PROJECT["project"]["version"]
    assert installed == {name: str(each.specifier)[2:] for name, each in _locked(LOCKS[0]).items()}
    assert foreign == []


STRICT = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
"""As strict as Kubernetes' `restricted`."""


@pytest.fixture
def container(engine: Engine, hub: Hub, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A container with a configuration of its own, running; its name and its address."""
    name, address = f"mirrorproxy-{os.getpid()}", own_address()
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings({"docker.io": upstream(hub)}, server={"listen": [address]})))
    os.chmod(tmp_path, 0o755)
    engine.run(name, *STRICT, f"--volume={config}:/etc/mirrorproxy/config.yaml:ro", engine.image)
    yield name, address
    engine.remove(name)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_container_is_pulled_through(
    engine: Engine, container: tuple[str, str], hub: Hub, tmp_path: Path
) -> None:
    """By skopeo, twice for one transfer, from a container as nobody, with a root that cannot be written to."""
    name, address = container
    image = hub.add_image("team/image", "1", os.urandom(1 << 20))
    async with asyncio.timeout(30):
        while True:
            try:
                assert (await ask(address, "/readyz")).status == 200
                break
            except OSError:
                await asyncio.sleep(0.05)
    hub.log.clear()
    for copy in ("first", "second"):
        source = f"docker://{address}/team/image:1"
        command = ("skopeo", "copy", "--quiet", "--src-tls-verify=false", source, f"dir:{tmp_path / copy}")
        process = await asyncio.create_subprocess_exec(*command, env=os.environ | {"HOME": str(tmp_path)})
        assert await process.wait() == 0
        assert (tmp_path / copy / image.layers[0].digest.hex).stat().st_size == 1 << 20
    assert len([seen for seen in hub.seen("cdn", "GET") if image.layers[0].digest.hex in seen.target]) == 1

    def inside(*command: str) -> str:
        return engine.podman("exec", name, *command)

    engine.podman("healthcheck", "run", name)
    assert inside("mirrorproxy", "healthcheck") == f"ready (200 at {address})\n"
    assert "team/image" in inside("mirrorproxy", "ls")
    assert inside("id", "--user").strip() == "65532"
    assert inside("sh", "-c", "touch /opt/mirrorproxy/x /etc/x /tmp/x 2>&1 || true").count("Read-only file system") == 3
    assert "CapBnd:\t0000000000000000" in inside("cat", "/proc/1/status")
    engine.podman("stop", "--time=20", name)
    ended = json.loads(engine.podman("container", "inspect", name))[0]["State"]
    assert (ended["Status"], ended["ExitCode"]) == ("exited", 0)
