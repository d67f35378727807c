"""Reading ahead: fetch what a client will ask for next, while it is still busy with what it asked for.

Clients take three to six layers of an image at a time, and pay a round trip for each. A client that pulled a manifest
here and now asks for its first layer wants those after it too; one that has the base layers already asks first for what
it lacks, so nothing is fetched that nobody wants. The config does not count as a first layer, since all clients ask for
it; for the same reason it is fetched together with the manifest.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum

from mirrorproxy.manifests import is_foreign
from mirrorproxy.names import Descriptor, Digest, Repository
from mirrorproxy.registry import Manifest
from mirrorproxy.store.memory import Recent

_IMAGES = 512  # of which a manifest was served lately, and no layer since
_LAYERS = 16 * _IMAGES  # of all of them: a manifest may name 10,000


class Mode(StrEnum):
    """When to read ahead: at the first layer, at the manifest, never."""

    AUTO = "auto"
    ALL = "all"
    OFF = "off"


class Ahead:
    """Calls `begin` with what a client will want soon, in the order in which it will; `expect` when a client asked for
    the config of an image that was not here before, and so for its first layer in a moment.
    """

    def __init__(
        self,
        mode: Mode,
        begin: Callable[[Repository, Iterable[Descriptor]], None],
        expect: Callable[[Repository, Digest], None],
    ) -> None:
        self._mode = mode
        self._begin = begin
        self._expect = expect
        self._configs: Recent[tuple[Repository, Digest], Digest] = Recent(_IMAGES)
        self._layers: Recent[tuple[Repository, Digest], tuple[Descriptor, ...]] = Recent(_LAYERS, len)
        self._images: Recent[tuple[Repository, Digest], Digest] = Recent(_LAYERS)

    def served(self, repository: Repository, manifest: Manifest, *, new: bool) -> None:
        """A client got this manifest; `new`: it was not here before."""
        contents = manifest.contents
        if self._mode is Mode.OFF or not contents.layers:
            return
        now = [contents.config] if new and contents.config is not None else []
        if self._mode is Mode.ALL:
            now += _held(contents.layers)
        if now:
            self._begin(repository, now)
        if self._mode is Mode.ALL:
            return
        image = manifest.descriptor.digest
        if now:
            self._configs.put((repository, now[0].digest), image)
        self._layers.put((repository, image), contents.layers)
        for layer in contents.layers:
            self._images.put((repository, layer.digest), image)

    def asked(self, repository: Repository, digest: Digest) -> None:
        """A client wants this blob. The first layer of an image counts, once for each time its manifest was served."""
        if (image := self._configs.drop((repository, digest))) is not None:
            self._expect(repository, image)
        image = self._images.get((repository, digest))
        if image is None or (layers := self._layers.drop((repository, image))) is None:
            return
        for layer in layers:
            if self._images.get((repository, layer.digest)) == image:
                self._images.drop((repository, layer.digest))
        position = next(number for number, layer in enumerate(layers) if layer.digest == digest)
        self._begin(repository, _held(layers[position + 1 :]))

    def to_come(self, repository: Repository, image: Digest) -> list[Descriptor]:
        """The layers of an image as long as no client has asked for one of them."""
        return _held(self._layers.get((repository, image)) or ())


def _held(layers: Iterable[Descriptor]) -> list[Descriptor]:
    """Those that a registry holds, each once."""
    unique = {layer.digest: layer for layer in layers if not is_foreign(layer.media_type)}
    return list(unique.values())
