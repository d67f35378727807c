"""Commands where no service runs: one at a time, whatever happens to them; and a service that starts meanwhile."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from mirrorproxy.cli import main, steering
from mirrorproxy.store.owner import COMMAND, Owner
from tests.cli.conftest import Cache, stock
from tests.e2e.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_two_at_once_wait_for_each_other(cache: Cache) -> None:
    """None fails, all say the same."""
    await stock(cache)
    assert await cache.proxy.stop() == 0
    ran = await asyncio.gather(*(cache.run("ls", "--json") for _ in range(2)))
    assert [each.status for each in ran] == [0, 0]
    assert len(ran[0].rows) == 3
    assert all(each.rows == ran[0].rows for each in ran)
    await cache.proxy.start()


async def test_who_has_the_directory_for_long_is_named(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """75 after a while; a service that starts waits for the command's end."""
    monkeypatch.setattr(steering, "_PATIENCE", 0.1)
    assert await cache.proxy.stop() == 0
    owner = await asyncio.to_thread(Owner, cache.proxy.cache, f"{COMMAND}verify")
    status = await asyncio.to_thread(main, ["ls", "--config", str(cache.proxy.config)])
    out, err = capsys.readouterr()
    assert (status, out) == (75, "")
    assert f"is in use by process {os.getpid()}, running the command verify" in err
    starting = asyncio.gather(cache.proxy.start())
    await asyncio.sleep(0.4)
    assert not starting.done()
    owner.release()
    await starting
    assert (await cache.run("ls")).status == 0


async def test_one_that_is_killed_leaves_nothing_behind(cache: Cache) -> None:
    """The next one has the directory; the socket of a service that was killed is passed by and replaced."""
    await cache.proxy.kill()
    assert (cache.proxy.cache / "admin.sock").is_socket()
    process = await cache.start("verify")
    await asyncio.sleep(0.4)
    process.kill()
    await process.communicate()
    assert (await cache.run("ls")).status == 0
    await cache.proxy.start()
    assert (await cache.run("ls")).status == 0


async def test_an_interrupted_one_says_130(cache: Cache) -> None:
    """Ctrl-C ends it without a traceback, also while a service keeps it waiting."""
    assert await cache.proxy.stop() == 0
    path = cache.proxy.cache / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        process = await cache.start("ls")
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        with connection:
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")
    path.unlink()
    await cache.proxy.start()


async def test_a_reader_that_has_had_enough(cache: Cache) -> None:
    """`| head -1`: no traceback."""
    await stock(cache)
    process = await asyncio.create_subprocess_shell(
        f"mirrorproxy ls --json --config {cache.proxy.config} | head -c 1",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    out, err = await process.communicate()
    assert (out, err) == (b"{", b"")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("rm alpine --config {config} <&-", 2, "add --yes"),
        ("ls --config {config} >/dev/full", 74, "the output cannot be written: No space left on device"),
        ("ls --json --config {config} >/dev/full", 74, "the output cannot be written: No space left on device"),
        ("ls --config {config} >&-", 0, ""),
        ("completion bash >/dev/full", 74, "the output cannot be written: No space left on device"),
        ("completion bash | true; exit ${{PIPESTATUS[0]}}", 141, ""),
    ],
)
async def test_a_standard_stream_that_is_closed_or_full(cache: Cache, words: str, status: int, said: str) -> None:
    """A line on standard error and an exit code, no traceback."""
    await stock(cache)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"mirrorproxy {words.format(config=cache.proxy.config)}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    _, err = await process.communicate()
    assert process.returncode == status
    assert said in err.decode()
    assert err.count(b"\n") == bool(said)


async def test_no_cache_is_made_by_a_look_at_one(cache: Cache, tmp_path: Path) -> None:
    """3, and what to say instead; a wrong configuration is 78."""
    ran = await cache.run("ls", "--cache-dir", str(tmp_path / "nothing"))
    assert (ran.status, "there is no cache in" in ran.err, (tmp_path / "nothing").exists()) == (3, True, False)
    (tmp_path / "bad.yaml").write_text("cache: {sise: 5}")
    ran = await cache.run("ls", "--config", str(tmp_path / "bad.yaml"))
    assert (ran.status, "sise" in ran.err) == (78, True)


async def test_nothing_of_it_is_at_the_public_port(cache: Cache) -> None:
    """Clients have no way to the operations."""
    for method in ("GET", "POST"):
        for path in ("/operations/ls", "/v2/operations/ls", "/admin"):
            assert (await cache.proxy.ask(path, method)).status in (404, 405)


async def test_a_long_directory(cache: Cache, tmp_path: Path) -> None:
    """A service and its commands in a directory whose path is too long for a socket."""
    directory = tmp_path / ("a" * 120)
    async with Proxy(
        directory, {k: v for k, v in cache.proxy.settings.items() if k not in ("server", "cache")}
    ) as proxy:
        assert (proxy.cache / "admin.sock").is_socket()
        other = Cache(cache.hub, proxy)
        assert (await other.run("ls")).status == 0
