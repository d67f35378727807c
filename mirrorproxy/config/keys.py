"""Which keys there are, read off the models: for variables, suggestions, relative paths, and to check the documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from mirrorproxy.config.settings import Settings

Pattern = tuple[str, ...]
"""The way to a setting, with `*` for the name of an upstream."""


def _parts(annotation: Any) -> Iterator[Any]:
    """Every type that an annotation is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _keys(model: type[BaseModel], above: Pattern) -> Iterator[tuple[Pattern, Any]]:
    for name, field in model.model_fields.items():
        pattern = (*above, name)
        yield pattern, field.annotation
        inner = (*pattern, "*") if get_origin(field.annotation) is dict else pattern
        for part in _parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _keys(part, inner)


KEYS: dict[Pattern, Any] = dict(_keys(Settings, ()))
"""Every key, sections included, with its type: ("server",), ("server", "listen"), ("upstreams", "*", "tag_ttl")..."""

PATHS = [pattern for pattern, annotation in KEYS.items() if Path in _parts(annotation)]
"""The keys of files and folders."""

SECTIONS = {pattern[:-1] for pattern in KEYS}
"""Everything that has keys below it."""


def pattern_of(key: tuple[str | int, ...]) -> Pattern:
    """The pattern that a key of a file fits; positions in lists are left out."""
    words = [part for part in key if isinstance(part, str)]
    if len(words) > 1 and words[0] == "upstreams":
        words[1] = "*"
    return tuple(words)


def keys_in(section: Pattern) -> list[str]:
    """The names that may stand in a section."""
    return [pattern[-1] for pattern in KEYS if pattern[:-1] == section]


def takes_list(pattern: Pattern) -> bool:
    """Whether the setting is a list."""
    return get_origin(KEYS.get(pattern)) is tuple


def homes_of(name: str) -> list[str]:
    """Where a key of this name does stand, as `upstreams.<registry>.tag_ttl`: for keys written in the wrong section."""
    return [
        ".".join("<registry>" if part == "*" else part for part in pattern)
        for pattern in KEYS
        if pattern[-1] == name and len(pattern) > 1
    ]
