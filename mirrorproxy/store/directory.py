"""The cache directory itself: its folders, the version of its format, the file system it lies on. All of it blocks.

    format        the version of what is here, a decimal number and a line feed, in all versions to come
    oci-layout    and index.json: see `layout`            quarantine/   see `audit`
    blobs/        committed content, see `blobs`          partial/      content not yet complete, see `ingest`
    index/        see `index`                             pins          see `pins`
    owner         see `owner`

Names are made of lower-case letters, digits, `-` and `.`, of 135 bytes at most, whatever repositories and tags are
called: they are in the index. So file systems that know no capitals, or no names over 143 bytes (eCryptfs), will do.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mirrorproxy.errors import CacheFailed
from mirrorproxy.store.files import TEMPORARY, can_only_be_read, disk_errors, sync_folder, temporary, write_whole

log = logging.getLogger(__name__)

INDEX_HEAD = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":['
INDEX_TAIL = b"\n]}\n"
ALGORITHMS = ("sha256", "sha512")

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}\n'
_OURS = frozenset("blobs format index index.json oci-layout owner partial pins quarantine scrub.json".split())
_OTHERS = {"admin.sock", "lost+found"}  # the admin socket; what mkfs makes
_NETWORKED = frozenset(
    "nfs nfs4 cifs smb3 9p afs ceph lustre gfs2 ocfs2 beegfs fuse.sshfs fuse.glusterfs fuse.ceph fuse.ceph-fuse "
    "fuse.s3fs fuse.gcsfuse fuse.rclone fuse.juicefs".split()
)


def _from_0(directory: Path) -> None:
    """Formats had no number yet; nothing else was different."""
    del directory


_MIGRATIONS: tuple[Callable[[Path], None], ...] = (_from_0,)
"""The one at n makes format n + 1 of format n. A crash may have one run again on what it has done already."""

FORMAT = len(_MIGRATIONS)


def prepare(directory: Path) -> None:
    """Make the folders and the files of an empty layout where they are missing, and clear what a crash left.

    What an older version wrote is brought to the present format. Raises `CacheFailed`, also where a newer one wrote it:
    then nothing was touched. One that can only be read is left as it is.
    """
    with disk_errors("prepare the cache directory"):
        found = _format_of(directory)
        if can_only_be_read(directory):
            return
        blobs, partial = directory / "blobs", directory / "partial"
        _make_private(directory)
        for folder in (blobs, *(blobs / name for name in ALGORITHMS), partial, directory / "quarantine"):
            folder.mkdir(mode=0o700, exist_ok=True)
        for name, content in (("oci-layout", _LAYOUT), ("index.json", INDEX_HEAD + INDEX_TAIL)):
            if not (directory / name).exists():
                write_whole(directory / name, [content], scratch=partial, mode=0o600)
        for folder in (blobs, directory, directory.parent):  # a name is safe when its folder was flushed
            sync_folder(folder)
        left = [path for path in partial.iterdir() if path.name.startswith(TEMPORARY)]
        for version, migrate in list(enumerate(_MIGRATIONS))[found:]:
            migrate(directory)
            log.info("%s was brought from format %d to %d", directory, version, version + 1)
    for path in left:
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            log.warning("cannot remove %s, left from an earlier run: %s", path, error)
    if found != FORMAT or not (directory / "format").exists():
        _say_format(directory / "format", partial)


def warn_of_network(directory: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
    """Warn where the directory is on a file system of another machine.

    SQLite says of them that locks may not hold and flushes may not flush ("How To Corrupt An SQLite Database File",
    2.1), and every hit would wait for the network.
    """
    with suppress(OSError):
        kind = file_system(mountinfo.read_text(errors="replace"), directory.stat().st_dev)
        if kind in _NETWORKED:
            log.warning(
                "%s is on a network file system (%s): its locks and flushes may not hold, and hits wait for the "
                "network; a local disk is better, whatever its size",
                directory,
                kind,
            )


def file_system(mountinfo: str, device: int) -> str | None:
    """The type of the file system with this device number by /proc/self/mountinfo (proc_pid_mountinfo(5)), or None."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.splitlines():
        mount, dash, rest = line.partition(" - ")
        if dash and mount.split(" ")[2:3] == [number]:
            return rest.split(" ")[0]
    return None


def _format_of(directory: Path) -> int:
    """The format of what is there: the present one for nothing, 0 for what says none (or was damaged).

    Raises `CacheFailed` for one of a later version, and `OSError`.
    """
    try:
        text = (directory / "format").read_bytes()[:20].split(b"\n")[0]
    except FileNotFoundError:
        return 0 if (directory / "oci-layout").exists() else FORMAT
    except IsADirectoryError:
        text = b""
    if not re.fullmatch(rb"[0-9]{1,9}", text):
        log.warning("%s is no number, and is written anew", directory / "format")
        return 0
    if int(text) > FORMAT:
        raise CacheFailed(
            f"{directory} has format {int(text)}, from a later version of mirrorproxy; this one knows formats up to "
            f"{FORMAT}. Start that version again, or name another cache.directory"
        )
    return int(text)


def _say_format(path: Path, partial: Path) -> None:
    """Write the version down; where that fails, for want of room mostly, the next start does."""
    try:
        if path.is_dir():
            path.rename(temporary(partial))
        write_whole(path, [b"%d\n" % FORMAT], scratch=partial, mode=0o600)
    except OSError as error:
        log.warning("the format of the cache cannot be written down: %s", error)


def _make_private(directory: Path) -> None:
    """Make the cache directory, for its owner alone; one that was there too, but only where nothing else is in it."""
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True)
    elif directory.stat().st_mode & 0o077:
        if {path.name for path in directory.iterdir()} <= _OURS | _OTHERS:
            with suppress(PermissionError):  # a volume that belongs to another user: what is in it is private anyway
                directory.chmod(0o700)
        else:
            log.warning("%s can be entered by others, and is left so: it holds more than a cache", directory)
