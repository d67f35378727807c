"""Tags and referrers from an upstream: page by page, and what is not a list."""

import json

import pytest

from mirrorproxy.errors import BadAnswer, NameUnknown, NotFound
from mirrorproxy.manifests import OCI_INDEX
from mirrorproxy.names import Digest, repository
from mirrorproxy.upstream import Failover
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.upstream.conftest import ALPINE

SUBJECT = Digest.of(b"subject")
EMPTY = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()


@pytest.fixture(autouse=True)
def _stocked(hub: Hub) -> None:
    """There are five tags."""
    for number in range(5):
        hub.add_image(ALPINE.name, f"3.{number}", b"layer")


async def test_tags_page_by_page(hub: Hub, upstream: Failover) -> None:
    """The query goes as it stands, and `next_query` leads on."""
    listing = await upstream.tags(ALPINE, "n=2&last=3.0")
    assert json.loads(listing.body)["tags"] == ["3.1", "3.2"]
    assert listing.next_query == "last=3.2&n=2"
    assert (await upstream.tags(ALPINE, "last=3.2&n=2")).next_query is None
    assert hub.seen("tags")[1].target == f"/v2/{ALPINE.name}/tags/list?n=2&last=3.0"


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("last=%2Bx%2f~", "last=%2Bx%2f~"),
        ("last=a+b", "last=a+b"),
        ("last=a b#c", "last=a%20b%23c"),
        ("last=\r\nX-Evil: 1", "last=%0D%0AX-Evil:%201"),
        ("last=é", "last=%C3%A9"),
    ],
)
async def test_a_query_cannot_be_more_than_a_query(hub: Hub, upstream: Failover, query: str, sent: str) -> None:
    """What is encoded stays so; what cannot stand in a request is encoded."""
    await upstream.tags(ALPINE, query)
    assert hub.seen("tags")[-1].target == f"/v2/{ALPINE.name}/tags/list?{sent}"


async def test_tags_of_a_repository_that_is_not_there(upstream: Failover) -> None:
    """`NameUnknown`."""
    with pytest.raises(NameUnknown):
        await upstream.tags(repository("docker.io", "library/absent"))


async def test_a_repository_without_tags(hub: Hub, upstream: Failover) -> None:
    """`null`, as Go writes an empty list, is one."""
    hub.script.always("tags", Quirk(body=b'{"name": "library/alpine", "tags": null}'))
    assert (await upstream.tags(ALPINE)).body == b'{"name": "library/alpine", "tags": null}'


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"tags": []}', b'{"name": "x"}', b'{"name": "x", "tags": {}}', b"[" * 50_000]
)
async def test_what_is_not_a_list_of_tags(hub: Hub, upstream: Failover, body: bytes) -> None:
    """`BadAnswer`: it would be kept, and served as one."""
    hub.script.always("tags", Quirk(body=body))
    with pytest.raises(BadAnswer):
        await upstream.tags(ALPINE)


async def test_referrers(hub: Hub, upstream: Failover) -> None:
    """With the filter that was applied, and the next page."""
    hub.script.always(
        "referrers",
        Quirk(
            headers={"Link": f"</v2/x/referrers/{SUBJECT}?token=%2B1>; rel=next", "OCI-Filters-Applied": "artifactType"}
        ),
    )
    listing = await upstream.referrers(ALPINE, SUBJECT, "artifactType=a%2Fb")
    assert (listing.body, listing.media_type) == (EMPTY, OCI_INDEX)
    assert (listing.filters, listing.next_query) == ("artifactType", "token=%2B1")
    assert hub.seen("referrers")[-1].target == f"/v2/{ALPINE.name}/referrers/{SUBJECT}?artifactType=a%2Fb"


async def test_referrers_sent_as_json(hub: Hub, upstream: Failover) -> None:
    """The body says what it is."""
    hub.script.always("referrers", Quirk(headers={"Content-Type": "application/json"}))
    assert (await upstream.referrers(ALPINE, SUBJECT)).media_type == OCI_INDEX


@pytest.mark.parametrize(
    ("quirk"),
    [
        Quirk(body=b"{}"),
        Quirk(body=b'{"manifests": []}', headers={"Content-Type": "application/json"}),
        Quirk(body=b'{"manifests": {}}'),
        Quirk(body=EMPTY.replace(b"index", b"other")),
        Quirk(html=True),
        Quirk(gzip=True),
    ],
)
async def test_what_is_not_a_list_of_referrers(hub: Hub, upstream: Failover, quirk: Quirk) -> None:
    """`BadAnswer`: taken for an empty list it would read "unsigned"."""
    hub.script.always("referrers", quirk)
    with pytest.raises(BadAnswer):
        await upstream.referrers(ALPINE, SUBJECT)


async def test_an_upstream_without_the_referrers_api(hub: Hub, upstream: Failover) -> None:
    """`NotFound`, which is not an empty list either: clients fall back to tags."""
    hub.script.always(
        "referrers", Quirk(status=404, body=b"404 page not found", headers={"Content-Type": "text/plain"})
    )
    with pytest.raises(NotFound):
        await upstream.referrers(ALPINE, SUBJECT)


@pytest.mark.parametrize("kind", ["tags", "referrers"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_more_than_a_page(hub: Hub, upstream: Failover, kind: str, chunked: bool) -> None:
    """Nobody needs 4 MiB of names at a time."""
    hub.script.always(kind, Quirk(body=b" " * (4 << 20) + EMPTY, chunked=chunked))
    with pytest.raises(BadAnswer, match="allowed"):
        await (upstream.tags(ALPINE) if kind == "tags" else upstream.referrers(ALPINE, SUBJECT))
