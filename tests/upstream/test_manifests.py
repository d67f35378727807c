"""Manifests from an upstream: by tag and digest, by HEAD and GET, and what is not one."""

import hashlib
import json

import pytest

from mirrorproxy import manifests
from mirrorproxy.errors import (
    BadAnswer,
    DigestMismatch,
    ManifestUnknown,
    NameUnknown,
    NotFound,
    TimedOut,
    Unreachable,
)
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Tag, repository
from mirrorproxy.upstream import Failover
from tests.fakes.content import Image
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.upstream.conftest import ALPINE, Connect

TAG = Tag("3.20")


@pytest.fixture
def image(hub: Hub) -> Image:
    """An image of one layer."""
    return hub.add_image(ALPINE.name, TAG, b"layer")


def sha512(body: bytes) -> Digest:
    """The other digest of a body."""
    return Digest(f"sha512:{hashlib.sha512(body).hexdigest()}")


def mismatches(metrics: Metrics) -> float | None:
    """How often bytes were not what their digest says."""
    return metrics.collectors.get_sample_value("mirrorproxy_digest_mismatches_total", {"registry": "docker.io"})


async def test_a_tag_is_one_get(hub: Hub, upstream: Failover, image: Image) -> None:
    """Not a HEAD and a GET."""
    found = await upstream.manifest(ALPINE, TAG)
    assert (found.descriptor, found.body) == (image.manifest, image.body)
    assert found.contents.layers == image.layers
    assert [str(seen) for seen in hub.seen("manifest")] == ["GET manifest 401", "GET manifest 200"]


async def test_resolving_is_one_head(hub: Hub, upstream: Failover, image: Image) -> None:
    """Which does not count towards Docker Hub's limit."""
    assert (await upstream.resolve(ALPINE, TAG)).descriptor == image.manifest
    assert (await upstream.resolve(ALPINE, image.manifest.digest)).descriptor == image.manifest
    assert {seen.method for seen in hub.seen("manifest")} == {"HEAD"}


async def test_what_is_accepted(hub: Hub, upstream: Failover, image: Image) -> None:
    """Everything that can be kept, always: an Accept of the client's would split the cache."""
    await upstream.manifest(ALPINE, TAG)
    assert {seen.headers["Accept"] for seen in hub.seen("manifest")} == {manifests.ACCEPT}


@pytest.mark.parametrize("media_type", sorted(manifests.MEDIA_TYPES))
async def test_every_media_type(hub: Hub, upstream: Failover, media_type: str) -> None:
    """Comes as it is."""
    descriptor = hub.add_manifest(ALPINE.name, {}, "typed", media_type=media_type)
    assert (await upstream.manifest(ALPINE, Tag("typed"))).descriptor == descriptor
    assert (await upstream.resolve(ALPINE, Tag("typed"))).descriptor == descriptor


async def test_parameters_are_not_the_media_type(hub: Hub, upstream: Failover, image: Image) -> None:
    """`; charset=utf-8`, as some proxies add it."""
    hub.script.always("manifest", Quirk(headers={"Content-Type": f"{image.manifest.media_type}; charset=utf-8"}))
    assert (await upstream.manifest(ALPINE, TAG)).descriptor == image.manifest
    assert (await upstream.resolve(ALPINE, TAG)).descriptor == image.manifest


@pytest.mark.parametrize(
    "quirk",
    [
        Quirk(headers={"Docker-Content-Digest": None}),
        Quirk(headers={"Docker-Content-Digest": "md5:abc"}),
        Quirk(headers={"Content-Length": None}),
        Quirk(headers={"Content-Type": "application/json"}),
        Quirk(headers={"Content-Type": None}),
        Quirk(headers={"Content-Length": "99999999"}),
        Quirk(headers={"Content-Length": "0"}),
        Quirk(status=405),
        Quirk(status=501),
        Quirk(status=400),
        Quirk(status=404, headers={"Content-Type": "text/html", "Docker-Distribution-Api-Version": None}),
        Quirk(status=404, headers={"Content-Type": None, "Docker-Distribution-Api-Version": None}),
    ],
)
async def test_a_head_that_does_not_say_all(hub: Hub, upstream: Failover, image: Image, quirk: Quirk) -> None:
    """Is followed by a GET, which does."""
    hub.script.always("manifest", quirk, method="HEAD")
    assert (await upstream.resolve(ALPINE, TAG)).descriptor == image.manifest
    assert [seen.method for seen in hub.seen("manifest")] == ["HEAD", "HEAD", "GET"]


async def test_a_head_by_digest_need_not_repeat_it(hub: Hub, upstream: Failover, image: Image) -> None:
    """It is known; one that is another is refused."""
    hub.script.always("manifest", Quirk(headers={"Docker-Content-Digest": None}), method="HEAD")
    assert (await upstream.resolve(ALPINE, image.manifest.digest)).descriptor == image.manifest
    hub.script.always("manifest", Quirk(headers={"Docker-Content-Digest": Digest.of(b"x")}), method="HEAD")
    with pytest.raises(BadAnswer):
        await upstream.resolve(ALPINE, image.manifest.digest)
    assert hub.count("manifest", "GET") == 0


@pytest.mark.parametrize("status", [404])
async def test_a_registrys_404_to_a_head_is_its_word(hub: Hub, upstream: Failover, image: Image, status: int) -> None:
    """No GET, which Docker Hub might count."""
    hub.script.always("manifest", Quirk(status=status), method="HEAD")
    with pytest.raises(ManifestUnknown):
        await upstream.resolve(ALPINE, TAG)
    assert hub.count("manifest", "GET") == 0


async def test_wrong_bytes_by_digest(hub: Hub, upstream: Failover, image: Image, metrics: Metrics) -> None:
    """`DigestMismatch`, counted, whatever the headers say."""
    hub.script.always("manifest", Quirk(body=image.body + b" "))
    with pytest.raises(DigestMismatch):
        await upstream.manifest(ALPINE, image.manifest.digest)
    assert mismatches(metrics) == 1


async def test_wrong_bytes_by_tag(hub: Hub, upstream: Failover, image: Image) -> None:
    """What the registry tells beside it must fit."""
    hub.script.always("manifest", Quirk(body=image.body + b" "))
    with pytest.raises(BadAnswer):
        await upstream.manifest(ALPINE, TAG)


@pytest.mark.parametrize("told", [None, "md5:abc", "sha256:short"])
async def test_a_tag_without_a_digest_beside_it(hub: Hub, upstream: Failover, image: Image, told: str | None) -> None:
    """The bytes have one."""
    hub.script.always("manifest", Quirk(headers={"Docker-Content-Digest": told}))
    assert (await upstream.manifest(ALPINE, TAG)).descriptor == image.manifest


async def test_sha512(hub: Hub, upstream: Failover, image: Image) -> None:
    """By digest, and beside a tag: the algorithm is kept, and the bytes are checked by it."""
    digest = sha512(image.body)
    hub.stock(ALPINE.name).manifests[digest] = (manifests.OCI_MANIFEST, image.body)
    assert (await upstream.manifest(ALPINE, digest)).descriptor.digest == digest
    assert (await upstream.resolve(ALPINE, digest)).descriptor.digest == digest
    hub.script.always("manifest", Quirk(headers={"Docker-Content-Digest": digest}))
    assert (await upstream.manifest(ALPINE, TAG)).descriptor.digest == digest
    hub.script.always("manifest", Quirk(headers={"Docker-Content-Digest": sha512(b"other")}))
    with pytest.raises(BadAnswer):
        await upstream.manifest(ALPINE, TAG)


async def test_another_algorithm_told_says_nothing(hub: Hub, upstream: Failover, image: Image) -> None:
    """By sha256 asked, by sha512 told: the bytes decide."""
    hub.script.always("manifest", Quirk(headers={"Docker-Content-Digest": sha512(image.body)}))
    assert (await upstream.manifest(ALPINE, image.manifest.digest)).descriptor == image.manifest


@pytest.mark.parametrize(
    "quirk",
    [
        Quirk(html=True),
        Quirk(gzip=True),
        Quirk(body=b"not json"),
        Quirk(body=b"[]"),
        Quirk(body=b"{}", headers={"Content-Type": "application/json"}),
        Quirk(body=b"", headers={"Content-Type": manifests.DOCKER_SCHEMA1_SIGNED}),
        Quirk(body=b"{" + b" " * manifests.MAX_SIZE + b"}"),
        Quirk(body=b"{" + b" " * manifests.MAX_SIZE + b"}", chunked=True),
        Quirk(status=204, body=b""),
        Quirk(status=206),
        Quirk(status=304, body=b""),
        Quirk(status=400),
        Quirk(status=404, html=True),
        Quirk(status=511, html=True),
    ],
)
async def test_what_is_not_a_manifest(hub: Hub, upstream: Failover, image: Image, quirk: Quirk) -> None:
    """Captive portals, codings, more than a manifest may be: `BadAnswer`, and asked once."""
    hub.script.always("manifest", quirk)
    with pytest.raises(BadAnswer):
        await upstream.manifest(ALPINE, TAG)
    assert hub.count("manifest") == 2


async def test_a_large_manifest(hub: Hub, upstream: Failover) -> None:
    """Just under the limit is fine; its hash keeps nobody waiting."""
    body = json.dumps({"schemaVersion": 2, "layers": [], "annotations": {"x": "y" * (manifests.MAX_SIZE - 100)}})
    descriptor = hub.add_manifest(ALPINE.name, body.encode(), "large")
    assert (await upstream.manifest(ALPINE, Tag("large"))).descriptor == descriptor


@pytest.mark.parametrize(("quirk", "error"), [(Quirk(cut=20), Unreachable), (Quirk(stall=20), TimedOut)])
async def test_one_that_breaks(
    hub: Hub, connected: Connect, image: Image, quirk: Quirk, error: type[Exception]
) -> None:
    """Is asked for again, as often as anything."""
    hub.script.next("manifest", quirk)
    assert (await connected(hub, idle_timeout=0.2).manifest(ALPINE, TAG)).body == image.body
    hub.script.always("manifest", quirk)
    with pytest.raises(error):
        await connected(hub, idle_timeout=0.2).manifest(ALPINE, TAG)


async def test_not_there(hub: Hub, upstream: Failover, image: Image) -> None:
    """The registry's own words tell a manifest from a repository."""
    for reference in (Tag("absent"), Digest.of(b"absent")):
        with pytest.raises(ManifestUnknown):
            await upstream.manifest(ALPINE, reference)
        with pytest.raises(ManifestUnknown):
            await upstream.resolve(ALPINE, reference)
    with pytest.raises(NameUnknown):
        await upstream.manifest(repository("docker.io", "library/absent"), TAG)


@pytest.mark.parametrize(
    ("quirk", "error"),
    [
        (Quirk(status=404, body=b""), ManifestUnknown),
        (Quirk(status=404, body=b"404 page not found", headers={"Content-Type": "text/plain"}), ManifestUnknown),
        (Quirk(status=404, body=b'{"errors":[{"code":"NAME_UNKNOWN"}]}'), NameUnknown),
        (Quirk(status=404, body=b'{"errors":[{"code":"name_unknown"}, 5, null]}'), ManifestUnknown),
        (Quirk(status=404, body=b'{"errors":{"code":"NAME_UNKNOWN"}}'), ManifestUnknown),
        (Quirk(status=404, body=b"[" * 8000), ManifestUnknown),
        (Quirk(status=404, body=b"x" * 100_000), ManifestUnknown),
        (Quirk(status=404, cut=5), ManifestUnknown),
        (Quirk(status=404, html=True, headers={"Docker-Distribution-Api-Version": "registry/2.0"}), ManifestUnknown),
    ],
)
async def test_the_words_of_a_404(hub: Hub, upstream: Failover, quirk: Quirk, error: type[NotFound]) -> None:
    """Odd bodies change nothing; a web page that is no registry's is no answer (see above)."""
    hub.script.always("manifest", quirk)
    with pytest.raises(error) as caught:
        await upstream.manifest(ALPINE, TAG)
    assert type(caught.value) is error


async def test_a_redirect_to_another_registry(hub: Hub, upstream: Failover, image: Image) -> None:
    """registry.k8s.io redirects manifests too: HEAD stays HEAD, and the bytes are checked as ever."""
    manifest = {
        "Content-Type": image.manifest.media_type,
        "Docker-Content-Digest": str(image.manifest.digest),
    }
    target = hub.storage.origin + "/v2/k8s-artifacts-prod/images/alpine/manifests/3.20"
    hub.script.always("manifest", Quirk(status=307, headers={"Location": target}))
    hub.script.always("cdn", Quirk(status=200, body=image.body, headers=manifest))
    assert (await upstream.resolve(ALPINE, TAG)).descriptor == image.manifest
    assert (await upstream.manifest(ALPINE, TAG)).body == image.body
    assert [seen.method for seen in hub.seen("cdn")] == ["HEAD", "GET"]


async def test_what_is_left_of_the_limit(hub: Hub, upstream: Failover, image: Image, metrics: Metrics) -> None:
    """Docker Hub's headers become gauges; there are none before, and odd ones change nothing."""
    names = [f"mirrorproxy_upstream_ratelimit_{which}" for which in ("limit", "remaining")]
    labels = {"registry": "docker.io"}
    await upstream.resolve(ALPINE, TAG)
    assert [metrics.collectors.get_sample_value(name, labels) for name in names] == [None, None]
    hub.ratelimit = (100, 76)
    await upstream.resolve(ALPINE, TAG)
    assert [metrics.collectors.get_sample_value(name, labels) for name in names] == [100, 76]
    hub.script.always("manifest", Quirk(headers={"ratelimit-limit": "many", "ratelimit-remaining": "75;w=21600"}))
    await upstream.resolve(ALPINE, TAG)
    assert [metrics.collectors.get_sample_value(name, labels) for name in names] == [100, 75]
