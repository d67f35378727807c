"""Credentials from a Docker `config.json`: `auths`, `credHelpers`, `credsStore`.

Read only when the configuration asks for it by name. Helpers are the programs `docker-credential-<name>`, which are
given the registry's name on standard input and answer with JSON (docker/docker-credential-helpers).
"""

import base64
import binascii
import json
import os
import re
import subprocess
from pathlib import Path

from mirrorproxy.names import DOCKER_HUB
from mirrorproxy.upstream.credentials import Credential, Source, Unreadable

_HELPER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HELPER_TIME = 15.0  # seconds
_HUB_KEY = "https://index.docker.io/v1/"
_IDENTITY = "<token>"  # in place of a user name: the secret is an identity token


def default_path() -> Path:
    """Where `docker login` writes: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`."""
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def from_docker_config(registry: str, path: Path | None = None) -> Source:
    """What the file at `path` (default: where `docker login` writes) has for `registry`."""

    def read() -> Credential | None:
        return _lookup(path or default_path(), registry)

    return read


def _lookup(path: Path, registry: str) -> Credential | None:
    config = _load(path)
    helpers, auths = _mapping(config, "credHelpers"), _mapping(config, "auths")
    keys = [_HUB_KEY, "index.docker.io", DOCKER_HUB] if registry == DOCKER_HUB else [registry]
    for key in keys:
        if key in helpers:
            return _from_helper(helpers[key], key)
    if store := config.get("credsStore"):
        return _from_helper(store, keys[0])
    entries = {_bare(key): entry for key, entry in auths.items()}
    entry = next((entries[_bare(key)] for key in keys if _bare(key) in entries), None)
    return _from_entry(entry, path) if isinstance(entry, dict) else None


def _load(path: Path) -> dict[str, object]:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Unreadable(f"{path} is not JSON") from None
    if not isinstance(config, dict):
        raise Unreadable(f"{path} is not a Docker configuration")
    return config


def _mapping(config: dict[str, object], key: str) -> dict[str, object]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _bare(key: str) -> str:
    """A key of `auths` as a registry's name: old files have `https://ghcr.io/v2/` for `ghcr.io`."""
    return key.partition("//")[2].partition("/")[0] if "//" in key else key.partition("/")[0]


def _from_entry(entry: dict[str, object], path: Path) -> Credential | None:
    auth, identity = entry.get("auth"), entry.get("identitytoken")
    username, password = entry.get("username"), entry.get("password")
    if isinstance(auth, str) and auth:
        try:
            username, _, password = base64.b64decode(auth, validate=True).decode().rstrip("\0").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Unreadable(f"{path} has an auth that is not base64 of user:password") from None
    if isinstance(identity, str) and identity:
        return Credential(str(username or _IDENTITY), identity, identity=True)
    if isinstance(username, str) and isinstance(password, str) and username:
        return Credential(username, password)
    return None


def _from_helper(name: object, key: str) -> Credential | None:
    if not isinstance(name, str) or not _HELPER.fullmatch(name):
        raise Unreadable("the Docker configuration names a credential helper that cannot be one")
    program = f"docker-credential-{name}"
    try:
        run = subprocess.run(  # noqa: S603 - the name fully matched a grammar without slashes, and there is no shell
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_TIME, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unreadable(f"{program} gave no answer within {_HELPER_TIME:.0f} s") from None
    except OSError as error:
        raise Unreadable(f"{program} cannot be run: {error.strerror}") from None
    if run.returncode != 0:
        if b"credentials not found" in run.stdout:
            return None
        raise Unreadable(f"{program} failed with exit status {run.returncode}")  # its words may hold secrets
    try:
        answer = json.loads(run.stdout)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unreadable(f"{program} did not answer with a user name and a secret") from None
    return Credential(str(username), str(secret), identity=username == _IDENTITY)
