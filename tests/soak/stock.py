"""What the upstream of a long load has: images that everybody pulls and whose tags move, and others that come once."""

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count

from tests.fakes.content import Image
from tests.fakes.hub import Hub

KIB, MIB = 1 << 10, 1 << 20

_REPOSITORIES = 6
_SIZES = (3 * KIB, 70 * KIB, 700 * KIB, 3 * MIB)
_KEPT = 4  # images of a repository: who pulls while its tag moves still gets the one that it began with
_ONCE = 24  # repositories that come once: their downloads may go on for a while after the last client


@dataclass
class Stock:
    """In a hub. It holds a bounded number of images, however long it is used."""

    hub: Hub
    chance: random.Random
    popular: dict[str, deque[Image]] = field(default_factory=dict)
    """By repository, the one that the tag `1` points at last."""
    _once: deque[str] = field(default_factory=deque)
    _serial: "count[int]" = field(default_factory=count)

    def __post_init__(self) -> None:
        self._base = self.chance.randbytes(MIB)
        self.large = self.chance.randbytes(16 * MIB)
        self.large_path = f"/v2/team/large/blobs/{self.hub.add_blob('team/large', self.large)}"
        for number in range(_REPOSITORIES):
            self.popular[f"team/image-{number}"] = deque()
            self.move(f"team/image-{number}")

    def move(self, repository: str | None = None) -> None:
        """Let the tag of a popular repository point at a new image, which has layers of the one before."""
        name = repository or self.chance.choice(list(self.popular))
        images = self.popular[name]
        sizes = self.chance.choices(_SIZES, k=2)
        layers = [self._base, *(self.chance.randbytes(size) for size in sizes)]
        images.append(self.hub.add_image(name, "1", *layers, config=self.chance.randbytes(500)))
        stock = self.hub.stock(name)
        while len(images) > _KEPT:
            images.popleft()
        manifests = {image.manifest.digest for image in images}
        blobs = {part.digest for image in images for part in (image.config, *image.layers)}
        stock.manifests = {digest: found for digest, found in stock.manifests.items() if digest in manifests}
        stock.blobs = {digest: found for digest, found in stock.blobs.items() if digest in blobs}

    def once(self, *sizes: int) -> tuple[str, Image]:
        """An image in a repository of its own, which goes after some others have come."""
        name = f"once/image-{next(self._serial)}"
        layers = [self.chance.randbytes(size) for size in sizes]
        self._once.append(name)
        if len(self._once) > _ONCE:
            self.hub.remove(self._once.popleft())
        return name, self.hub.add_image(name, "1", *layers, config=self.chance.randbytes(500))
