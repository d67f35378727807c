"""All operations by name, and how one is carried out."""

import inspect
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import NamedTuple

from mirrorproxy.admin.desk import Desk
from mirrorproxy.admin.events import End, Event, Failed
from mirrorproxy.admin.explanation import why
from mirrorproxy.admin.images import ls, names
from mirrorproxy.admin.pinning import pin, pins, unpin
from mirrorproxy.admin.refreshing import refresh
from mirrorproxy.admin.removing import prune, rm
from mirrorproxy.admin.usage import du
from mirrorproxy.admin.verify import verify
from mirrorproxy.errors import Invalid, MirrorproxyError

log = logging.getLogger(__name__)


class Operation(NamedTuple):
    """`run(desk, **arguments)` is an async generator of events. `changes`: it may change what is cached."""

    run: Callable[..., AsyncGenerator[Event, None]]
    changes: bool = False


OPERATIONS: dict[str, Operation] = {
    "ls": Operation(ls),
    "names": Operation(names),
    "du": Operation(du),
    "why": Operation(why),
    "refresh": Operation(refresh, changes=True),
    "rm": Operation(rm, changes=True),
    "prune": Operation(prune, changes=True),
    "pin": Operation(pin, changes=True),
    "unpin": Operation(unpin, changes=True),
    "pins": Operation(pins),
    "verify": Operation(verify, changes=True),
}


class Unknown(MirrorproxyError):
    """There is no operation of this name here: whoever asks is of another version."""


def operation(name: str) -> Operation:
    """The operation `name`. Raises `Unknown`."""
    try:
        return OPERATIONS[name]
    except KeyError:
        raise Unknown(f"there is no operation {name[:40]!r} in this version") from None


async def carry_out(desk: Desk, name: str, arguments: Mapping[str, object]) -> AsyncGenerator[Event, None]:
    """Run an operation: its events, then `End` or `Failed`. Raises nothing but `Unknown`, and a cancellation."""
    run, changes = operation(name)
    if changes:
        log.info("a command asks for %s %s", name, json.dumps(arguments))
    try:
        try:
            inspect.signature(run).bind(desk, **arguments)
        except TypeError as error:
            raise Invalid(f"{name}: {error}; command and service are of different versions") from None
        async with aclosing(run(desk, **arguments)) as events:
            async for event in events:
                yield event
                if isinstance(event, End):
                    return
    except MirrorproxyError as error:
        yield Failed.of(error)
    except Exception:
        log.exception("the operation %s failed", name)
        yield Failed("fault", "an error of mirrorproxy's own; its log says more")
    else:
        yield End()
