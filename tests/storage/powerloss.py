"""What a power failure may leave of a directory: a process's writes, flushes and renames, as strace recorded them, are
played into a model of a file system, which then loses what nobody flushed.

The model promises no more than POSIX does (and less than ext4 or xfs give; Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014, found programs that rely on more):

- What was written to a file is safe once fsync or fdatasync of it has begun after it and come back. What was not may
  be there, or not, or for some of its blocks; where the file is longer than its blocks, there are zeros.
- A name is safe once its folder was flushed. Of those changes in a folder that were not, the first so many happened.
  So a file that was moved between folders may be in both, or in none; and a name may be there without its data.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "openat,creat,write,pwrite64,writev,pwritev,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,"
    "rmdir,truncate,ftruncate,fallocate,link,linkat,symlink,symlinkat,sync,syncfs"
)
"""What changes a directory, or makes changes safe."""

_BLOCK = 4096
_WHOLE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<(.*)>)?(?: .*)?$")
_BEGUN = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_ARGUMENT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"|(AT_FDCWD|\d+)<((?:\\x[0-9a-f]{2}|[^>])*)>|([^,"<]+)')


@dataclass
class Call:
    """One call that succeeded: its arguments, where `text` are the strings and `paths` what descriptors point to."""

    name: str
    text: list[bytes]
    paths: list[str]
    words: list[str]
    result: str | None
    begun: int
    """How many calls had come back when this one began."""


@dataclass
class _File:
    """Pieces that were written, in order: (offset, data), or (size, None) for a truncation; `safe` of them are."""

    pieces: list[tuple[int, bytes | None]] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    safe: int = 0

    def content(self, chance: random.Random | None) -> bytes:
        """With what is not safe there by `chance`; None: all of it."""
        data = bytearray()
        how = "all" if chance is None else chance.choice(("all", "none", "none", "some", "zeros"))
        for number, (offset, piece) in enumerate(self.pieces):
            kept = number < self.safe or how == "all"
            if piece is None:
                if kept or how == "some":
                    del data[offset:]
                    data.extend(bytes(offset - len(data)))
            elif kept:
                _put(data, offset, piece)
            elif how == "zeros":
                data.extend(bytes(max(0, offset + len(piece) - len(data))))
            elif how == "some":
                for start in range(0, len(piece), _BLOCK):
                    assert chance is not None
                    if chance.random() < 0.5:
                        _put(data, offset + start, piece[start : start + _BLOCK])
        return bytes(data)


def _put(data: bytearray, offset: int, piece: bytes) -> None:
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(piece)] = piece


class _Folder:
    """Changes of names, in order: a name is put on something, or (None) taken away; `safe` of them are."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, _File | _Folder | None]] = []
        self.times: list[int] = []
        self.safe = 0

    def names(self, count: int | None = None) -> dict[str, "_File | _Folder"]:
        """After so many of the changes; None: all."""
        found: dict[str, _File | _Folder] = {}
        for name, what in self.changes[:count]:
            if what is None:
                found.pop(name, None)
            else:
                found[name] = what
        return found


class Disk:
    """The model of one directory. `play` calls into it, then `crash` as often as you like."""

    def __init__(self, directory: Path) -> None:
        self._top = str(directory)
        self._root = _Folder()
        self._time = 0
        self.committed: set[str] = set()
        """Names in `blobs/` that are safe, by the folder's flush after the rename, and were not taken away since."""
        self._load(directory, self._root)

    def _load(self, path: Path, folder: _Folder) -> None:
        for each in path.iterdir() if path.is_dir() else ():
            what: _File | _Folder
            if each.is_dir():
                self._load(each, what := _Folder())
            else:
                what = _File([(0, each.read_bytes())], [0], 1)
            folder.changes.append((each.name, what))
            folder.times.append(0)
        folder.safe = len(folder.changes)

    def play(self, call: Call) -> bool:
        """Do what the call did; False where it did nothing here."""
        self._time += 1
        match call.name:
            case "openat" | "creat":
                return self._open(call)
            case "write" | "pwrite64":
                return self._write(call)
            case "fsync" | "fdatasync":
                return self._flush(call)
            case "ftruncate":
                if (file := self._find(call.paths[0])) is None:
                    return False
                assert isinstance(file, _File)
                file.pieces.append((int(call.words[-1]), None))
                file.times.append(self._time)
            case "rename" | "renameat" | "renameat2":
                return self._rename(*self._named(call))
            case "unlink" | "unlinkat" | "rmdir":
                return self._change(self._named(call)[0], None)
            case "mkdir" | "mkdirat":
                return self._change(self._named(call)[0], _Folder())
            case other:
                touched = [each for each in (*call.paths, *self._named(call)) if self._inside(each) is not None]
                assert not touched, f"the model does not know {other} of {touched}"
                return False
        return True

    def _named(self, call: Call) -> list[str]:
        """The paths that the strings of a call name: absolute, or below the folder that a descriptor points to."""
        folders = iter(call.paths)
        found = []
        for text in call.text:
            path = text.decode()
            base = next(folders, "")
            found.append(path if path.startswith("/") else f"{base}/{path}")
        return found

    def _inside(self, path: str) -> str | None:
        """The path below the directory; None for one that is elsewhere, or was removed."""
        if path.endswith(" (deleted)") or not path.startswith(f"{self._top}/"):
            return "" if path == self._top else None
        return path.removeprefix(f"{self._top}/")

    def _find(self, path: str) -> "_File | _Folder | None":
        inside = self._inside(path)
        if inside is None:
            return None
        found: _File | _Folder | None = self._root
        for part in inside.split("/") if inside else ():
            if not isinstance(found, _Folder):
                return None
            found = found.names().get(part)
        return found

    def _change(self, path: str, what: "_File | _Folder | None") -> bool:
        parent, _, name = path.rpartition("/")
        folder = self._find(parent)
        if self._inside(path) is None or not isinstance(folder, _Folder):
            return False
        folder.changes.append((name, what))
        folder.times.append(self._time)
        if what is None:
            self.committed.discard(path)
        return True

    def _open(self, call: Call) -> bool:
        flags = call.words[0] if call.words else ""
        path = call.result or ""
        found = self._find(path)
        if "O_CREAT" in flags and found is None:
            return self._change(path, _File())
        if "O_TRUNC" in flags and isinstance(found, _File):
            found.pieces.append((0, None))
            found.times.append(self._time)
            return True
        return False

    def _write(self, call: Call) -> bool:
        file = self._find(call.paths[0])
        if not isinstance(file, _File):
            return False
        data = call.text[0]
        # The files that are written without an offset are written once, from the start to the end.
        offset = int(call.words[-1]) if call.name == "pwrite64" else len(file.content(None))
        file.pieces.append((offset, data))
        file.times.append(self._time)
        return True

    def _flush(self, call: Call) -> bool:
        found = self._find(call.paths[0])
        if found is None:
            return False
        found.safe = max(found.safe, sum(time <= call.begun for time in found.times))
        path = call.paths[0]
        if isinstance(found, _Folder) and f"{self._top}/blobs/" in f"{path}/":
            self.committed |= {f"{path}/{name}" for name, what in found.names(found.safe).items() if _is_file(what)}
        return True

    def _rename(self, old: str, new: str) -> bool:
        what = self._find(old)
        if what is None:
            return False
        return self._change(new, what) & self._change(old, None)

    def crash(self, target: Path, chance: random.Random) -> None:
        """Make `target` what a power failure now may leave."""
        self._restore(self._root, target, chance)

    def _restore(self, folder: _Folder, target: Path, chance: random.Random) -> None:
        target.mkdir(mode=0o700)
        for name, what in folder.names(chance.randint(folder.safe, len(folder.changes))).items():
            if isinstance(what, _Folder):
                self._restore(what, target / name, chance)
            else:
                (target / name).write_bytes(what.content(chance))


def _is_file(what: object) -> bool:
    return isinstance(what, _File)


def read(log: Path) -> Iterator[Call]:
    """The calls in a log of `strace -f -y -xx`, in the order in which they came back."""
    begun: dict[str, tuple[str, str, int]] = {}
    ended = 0
    with log.open() as lines:
        for line in lines:
            line = line.rstrip("\n")
            if match := _BEGUN.match(line):
                begun[match[1]] = (match[2], match[3], ended)
                continue
            started = ended
            if match := _RESUMED.match(line):
                name, arguments, started = begun.pop(match[1])
                line = f"{match[1]} {name}({arguments}{match[3]}"
            match = _WHOLE.match(line)
            if match is None:
                continue  # a signal, an exit
            ended += 1
            if int(match[4]) >= 0:
                yield _call(match[2], match[3], match[5], started)
            else:
                yield Call("close", [], [], [], None, started)  # so that the numbers are right


def _call(name: str, arguments: str, result: str | None, begun: int) -> Call:
    text, paths, words = [], [], []
    for match in _ARGUMENT.finditer(arguments):
        if match[2] is not None:
            paths.append(_decoded(match[3]).decode())
        elif match[4] is None:
            text.append(_decoded(match[1]))
        elif match[4].strip():
            words.append(match[4].strip())
    return Call(name, text, paths, words, None if result is None else _decoded(result).decode(), begun)


def _decoded(text: str) -> bytes:
    if "\\x" not in text:
        return text.encode()
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
