"""The cache in front of one registry: what is fresh, what is asked upstream, what is served when upstream is away.

Content named by a digest never changes: what is here is served, and nobody is asked. A tag is the one thing that
changes; its record says which digest it has, and when upstream last vouched for it.

    younger than `tag_ttl`      served, nothing asked
    older                       HEAD upstream, once for all who wait; GET by digest where the digest is new
    upstream fails, any way     the old one, marked stale, and upstream is left alone for a while
    upstream says 404           an answer: believed, and remembered for `negative_ttl`

A blob or manifest is served under a repository only when it is known to belong there: a manifest of that repository
names it, or that registry said so. The bytes are shared between repositories, the right to see them is not.
"""

from mirrorproxy.cache.ahead import Mode
from mirrorproxy.cache.cached import Cached, Rules
from mirrorproxy.cache.shelf import Shelf

__all__ = ["Cached", "Mode", "Rules", "Shelf"]
