"""Passwords from files and from the environment. None of them is ever shown, nor part of a message."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from mirrorproxy.config.problems import Key
from mirrorproxy.config.settings import CredentialsSettings, Settings
from mirrorproxy.config.tree import NOT_PRINTABLE, UNPRINTABLE, Tree

_LARGEST_SECRET = 64 * 1024  # a token of a cloud registry has a few KiB


def read_secrets(tree: Tree, settings: Settings, environ: Mapping[str, str]) -> Settings:
    """The settings with each password read from where it is kept; those that cannot be are noted in the tree."""
    upstreams = dict(settings.upstreams)
    for name, upstream in settings.upstreams.items():
        if isinstance(upstream.credentials, CredentialsSettings):
            key = ("upstreams", name, "credentials")
            password = _password(tree, key, upstream.credentials, environ)
            credentials = upstream.credentials.model_copy(update={"password": password})
            upstreams[name] = upstream.model_copy(update={"credentials": credentials})
    return settings.model_copy(update={"upstreams": upstreams})


def _password(
    tree: Tree, key: tuple[str, ...], credentials: CredentialsSettings, environ: Mapping[str, str]
) -> SecretStr | None:
    try:
        if credentials.password_file is not None:
            key = (*key, "password_file")
            return SecretStr(_read(tree, key, credentials.password_file))
        if credentials.password_env is not None:
            key = (*key, "password_env")
            return SecretStr(_one_line(environ.get(credentials.password_env, ""), "the environment variable it names"))
    except ValueError as error:
        tree.problem(key, str(error))
        return None
    place = tree.place((*key, "password"))
    if place.line and _is_open_to_all(Path(place.source)):
        tree.warning(
            (*key, "password"), "stands in a file that every user of this machine can read; use password_file", place
        )
    return credentials.password


def _read(tree: Tree, key: Key, path: Path) -> str:
    """The text of a secret file without the newline at its end. Raises ValueError."""
    try:
        # Without O_NONBLOCK a named pipe would hold up the start until somebody writes to it.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"{path} is not a regular file")
            content = file.read(_LARGEST_SECRET + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if mode & stat.S_IROTH:
        tree.warning(key, f"{path} can be read by every user of this machine; chmod o-r {path}")
    if len(content) > _LARGEST_SECRET:
        raise ValueError(f"{path} is larger than {_LARGEST_SECRET} bytes, too large for a password")
    try:
        return _one_line(content.decode().removesuffix("\n").removesuffix("\r"), str(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None


def _one_line(text: str, where: str) -> str:
    if not text:
        raise ValueError(f"{where} is empty" if "/" in where else f"{where} is not set, or empty")
    if UNPRINTABLE.search(text):
        raise ValueError(f"{where} {NOT_PRINTABLE}")
    return text


def _is_open_to_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
