"""What must stay: the pins of the configuration and those of `mirrorproxy pin`, and all that these images need."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

from mirrorproxy.names import Digest, Tag
from mirrorproxy.retention.images import Images
from mirrorproxy.store.index import Index
from mirrorproxy.store.pins import Pin, PinFile

log = logging.getLogger(__name__)

_SHOWN = 3


class Missing(NamedTuple):
    """A pin that is not complete: what of it is not here, as digests or in words."""

    pin: Pin
    what: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.pin} is pinned and not complete: {self.listed} is not here"

    @property
    def listed(self) -> str:
        """The first of what is missing, and how many more."""
        more = f" and {len(self.what) - _SHOWN} more" if len(self.what) > _SHOWN else ""
        return f"{', '.join(self.what[:_SHOWN])}{more}"


class Pins:
    """The pins. `kept` is what they kept from going when last `look`ed at, `missing` what of them was not here.

    `sure` says whether that is all: not before the first look, nor while what tags point at has to be found again.
    """

    def __init__(self, made: PinFile, index: Index, images: Images) -> None:
        self.configured: tuple[Pin, ...] = ()
        self.sure = False
        self.kept: frozenset[Digest] = frozenset()
        self.missing: tuple[Missing, ...] = ()
        self._made = made
        self._index = index
        self._images = images

    async def put(self, pin: Pin) -> None:
        """Pin an image, cached or to come. Raises `CacheFailed`."""
        await self._made.put(pin)
        await self.look()

    async def forget(self, pin: Pin) -> None:
        """Take such a pin away. Raises `CacheFailed`."""
        await self._made.forget(pin)
        await self.look()

    async def all(self) -> list[Pin]:
        """Those of the configuration, then the others. Raises `CacheFailed`."""
        return list(dict.fromkeys([*self.configured, *await self._made.all()]))

    async def look(self) -> None:
        """Find anew what the pinned images need; what is newly missing is logged. Raises `CacheFailed`."""
        pins = await self.all()
        if pins and self._index.rebuild_needed:
            self.sure = False
            return
        kept: set[Digest] = set()
        missing: list[Missing] = []
        for pin in pins:
            root = await self._root(pin)
            if root is None:
                missing.append(Missing(pin, ("the image",)))
                continue
            needs = await self._images.needs(root, pin.platform)
            kept |= needs.here
            if needs.missing:
                missing.append(Missing(pin, tuple(needs.missing)))
        self._tell(missing)
        self.kept, self.missing, self.sure = frozenset(kept), tuple(missing), True

    async def _root(self, pin: Pin) -> Digest | None:
        if not isinstance(pin.reference, Tag):
            return pin.reference
        record = await self._index.tag(pin.repository, pin.reference)
        return None if record is None else record.digest

    def _tell(self, missing: Iterable[Missing]) -> None:
        known = {each.pin for each in self.missing}
        for each in missing:
            if each.pin not in known:
                log.warning("%s", each)
