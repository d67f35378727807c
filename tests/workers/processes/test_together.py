"""Several processes that are one service: its settings, metrics, commands and addresses."""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from bench.memory import pss, tree
from mirrorproxy.registry import Result
from tests.cli.conftest import Cache
from tests.e2e.client import ask, begin, connect
from tests.e2e.proxy import Proxy, own_address, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.web.wire import Answer, Wire
from tests.workers.processes.conftest import MIB, Serve, at_each_worker, connections, pids, template

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("workers together")]


async def both(some: Wire, other: Wire, target: str) -> list[Answer]:
    """What both workers answer."""
    return [await wire.ask(target) for wire in (some, other)]


# Settings.


async def test_settings_count_in_both_at_once(serve: Serve, hub: Hub) -> None:
    """Upstreams that come and go, who may see what, what is logged, how long a client may take nothing."""
    data = os.urandom(24 * MIB)
    image = hub.add_image("team/a", "1", data)
    manifest, blob = "/v2/team/a/manifests/1", f"/v2/team/a/blobs/{image.layers[0].digest}"
    async with serve() as proxy, connections(proxy, 2) as ((one, slow), (other, slower)):
        assert {answer.body for answer in await both(one, other, manifest)} == {image.body}
        assert {answer.body == data for answer in await both(one, other, blob)} == {True}
        assert {answer.status for answer in await both(one, other, "/v2/quay.io/team/a/manifests/1")} == {404}
        first = proxy.settings["upstreams"]["docker.io"]
        proxy.settings["upstreams"]["quay.io"] = {**first, "default": False}
        first["repositories"] = ["other/*"]
        proxy.settings["server"]["write_timeout"] = "300ms"
        proxy.settings["log"] = {"level": "debug"}
        await proxy.reload()
        assert {answer.body for answer in await both(one, other, "/v2/quay.io/team/a/manifests/1")} == {image.body}
        assert {answer.status for answer in await both(one, other, manifest)} == {403}
        assert {answer.status for answer in await both(one, other, blob)} == {403}
        pages = [answer.headers["X-Request-ID"] for answer in await both(one, other, "/livez")]
        assert [(await proxy.logged(name))["path"] for name in pages] == ["/livez"] * 2  # in the log at this level
        for wire in (slow, slower):
            wire.send(f"/v2/quay.io/team/a/blobs/{image.layers[0].digest}")
        await until(lambda: sum(line["aborted"] for line in proxy.requests()) == 2)
        proxy.settings["log"] = {"access": False}
        del proxy.settings["upstreams"]["quay.io"]
        await proxy.reload()
        lines = len(proxy.requests())
        assert {answer.status for answer in await both(one, other, "/v2/quay.io/team/a/manifests/1")} == {404}
        proxy.settings["log"] = {}
        await proxy.reload()
        names = [answer.headers["X-Request-ID"] for answer in await both(one, other, manifest)]
        for name in names:
            await proxy.logged(name)
        assert len(proxy.requests()) == lines + 2


# Metrics and health pages.


async def test_one_set_of_metrics(serve: Serve, hub: Hub) -> None:
    """Whoever is asked shows what all have counted, once; health pages are one service's, too."""
    blob = os.urandom(100_000)
    digest, stalled = hub.add_blob("team/a", blob), hub.add_blob("team/a", os.urandom(2 * MIB))
    watched = own_address()
    async with serve(server={"metrics_listen": [watched]}) as proxy, connections(proxy, 3) as (some, others):
        for wire in (*some[:2], *others[:2]):
            assert (await wire.ask(f"/v2/team/a/blobs/{digest}")).body == blob
        hub.script.next("cdn", Quirk(stall=MIB, release=(go_on := asyncio.Event())))
        for wire in (some[2], others[2]):
            await begin(wire, f"/v2/team/a/blobs/{stalled}", MIB)
        page = (await ask(watched, "/metrics")).body
        samples = [
            ((sample.name, tuple(sorted(sample.labels.items()))), sample.value)
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
        ]
        found = dict(samples)
        assert len(found) == len(samples), "a series is there twice"
        by = (("kind", "blob"), ("registry", "docker.io"))
        counted = [found["mirrorproxy_cache_requests_total", (*by, ("result", result))] for result in Result]
        assert sum(counted) == 4, "those that run are not counted yet"
        assert found["mirrorproxy_cache_requests_total", (*by, ("result", "miss"))] == 1
        counts = [name for name in found if name[0] == "mirrorproxy_http_time_to_first_byte_seconds_count"]
        assert sum(found[name] for name in counts if ("kind", "blob") in name[1]) == 4
        assert found["mirrorproxy_http_requests_inflight", ()] == 3, "this one and two downloads"
        assert found["mirrorproxy_fill_readers", ()] == 2
        assert found["process_resident_memory_bytes", ()] == pytest.approx(pss(proxy.pid), rel=0.2)
        checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
        for path in ("/livez", "/readyz", "/healthz"):
            bodies = {answer.body for answer in await both(some[0], others[0], path)}
            assert bodies == {(await ask(watched, path)).body}
        assert {answer.status for answer in await both(some[0], others[0], "/metrics")} == {404}
        go_on.set()


async def test_all_share_the_processor(serve: Serve) -> None:
    """Workers are of the core's session, among which the kernel divides the processor first (sched(7), autogroup); and
    not of its process group, to which a terminal sends Ctrl-C.
    """
    async with serve() as proxy:
        assert {os.getsid(pid) for pid in tree(proxy.pid)} == {os.getsid(0)}
        assert {os.getpgid(pid) for pid in pids(proxy)} == {template(proxy)}


async def test_a_worker_that_does_not_answer(serve: Serve) -> None:
    """Does not keep who watches waiting, and what it told before is there."""
    watched = own_address()
    async with serve(server={"metrics_listen": [watched]}) as proxy:
        async with connections(proxy, 5):
            pass
        before = answered((await ask(watched, "/metrics")).body)
        hung = pids(proxy)[0]
        os.kill(hung, signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                page = (await ask(watched, "/metrics")).body
                assert (await ask(watched, "/readyz")).status == 200
        finally:
            os.kill(hung, signal.SIGCONT)
        assert answered(page) >= before >= 10


async def test_a_worker_that_answers_too_late(serve: Serve, tmp_path: Path) -> None:
    """What it counted is missing on that page, and not on those that come."""
    at_each_worker(
        tmp_path,
        f"""
        import pathlib, time
        from mirrorproxy.workers.totals import Tally
        def take(self, soon=Tally.take):
            taken = soon(self)
            while pathlib.Path({str(tmp_path / "slow")!r}).exists():  # until the page has come without it
                time.sleep(0.02)
            return taken
        Tally.take = take
        """,
    )
    watched = own_address()
    async with serve(server={"metrics_listen": [watched]}, environ={"PYTHONPATH": str(tmp_path)}) as proxy:
        (slow := tmp_path / "slow").touch()
        async with connections(proxy, 5):
            pass
        assert (await ask(watched, "/metrics")).status == 200
        slow.unlink()
        await until(lambda: len(proxy.requests()) >= 10)
        asked = sum(line["path"] == "/v2/" for line in proxy.requests())
        async with asyncio.timeout(10):
            while answered((await ask(watched, "/metrics")).body, endpoint="base") < asked:
                await asyncio.sleep(0.1)


def answered(page: bytes, **labels: str) -> float:
    """How many requests a metrics page tells of."""
    name = "mirrorproxy_http_request_duration_seconds_count"
    families = text_string_to_metric_families(page.decode())
    found = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(sample.value for sample in found if labels.items() <= sample.labels.items())


PIPE = """
import os, signal, subprocess, sys
read, write = os.pipe2(os.O_DIRECT)  # which keeps apart what was written apart
child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *sys.argv[2:]], stdout=write)
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
os.close(write)
while piece := os.read(read, 1 << 16):
    os.write(1, piece)
    if not piece.endswith(b"\\n"):
        open(sys.argv[1], "ab").write(piece)
sys.exit(child.wait())
"""


async def test_no_line_is_torn_apart(serve: Serve, tmp_path: Path) -> None:
    """Whoever writes to the access log does it in pieces that a pipe takes whole (pipe(7), PIPE_BUF)."""
    watched, torn = own_address(), tmp_path / "torn"
    within = (sys.executable, "-c", PIPE, str(torn))
    async with serve(server={"metrics_listen": [watched]}, within=within) as proxy:
        for address in (watched, proxy.address):
            async with connect(address) as wire:
                for _ in range(40):
                    assert (await wire.ask("/" + "x" * 400)).status == 404
        await until(lambda: len(proxy.requests()) >= 80)
        assert not torn.exists()


# Commands.


async def test_what_is_removed_is_not_served(serve: Serve, hub: Hub) -> None:
    """By neither worker, from memory or from files that are open, as soon as the command has ended. Who reads it
    already has all of it.
    """
    data = os.urandom(24 * MIB)
    image = hub.add_image("team/a", "1", data)
    manifest, blob = "/v2/team/a/manifests/1", f"/v2/team/a/blobs/{image.layers[0].digest}"
    config = f"/v2/team/a/blobs/{image.config.digest}"
    async with serve(tag_ttl="1h") as proxy, connections(proxy, 2) as ((one, slow), (other, slower)):
        command = Cache(hub, proxy)
        for target in (manifest, config, blob):
            assert {answer.status for answer in await both(one, other, target)} == {200}
        begun = [(await begin(wire, blob, 1000))[1] for wire in (slow, slower)]
        hub.remove("team/a")
        assert {answer.status for answer in await both(one, other, manifest)} == {200}
        assert (await command.run("rm", "team/a:1", "--yes")).status == 0
        for target in (manifest, config, blob):
            assert {answer.status for answer in await both(one, other, target)} == {404}
        for first, wire in zip(begun, (slow, slower), strict=True):
            assert first + await wire.reader.readexactly(len(data) - 1000) == data


async def test_what_is_pinned_stays(serve: Serve, hub: Hub) -> None:
    """What is not goes, and each worker asks for it anew; what a worker keeps open for a moment is no obstacle for
    longer than that.
    """
    kept, other_image = (hub.add_image(f"team/{name}", "1", os.urandom(1000)) for name in "ab")
    async with serve() as proxy, connections(proxy) as ((one,), (other,)):
        command = Cache(hub, proxy)
        targets = [
            f"/v2/team/{name}/{what}"
            for name, image in (("a", kept), ("b", other_image))
            for what in ("manifests/1", f"blobs/{image.layers[0].digest}", f"blobs/{image.config.digest}")
        ]
        for target in targets:
            assert {answer.status for answer in await both(one, other, target)} == {200}
        assert (await command.run("pin", "team/a:1")).status == 0
        path = proxy.cache / "blobs" / "sha256" / other_image.layers[0].digest.hex
        async with asyncio.timeout(10):
            while path.exists():
                assert (await command.call("prune", "--unused-for", "0s", "--yes")).status == 0
                await asyncio.sleep(0.1)
        hub.log.clear()
        assert (await one.ask(targets[1])).headers["Cache-Status"] == "mirrorproxy; hit"
        assert hub.count("cdn") == 0
        assert {answer.status for answer in await both(one, other, targets[4])} == {200}
        assert hub.count("cdn") == 1


# Addresses.


async def test_all_kinds_of_addresses(serve: Serve, hub: Hub, tmp_path: Path) -> None:
    """Two, IPv6, a socket file, and any free port: one cache behind all."""
    digest = hub.add_blob("team/a", b"a blob")
    path = tmp_path / "s"
    proxy = serve()
    proxy.settings["server"]["listen"] = [proxy.address, own_address(), "[::1]:0", "127.0.0.1:0", f"unix:{path}"]
    async with proxy:
        (line,) = [line["msg"] for line in proxy.log() if " serves " in line["msg"]]
        assert " serves docker.io with 2 workers on " in line
        addresses = line.rpartition(" on ")[2].split(", ")
        assert [address.rpartition(":")[0] for address in addresses[2:]] == ["[::1]", "127.0.0.1", "unix"]
        for address in addresses:
            answers = await asyncio.gather(*(ask(address, f"/v2/team/a/blobs/{digest}") for _ in range(32)))
            assert {answer.body for answer in answers} == {b"a blob"}
            if not address.startswith("unix:"):  # one socket, of which a worker may be always the first to accept
                assert len({answer.headers["X-Request-ID"].partition("-")[0] for answer in answers}) == 2
        assert hub.count("cdn") == 1
    assert not path.exists()


async def test_sockets_that_were_handed_over(serve: Serve, hub: Hub, tmp_path: Path) -> None:
    """Are shared, as they cannot be had twice; they belong to whoever handed them over."""
    address, path = own_address(), tmp_path / "s"
    within = ("systemd-socket-activate", f"--listen={address}", f"--listen={path}")
    proxy = serve(server={"listen": [address]}, within=within)
    proxy.tolerate("^(Listening on|Communication attempt|Execing) ")  # systemd's own words
    digest = hub.add_blob("team/a", b"a blob")
    async with proxy:
        assert len(pids(proxy)) == 2
        for each in (address, f"unix:{path}"):
            answers = await asyncio.gather(*(ask(each, f"/v2/team/a/blobs/{digest}") for _ in range(16)))
            assert {answer.body for answer in answers} == {b"a blob"}
    assert hub.count("cdn") == 1
    assert path.is_socket()


async def test_a_new_certificate(serve: Serve, hub: Hub, tmp_path: Path) -> None:
    """Is seen at both, whether its files were replaced or the settings name others; a transfer that runs goes on."""
    authority = trustme.CA()
    data = os.urandom(8 * MIB)
    digest = hub.add_blob("team/a", data)

    def issue(folder: Path) -> int:
        """A new certificate: its serial number."""
        folder.mkdir(exist_ok=True)
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(str(folder / "new"))
        (folder / "new").rename(folder / "key")
        issued.cert_chain_pems[0].write_to_path(str(folder / "new"))
        (folder / "new").rename(folder / "cert")
        words = ["openssl", "x509", "-noout", "-serial", "-in", str(folder / "cert")]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.partition("=")[2], 16)

    client = trusting(authority)
    issue(tmp_path / "a")
    tls = {"cert": str(tmp_path / "a/cert"), "key": str(tmp_path / "a/key")}
    async with serve(server={"tls": tls}, tls=client) as proxy:
        async with connections(proxy, 2, tls=client) as ((one, reads), (other, reads_too)):
            begun = [(await begin(wire, f"/v2/team/a/blobs/{digest}", 1000))[1] for wire in (reads, reads_too)]
            new = issue(tmp_path / "a")
            await seen_at_both(proxy, client, new)
            newer = issue(tmp_path / "b")
            proxy.settings["server"]["tls"] = {"cert": str(tmp_path / "b/cert"), "key": str(tmp_path / "b/key")}
            await proxy.reload()
            await seen_at_both(proxy, client, newer)
            for first, wire in zip(begun, (reads, reads_too), strict=True):
                assert first + await wire.reader.readexactly(len(data) - 1000) == data
            assert {answer.status for answer in await both(one, other, "/v2/")} == {200}


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def seen_at_both(proxy: Proxy, client: ssl.SSLContext, serial: int) -> None:
    """Wait until new connections to both workers have this certificate."""
    async with asyncio.timeout(15):
        while True:
            async with connections(proxy, tls=client) as ((one,), (other,)):
                certificates = [wire.writer.get_extra_info("peercert") for wire in (one, other)]
            if {int(each["serialNumber"], 16) for each in certificates} == {serial}:
                return
            await asyncio.sleep(0.05)


async def test_no_memory_is_written_by_two(serve: Serve) -> None:
    """Processes that are copies of one another share nothing that one of them can change, but for the index's log."""
    async with serve() as proxy:
        for pid in (proxy.pid, template(proxy), *pids(proxy)):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                writable, shared = line.split()[1][1] == "w", line.split()[1][3] == "s"
                assert not (writable and shared) or (pid == proxy.pid and line.endswith("-shm")), line


async def test_memory_that_a_crowd_took_goes_back(serve: Serve, hub: Hub, tmp_path: Path) -> None:
    """Over TLS what waits for a client is in memory: a worker keeps little of it when they have left."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    client = trusting(authority)
    blob = f"/v2/team/a/blobs/{hub.add_image('team/a', '1', os.urandom(8 * MIB)).layers[0].digest}"
    async with serve(
        server={"tls": {"cert": str(tmp_path / "cert"), "key": str(tmp_path / "key")}}, tls=client
    ) as proxy:

        def taken() -> int:
            return sum(map(pss, pids(proxy)))

        await proxy.ask(blob)
        before = taken()
        async with AsyncExitStack() as stack:
            for _ in range(100):
                wire = await stack.enter_async_context(connect(proxy.address, client, limit=1 << 12))
                await begin(wire, blob, 1)
            most = taken()
        assert most - before > 16 * MIB
        await until(lambda: taken() - before < (most - before) / 2)
