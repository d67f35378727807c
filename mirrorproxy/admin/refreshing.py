"""`refresh`: ask upstream about a tag now."""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar

from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.events import Event, Progress, Row
from mirrorproxy.admin.images import fresh_until, moment
from mirrorproxy.admin.references import parse, written
from mirrorproxy.errors import Invalid, NotFound
from mirrorproxy.names import Digest


@dataclass(frozen=True, slots=True)
class Refreshed(Row):
    """What upstream said: `digest` now, `before` the one of before, None where nothing was cached.

    `endpoint` is the one that said so.
    """

    kind: ClassVar[str] = "refreshed"
    name: str
    before: str | None
    digest: str
    changed: bool
    endpoint: str | None
    fresh_until: str | None


async def refresh(desk: Desk, reference: str) -> AsyncGenerator[Event, None]:
    """Ask upstream about a tag, cached or not, and keep the manifest that it points at now.

    Raises an `Invalid`, `NotFound` where upstream has it no more (then it is forgotten here too), an `UpstreamError`
    where it cannot be asked: then what is cached stays.
    """
    place, name = parse(reference, desk.settings())
    if isinstance(name, Digest):
        raise Invalid(f"{written(place, name)} is named by its digest, which never changes: there is nothing to ask")
    before = await desk.index.tag(place, name)
    yield Progress(f"asking about {written(place, name)}", 0)
    try:
        found = await desk.refresh(place, name)
    except NotFound as error:
        raise type(error)(f"{written(place, name)}: {error.message}", detail=error.detail) from error
    digest = found.descriptor.digest
    yield Refreshed(
        name=written(place, name),
        before=None if before is None else before.digest,
        digest=digest,
        changed=before is not None and before.digest != digest,
        endpoint=found.outcome.endpoint,
        fresh_until=moment(fresh_until(desk, place.registry, time.time())),
    )
