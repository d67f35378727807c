"""A connection that asyncio loses twice: https://github.com/python/cpython/issues/156512.

Over TLS the next bytes are written when the buffer has room again. Where the client is gone by then, the transport ends
the connection, and then comes to the end that it had put into its queue: nothing is there any more, and it logs an
error with a traceback. All was closed the first time. A load over TLS in which many clients leave early met it three
times in ten minutes.
"""

import asyncio
from typing import Any


def forgive(loop: asyncio.AbstractEventLoop) -> None:
    """Say nothing of the second end of a connection; of all else what asyncio says by itself."""
    loop.set_exception_handler(_handle)


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    is_end = "Transport._call_connection_lost(" in repr(context.get("handle"))
    if not (is_end and isinstance(context.get("exception"), AttributeError)):
        loop.default_exception_handler(context)
