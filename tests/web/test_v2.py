"""The registry protocol: exact statuses and fields, over real sockets."""

from tests.contracts.registry_contract import SAMPLE
from tests.web.conftest import Served


async def test_base(served: Served) -> None:
    """x"""
    print(await served.ask("/v2/"))
    print(await served.ask("/v2/sample/manifests/latest"))
    for digest in SAMPLE.blobs:
        a = await served.ask(f"/v2/sample/blobs/{digest}")
        print(a[:2])
        assert a.body == SAMPLE.blobs[digest]
    print(await served.ask("/v2/sample/blobs/uploads/"))
    print(await served.raw(b"GET / HTTP/1.1\r\nHost : b\r\n\r\n"))
    print(await served.logged())
