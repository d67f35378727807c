"""What an operation says while it runs: rows, how far it is, and how it ended.

Each event is a frozen dataclass with a `kind`. As JSON it is one object: `kind`, and its fields.
"""

from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

from mirrorproxy.errors import Invalid, MirrorproxyError, NotFound, UpstreamError


class Event:
    """Anything that an operation says. `kind` is its name as JSON."""

    kind: ClassVar[str]

    def document(self) -> dict[str, object]:
        """As JSON. Every event is a dataclass."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]  # each subclass is a dataclass


class Row(Event):
    """A line of the answer. Each operation has its own, and its commands' `--json` prints them as they are."""


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """How far it is: `done` of `total` (None: nobody knows) in `unit`. May come often; a command draws some of them."""

    kind: ClassVar[str] = "progress"
    doing: str
    done: int
    total: int | None = None
    unit: Literal["bytes", "objects"] = "objects"


@dataclass(frozen=True, slots=True)
class End(Event):
    """The last event of what came to its end. `ok`: all is as it should be; else the command's status is 1."""

    kind: ClassVar[str] = "end"
    ok: bool = True


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The last event of what did not. `near`: what may have been meant."""

    kind: ClassVar[str] = "failed"
    reason: Literal["invalid", "not-found", "temporary", "refused", "fault"]
    message: str
    near: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, error: MirrorproxyError) -> "Failed":
        """The event for an error; one that names near matches has them as `near` in its detail."""
        near = (error.detail or {}).get("near", ())
        assert isinstance(near, list | tuple)
        return cls(_reason(error), error.message, [str(each) for each in near])


class Refused(MirrorproxyError):
    """What was asked for is not done, and the message says why: something is pinned, say."""


def _reason(error: MirrorproxyError) -> Literal["invalid", "not-found", "temporary", "refused"]:
    match error:
        case Invalid():
            return "invalid"
        case NotFound():
            return "not-found"
        case UpstreamError():
            return "temporary"
        case Refused():
            return "refused"
        case _:
            return "temporary"  # the disk, the index, a limit: another time it may work
