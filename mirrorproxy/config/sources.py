"""What comes on top of the file: environment variables, then flags."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mirrorproxy.config.keys import KEYS, SECTIONS, Pattern, takes_list
from mirrorproxy.config.problems import Key, Place, did_you_mean, shown
from mirrorproxy.config.registries import normal_name
from mirrorproxy.config.tree import NOT_PRINTABLE, UNPRINTABLE, Tree, Value, is_plain_key

PREFIX = "MIRRORPROXY__"

VARIABLES: dict[str, Pattern] = {
    PREFIX + "__".join(pattern).upper(): pattern
    for pattern in KEYS
    if "*" not in pattern and not takes_list(pattern[:-1]) and (pattern not in SECTIONS or takes_list(pattern))
}
"""The environment variables that are read. Registries have dots, which no shell exports: upstreams are one value."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What flags say: `--listen` and `--upstream NAME=URL` as often as they were given, `--cache-dir`; and where the
    sockets listen that the process was started with, which it uses instead of any that were asked for.
    """

    listen: tuple[str, ...] = ()
    inherited: tuple[str, ...] = ()
    cache_dir: str | None = None
    upstreams: tuple[str, ...] = ()


def apply_environment(tree: Tree, environ: Mapping[str, str]) -> None:
    """Set what MIRRORPROXY__ variables say. Empty ones are as good as unset: compose files cannot unset a variable.

    A single underscore in the wrong place gets a warning and no more: Kubernetes itself sets MIRRORPROXY_PORT and the
    like for a service of this name.
    """
    squeezed = {re.sub("_+", "_", name): name for name in VARIABLES}
    for name in sorted(environ):
        place = Place(ascii(name)[1:-1])
        pattern = VARIABLES.get(name)
        if pattern and environ[name]:
            value = _read_variable(tree, pattern, environ[name], place)
            if value is not None:
                tree.put(pattern, value, place)
        elif not pattern and name.startswith(f"{PREFIX}UPSTREAMS__"):
            tree.problem((), f"unknown variable; upstreams are set as one, in JSON, by {PREFIX}UPSTREAMS", place)
        elif not pattern and name.startswith(PREFIX):
            tree.problem((), f"unknown variable{did_you_mean(name.upper(), VARIABLES)}", place)
        elif not pattern and re.sub("_+", "_", name) in squeezed:
            tree.warning((), f"is not read; did you mean {squeezed[re.sub('_+', '_', name)]}?", place)


def apply_flags(tree: Tree, overrides: Overrides) -> None:
    """Set what flags say. The names of the upstreams in the tree are in their normal form already."""
    if overrides.listen:
        tree.put(("server", "listen"), list(overrides.listen), Place("--listen"))
    if overrides.inherited:
        tree.put(("server", "listen"), list(overrides.inherited), Place("LISTEN_FDS"))
    if overrides.cache_dir is not None:
        tree.put(("cache", "directory"), overrides.cache_dir, Place("--cache-dir"))
    place = Place("--upstream")
    endpoints: dict[str, list[Value]] = {}
    for flag in overrides.upstreams:
        name, equals, url = flag.partition("=")
        try:
            if not equals:
                flag = "what was given" if "@" in flag else shown(flag)
                raise ValueError(f"{flag} is not NAME=URL, as in docker.io=http://127.0.0.1:5001")
            endpoints.setdefault(normal_name(name), []).append(url)
        except ValueError as error:
            tree.problem((), str(error), place)
    upstreams = tree.get(("upstreams",))
    if endpoints and isinstance(upstreams, dict) and len(upstreams) == 1:
        _keep_as_default(tree, *upstreams)
    for name, urls in endpoints.items():
        tree.put(("upstreams", name, "endpoints"), urls, place)


def _keep_as_default(tree: Tree, name: str) -> None:
    """The one upstream of a file is its default without a word; it stays the default when a flag adds another."""
    key = ("upstreams", name, "default")
    if tree.get(key) is None:
        tree.put(key, "true", tree.place(key))


def _read_variable(tree: Tree, pattern: Pattern, text: str, place: Place) -> Value:
    """The value that a variable's text stands for, None (with a problem noted) when it stands for none."""
    if UNPRINTABLE.search(text) and pattern != ("upstreams",):
        tree.problem(pattern, NOT_PRINTABLE, place)
        return None
    if pattern == ("upstreams",):
        return _read_json(tree, pattern, text, place)
    if takes_list(pattern):
        # `[::1]:5000` begins like JSON, and is none.
        return _read_json(tree, pattern, text, place) if text.startswith(('["', "[{")) else _split(text)
    return text


def _split(text: str) -> Value:
    return [item.strip() for item in text.split(",")]


def _read_json(tree: Tree, pattern: Pattern, text: str, place: Place) -> Value:
    """JSON as the text it was written as, see `document`. What is wrong with it is told without showing any of it."""

    def entries(pairs: list[tuple[str, object]]) -> dict[str, object]:
        known: dict[str, object] = {}
        for name, value in pairs:
            if name in known:
                tree.problem((), f"the key {shown(name)} is given twice; keep one", place)
            elif not is_plain_key(name):
                tree.problem((), "a key must be a plain word", place)
            else:
                known[name] = value
        return known

    try:
        parsed = json.loads(text, object_pairs_hook=entries, parse_int=str, parse_float=str, parse_constant=str)
        return _as_text(tree, pattern, parsed, place)
    except json.JSONDecodeError as error:
        tree.problem(pattern, f"is not JSON, line {error.lineno}, column {error.colno}: {error.msg}", place)
    except RecursionError:
        tree.problem(pattern, "is nested too deeply", place)
    return None


def _as_text(tree: Tree, key: Key, value: object, place: Place) -> Value:
    if isinstance(value, dict):
        return {name: _as_text(tree, (*key, name), below, place) for name, below in value.items()}
    if isinstance(value, list):
        return [_as_text(tree, (*key, position), item, place) for position, item in enumerate(value)]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and UNPRINTABLE.search(value):
        tree.problem(key, NOT_PRINTABLE, place)
        return None
    return None if value is None else str(value)
