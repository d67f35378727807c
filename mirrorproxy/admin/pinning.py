"""`pin`, `unpin`, `pins`: images that stay, whatever happens, with all that they need."""

import difflib
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import ClassVar

from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.events import Event, Refused, Row
from mirrorproxy.admin.references import near_matches, parse, written
from mirrorproxy.errors import Invalid, ManifestUnknown
from mirrorproxy.manifests import PLATFORM
from mirrorproxy.store.pins import Pin

_NEAR = 3


@dataclass(frozen=True, slots=True)
class Pinned(Row):
    """A pinned image. `platform` is the only one of it that must stay, None for all. `configured`: by `pins:` in the
    configuration, where alone it can be undone. `missing` is what a pull would have to fetch, as digests or in words;
    `near` are cached images with names like it, where nothing of it is cached.
    """

    kind: ClassVar[str] = "pin"
    name: str
    platform: str | None
    configured: bool
    complete: bool
    missing: list[str]
    near: list[str]


async def pin(desk: Desk, reference: str, platform: str | None = None) -> AsyncGenerator[Event, None]:
    """Pin an image, cached or to come. Raises an `Invalid`."""
    wanted = _parse(desk, reference, platform)
    if wanted not in desk.retention.pins.configured:
        await desk.retention.pins.put(wanted)
    else:
        await desk.retention.pins.look()
    yield await _row(desk, wanted)


async def unpin(desk: Desk, reference: str, platform: str | None = None) -> AsyncGenerator[Event, None]:
    """Take a pin away. Raises an `Invalid`; `ManifestUnknown` where there is none, with near matches; `Refused`."""
    wanted = _parse(desk, reference, platform)
    pins = await desk.retention.pins.all()
    if wanted in desk.retention.pins.configured:
        raise Refused(f"{wanted} is pinned by the configuration: take it out of `pins:`")
    if wanted not in pins:
        near = difflib.get_close_matches(str(wanted), map(str, pins), n=_NEAR, cutoff=0.5)
        raise ManifestUnknown(f"{wanted} is not pinned", detail={"near": near})
    row = await _row(desk, wanted)
    await desk.retention.pins.forget(wanted)
    yield row


async def pins(desk: Desk) -> AsyncGenerator[Event, None]:
    """All pins, those of the configuration first."""
    await desk.retention.pins.look()
    for each in await desk.retention.pins.all():
        yield await _row(desk, each)


def pinned_platforms(pins: Iterable[Pin]) -> dict[str, list[str]]:
    """The pinned images by name, each with the platforms that alone must stay; with none where all must."""
    found: dict[str, list[str]] = {}
    whole = set()
    for each in pins:
        name = written(each.repository, each.reference)
        found.setdefault(name, [])
        if each.platform is None:
            whole.add(name)
        elif each.platform not in found[name]:
            found[name].append(each.platform)
    return {name: [] if name in whole else platforms for name, platforms in found.items()}


def _parse(desk: Desk, reference: str, platform: str | None) -> Pin:
    if platform is not None and not PLATFORM.fullmatch(platform):
        raise Invalid(f"{platform!r:.60} is not a platform; write linux/amd64 or linux/arm/v7")
    return Pin(*parse(reference, desk.settings()), platform)


async def _row(desk: Desk, wanted: Pin) -> Pinned:
    found = desk.retention.pins
    missing = next((list(each.what) for each in found.missing if each.pin == wanted), [])
    near: list[str] = []
    if missing == ["the image"]:
        near = await near_matches(desk, wanted.repository, wanted.reference)
    return Pinned(
        name=written(wanted.repository, wanted.reference),
        platform=wanted.platform,
        configured=wanted in found.configured,
        complete=not missing,
        missing=missing,
        near=near,
    )
