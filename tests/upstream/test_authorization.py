"""Tokens and passwords towards a registry: few requests, and nothing for anybody else."""

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import pytest

from mirrorproxy.errors import BadAnswer, BlobUnknown, ServerFailed, Unauthorized, Unreachable
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Repository, Tag, repository
from mirrorproxy.upstream import Failover
from tests.contracts.registry_contract import read
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.upstream.conftest import ALPINE, Connect

PASSWORD = "correct horse"
CREDENTIALS = {"username": "ann", "password": PASSWORD}


async def pull(upstream: Failover, digest: Digest, name: Repository = ALPINE) -> bytes:
    """The whole of a blob."""
    async with aclosing(await upstream.blob(name, digest)) as blob:
        return await read(blob)


def failures(metrics: Metrics) -> float | None:
    """How often an upstream refused, by the metrics."""
    return metrics.collectors.get_sample_value("mirrorproxy_auth_failures_total", {"direction": "upstream"})


async def test_ten_blobs_of_a_repository_are_one_token(hub: Hub, upstream: Failover) -> None:
    """And one 401: after that the token is sent without being asked for."""
    blobs = {hub.add_blob(ALPINE.name, bytes([n]) * 100): bytes([n]) * 100 for n in range(10)}
    for digest, data in blobs.items():
        assert await pull(upstream, digest) == data
    assert hub.count("token") == 1
    assert [seen.status for seen in hub.seen("blob")] == [401, *[307] * 10]
    assert hub.count("cdn") == 10


async def test_fifty_at_once_are_one_token(hub: Hub, upstream: Failover) -> None:
    """One request to the token service, however many wait for it."""
    digest = hub.add_blob(ALPINE.name, b"layer")
    assert set(await asyncio.gather(*(pull(upstream, digest) for _ in range(50)))) == {b"layer"}
    assert hub.count("token") == 1


async def test_what_a_token_service_is_asked(hub: Hub, upstream: Failover) -> None:
    """The service and the scope of the challenge, by GET, and no password that we do not have."""
    await pull(upstream, hub.add_blob(ALPINE.name, b"layer"))
    (asked,) = hub.seen("token")
    assert asked.method == "GET"
    assert asked.target == "/token?service=registry.hub&scope=repository%3Alibrary%2Falpine%3Apull"
    assert asked.authorization is None


async def test_a_token_for_another_repository_is_fetched_ahead(hub: Hub, upstream: Failover) -> None:
    """The endpoint taught us once how it wants it: no second 401, no needless round trip."""
    for name in ("library/alpine", "library/busybox", "team/app/web"):
        digest = hub.add_blob(name, name.encode())
        assert await pull(upstream, digest, repository("docker.io", name)) == name.encode()
    assert hub.count("token") == 3
    assert [seen.status for seen in hub.seen("blob")] == [401, 307, 307, 307]


async def test_a_token_that_is_about_to_expire_is_not_used(hub: Hub, upstream: Failover) -> None:
    """A new one is asked for in time, so that no request fails."""
    hub.expires_in = 0.4
    digest = hub.add_blob(ALPINE.name, b"layer")
    await pull(upstream, digest)
    await asyncio.sleep(0.25)
    await pull(upstream, digest)
    assert hub.count("token") == 2
    assert [seen.status for seen in hub.seen("blob")] == [401, 307, 307]


async def test_a_token_without_an_expiry_is_good_for_a_minute(hub: Hub, upstream: Failover) -> None:
    """The token specification's default; `access_token` is as good a name."""
    hub.expires_in, hub.token_field = None, "access_token"
    digest = hub.add_blob(ALPINE.name, b"layer")
    await pull(upstream, digest)
    await pull(upstream, digest)
    assert hub.count("token") == 1


@pytest.mark.parametrize("clients", [1, 50])
async def test_a_refused_token_is_replaced_once(hub: Hub, upstream: Failover, clients: int) -> None:
    """Revoked before its time: one 401, one new token, the same answer for all."""
    digest = hub.add_blob(ALPINE.name, b"layer")
    await pull(upstream, digest)
    hub.revoke_tokens()
    assert set(await asyncio.gather(*(pull(upstream, digest) for _ in range(clients)))) == {b"layer"}
    assert hub.count("token") == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_after_that_is_final(hub: Hub, metrics: Metrics, upstream: Failover, status: int) -> None:
    """`Unauthorized`, after one new token and one more request; counted."""
    digest = hub.add_blob(ALPINE.name, b"layer")
    await pull(upstream, digest)
    hub.script.always("blob", Quirk(status=status))
    with pytest.raises(Unauthorized):
        await upstream.blob(ALPINE, digest)
    assert hub.count("token") == 2
    assert [seen.status for seen in hub.seen("blob")] == [401, 307, status, status]
    assert failures(metrics) == 1


async def test_a_403_to_a_token_got_for_it_is_final(hub: Hub, upstream: Failover) -> None:
    """Nothing could be better than a token of this moment."""
    hub.script.always("manifest", Quirk(status=403))
    with pytest.raises(Unauthorized):
        await upstream.manifest(ALPINE, Tag("latest"))
    assert hub.count("token") == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_without_a_challenge(hub: Hub, upstream: Failover, status: int) -> None:
    """A token that was good once is replaced by one for the same repository, not for the one asked for last."""
    for name in (ALPINE.name, "team/app"):
        hub.add_blob(name, b"layer")
        await pull(upstream, Digest.of(b"layer"), repository("docker.io", name))
    hub.script.next("blob", Quirk(status=status, headers={"WWW-Authenticate": None}))
    assert await pull(upstream, Digest.of(b"layer")) == b"layer"
    scopes = [parse_qs(urlsplit(seen.target).query)["scope"][0] for seen in hub.seen("token")]
    assert scopes == ["repository:library/alpine:pull", "repository:team/app:pull", "repository:library/alpine:pull"]


@pytest.mark.parametrize("challenge", [None, "Negotiate", "Bearer service=x", "Basic"])
async def test_a_401_that_cannot_be_answered(hub: Hub, upstream: Failover, challenge: str | None) -> None:
    """No challenge, one of another kind, a password that we do not have: asked once."""
    hub.auth = "none"
    hub.script.always("manifest", Quirk(status=401, headers={"WWW-Authenticate": challenge}))
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await upstream.manifest(ALPINE, Tag("latest"))
    assert [seen.kind for seen in hub.log] == ["manifest"] * 2


async def test_a_challenge_without_a_scope(hub: Hub, upstream: Failover) -> None:
    """The usual one is asked for; and for another repository not before it is known that a token is wanted."""
    hub.auth = "none"
    realm = f'Bearer realm="{hub.token_service.origin}/token",service="registry.hub"'
    hub.script.when(
        "blob", lambda seen: None if seen.authorization else Quirk(status=401, headers={"WWW-Authenticate": realm})
    )
    for name in (ALPINE.name, "team/app"):
        hub.add_blob(name, b"layer")
        await pull(upstream, Digest.of(b"layer"), repository("docker.io", name))
    scopes = [parse_qs(urlsplit(seen.target).query)["scope"][0] for seen in hub.seen("token")]
    assert scopes == ["repository:library/alpine:pull", "repository:team/app:pull"]
    assert [seen.status for seen in hub.seen("blob")] == [401, 307, 401, 307]


async def test_a_repository_that_docker_hub_hides(hub: Hub, upstream: Failover) -> None:
    """401 for what does not exist: one token, and no second one for the same refusal."""
    hub.hides = True
    hub.add_blob(ALPINE.name, b"layer")
    await pull(upstream, Digest.of(b"layer"))
    absent = repository("docker.io", "library/absent")
    with pytest.raises(Unauthorized):
        await upstream.manifest(absent, Tag("latest"))
    assert hub.count("token") == 2
    assert hub.count("manifest") == 1


async def test_a_private_repository(hub: Hub, connected: Connect, metrics: Metrics) -> None:
    """With credentials, not without; the password goes to the token service alone."""
    hub.users, hub.private = {"ann": PASSWORD}, {"team/app"}
    digest, name = hub.add_blob("team/app", b"layer"), repository("docker.io", "team/app")
    with pytest.raises(Unauthorized):
        await connected(hub).blob(name, digest)
    assert failures(metrics) == 1
    assert await pull(connected(hub, credentials=CREDENTIALS), digest, name) == b"layer"
    with_password = [seen.kind for seen in hub.log if (seen.authorization or "").startswith("Basic")]
    assert with_password == ["token"]


async def test_a_wrong_password(hub: Hub, connected: Connect, metrics: Metrics) -> None:
    """`Unauthorized`, said in words without it."""
    hub.users = {"ann": "other"}
    with pytest.raises(Unauthorized, match="no token") as caught:
        await connected(hub, credentials=CREDENTIALS).manifest(ALPINE, Tag("latest"))
    assert PASSWORD not in str(caught.value)
    assert failures(metrics) == 1


async def test_a_password_that_changes(hub: Hub, connected: Connect, tmp_path: Path) -> None:
    """Its file is read again as soon as the upstream refuses, so that no restart is needed."""
    path = tmp_path / "password"
    path.write_text("old")
    hub.users = {"ann": "old"}
    upstream = connected(hub, credentials={"username": "ann", "password_file": str(path)})
    digest = hub.add_blob(ALPINE.name, b"layer")
    await pull(upstream, digest)
    hub.users = {"ann": "new"}
    hub.revoke_tokens()
    path.write_text("new")
    assert await pull(upstream, digest) == b"layer"


async def test_basic(connected: Connect) -> None:
    """Where a registry wants no token: the password after the first 401, and from then on at once."""
    async with Hub(auth="basic", redirects=False, users={"ann": PASSWORD}) as hub:
        upstream, digest = connected(hub, credentials=CREDENTIALS), hub.add_blob(ALPINE.name, b"layer")
        for _ in range(3):
            assert await pull(upstream, digest) == b"layer"
        assert [seen.status for seen in hub.seen("blob")] == [401, 200, 200, 200]
        assert hub.count("token") == 0


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_basic_refused(connected: Connect, password: str | None) -> None:
    """`Unauthorized`, without a loop."""
    credentials = password and {"username": "ann", "password": password}
    async with Hub(auth="basic", users={"ann": PASSWORD}) as hub:
        upstream = connected(hub, credentials=credentials)
        for _ in range(2):
            with pytest.raises(Unauthorized):
                await upstream.blob(ALPINE, Digest.of(b""))
        assert hub.count("blob") <= 4


async def test_basic_with_a_password_that_changes(connected: Connect, tmp_path: Path) -> None:
    """Read again after the 401, within the same request."""
    path = tmp_path / "password"
    path.write_text("old")
    async with Hub(auth="basic", redirects=False, users={"ann": "old"}) as hub:
        upstream = connected(hub, credentials={"username": "ann", "password_file": str(path)})
        digest = hub.add_blob(ALPINE.name, b"layer")
        await pull(upstream, digest)
        hub.users = {"ann": "new"}
        path.write_text("new")
        assert await pull(upstream, digest) == b"layer"


async def test_an_identity_token(connected: Connect, tmp_path: Path) -> None:
    """From a Docker configuration: by POST, as OAuth2 has it, so that it stands in no URL."""
    config = tmp_path / "config.json"
    config.write_text('{"auths": {"https://index.docker.io/v1/": {"identitytoken": "refresh-me"}}}')
    async with Hub(identity_token="refresh-me") as hub:
        hub.private = {ALPINE.name}
        upstream = connected(hub, credentials={"docker_config": str(config)})
        assert await pull(upstream, hub.add_blob(ALPINE.name, b"layer")) == b"layer"
        (asked,) = hub.seen("token")
        assert (asked.method, asked.target) == ("POST", "/token")


async def test_nothing_is_sent_to_a_registry_that_does_not_ask(connected: Connect) -> None:
    """Credentials are for who wants them."""
    async with Hub(auth="none") as hub:
        await pull(connected(hub, credentials=CREDENTIALS), hub.add_blob(ALPINE.name, b"layer"))
        assert all(seen.authorization is None for seen in hub.log)


@pytest.mark.parametrize("auth", ["bearer", "basic"])
async def test_nothing_is_sent_to_the_storage(hub: Hub, connected: Connect, auth: Literal["bearer", "basic"]) -> None:
    """Neither token nor password: it would refuse them, and they are not meant for it."""
    hub.users, hub.auth = {"ann": PASSWORD}, auth
    await pull(connected(hub, credentials=CREDENTIALS), hub.add_blob(ALPINE.name, b"layer"))
    (stored,) = hub.seen("cdn")
    assert stored.authorization is None


async def test_a_token_service_elsewhere_is_not_trusted(hub: Hub, connected: Connect) -> None:
    """On another host it must be named in the configuration; nothing is sent there before."""
    hub.users = {"ann": PASSWORD}
    with pytest.raises(BadAnswer, match="token_realms"):
        await connected(hub, token_realms=[], credentials=CREDENTIALS).manifest(ALPINE, Tag("latest"))
    assert hub.count("token") == 0


async def test_a_redirect_of_the_token_service_is_not_followed(hub: Hub, connected: Connect) -> None:
    """It would take the password elsewhere."""
    hub.users = {"ann": PASSWORD}
    hub.script.always("token", Quirk(status=307, headers={"Location": hub.storage.origin + "/token"}))
    with pytest.raises(BadAnswer, match="no token"):
        await connected(hub, credentials=CREDENTIALS).manifest(ALPINE, Tag("latest"))
    assert hub.count("cdn") == 0


@pytest.mark.parametrize(
    ("quirk", "error"),
    [
        (Quirk(status=500), ServerFailed),
        (Quirk(status=404), BadAnswer),
        (Quirk(html=True), BadAnswer),
        (Quirk(body=b'{"token": ""}'), BadAnswer),
        (Quirk(body=b'{"token": "' + b"x" * (300 << 10) + b'"}'), BadAnswer),
        (Quirk(reset=True), Unreachable),
    ],
)
async def test_a_token_service_that_fails(hub: Hub, upstream: Failover, quirk: Quirk, error: type[Exception]) -> None:
    """An outage of the token service is one of the upstream, never "not found"."""
    hub.script.always("token", quirk)
    with pytest.raises(error):
        await upstream.manifest(ALPINE, Tag("latest"))


async def test_a_token_service_that_fails_once(hub: Hub, upstream: Failover) -> None:
    """Is asked again."""
    hub.script.next("token", Quirk(status=503), Quirk(reset=True))
    assert await pull(upstream, hub.add_blob(ALPINE.name, b"layer")) == b"layer"
    assert hub.count("token") == 3


async def test_a_token_service_that_is_down(hub: Hub, upstream: Failover) -> None:
    """What has a token goes on; the rest says what is wrong, and works as soon as it is back."""
    digest, other = hub.add_blob(ALPINE.name, b"layer"), repository("docker.io", "library/other")
    hub.add_blob(other.name, b"layer")
    await pull(upstream, digest)
    await hub.stop_token_service()
    assert await pull(upstream, digest) == b"layer"
    with pytest.raises(Unreachable, match=r"no connection to 127\.0\.0\.2"):
        await upstream.blob(other, digest)
    await hub.start_token_service()
    assert await pull(upstream, digest, other) == b"layer"


async def test_a_slow_token_service_holds_up_nobody_who_has_a_token(hub: Hub, connected: Connect) -> None:
    """Not even with a single connection allowed."""
    upstream, hold = connected(hub, max_connections=2), asyncio.Event()
    digest, other = hub.add_blob(ALPINE.name, b"layer"), repository("docker.io", "library/other")
    await pull(upstream, digest)
    hub.script.next("token", Quirk(hold=hold))
    hub.add_blob(other.name, b"layer")
    waiting = asyncio.gather(*[pull(upstream, digest, other)])
    await asyncio.sleep(0.05)
    began = time.monotonic()
    assert await pull(upstream, digest) == b"layer"
    assert time.monotonic() - began < 1
    hold.set()
    assert await waiting == [b"layer"]


async def test_an_absent_blob_of_a_known_repository(hub: Hub, upstream: Failover) -> None:
    """404 with a good token is the registry's word."""
    hub.add_blob(ALPINE.name, b"layer")
    with pytest.raises(BlobUnknown):
        await upstream.blob(ALPINE, Digest.of(b"absent"))
