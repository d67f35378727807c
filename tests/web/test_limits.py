"""What happens when there are too many requests at once."""

import asyncio

from mirrorproxy.names import repository
from tests.fakes.memory import MemoryRegistry
from tests.web.conftest import Serve


async def test_beyond_the_limit_is_a_503_with_a_word(serve: Serve) -> None:
    """And `Retry-After`; those inside end as they would, and health pages and metrics answer throughout."""
    registry = MemoryRegistry()
    digest = registry.put_blob(repository("docker.io", "alpine"), b"a layer")
    served = await serve(registry)
    served.app._limit = 2
    gate = registry.hold("blob")
    inside = [asyncio.get_running_loop().create_task(served.ask(f"/v2/alpine/blobs/{digest}")) for _ in range(2)]
    while served.app.inflight < 2:
        await asyncio.sleep(0.01)
    refused = await served.ask(f"/v2/alpine/blobs/{digest}")
    assert (refused.status, refused.error["code"]) == (503, "UNAVAILABLE")
    assert int(refused.headers["Retry-After"]) >= 1
    assert 'mirrorproxy_refused_total{limit="requests"} 1.0' in (await served.ask("/metrics")).body.decode()
    for page in ("/livez", "/readyz", "/metrics"):
        assert (await served.ask(page)).status == 200
    gate.set()
    assert [answer.body for answer in await asyncio.gather(*inside)] == [b"a layer"] * 2
    assert (await served.ask(f"/v2/alpine/blobs/{digest}")).status == 200
