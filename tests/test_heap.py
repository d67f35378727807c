"""One heap for all threads."""

import asyncio
import subprocess
import sys

import pytest

from mirrorproxy import heap

THREADS = """
import ctypes, threading
from mirrorproxy import heap
{call}
begun = threading.Barrier(5)
kept = []
def work():
    begun.wait()
    kept.append([bytes(2000) for _ in range(1000)])
threads = [threading.Thread(target=work) for _ in range(5)]
for each in threads: each.start()
for each in threads: each.join()
ctypes.CDLL(None).malloc_info(0, ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stdout"))
ctypes.CDLL(None).fflush(None)
"""


@pytest.mark.parametrize(("call", "one"), [("heap.share_one()", True), ("", False)])
def test_threads_share_one(call: str, one: bool) -> None:
    """As `malloc_info` counts them; without it each of five threads has its own, as far as there are enough cores."""
    run = subprocess.run([sys.executable, "-c", THREADS.format(call=call)], capture_output=True, text=True, check=True)
    assert (run.stdout.count("<heap nr=") == 1) is one


HOLES = """
import os
from bench.memory import pss
from mirrorproxy import heap
heap.share_one()
large, small = [], []
for _ in range(200):
    large.append(b"x" * 100_000)
    small.append(b"y" * 20_000)
large.clear()
before = pss(os.getpid())
heap.give_back()
print(before - pss(os.getpid()))
"""


def test_what_is_free_between_pieces_in_use_goes_back() -> None:
    """Twenty megabytes of buffers, with something that stays between each two of them."""
    run = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 15_000_000


async def test_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is cancelled."""
    given = 0

    def give_back() -> None:
        nonlocal given
        given += 1

    monkeypatch.setattr(heap, "_GIVE_BACK_EVERY", 0.001)
    monkeypatch.setattr(heap, "give_back", give_back)
    keeping = asyncio.get_running_loop().create_task(heap.keep_giving_back())
    while given < 3:
        await asyncio.sleep(0.001)
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
