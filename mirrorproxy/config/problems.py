"""What is wrong with a configuration, in words, and where: every problem with its source, line and key."""

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

Key = tuple[str | int, ...]
"""The way to a setting: ("upstreams", "docker.io", "tag_ttl"), ("server", "listen", 0)."""

_REPR = reprlib.Repr()
_REPR.maxstring = 80


@dataclass(frozen=True, slots=True)
class Place:
    """Where a setting was written: a file's name with a line, a variable's name, a flag."""

    source: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to change (or, as a warning, to think about). `str()` is one line, without secrets.

    `path` is the key in dots, empty where no key is concerned; `source` is the file as it was named, an environment
    variable or a flag, empty for a default.
    """

    path: str
    line: int | None
    message: str
    source: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        return ": ".join(part for part in (where, self.path, self.message) if part)


class ConfigError(Exception):
    """The configuration cannot be used. `problems` are all that were found; `str()` has one a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def dotted(key: Key) -> str:
    """A key as people write it: `upstreams.docker.io.tag_ttl`, `server.listen[0]`."""
    written = ""
    for part in key:
        if isinstance(part, int):
            written += f"[{part}]"
        else:
            written += f".{part}" if written else part
    return written


def shown(value: object) -> str:
    """A value for a message: quoted, and cut when it is long. Not for what may be a secret."""
    return _REPR.repr(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean tag_ttl?` when one of the `known` words is near, else nothing."""
    near = difflib.get_close_matches(word.replace("-", "_"), list(known), n=1, cutoff=0.65)
    return f"; did you mean {near[0]}?" if near else ""
