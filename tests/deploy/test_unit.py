"""The units under a real systemd, process 1 of a container: with all their hardening, and everything that it does."""

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.image import ROOT, Engine
from tests.e2e.client import ask
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import own_address
from tests.fakes.hub import Hub

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("deploy image"),
    pytest.mark.timeout(600),  # where the base of the image is to be made
]

UNITS = ROOT / "packaging" / "systemd"
SYSTEM = "/etc/systemd/system"
# Everything that a systemd needs for its own sandboxes, and no way to the settings of this machine's kernel.
AS_A_MACHINE = (
    "--systemd=always",
    "--user=0",
    "--cap-add=all",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--image-volume=ignore",
    "--entrypoint=/lib/systemd/systemd",
)


class Machine:
    """A container with systemd as its process 1, and mirrorproxy installed as `docs/install.md` says."""

    def __init__(self, engine: Engine, name: str, etc: Path) -> None:
        self.etc = etc
        self._engine = engine
        self._name = name

    def write(self, settings: dict[str, Any]) -> None:
        """Put the configuration in place."""
        (self.etc / "config.yaml").write_text(yaml.safe_dump(settings))

    def drop_in(self, unit: str, text: str) -> None:
        """What an administrator changes, for as long as the machine runs."""
        folder = f"/run/systemd/system/{unit}.d"
        self.run("sh", "-c", f"mkdir -p {folder}; printf '%s' \"$1\" >{folder}/test.conf", "sh", text)
        self.run("systemctl", "daemon-reload")

    def run(self, *command: str) -> str:
        """Run a command on the machine as root. Raises AssertionError where that fails, with what it printed."""
        return self._engine.podman("exec", self._name, *command)

    async def systemctl(self, verb: str, *more: str) -> None:
        """Have systemd do something, and wait until it is done. Raises AssertionError, with the journal's end."""
        try:
            await asyncio.to_thread(self.run, "systemctl", verb, *more)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal()[-3000:]}") from None

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.run("systemctl", "show", "--value", f"--property={name}", "mirrorproxy.service").strip()

    def journal(self) -> str:
        """What the service and systemd wrote."""
        return self.run("journalctl", "--no-pager", "--unit=mirrorproxy.service", "--output=cat")


@pytest.fixture(scope="module")
def machine(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, with the units in place."""
    name, etc = f"machine-{os.getpid()}", tmp_path_factory.mktemp("etc")
    etc.chmod(0o755)
    mounts = [f"--volume={path}:{SYSTEM}/{path.name}:ro" for path in UNITS.iterdir()]
    engine.run(name, *AS_A_MACHINE, *mounts, f"--volume={etc}:/etc/mirrorproxy", engine.image, "--unit=basic.target")
    machine = Machine(engine, name, etc)
    machine.run("sh", "-c", "until systemctl is-active --quiet basic.target; do sleep 0.1; done")
    machine.run("rmdir", "/var/lib/mirrorproxy")  # the image's: a machine has none
    yield machine
    engine.remove(name)


@pytest.fixture
def address() -> str:
    """Where the service listens in this test."""
    return own_address()


async def test_the_unit_serves(machine: Machine, hub: Hub, address: str) -> None:
    """`systemctl start` comes back when it listens; as nobody, without capabilities, from a directory of its own."""
    machine.write(settings({"docker.io": upstream(hub)}, server={"listen": [address]}))
    await machine.systemctl("start", "mirrorproxy.service")
    assert machine.show("StatusText") == f"serves docker.io on {address}"

    digest = hub.add_blob("team/image", b"of the unit")
    hub.log.clear()
    for _ in range(2):
        answer = await ask(address, f"/v2/team/image/blobs/{digest}")
        assert (answer.status, answer.body) == (200, b"of the unit")
    assert hub.count("cdn", "GET") == 1
    assert b"\nprocess_start_time_seconds " in (await ask(address, "/metrics")).body

    status = machine.run("cat", f"/proc/{machine.show('MainPID')}/status")
    user = re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE)[0]
    assert 61184 <= int(user) <= 65519  # those of DynamicUser=
    confined = dict(re.findall(r"^(\w+):\s+(\w+)$", status, re.MULTILINE))
    assert (confined["CapEff"], confined["CapBnd"]) == ("0" * 16, "0" * 16)
    assert (confined["NoNewPrivs"], confined["Seccomp"]) == ("1", "2")
    kept = machine.run("find", "/var/lib/mirrorproxy/", "-name", digest.hex, "-printf", "%U")
    assert kept == user
    own = ("env", "MIRRORPROXY_CONFIG=/etc/mirrorproxy/config.yaml", "/opt/mirrorproxy/bin/mirrorproxy")
    assert machine.run(*own, "healthcheck") == f"ready (200 at {address})\n"
    machine.run(*own, "ls", "--cache-dir=/var/lib/mirrorproxy")


async def test_a_reload_and_a_configuration_that_cannot_be_used(machine: Machine, hub: Hub, address: str) -> None:
    """A reload keeps the process; a start with a wrong configuration fails, and is not tried again."""
    machine.write(settings({"docker.io": upstream(hub)}, server={"listen": [address]}))
    await machine.systemctl("restart", "mirrorproxy.service")
    before = machine.show("MainPID")
    machine.write(settings({"docker.io": upstream(hub), "other.test": upstream(hub)}, server={"listen": [address]}))
    await machine.systemctl("reload", "mirrorproxy.service")
    async with asyncio.timeout(20):
        while machine.show("StatusText") != f"serves docker.io, other.test on {address}":
            await asyncio.sleep(0.05)
    assert machine.show("MainPID") == before
    machine.write({"nonsense": 1})
    with pytest.raises(AssertionError, match="control process exited with error code"):
        await machine.systemctl("restart", "mirrorproxy.service")
    assert (machine.show("ExecMainStatus"), machine.show("NRestarts")) == ("78", "0")
    assert machine.show("SubState") == "failed"
    assert "/etc/mirrorproxy/config.yaml:1: nonsense: unknown key" in machine.journal()


async def test_a_process_that_hangs_is_started_anew(machine: Machine, hub: Hub, address: str) -> None:
    """Within the time of the watchdog."""
    machine.write(settings({"docker.io": upstream(hub)}, server={"listen": [address]}))
    machine.drop_in("mirrorproxy.service", "[Service]\nWatchdogSec=2\nRestartSec=0\n")
    await machine.systemctl("restart", "mirrorproxy.service")
    before = machine.show("MainPID")
    machine.run("sh", "-c", f"kill -STOP {before}")
    async with asyncio.timeout(60):
        while machine.show("MainPID") == before or machine.show("SubState") != "running":
            await asyncio.sleep(0.1)
    assert "Watchdog timeout (limit 2s)!" in machine.journal()
    assert (await ask(address, "/readyz")).status == 200
    machine.drop_in("mirrorproxy.service", "")


async def test_nobody_is_refused_while_a_service_with_a_socket_unit_starts_anew(
    machine: Machine, hub: Hub, address: str
) -> None:
    """The first client starts it; who comes while it is away waits."""
    machine.write(settings({"docker.io": upstream(hub)}))
    machine.drop_in("mirrorproxy.socket", f"[Socket]\nListenStream=\nListenStream={address}\n")
    await machine.systemctl("stop", "mirrorproxy.service")
    await machine.systemctl("start", "mirrorproxy.socket")
    assert machine.show("SubState") == "dead"
    digest = hub.add_blob("team/image", b"of the socket")
    assert (await ask(address, f"/v2/team/image/blobs/{digest}")).status == 200
    assert machine.show("StatusText") == f"serves docker.io on {address}"
    before = machine.show("MainPID")
    restart = asyncio.get_running_loop().create_task(machine.systemctl("restart", "mirrorproxy.service"))
    answers = []
    while not restart.done():
        answers.append((await ask(address, "/v2/")).status)
    await restart
    assert set(answers) == {200}
    assert machine.show("MainPID") != before
    await machine.systemctl("stop", "mirrorproxy.socket", "mirrorproxy.service")
    assert machine.show("Result") == "success"
