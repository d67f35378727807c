"""What the core and a worker say to each other, beside what `mirrorproxy.registry` has words for."""

from typing import Any, NamedTuple

from mirrorproxy.listening.certificate import Files
from mirrorproxy.registry import Outcome
from mirrorproxy.web.routes import Names


class Orders(NamedTuple):
    """How a worker serves: the settings that matter to it. `level` and `form` are those of the log (`logs.set_up`);
    `keep_open` is how many files it may have open that nobody reads, each of which the core has open too.
    """

    names: Names
    certificate: Files | None
    write_timeout: float
    level: str
    form: str
    access: bool
    shows_metrics: bool
    keep_open: int


class Opened(NamedTuple):
    """A blob that the core has open for a worker.

    `download` is the number of the download that brings it, whose file is the same for all its readers; `ready` is up
    to where that may be read, from the byte that was asked for on, and its descriptor comes with it where some may.
    Without a download a descriptor is that of the whole; with neither, the bytes come by the line alone.
    """

    size: int | None
    first: int
    outcome: Outcome
    download: int | None = None
    ready: int = 0


class Progress(NamedTuple):
    """Up to where the bytes may be read, from the one that was waited for on, and the size as it is known by now."""

    ready: int
    size: int | None


Arguments = tuple[Any, ...]
