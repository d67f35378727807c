"""Passwords, tokens and signatures are in no log line, message, traceback, repr or metric."""

import logging
import traceback
from collections.abc import AsyncIterator, Callable
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
    return connected(hub, credentials={"username": "ann", "password": PASSWORD}, header_timeout=0.2, idle_timeout=0.2)


def _break_redirects(hub: Hub) -> None:
    hub.script.always("cdn", Quirk(status=307, headers={"Location": "http://127.0.0.3:1/x?X-Signature=s3cr3t"}))


def _break_schemes(hub: Hub) -> None:
    hub.script.always("cdn", Quirk(status=307, headers={"Location": "gopher://x/?X-Signature=s3cr3t"}))


TROUBLE: dict[str, Callable[[Hub], None]] = {
    "none": lambda hub: None,
    "storage resets": lambda hub: hub.script.always("cdn", Quirk(reset=True)),
    "storage refuses": lambda hub: hub.script.always("cdn", Quirk(status=403)),
    "storage hangs": lambda hub: hub.script.always("cdn", Quirk(delay=0.4)),
    "storage sends a page": lambda hub: hub.script.always("cdn", Quirk(html=True)),
    "storage cuts": lambda hub: hub.script.always("cdn", Quirk(cut=7)),
    "storage stalls": lambda hub: hub.script.always("cdn", Quirk(stall=7)),
    "storage redirects to nothing": _break_redirects,
    "storage redirects to nonsense": _break_schemes,
    "token service resets": lambda hub: hub.script.always("token", Quirk(reset=True)),
    "token service hangs": lambda hub: hub.script.always("token", Quirk(delay=0.4)),
    "token service refuses": lambda hub: hub.users.update(ann="changed"),
    "token service sends odd things": lambda hub: hub.script.always(
        "token", Quirk(body=b'{"token": "se cret", "secret": "X-Signature"}')
    ),
    "registry refuses": lambda hub: hub.script.always("blob", Quirk(status=401)),
    "registry resets": lambda hub: hub.script.always("blob", Quirk(reset=True)),
    "registry echoes": lambda hub: hub.script.always("blob", Quirk(status=404, body=b"X-Signature=s3cr3t " * 100)),
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_nothing_is_shown(
    hub: Hub, upstream: Failover, metrics: Metrics, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    """Whatever goes wrong, at the most talkative level of all loggers."""
    caplog.set_level(logging.DEBUG)
    TROUBLE[trouble](hub)
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
