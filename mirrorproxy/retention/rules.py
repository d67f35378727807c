"""Rules for what is too old to stay: which tags (and manifests known by digest alone) go. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mirrorproxy.names import Digest, Reference, Repository, Tag
from mirrorproxy.patterns import expression


@dataclass(frozen=True)
class Rule:
    """For the names that `match`: `docker.io/library/alpine:3.20`, or with `@sha256:...` what has no tag.

    A pattern without a tag is for all of these repositories. The `keep` tags of each repository that came last stay:
    that were pointed last at what they point at.
    What is not among them goes when it was not used for `unused_for` seconds; at once where that is None, but for what
    has no tag.
    """

    match: str
    unused_for: float | None = None
    keep: int | None = None
    _matches: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        above, slash, last = self.match.rpartition("/")  # a colon before that is a port's
        name, colon, tag = last.partition(":")
        rest = f":{expression(tag)}" if colon else "[:@].*"
        object.__setattr__(self, "_matches", re.compile(expression(above + slash + name) + rest))

    def matches(self, name: str) -> bool:
        """Is the rule for this name?"""
        return self._matches.fullmatch(name) is not None


class Known(NamedTuple):
    """A cached image: when it was last used, and when it came, a tag when it was pointed there (Unix seconds)."""

    repository: Repository
    reference: Reference
    digest: Digest
    last: float
    came: float

    def __str__(self) -> str:
        return f"{self.repository}{'@' if isinstance(self.reference, Digest) else ':'}{self.reference}"


def expired(rules: Iterable[Rule], images: Iterable[Known], now: float) -> list[Known]:
    """Which of all the images of some repositories go. The first rule that is for a name decides."""
    rules = tuple(rules)
    groups: dict[tuple[int, Repository], list[Known]] = defaultdict(list)
    for image in images:
        name = str(image)
        position = next((at for at, rule in enumerate(rules) if rule.matches(name)), None)
        if position is not None:
            groups[position, image.repository].append(image)
    gone = []
    for (position, _), group in groups.items():
        rule = rules[position]
        tags = sorted((each for each in group if isinstance(each.reference, Tag)), key=_newness, reverse=True)
        for image in (*tags[rule.keep or 0 :], *(each for each in group if isinstance(each.reference, Digest))):
            is_tag = isinstance(image.reference, Tag)
            if is_tag if rule.unused_for is None else now - image.last > rule.unused_for:
                gone.append(image)
    return gone


def _newness(image: Known) -> tuple[float, float]:
    return image.came, image.last
