"""Under systemd: the units, what the service tells, and the sockets that it is handed."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorproxy.config import ListenAddress
from mirrorproxy.service import address_of
from mirrorproxy.service.notify import Notifier
from tests.e2e.client import ask
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, own_address
from tests.fakes.hub import Hub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("deploy systemd")]

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "packaging" / "systemd"


class Systemd:
    """The place that a service is told to notify."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    async def told(self, mark: str) -> dict[str, str]:
        """The next message that has this line, as a mapping. Others are passed over."""
        async with asyncio.timeout(20):
            while True:
                lines = (await asyncio.get_running_loop().sock_recv(self._socket, 4096)).decode().splitlines()
                if mark in lines:
                    return dict(line.split("=", 1) for line in lines)

    def waiting(self) -> list[bytes]:
        """What came meanwhile."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    """On a socket with a file, and on one without, as it is in a container."""
    systemd = Systemd(str(tmp_path / "notify") if request.param == "file" else f"@mirrorproxy-{os.getpid()}")
    yield systemd
    systemd.close()


# The units.


def _analyze(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *argv], capture_output=True, text=True, timeout=60)


def _unit(directory: Path, name: str, *, more: str = "") -> Path:
    """A copy of a unit that starts a program which is there on this machine."""
    text = (UNITS / name).read_text().replace("/opt/mirrorproxy/bin/mirrorproxy", sys.executable)
    (directory / name).write_text(text.replace("[Service]\n", f"[Service]\n{more}"))
    return directory / name


async def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    """Of keys that it does not know it says so, and ends with 0 all the same: silence is what counts."""
    done = _analyze("verify", "--man=no", _unit(tmp_path, "mirrorproxy.service"), _unit(tmp_path, "mirrorproxy.socket"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = _analyze("verify", "--man=no", _unit(tmp_path, "mirrorproxy.service", more="NoSuchKey=1\n"))
    assert done.returncode == 0
    assert "NoSuchKey" in done.stderr


async def test_the_service_can_reach_little() -> None:
    """An exposure of less than 1.5, of 10."""
    done = _analyze("security", "--offline=true", "--threshold=14", UNITS / "mirrorproxy.service")
    assert done.returncode == 0, done.stdout


async def test_the_system_calls_that_it_makes_are_let_through(hub: Hub, tmp_path: Path) -> None:
    """From the start over a pull to the end: the filter refuses none of them."""
    trace = tmp_path / "trace"
    within = ("strace", "--follow-forks", "--quiet=all", "--signal=none", "--trace=all", f"--output={trace}")
    image = hub.add_image("team/calls", "1", os.urandom(100_000))
    async with Proxy(tmp_path / "proxy", settings({"docker.io": upstream(hub)}), within=within) as proxy:
        assert (await proxy.ask("/v2/team/calls/manifests/1")).status == 200
        for _ in range(2):
            assert (await proxy.ask(f"/v2/team/calls/blobs/{image.layers[0].digest}")).status == 200
        child = int(Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text())
        os.kill(child, signal.SIGTERM)
        assert await proxy.ended() == 0
    made = set(re.findall(r"^\d+ +(?:\[[^]]*\] )?(\w+)\(", trace.read_text(), re.MULTILINE))
    assert {"openat", "sendto", "renameat", "rename"} & made
    assert made - _calls("@system-service") == set()
    assert made & _calls("@privileged") <= {"fchown"}  # SQLite's, as root alone: its files are to have one owner


def _calls(group: str) -> set[str]:
    """The system calls of a group, those of the groups in it too."""
    words = re.findall(r"^ {4}(\S+)$", _analyze("syscall-filter", group).stdout, re.MULTILINE)
    assert words
    return {call for word in words for call in (_calls(word) if word.startswith("@") else {word})}


# What the service tells.


async def test_each_stage_of_its_life_is_told(hub: Hub, tmp_path: Path, systemd: Systemd) -> None:
    """Ready, reloading and ready again, stopping: with a line for `systemctl status`, and how long the end may take."""
    environ = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "150000"}
    proxy = Proxy(tmp_path / "proxy", settings({"docker.io": upstream(hub)}), environ=environ)
    async with proxy:
        ready = await systemd.told("READY=1")
        assert ready["STATUS"] == f"serves docker.io on {proxy.address}"
        for _ in range(3):
            await systemd.told("WATCHDOG=1")
        proxy.settings["server"]["grace"] = "7s"
        await proxy.reload()
        reloading = await systemd.told("RELOADING=1")
        assert 0 < int(reloading["MONOTONIC_USEC"]) < 1 << 63
        await systemd.told("READY=1")
        proxy.send(signal.SIGTERM)
        assert await systemd.told("STOPPING=1") == {
            "STOPPING": "1",
            "EXTEND_TIMEOUT_USEC": "22000000",
            "STATUS": "running transfers get time to end",
        }
        assert await proxy.ended() == 0


async def test_a_reload_that_fails_leaves_it_ready(hub: Hub, tmp_path: Path, systemd: Systemd) -> None:
    """With the settings that it had."""
    proxy = Proxy(
        tmp_path / "proxy", settings({"docker.io": upstream(hub)}), environ={"NOTIFY_SOCKET": systemd.address}
    )
    async with proxy:
        await systemd.told("READY=1")
        proxy.config.write_text("nonsense: 1\n")
        proxy.tolerate("not loaded anew")
        proxy.send(signal.SIGHUP)
        await systemd.told("RELOADING=1")
        assert (await systemd.told("READY=1"))["STATUS"].startswith("serves docker.io on ")
        assert proxy.said("not loaded anew, the old settings stay")
        assert b"WATCHDOG=1" not in systemd.waiting()  # none was asked for


async def test_nothing_is_told_of_a_start_that_fails(hub: Hub, tmp_path: Path, systemd: Systemd) -> None:
    """Its exit status says it: 78 is a configuration that no second try makes better."""
    chosen = settings({"docker.io": {**upstream(hub), "tag_ttl": "soon"}})
    proxy = Proxy(tmp_path / "proxy", chosen, environ={"NOTIFY_SOCKET": systemd.address})
    assert await proxy.run() == os.EX_CONFIG
    assert systemd.waiting() == []
    assert f"RestartPreventExitStatus={os.EX_CONFIG}\n" in (UNITS / "mirrorproxy.service").read_text()


async def test_an_event_loop_that_is_stuck_gives_no_sign_of_life(systemd: Systemd) -> None:
    """And one that turns again does: whatever keeps the loop from its clients keeps it from the watchdog."""
    environ = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid()), "X": "1"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"X": "1"}  # what we start in our turn does not speak for us
    keeping = asyncio.get_running_loop().create_task(notifier.keep_watchdog())
    await systemd.told("WATCHDOG=1")
    await systemd.told("WATCHDOG=1")
    systemd.waiting()
    threading.Event().wait(0.2)
    assert systemd.waiting() == []
    await systemd.told("WATCHDOG=1")
    keeping.cancel()
    notifier.close()
    notifier.ready("nobody listens")


async def test_a_watchdog_that_is_meant_for_another_process_is_not_kept() -> None:
    """Nor one of no time, or of a time that is none; nor any where nobody is to be notified."""
    for environ in ({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {}):
        notifier = Notifier.from_environment(environ)
        async with asyncio.timeout(1):
            await notifier.keep_watchdog()
        notifier.ready("well")


async def test_a_systemd_that_is_gone_is_no_reason_to_serve_worse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told in the log."""
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.ready("well")
    assert "systemd cannot be told" in caplog.text
    notifier.close()


# The sockets that it is handed.


def _activated(hub: Hub, directory: Path, *listen: str, environ: dict[str, str] | None = None, **changes: Any) -> Proxy:
    """A service whose sockets systemd opens; the first client starts it."""
    flags = [f"--setenv={name}={value}" for name, value in (environ or {}).items()]
    within = ("systemd-socket-activate", *(f"--listen={each}" for each in listen), *flags)
    return Proxy(directory, settings({"docker.io": upstream(hub)}, **changes), within=within)


async def test_sockets_that_systemd_opened_are_served(hub: Hub, tmp_path: Path, systemd: Systemd) -> None:
    """Of every kind; what is configured is not opened beside them. They are not handed on to other programs."""
    configured, v4, v6, path = own_address(), own_address(), f"[::1]:{_free_port()}", tmp_path / "s"
    proxy = _activated(
        hub,
        tmp_path / "proxy",
        v4,
        v6,
        str(path),
        environ={"NOTIFY_SOCKET": systemd.address},
        server={"listen": [configured]},
    )
    proxy.address = v4
    proxy.tolerate("^(Listening on|Communication attempt|Execing) ")  # systemd's own words
    image = hub.add_image("team/activated", "1", b"a layer")
    hub.log.clear()
    async with proxy:
        assert (await systemd.told("READY=1"))["STATUS"] == f"serves docker.io on {v4}, {v6}, unix:{path}"
        for address in (v4, v6, f"unix:{path}"):
            answer = await ask(address, f"/v2/team/activated/blobs/{image.layers[0].digest}")
            assert (answer.status, answer.body) == (200, b"a layer")
        assert len([seen for seen in hub.seen("blob", "GET") if seen.status != 401]) == 1
        said = f"{v4}, {v6}, unix:{path}: handed over to this process; server.listen is not used"
        assert said in proxy.stderr.read_text()
        with pytest.raises(ConnectionRefusedError):
            await ask(configured, "/readyz")
        for number in (3, 4, 5):
            flags = int(re.findall(r"flags:\s+(\d+)", Path(f"/proc/{proxy.pid}/fdinfo/{number}").read_text())[0], 8)
            assert flags & os.O_CLOEXEC
    assert path.is_socket()  # it is systemd's


def _free_port() -> int:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        return int(server.getsockname()[1])


async def test_credentials_are_not_opened_to_all_by_a_socket(hub: Hub, tmp_path: Path) -> None:
    """Sockets that were handed over are looked at as those that are configured: 127.0.0.1 in the file is not enough."""
    port = _free_port()
    credentials = {"username": "u", "password_env": "HUB"}
    proxy = _activated(hub, tmp_path / "proxy", f"0.0.0.0:{port}", environ={"HUB": "secret"})
    proxy.settings["upstreams"]["docker.io"]["credentials"] = credentials
    await proxy.launch()
    await _knock(port)
    assert await proxy.ended() == os.EX_CONFIG
    assert f"whoever reaches 0.0.0.0:{port} could pull private images" in proxy.stderr.read_text()


async def _knock(port: int) -> None:
    """Connect, once somebody listens there."""
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return


async def test_what_does_not_listen_is_refused(hub: Hub, tmp_path: Path) -> None:
    """With words for whoever wrote the socket unit."""
    port = _free_port()
    chosen = settings({"docker.io": upstream(hub)})
    datagrams = ("systemd-socket-activate", "--datagram", "--fdname=web", f"--listen=127.0.0.1:{port}")
    proxy = Proxy(tmp_path / "proxy", chosen, within=datagrams)
    await proxy.launch()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        ended = asyncio.get_running_loop().create_task(proxy.ended())
        while not ended.done():
            client.sendto(b"x", ("127.0.0.1", port))
            await asyncio.sleep(0.05)
    assert await ended == os.EX_CONFIG
    assert (
        "the socket web that was handed over (descriptor 3) does not listen; a socket unit" in proxy.stderr.read_text()
    )


@pytest.mark.parametrize("descriptor", ["</dev/null", "<&-"])
async def test_what_is_no_socket_is_refused(hub: Hub, tmp_path: Path, descriptor: str) -> None:
    """As after a program that passes on the variables and not the descriptors."""
    hands_over = f'export LISTEN_PID=$$ LISTEN_FDS=1; exec 3{descriptor}; exec "$@"'
    proxy = Proxy(tmp_path / "proxy", settings({"docker.io": upstream(hub)}), within=("sh", "-c", hands_over, "sh"))
    assert await proxy.run() == os.EX_CONFIG
    text = proxy.stderr.read_text()
    assert re.fullmatch(r"the socket 3 that was handed over \(descriptor 3\) cannot be used: .+\n", text)


@pytest.mark.parametrize("told", [{"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1"}])
async def test_sockets_for_another_process_are_left_alone(hub: Hub, tmp_path: Path, told: dict[str, str]) -> None:
    """A parent's variables say nothing of its child's descriptors."""
    async with Proxy(tmp_path / "proxy", settings({"docker.io": upstream(hub)}), environ=told) as proxy:
        assert not proxy.said("handed over")


async def test_the_address_of_a_socket_is_written_as_the_configuration_has_it(tmp_path: Path) -> None:
    """Those without a file are marked as such."""
    for family, address, written in (
        (socket.AF_INET, ("127.0.0.1", 0), r"127\.0\.0\.1:\d+"),
        (socket.AF_INET6, ("::1", 0), r"\[::1\]:\d+"),
        (socket.AF_UNIX, str(tmp_path / "s"), f"unix:{tmp_path}/s"),
        (socket.AF_UNIX, "\0name", "unix:/@name"),
    ):
        with socket.socket(family, socket.SOCK_STREAM) as taken:
            taken.bind(address)
            assert re.fullmatch(written, address_of(taken))
            ListenAddress.parse(address_of(taken))
