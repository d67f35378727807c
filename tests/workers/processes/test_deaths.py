"""Workers that are killed or do not start, and the core that is killed: whose connections break, and what goes on."""

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.memory import tree
from mirrorproxy.spans import Spans
from tests.cli.conftest import Cache
from tests.e2e.client import begin, connect, rest
from tests.e2e.proxy import Proxy, own_address, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.storage.faults import hanging
from tests.workers.processes.conftest import MIB, Serve, at_each_worker, connections, is_alive, pid_of, pids, template

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("workers deaths")]

KILLED = "has ended: killed by SIGKILL; it is started anew, and its clients ask again"
DOCUMENTED = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text()


def counters(page: str) -> dict[tuple[str, str], float]:
    """All that never goes back."""
    return {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if family.type in ("counter", "histogram")
    }


def held(proxy: Proxy) -> dict[str, int]:
    """How many descriptors of each kind the core has open."""
    kinds = {"/blobs/": "blobs", "/partial/": "parts", "socket:": "sockets", "pipe:": "pipes"}
    return Counter(next((kind for mark, kind in kinds.items() if mark in name), name) for name in proxy.descriptors())


async def anew(proxy: Proxy, before: list[int]) -> None:
    """Wait until there are as many workers as before, of which some are others, and all answer."""
    await until(lambda: len(pids(proxy)) == len(before) and pids(proxy) != before)
    async with connections(proxy):
        pass


async def test_a_worker_is_killed(serve: Serve, hub: Hub) -> None:
    """Under load: its own connections break and no others; who comes meanwhile is served. The download goes on, and who
    asks for the rest gets it; there was one GET. No counter goes back, and nothing stays open for the dead.
    """
    data = os.urandom(4 * MIB)
    cold, warm = hub.add_blob("team/a", data), hub.add_blob("team/a", os.urandom(MIB))
    path = f"/v2/team/a/blobs/{cold}"
    async with serve() as proxy:
        proxy.tolerate(KILLED)
        assert (await proxy.ask(f"/v2/team/a/blobs/{warm}")).status == 200
        await proxy.idle()
        hub.script.next("cdn", Quirk(stall=2 * MIB, release=(go_on := asyncio.Event())))
        hub.log.clear()
        async with connections(proxy, 2) as ((lost, idle), (kept, busy)):
            opened = held(proxy)
            _, begun = await begin(lost, path, MIB)
            _, first = await begin(kept, path, MIB)
            before, counted = pids(proxy), counters(await proxy.metrics())
            victim = pid_of(lost)
            os.kill(victim, signal.SIGKILL)
            assert len(begun + await rest(lost)) <= 2 * MIB
            assert await rest(idle) == b""
            meanwhile = [proxy.ask("/v2/") for _ in range(20)]
            assert {answer.status for answer in await asyncio.gather(*meanwhile)} == {200}
            assert (await busy.ask(f"/v2/team/a/blobs/{warm}")).status == 200
            await anew(proxy, before)
            assert victim not in pids(proxy)
            async with connect(proxy.address) as again:
                again.send(path, headers={"Range": f"bytes={MIB}-"})
                go_on.set()
                answer = await again.answer()
                assert (answer.status, begun + answer.body == data) == (206, True)
            assert first + await kept.reader.readexactly(3 * MIB) == data
            await proxy.idle()
            assert (hub.count("cdn"), hub.sent("cdn")) == (1, len(data))
            after = counters(await proxy.metrics())
            assert {name: value for name, value in counted.items() if after[name] < value} == {}
        (told,) = [line for line in proxy.log() if line["level"] == "error"]
        assert told["msg"] in [f"worker {number} (process {victim}) {KILLED}" for number in (1, 2)]
        assert f"worker 1 (process 4711) {KILLED}" in DOCUMENTED
        (back,) = [pid for pid in pids(proxy) if pid not in before]
        await until(lambda: proxy.said(f"{told['msg'].partition(' (')[0]} is back (process {back})"))
        assert "worker 1 is back (process 4720)" in DOCUMENTED
        assert await proxy.total("worker_restarts_total") == 1
        await until(lambda: held(proxy) == opened | {"blobs": 1})  # the warm one, for who comes next


async def test_what_a_killed_worker_read_may_go(serve: Serve, hub: Hub) -> None:
    """It is not what somebody reads any more, as it was before."""
    digest = hub.add_blob("team/a", os.urandom(40 * MIB))  # more than the kernel takes for a client that reads nothing
    async with serve() as proxy:
        proxy.tolerate(KILLED)
        path = proxy.cache / "blobs" / "sha256" / digest.hex
        prune = ("prune", "--unused-for", "0s", "--yes")
        assert (await proxy.ask(f"/v2/team/a/blobs/{digest}")).complete
        async with connect(proxy.address, limit=1 << 16) as reader:
            await begin(reader, f"/v2/team/a/blobs/{digest}", 1000)
            assert (await Cache(hub, proxy).run(*prune)).status == 0
            assert path.exists()
            before = pids(proxy)
            os.kill(pid_of(reader), signal.SIGKILL)
            await anew(proxy, before)
        assert (await Cache(hub, proxy).run(*prune)).status == 0
        assert not path.exists()


async def test_all_workers_are_killed(serve: Serve, hub: Hub) -> None:
    """There are new ones, and who connects meanwhile is not refused."""
    image = hub.add_image("team/a", "1", b"layer")
    async with serve() as proxy:
        proxy.tolerate(KILLED)
        before = pids(proxy)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(map(is_alive, before)))
        assert (await proxy.ask("/v2/team/a/manifests/1")).body == image.body
        await anew(proxy, before)
        assert set(pids(proxy)).isdisjoint(before)


async def test_told_to_stop_while_a_worker_starts(serve: Serve, hub: Hub) -> None:
    """It does not start any more, and the others end their transfers: there is nothing else to wait for."""
    data = os.urandom(2 * MIB)
    digest = hub.add_blob("team/a", data)
    hub.script.next("cdn", Quirk(stall=MIB, release=(go_on := asyncio.Event())))
    async with serve(server={"grace": "1h"}) as proxy:
        proxy.tolerate(KILLED)
        async with connections(proxy) as ((one,), (other,)):
            _, first = await begin(one, f"/v2/team/a/blobs/{digest}", MIB)
            os.kill(pid_of(other), signal.SIGKILL)
            await until(lambda: proxy.said("is started anew"))
            proxy.send(signal.SIGTERM)
            await until(lambda: proxy.said("stopping"))
            go_on.set()
            assert first + await one.reader.readexactly(MIB) == data
        assert await proxy.ended() == 0


async def test_a_signal_for_a_worker_that_starts(serve: Serve) -> None:
    """Is for the core alone, as are those that come later: who means a worker takes -9."""
    async with serve() as proxy:
        proxy.tolerate(KILLED)
        before = pids(proxy)
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: len(set(pids(proxy)) - set(before)) == 1)
        (new,) = set(pids(proxy)) - set(before)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(new, number)
        async with connections(proxy):
            assert new in pids(proxy)


async def test_settings_that_change_while_a_worker_starts(serve: Serve, hub: Hub) -> None:
    """Are the new one's, too."""
    image = hub.add_image("team/a", "1", b"layer")
    async with serve() as proxy:
        proxy.tolerate(KILLED)
        before = pids(proxy)
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: not is_alive(before[0]))
        proxy.settings["upstreams"]["quay.io"] = dict(proxy.settings["upstreams"]["docker.io"], default=False)
        await until(lambda: len(set(pids(proxy)) - set(before)) == 1)
        await proxy.reload()
        async with connections(proxy) as ((one,), (other,)):
            for wire in (one, other):
                assert (await wire.ask("/v2/quay.io/team/a/manifests/1")).body == image.body


def flushed(proxy: Proxy) -> Spans:
    """What of the one unfinished download is known to have reached the disk."""
    return Spans((start, end) for state in proxy.partials() for start, end in state["spans"])


async def test_the_core_is_killed(serve: Serve, hub: Hub) -> None:
    """Its workers end at once. The next start has the same port, and goes on where the download was."""
    data = os.urandom(32 * MIB)
    digest = hub.add_blob("team/a", data)
    hub.script.always("cdn", Quirk(rate=16 * MIB))
    proxy = serve(connections=1)
    await proxy.start()
    async with connections(proxy) as ((one,), (other,)):
        for wire in (one, other):
            await begin(wire, f"/v2/team/a/blobs/{digest}", 1000)
        await until(lambda: flushed(proxy).total >= 4 * MIB)
        before = pids(proxy)
        await proxy.kill()
        killed = time.monotonic()
        await until(lambda: not any(map(is_alive, before)))
        assert time.monotonic() - killed < 2
        for wire in (one, other):
            assert len(await rest(wire)) < len(data)
    kept = flushed(proxy)
    hub.script.clear()
    hub.log.clear()
    async with proxy:
        assert (await proxy.ask(f"/v2/team/a/blobs/{digest}")).body == data
        assert [seen.range for seen in hub.seen("cdn")] == [f"bytes={kept.front}-"]


async def test_a_worker_that_outlives_the_core_for_a_moment(serve: Serve) -> None:
    """Keeps the next service waiting, though that shall have no workers, and does not make it fail."""
    proxy = serve()
    await proxy.start()
    before = pids(proxy)
    async with hanging(before[0], proxy.directory / "strace"):
        await proxy.kill()
        await until(lambda: not is_alive(before[1]))
        proxy.settings["server"]["workers"] = 1
        await proxy.launch()
        words = "is in use still; trying again for 3 s"
        await until(lambda: proxy.said(words))
        assert words in DOCUMENTED
    await until(lambda: sum(" serves " in line["msg"] for line in proxy.log()) == 2)
    assert (await proxy.ask("/v2/")).status == 200
    assert await proxy.stop() == 0


async def is_open(proxy: Proxy) -> bool:
    """Does it take connections?"""
    try:
        async with connect(proxy.address):
            return True
    except ConnectionRefusedError:
        return False


async def refused(proxy: Proxy) -> str:
    """Start a service that cannot be: what it says. Nothing is left of it."""
    assert await proxy.run() == os.EX_UNAVAILABLE
    text = proxy.stderr.read_text()
    assert "Traceback" not in text
    return text


async def test_another_service_on_the_port(serve: Serve) -> None:
    """With workers, too: the system would let both have it, and divide the clients between them."""
    async with serve() as first:
        others = [serve(f"with {count}", server={"listen": [first.address], "workers": count}) for count in (1, 2)]
        for text in await asyncio.gather(*map(refused, others)):
            assert f"{first.address} (server.listen, --listen): Address already in use; choose another" in text
        assert (await first.ask("/v2/")).status == 200


async def test_somebody_else_on_the_port(serve: Serve) -> None:
    """Is told at once where it is no worker: nobody else would have set SO_REUSEPORT."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        text = await refused(serve(server={"listen": [address]}))
    assert f"{address} (server.listen, --listen): Address already in use" in text
    assert "is in use still" not in text


@pytest.mark.parametrize("broken", ["both", "the second"])
async def test_a_worker_that_cannot_start(serve: Serve, tmp_path: Path, broken: str) -> None:
    """Is told, with its status; the others are ended."""
    at_each_worker(
        tmp_path,
        f"""
        import os, pathlib
        here = pathlib.Path({str(tmp_path)!r})
        (here / str(os.getpid())).touch()
        if {broken == "both"} or len(list(here.glob("[0-9]*"))) > 1:
            os._exit(3)
        """,
    )
    proxy = serve(environ={"PYTHONPATH": str(tmp_path)})
    text = await refused(proxy)
    assert "cannot start: worker " in text
    assert "does not start: status 3" in text
    started = [int(path.name) for path in tmp_path.glob("[0-9]*")]
    assert len(started) == 2
    assert not any(map(is_alive, started))


async def test_two_that_start_at_once(serve: Serve, tmp_path: Path) -> None:
    """Cannot both have a port, or a socket file, though no worker accepts connections there yet; who connects so early
    waits, and is served.
    """
    at_each_worker(
        tmp_path,
        f"""
        import pathlib, time
        while not pathlib.Path({str(tmp_path / "go")!r}).exists():
            time.sleep(0.01)
        """,
    )
    address, file = own_address(), f"unix:{tmp_path / 's'}"
    first = serve("first", environ={"PYTHONPATH": str(tmp_path)}, server={"listen": [address, file]})
    await first.launch()
    async with asyncio.timeout(20):
        while not await is_open(first):
            await asyncio.sleep(0.01)
    async with connect(first.address) as early:
        early.send("/v2/")
        for taken in (address, file):
            text = await refused(serve("second", server={"listen": [taken]}))
            assert f"{taken} (server.listen, --listen): Address already in use" in text
        (tmp_path / "go").touch()
        assert (await early.answer()).status == 200
    assert await first.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_for_all_processes_at_once(serve: Serve, hub: Hub, number: signal.Signals) -> None:
    """As systemd and a terminal send it: the transfers of both workers end in order."""
    data = os.urandom(2 * MIB)
    digest = hub.add_blob("team/a", data)
    hub.script.next("cdn", Quirk(stall=MIB, release=(go_on := asyncio.Event())))
    async with serve(server={"grace": "20s"}) as proxy, connections(proxy) as ((one,), (other,)):
        path = f"/v2/team/a/blobs/{digest}"
        first = [(await begin(wire, path, MIB))[1] for wire in (one, other)]
        before = pids(proxy)
        for pid in (proxy.pid, *before):
            os.kill(pid, number)
        await until(lambda: proxy.said("stopping"))
        async with asyncio.timeout(5):
            while await is_open(proxy):
                await asyncio.sleep(0.01)
        assert all(map(is_alive, before))
        go_on.set()
        for begun, wire in zip(first, (one, other), strict=True):
            assert begun + await wire.reader.readexactly(MIB) == data
        assert await proxy.ended() == 0
        assert not any(map(is_alive, before))


async def test_the_template_is_killed(serve: Serve, hub: Hub) -> None:
    """No client notices: workers go on without it. When one of them dies, another is there all the same."""
    data = os.urandom(2 * MIB)
    digest = hub.add_blob("team/a", data)
    hub.script.next("cdn", Quirk(stall=MIB, release=(go_on := asyncio.Event())))
    async with serve() as proxy:
        proxy.tolerate("of which workers are copies, has died")
        proxy.tolerate("has ended")
        async with connections(proxy) as ((one,), (other,)):
            before = pids(proxy)
            begun = (await begin(one, f"/v2/team/a/blobs/{digest}", MIB))[1]
            os.kill(template(proxy), signal.SIGKILL)
            await until(lambda: proxy.said("of which workers are copies, has died"))
            go_on.set()
            assert begun + await one.reader.readexactly(MIB) == data
            assert (await other.ask("/v2/")).status == 200
        assert all(map(is_alive, before))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while len(pids(proxy)) < 2:
                await asyncio.sleep(0.05)
        assert not set(pids(proxy)) & set(before)
        assert (await proxy.ask(f"/v2/team/a/blobs/{digest}")).body == data
        after = [*pids(proxy), template(proxy)]
    assert not any(map(is_alive, after))


async def test_worker_and_template_die_at_once(serve: Serve, hub: Hub) -> None:
    """Nobody is left to tell of the worker: the kernel does, and another takes its place at once."""
    async with serve() as proxy:
        proxy.tolerate("of which workers are copies, has died")
        proxy.tolerate("has ended")
        before, parent = pids(proxy), template(proxy)
        os.kill(parent, signal.SIGSTOP)  # it does not get to tell
        os.kill(before[0], signal.SIGKILL)
        async with asyncio.timeout(4):  # one that hangs gets 5
            await until(lambda: not is_alive(before[0]))
            os.kill(parent, signal.SIGKILL)
            await until(lambda: proxy.said("is back"))
        async with connections(proxy):
            pass
        assert is_alive(before[1])


async def test_as_process_1(serve: Serve, hub: Hub) -> None:
    """In a container, the orphans of the template are the core's: it knows how they ended, and leaves no zombies."""
    async with serve(within=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")) as proxy:
        proxy.tolerate("of which workers are copies, has died")
        proxy.tolerate("has ended: killed by SIGKILL")
        (core,) = (pid for pid in tree(proxy.pid)[1:] if pid not in [*pids(proxy), template(proxy)])
        victims = [template(proxy), *pids(proxy)]
        os.kill(victims[0], signal.SIGKILL)
        await until(lambda: proxy.said("of which workers are copies, has died"))
        for pid in victims[1:]:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len([line for line in proxy.log() if "is back" in line["msg"]]) == 2)
        assert [pid for pid in victims if Path(f"/proc/{pid}").exists()] == []
        async with connections(proxy):
            pass
        os.kill(core, signal.SIGTERM)
        assert await proxy.ended() == 0


async def test_no_process_to_be_had(serve: Serve, tmp_path: Path) -> None:
    """At the limit of processes (a container's `pids.max`): told, tried again, and nothing else ends by that."""
    (tmp_path / "sitecustomize.py").write_text(f"""
import errno, os
def fork(real=os.fork):
    if os.path.exists({str(tmp_path / "limit")!r}):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real()
os.fork = fork
""")
    async with serve(environ={"PYTHONPATH": str(tmp_path)}) as proxy:
        proxy.tolerate("has ended: killed by SIGKILL")
        proxy.tolerate("worker 1 does not start: Resource temporarily unavailable")
        proxy.tolerate("worker 2 does not start: Resource temporarily unavailable")
        before, parent = pids(proxy), template(proxy)
        (limit := tmp_path / "limit").touch()
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: proxy.said("does not start"))
        limit.unlink()
        await anew(proxy, before)
        assert before[1] in pids(proxy)
        assert template(proxy) == parent
    limit.touch()
    assert "cannot start: Resource temporarily unavailable" in await refused(serve("other", environ=proxy.environ))


async def test_a_template_that_hangs(serve: Serve, tmp_path: Path) -> None:
    """Is given up with the worker that does not come of it: the next one is another's copy."""
    short = "import mirrorproxy.workers.pool as pool; pool._START, pool._END = 3.0, 0.5"
    (tmp_path / "sitecustomize.py").write_text(short)
    async with serve(environ={"PYTHONPATH": str(tmp_path)}) as proxy:
        proxy.tolerate("has ended; it is started anew")
        proxy.tolerate("does not start: the process that it is a copy of hangs")
        proxy.tolerate("of which workers are copies, has died")
        before, parent = pids(proxy), template(proxy)
        os.kill(parent, signal.SIGSTOP)
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: proxy.said("is back"))
        assert not is_alive(parent)
        assert is_alive(before[1])
        async with connections(proxy):
            pass
