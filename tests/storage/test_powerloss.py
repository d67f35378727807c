"""Power failures: what the real process wrote is recorded, and the real process is started on what is left of it."""

import asyncio
import logging
import os
import random
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirrorproxy.names import Digest
from tests.e2e.client import begin, connect
from tests.e2e.conftest import settings, upstream
from tests.e2e.proxy import Proxy, until
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.storage.load import put_old
from tests.storage.powerloss import CALLS, Disk, read

pytestmark = pytest.mark.asyncio(loop_scope="module")

log = logging.getLogger(__name__)

KIB = 1 << 10
NAME = "team/image"
STRACE = ("strace", "-D", "-f", "-y", "-xx", "-q", "-s", str(4 << 20), "-e", f"trace={CALLS}", "-e", "signal=none")


@dataclass
class Recorded:
    """What a service was asked for while it was recorded, and the calls it made."""

    hub: Hub
    directory: Path
    paths: dict[str, bytes] = field(default_factory=dict)
    before: Path = field(default_factory=Path)
    strace: Path = field(default_factory=Path)
    cache: Path = field(default_factory=Path)

    def configured(self, directory: Path, within: tuple[str, ...] = ()) -> Proxy:
        """A service in front of the hub, whose cache is so small that old content has to go."""
        upstreams = {"docker.io": upstream(self.hub, idle_timeout="20s")}
        cache = {"max_size": "2MiB", "min_free": "0"}
        return Proxy(directory, settings(upstreams, cache=cache, fills={"budget": "1m"}), within=within)

    def add(self, tag: str, *layers: bytes) -> None:
        """An image, with what its paths answer."""
        image = self.hub.add_image(NAME, tag, *layers, config=os.urandom(100))
        at = f"/v2/{NAME}"
        self.paths[f"{at}/manifests/{tag}"] = image.body
        for part, data in zip(image.layers, layers, strict=True):
            self.paths[f"{at}/blobs/{part.digest}"] = data

    async def pull(self, proxy: Proxy) -> None:
        """All there is, and it is right."""
        for path, body in self.paths.items():
            answer = await proxy.ask(path)
            assert (answer.status, answer.complete, answer.body == body) == (200, True, True), path


async def record(hub: Hub, directory: Path) -> Recorded:
    """Have a service do what it does: pulls, a slow download with checkpoints, a tag that moves, evictions, a stop."""
    recorded = Recorded(hub, directory)
    directory.mkdir()
    recorded.cache = directory / "cache"
    recorded.strace = directory / "calls"
    recorded.before = directory / "before"
    await asyncio.to_thread(put_old, recorded.cache, random.Random(1), 4, 256 * KIB)
    await asyncio.to_thread(shutil.copytree, recorded.cache, recorded.before)
    proxy = recorded.configured(directory, within=(*STRACE, "-o", str(recorded.strace)))
    async with proxy:
        recorded.add("1", os.urandom(3 * KIB), os.urandom(200 * KIB))
        await recorded.pull(proxy)
        slow = os.urandom(600 * KIB)
        digest = hub.add_blob(NAME, slow)
        hub.script.next("cdn", Quirk(rate=250 * KIB))
        async with connect(proxy.address) as wire:
            await begin(wire, f"/v2/{NAME}/blobs/{digest}", 1)
            recorded.add("2", os.urandom(70 * KIB), os.urandom(300 * KIB))
            await recorded.pull(proxy)
            await wire.reader.readexactly(len(slow) - 1)
        recorded.paths[f"/v2/{NAME}/blobs/{digest}"] = slow
        recorded.add("1", os.urandom(20 * KIB), os.urandom(400 * KIB))
        await recorded.pull(proxy)
        await proxy.idle()
        pid = proxy.pid
    ended = re.compile(rf"(?m)^{pid} +\+\+\+ exited with 0 \+\+\+$")
    await until(lambda: ended.search(recorded.strace.read_text()) is not None)
    return recorded


async def survive(recorded: Recorded, states: int, chance: random.Random) -> str:
    """Start the service on so many states that a power failure may leave; what they were, in words."""
    calls = await asyncio.to_thread(lambda: list(read(recorded.strace)))
    disk = Disk(recorded.before)
    disk._top = str(recorded.cache)
    changing = [number for number, call in enumerate(calls) if disk.play(call)]
    points = sorted(chance.choices(changing, k=states))
    disk = Disk(recorded.before)
    disk._top = str(recorded.cache)
    done = checked = 0
    for number, point in enumerate(points):
        for call in calls[done : point + 1]:
            disk.play(call)
        done = max(done, point + 1)
        place = recorded.directory / f"state-{number}"
        place.mkdir()
        await asyncio.to_thread(disk.crash, place / "cache", chance)
        where = f"state {number}, after {calls[point].name} {calls[point].paths or calls[point].text}"
        checked += await starts(recorded, place, disk, where)
        await asyncio.to_thread(shutil.rmtree, place)
    return (
        f"{states} states at {len(changing)} points of {len(calls)} calls; {checked} times committed content was there"
    )


async def starts(recorded: Recorded, place: Path, disk: Disk, where: str) -> int:
    """Check one state: all that was committed is there and right, and all that is asked for comes right."""
    top = str(recorded.cache)
    committed = [place / "cache" / path.removeprefix(f"{top}/") for path in disk.committed]
    for path in committed:
        assert path.exists(), f"{where}: {path.name} was committed, and is gone"
        assert Digest.of(path.read_bytes()).hex == path.name, f"{where}: {path.name} was committed, and is wrong"
    proxy = recorded.configured(place)
    proxy.tolerate("the index cannot be used|the index is broken")
    try:
        async with proxy:
            await recorded.pull(proxy)
    except BaseException as error:
        error.add_note(where)
        raise
    return len(committed)


@pytest.mark.timeout(600)
async def test_what_a_power_failure_leaves_is_good_enough(hub: Hub, tmp_path: Path) -> None:
    """25 of the states: the service starts, no wrong byte is served, what was committed is there."""
    recorded = await record(hub, tmp_path / "recorded")
    log.info(await survive(recorded, 25, random.Random(25)))


@pytest.mark.soak
async def test_what_200_power_failures_leave_is_good_enough(hub: Hub, tmp_path: Path) -> None:
    """The same, more often."""
    recorded = await record(hub, tmp_path / "recorded")
    log.info(await survive(recorded, 200, random.Random(200)))
