"""The files of a `certs.d` directory: planned first, then changed, each in one step; and taken back.

A plan is the whole of what a directory shall have from mirrorproxy: what an earlier run wrote and this one does not
name is taken back. So the same words twice change nothing, and other words upgrade. What mirrorproxy did not write, or
what somebody edited since, is never overwritten unless told to, and then it is kept beside the new file and comes back
with the removal.

The files are read by containerd anew at each pull: nothing needs a restart.
"""

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mirrorproxy.errors import MirrorproxyError
from mirrorproxy.setup.hosts import DEFAULT, Mirror, folder_of, hosts_toml, is_edited, is_ours

BACKUP = "hosts.toml.before-mirrorproxy"
EDITED = "hosts.toml.edited"
_HOSTS = "hosts.toml"
_CERTIFICATES = (".crt", ".cert", ".key")  # what containerd reads of a folder without a hosts.toml (loadCertFiles)

Kind = Literal["write", "upgrade", "replace", "restore", "remove"]


class Refused(MirrorproxyError):
    """Something is there that mirrorproxy did not write; the message says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Change:
    """One file that is not as it should be. `text` is what it shall hold; None where the removal says that."""

    kind: Kind
    path: Path
    text: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


def plan_setup(directory: Path, registries: Iterable[str], mirror: Mirror, *, replace: bool = False) -> list[Change]:
    """What is to be done so that containerd asks `mirror` for these registries, and for no other.

    `replace`: what is there and is not ours gives way, and is kept.
    Raises Refused: something is there and `replace` is not set; NameInvalid: a name is none; OSError.
    """
    wanted = {directory / folder_of(registry) / _HOSTS: hosts_toml(registry, mirror) for registry in registries}
    changes: list[Change] = []
    for path, text in wanted.items():
        present = _read(path)
        if present == text:
            continue
        if present is not None and is_ours(present):
            changes.append(Change("upgrade", path, text))
        elif present is None and not _has_certificates(path.parent):
            changes.append(Change("write", path, text))
        elif replace:
            changes.append(Change("write" if present is None else "replace", path, text))
        else:
            raise Refused(_why(path, present))
    return changes + [_taken_back(path) for path in _ours(directory) if path not in wanted]


def plan_removal(directory: Path) -> list[Change]:
    """What is to be done so that nothing of mirrorproxy's is left there. Raises OSError."""
    return [_taken_back(path) for path in _ours(directory)]


def apply(change: Change) -> None:
    """Make one change; what containerd reads is at every moment the old file or the new one. Raises OSError."""
    path = change.path
    match change.kind:
        case "restore":
            path.with_name(BACKUP).replace(path)
        case "remove":
            path.unlink()
            _remove_if_empty(path.parent)
        case _:
            assert change.text is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            if change.kind == "replace":
                _keep(path)
            _write(path, change.text)


def warnings(directory: Path, registries: Collection[str]) -> Iterator[str]:
    """What makes pulls pass the mirror, or not come back from it, though all files are as they should be."""
    if DEFAULT in registries:
        ours = {path.parent for path in _ours(directory)}
        for folder in _folders(directory):
            if folder.name != DEFAULT and folder not in ours:
                yield f"{folder} wins over {DEFAULT}: pulls from there do not come to mirrorproxy"
    for folder in _folders(directory):
        if is_edited(_read(folder / _HOSTS) or ""):
            yield f"{folder / _HOSTS} was changed since mirrorproxy wrote it, and is left alone"


def _ours(directory: Path) -> list[Path]:
    paths = [folder / _HOSTS for folder in _folders(directory)]
    return [path for path in paths if is_ours(_read(path) or "")]


def _folders(directory: Path) -> list[Path]:
    return sorted(folder for folder in directory.iterdir() if folder.is_dir()) if directory.is_dir() else []


def _taken_back(path: Path) -> Change:
    return Change("restore" if path.with_name(BACKUP).exists() else "remove", path)


def _read(path: Path) -> str | None:
    """What is there, as far as it is text: ours is."""
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None


def _has_certificates(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix in _CERTIFICATES for path in folder.iterdir())


def _why(path: Path, present: str | None) -> str:
    advice = "or name other registries with --registry"
    if present is None:
        return (
            f"{path.parent} has certificates, which containerd passes over once there is a {_HOSTS}: "
            f"use --replace if they are not needed, {advice}"
        )
    if is_edited(present):
        return f"{path} was changed since mirrorproxy wrote it: use --replace to have it kept as {EDITED}, {advice}"
    return f"{path} is not mirrorproxy's: use --replace to have it kept as {BACKUP} until --remove, {advice}"


def _keep(path: Path) -> None:
    """Keep what is there now, without a moment in which it is gone. Nothing that was kept is ever written over.

    An edited file of ours is not what was there before us: it gets another name, and never comes back by itself.
    """
    if is_edited(_read(path) or ""):
        kept = _numbered(path.with_name(EDITED))
    else:
        kept = path.with_name(BACKUP)
        if kept.exists():  # somebody wrote a file of their own over ours: that one comes back
            kept.rename(_numbered(kept))
    os.link(path, kept)


def _numbered(path: Path) -> Path:
    """`path` itself where nothing is there, else with the first number that is free."""
    names = (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, 1000)))
    return next(name for name in names if not name.exists())


def _write(path: Path, text: str) -> None:
    """The whole file or none: beside it, flushed, renamed."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".hosts-", delete=False, encoding="utf-8") as new:
        try:
            new.write(text)
            new.flush()
            os.fchmod(new.fileno(), 0o644)
            os.fsync(new.fileno())
            Path(new.name).replace(path)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # others keep something there
