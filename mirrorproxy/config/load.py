"""From file, environment and flags to settings: read, lay over one another, check, tell everything that is wrong."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mirrorproxy.config.checks import check_together
from mirrorproxy.config.document import read_document
from mirrorproxy.config.keys import PATHS, homes_of, keys_in, pattern_of
from mirrorproxy.config.passwords import read_secrets
from mirrorproxy.config.problems import ConfigError, Key, Problem, did_you_mean
from mirrorproxy.config.registries import add_default_endpoints, normalise_upstreams
from mirrorproxy.config.settings import Settings
from mirrorproxy.config.sources import Overrides, apply_environment, apply_flags
from mirrorproxy.config.tree import Tree


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings that can be used, what to think about, and the file they came from."""

    settings: Settings
    warnings: list[Problem]
    path: Path | None


def load(path: Path | None, environ: Mapping[str, str] | None = None, overrides: Overrides | None = None) -> Loaded:
    """Load the configuration: flags win over the environment, that over the file at `path`, that over the defaults.

    Relative paths in the file are relative to it, others to the current directory; `~/` is the home of `environ`, which
    is the process's own when not given. Reads the file and the secret files it names; touches nothing else.
    Blocks, as files do. Raises ConfigError with every problem found, in the order of the sources.
    """
    environ = os.environ if environ is None else environ
    tree = Tree()
    if path is not None:
        read_document(path, tree)
    apply_environment(tree, environ)
    normalise_upstreams(tree)
    apply_flags(tree, overrides or Overrides())
    _make_paths_absolute(tree, path, environ)
    settings = _validated(tree, environ)
    if settings is not None:
        settings = check_together(tree, read_secrets(tree, settings, environ))
    if settings is None or tree.problems:
        raise ConfigError(_in_order(tree.problems))
    return Loaded(settings, _in_order(tree.warnings), path)


def _add_default_directory(tree: Tree, environ: Mapping[str, str]) -> None:
    """The directory that systemd made for the service, else $XDG_CACHE_HOME/mirrorproxy, else ~/.cache/mirrorproxy.

    Sources: systemd.exec(5), CacheDirectory= and StateDirectory=, of which there may be several with colons between;
    XDG Base Directory Specification, which has relative ones ignored.
    """
    key = ("cache", "directory")
    made = (environ.get(name, "").partition(":")[0] for name in ("CACHE_DIRECTORY", "STATE_DIRECTORY"))
    caches = environ.get("XDG_CACHE_HOME", "")
    if not caches.startswith("/"):
        caches = f"{environ['HOME']}/.cache" if environ.get("HOME", "").startswith("/") else ""
    if tree.get(key) is not None:
        return
    if directory := next((path for path in made if path.startswith("/")), caches and f"{caches}/mirrorproxy"):
        tree.put(key, directory, tree.place(key))
    elif not tree.is_wrong(key):
        tree.problem(key, "is needed, as neither XDG_CACHE_HOME nor HOME says where caches go; or use --cache-dir")


def _make_paths_absolute(tree: Tree, path: Path | None, environ: Mapping[str, str]) -> None:
    here = Path.cwd()
    keys: list[Key] = [key for pattern in PATHS for key in tree.match(pattern)]
    listen = tree.get(("server", "listen"))
    if isinstance(listen, str):
        keys.append(("server", "listen"))
    elif isinstance(listen, list):
        keys += [("server", "listen", position) for position in range(len(listen))]
    for key in keys:
        written = tree.get(key)
        scheme = "unix:" if key[1] == "listen" else ""
        if isinstance(written, str) and written.startswith(scheme) and written != scheme:
            in_file = path is not None and tree.place(key).source == str(path)
            base = path.absolute().parent if path is not None and in_file else here
            name = written.removeprefix(scheme)
            if name.startswith("~/") and environ.get("HOME"):
                name = environ["HOME"] + name[1:]
            tree.replace(key, f"{scheme}{base / name}")


def _validated(tree: Tree, environ: Mapping[str, str]) -> Settings | None:
    """The settings of a tree, or of what is left of it without what was found wrong; None when that is nothing.

    What is wrong is taken out and the rest is looked at again, so that one mistake does not hide the next. What may
    only follow from an earlier problem is not told.
    """
    while True:
        add_default_endpoints(tree)
        _add_default_directory(tree, environ)
        try:
            return Settings.model_validate(_without_nulls(tree.root))
        except ValidationError as error:
            found = [(_key(details["loc"]), details) for details in error.errors(include_url=False)]
        for key, details in found:
            if not tree.is_wrong(key):
                tree.problem(key, _in_words(key, details))
        dropped = [tree.drop(key[:-1] if details["type"] == "missing" else key) for key, details in found]
        if not any(dropped):
            return None


def _without_nulls(value: Any) -> Any:
    """A key without a value has its default."""
    if isinstance(value, dict):
        return {name: _without_nulls(below) for name, below in value.items() if below is not None}
    return value


def _key(location: tuple[str | int, ...]) -> Key:
    """A pydantic location as a key: it names the kind of the credentials after them."""
    if len(location) > 3 and location[0] == "upstreams" and location[2] == "credentials":
        return (*location[:3], *location[4:])
    return location


def _in_words(key: Key, details: Any) -> str:
    """A pydantic error for people who have not read pydantic's documentation."""
    match details["type"]:
        case "value_error":
            return str(details["ctx"]["error"])
        case "extra_forbidden":
            return _unknown(key)
        case "missing":
            return "is missing"
        case "tuple_type":
            return "must be a list"
        case "model_type":
            return f"must be a mapping of {', '.join(keys_in(pattern_of(key)))}"
        case "dict_type":
            return "must be a mapping of registries, as in `ghcr.io: {}`"
        case _:
            return str(details["msg"])


def _unknown(key: Key) -> str:
    name = str(key[-1])
    siblings = keys_in(pattern_of(key[:-1]))
    if name in siblings:  # credentials have keys that exclude one another
        return "cannot stand beside docker_config; keep one"
    near = did_you_mean(name, siblings)
    homes = [] if near else homes_of(name)
    return f"unknown key{near}" + (f"; did you mean {homes[0]}?" if homes else "")


def _in_order(problems: list[Problem]) -> list[Problem]:
    """Each once: those of the file by line, then the others as they were found."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.line is None, problem.line or 0))
