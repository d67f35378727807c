"""Settings that cannot be, told together at the start. (What is refused, and how, is in `tests.config`.)"""

from pathlib import Path

from tests.e2e.proxy import Proxy


async def test_what_cannot_be_is_refused_with_what_to_change(tmp_path: Path) -> None:
    """All of it at once, each with its key and a way out; nothing is served, and the exit status is 78."""
    wrong = {
        "upstreams": {
            "docker.io": {
                "endpoints": ["http://127.0.0.1:1"],
                "idle_timeout": "20m",
                "connections": 8,
                "max_connections": 4,
                "prefetch": "some",
                "min_rate": "10",
                "parallel_from": "1KiB",
            }
        },
        "fills": {
            "budget": "10m",
            "abandoned": {"linger": "soon"},
            "max_active": 0,
            "max_waiting": -1,
            "max_readers": 0,
        },
        "partials": {"keep": "0s", "max_count": "all"},
    }
    proxy = Proxy(tmp_path, wrong)
    assert await proxy.run() == 78
    said = proxy.stderr.read_text()
    for key in (
        "upstreams.docker.io.prefetch",
        "upstreams.docker.io.min_rate",
        "upstreams.docker.io.parallel_from",
        "fills.abandoned",
        "fills.max_active",
        "fills.max_waiting",
        "fills.max_readers",
        "partials.keep",
        "partials.max_count",
    ):
        assert key in said, said


async def test_what_does_not_go_together_is_refused_with_what_to_change(tmp_path: Path) -> None:
    """Where each by itself is right: a stall longer than the budget, connections that one download may not have."""
    upstream = {"endpoints": ["http://127.0.0.1:1"], "idle_timeout": "20m", "connections": 8, "max_connections": 4}
    proxy = Proxy(tmp_path, {"upstreams": {"docker.io": upstream}, "fills": {"budget": "10m"}})
    assert await proxy.run() == 78
    said = proxy.stderr.read_text()
    for words in (
        "upstreams.docker.io.idle_timeout",
        "lower it, or raise fills.budget",
        "upstreams.docker.io.connections",
        "write 4 or less, or raise max_connections",
    ):
        assert words in said, said
