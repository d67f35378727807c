"""Passwords, tokens and signatures are in no log line, message, traceback, repr or metric."""

import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from prometheus_client import generate_latest

from mirrorproxy.errors import MirrorproxyError
from mirrorproxy.metrics import Metrics
from mirrorproxy.names import Digest, Tag
from mirrorproxy.upstream import Failover
from tests.contracts.registry_contract import read
from tests.fakes.hub import Hub
from tests.fakes.script import Quirk
from tests.upstream.conftest import ALPINE, Connect

PASSWORD = "correct-horse-battery"
DATA = b"layer" * 1000


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """A registry that wants a password for everything."""
    async with Hub(users={"ann": PASSWORD}, identity_token=PASSWORD) as hub:
        hub.private = {ALPINE.name}
        hub.add_image(ALPINE.name, "3.20", DATA)
        yield hub


@pytest.fixture
def upstream(hub: Hub, connected: Connect) -> Failover:
    """With that password, and short timeouts."""
    return connected(
        hub,
        credentials={"username": "ann", "password": PASSWORD},
        connect_timeout=0.1,
        header_timeout=0.2,
        idle_timeout=0.2,
    )


def redirect(target: str) -> Quirk:
    """The storage sends us on, with something secret in the URL."""
    return Quirk(status=307, headers={"Location": f"{target}/x?X-Signature=s3cr3t"})


QUIRKS: dict[str, tuple[str, Quirk]] = {
    "storage resets": ("cdn", Quirk(reset=True)),
    "storage refuses": ("cdn", Quirk(status=403)),
    "storage hangs": ("cdn", Quirk(delay=0.4)),
    "storage sends a page": ("cdn", Quirk(html=True)),
    "storage cuts": ("cdn", Quirk(cut=7)),
    "storage stalls": ("cdn", Quirk(stall=7)),
    "storage does not speak HTTP": ("cdn", Quirk(headers={"Content-Length": "-5"})),
    "storage redirects to nothing": ("cdn", redirect("http://127.0.0.3:1")),
    "storage redirects to nonsense": ("cdn", redirect("gopher://x")),
    "token service resets": ("token", Quirk(reset=True)),
    "token service hangs": ("token", Quirk(delay=0.4)),
    "token service sends odd things": ("token", Quirk(body=b'{"token": "se cret", "secret": "X-Signature"}')),
    "registry refuses": ("blob", Quirk(status=401)),
    "registry resets": ("blob", Quirk(reset=True)),
    "registry echoes": ("blob", Quirk(status=404, body=b"X-Signature=s3cr3t " * 100)),
}


def go_wrong(hub: Hub, trouble: str, deaf: str) -> None:
    """Let that happen."""
    if trouble in QUIRKS:
        hub.script.always(*QUIRKS[trouble])
    elif trouble == "storage does not accept":
        hub.script.always("cdn", redirect(deaf))
    elif trouble == "token service refuses":
        hub.users["ann"] = "changed"


@pytest.mark.parametrize("trouble", ["none", "storage does not accept", "token service refuses", *QUIRKS])
async def test_nothing_is_shown(
    hub: Hub, upstream: Failover, metrics: Metrics, caplog: pytest.LogCaptureFixture, deaf: str, trouble: str
) -> None:
    """Whatever goes wrong, at the most talkative level of all loggers."""
    caplog.set_level(logging.DEBUG)
    go_wrong(hub, trouble, deaf)
    shown = []
    try:
        await upstream.resolve(ALPINE, Tag("3.20"))
        async with aclosing(await upstream.blob(ALPINE, Digest.of(DATA))) as blob:
            shown += [repr(blob), str(vars(blob))]
            await read(blob)
    except MirrorproxyError as error:
        shown += [str(error), repr(error), *traceback.format_exception(error)]
    assert (trouble == "none") == (len(shown) == 2)
    shown += [caplog.text, repr(upstream), *upstream.troubles(), generate_latest(metrics.collectors).decode()]
    for secret in {PASSWORD, "X-Signature", "s3cr3t", *hub.secrets()}:
        assert not [text for text in shown if secret in text]
