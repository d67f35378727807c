"""What a reload changes, and what of it waits for a restart."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from mirrorproxy.config.problems import Key, dotted
from mirrorproxy.config.settings import Settings

NEEDS_RESTART: frozenset[Key] = frozenset(
    {
        ("server", "listen"),
        ("server", "metrics_listen"),
        ("server", "tls"),
        ("server", "workers"),
        ("cache", "directory"),
    }
)
"""Sockets, processes and the store are made once. Of `server.tls` this means on or off: other files are taken over."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Keys in dots whose values differ: taken over at once, or with the next start."""

    reloaded: list[str]
    needs_restart: list[str]


def changes(old: Settings, new: Settings) -> Changes:
    """Compare two settings. An upstream that came or went is one change, by its name; secrets count, unshown."""
    keys = list(_differing(old, new, ()))
    return Changes(
        reloaded=[dotted(key) for key in keys if key not in NEEDS_RESTART],
        needs_restart=[dotted(key) for key in keys if key in NEEDS_RESTART],
    )


def _differing(old: object, new: object, key: Key) -> Iterator[Key]:
    if old == new:
        return
    if isinstance(old, BaseModel) and type(old) is type(new):
        for name in type(old).model_fields:
            yield from _differing(getattr(old, name), getattr(new, name), (*key, name))
    elif isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            yield from _differing(old.get(name), new.get(name), (*key, name))
    else:
        yield key
