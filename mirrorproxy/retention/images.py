"""What images name and need, read from their manifests. Nothing here is asked on the way of a request."""

import asyncio
import json
import stat
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mirrorproxy.errors import BadAnswer, CacheFailed
from mirrorproxy.manifests import MAX_SIZE, MEDIA_TYPES, Contents, is_for, is_foreign, parse, platform_in
from mirrorproxy.names import Descriptor, Digest, Repository, Tag
from mirrorproxy.store.blobs import BlobStore
from mirrorproxy.store.index import Index
from mirrorproxy.store.memory import Recent

_REMEMBERED = 4096  # manifests and what they name, of which one may name 10,000 things: about 1.5 MB
_LARGEST_CONFIG = 1 << 20  # bytes
_TOGETHER = 64  # files looked at in one go of a thread


@dataclass
class Needs:
    """What an image needs: what of it is here, and what is not (a platform that it is not for, in words)."""

    here: set[Digest] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)


class Images:
    """Reads manifests. A manifest that cannot be read names nothing."""

    def __init__(self, blobs: BlobStore, index: Index) -> None:
        self._blobs = blobs
        self._index = index
        self._named: Recent[Digest, tuple[Descriptor, ...]] = Recent(_REMEMBERED, lambda named: 1 + len(named))

    async def all_named(self, manifests: Iterable[Digest]) -> set[Digest]:
        """All that these manifests name, and the manifests among that, and so on: what a pull of them may ask for."""
        found: set[Digest] = set()
        pending = list(manifests)
        seen = set(pending)
        while pending:
            for child in await self._children(pending.pop()):
                found.add(child.digest)
                if child.media_type in MEDIA_TYPES and child.digest not in seen:
                    seen.add(child.digest)
                    pending.append(child.digest)
        return found

    async def needs(self, root: Digest, platform: str | None = None) -> Needs:
        """What a pull of `root` needs: of an index of images, of all it has or of that one `platform`.

        An image whose config says that it is for another platform is not what is meant; one that does not say is.
        """
        needs = Needs()
        pending, seen = [root], {root}
        while pending:
            digest = pending.pop()
            contents = await self._read(digest)
            if contents is None:
                needs.missing.append(digest)
                continue
            needs.here.add(digest)
            children = [each for each in contents.children if not is_foreign(each.media_type)]
            if platform is not None and contents.manifests:
                children = [each for each in contents.manifests if is_for(each.platform or "", platform)]
                if not children:
                    needs.missing.append(f"an image for {platform}")
            elif platform is not None and digest == root and not await self._may_be_for(platform, contents.config):
                needs.missing.append(f"an image for {platform}")
            blobs: list[Descriptor] = []
            for child in children:
                if child.digest in seen:
                    continue
                seen.add(child.digest)
                if child.media_type in MEDIA_TYPES:
                    pending.append(child.digest)
                else:
                    blobs.append(child)
            for start in range(0, len(blobs), _TOGETHER):
                here = await asyncio.to_thread(self._here, blobs[start : start + _TOGETHER])
                needs.here |= here
                needs.missing += [each.digest for each in blobs[start : start + _TOGETHER] if each.digest not in here]
        return needs

    async def _may_be_for(self, wanted: str, config: Descriptor | None) -> bool:
        """Does the config of an image say that it is for `wanted`, or does it not say, or is it not here?"""
        try:
            body = None if config is None else await self._blobs.read(config.digest, _LARGEST_CONFIG)
            platform = None if body is None else platform_in(json.loads(body))
        except (CacheFailed, ValueError, RecursionError):
            return True
        return platform is None or is_for(platform, wanted) or is_for(wanted, platform)

    async def only_named_by(
        self, manifests: Iterable[Digest], *, without: Container[tuple[Repository, Tag]] = ()
    ) -> set[Digest]:
        """These manifests, and what of all they name no other cached manifest, and no tag but for those of `without`,
        leads to: what goes with them.

        Reads every manifest in the cache, as long as anything is in question. Raises `CacheFailed` where the index
        does.
        """
        free = set(manifests)
        free |= await self.all_named(free)
        kept: set[Digest] = set()
        async for tags in self._index.tag_rows():
            kept |= free.intersection(record.digest for *name, record in tags if tuple(name) not in without)
        free -= kept | await self.all_named(kept)
        async for facts in self._index.manifest_rows():
            for _, digest, _ in facts:
                if free and digest not in free:
                    free.difference_update(await self.all_named([digest]))
        return free

    async def waiting_for(self, filling: Collection[Digest]) -> set[Digest]:
        """The manifests that name any of these, directly or not, with the blobs that they name: somebody is pulling
        these images. Reads every manifest in the cache, as long as anything is being filled. Raises `CacheFailed`.
        """
        found: set[Digest] = set()
        if not filling:
            return found
        async for facts in self._index.manifest_rows():
            for _, digest, _ in facts:
                if any(named in filling for named in await self.all_named([digest])):
                    found.add(digest)
                    children = await self._children(digest)
                    found.update(each.digest for each in children if each.media_type not in MEDIA_TYPES)
        return found

    async def _children(self, digest: Digest) -> tuple[Descriptor, ...]:
        if (known := self._named.get(digest)) is not None:
            return known
        contents = await self._read(digest)
        if contents is None:
            return ()
        self._named.put(digest, contents.children)
        return contents.children

    async def _read(self, digest: Digest) -> Contents | None:
        try:
            body = await self._blobs.read(digest, MAX_SIZE)
            return None if body is None else await asyncio.to_thread(parse, body, "")
        except (BadAnswer, CacheFailed):
            return None

    def _here(self, blobs: Iterable[Descriptor]) -> set[Digest]:
        """Those that are here with all their bytes. Blocks."""
        return {each.digest for each in blobs if _is_whole(self._blobs.path(each.digest), each.size)}


def _is_whole(path: Path, size: int) -> bool:
    """Is a file of that size there? Blocks."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size
