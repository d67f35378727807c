"""The one table from what went wrong to HTTP, and the JSON that says it.

Distribution specification, "Error Codes". 404 only where the upstream said so, or where nothing can have the name: to
clients it is final. 429 and 503 carry `Retry-After`, since clients and people obey it.
"""

import json
import math

from mirrorproxy.errors import (
    BadAnswer,
    CacheFailed,
    Denied,
    Invalid,
    MirrorproxyError,
    NotFound,
    Overloaded,
    RateLimited,
    ServerFailed,
    TagInvalid,
    TimedOut,
    Unauthorized,
    Unreachable,
    Unsupported,
    UpstreamError,
)

STATUS: dict[type[MirrorproxyError], int] = {
    Invalid: 400,
    TagInvalid: 404,  # the conformance suite asks for `.INVALID_MANIFEST_NAME`
    NotFound: 404,
    Denied: 403,
    Unsupported: 405,
    UpstreamError: 502,
    BadAnswer: 502,
    Unauthorized: 403,  # not 401: a client would log in here, with what is not ours to check
    RateLimited: 429,
    ServerFailed: 503,
    Unreachable: 504,
    TimedOut: 504,
    Overloaded: 503,
    CacheFailed: 503,
    MirrorproxyError: 500,
}
"""By class; a subclass that is not here answers as the nearest class above it that is."""

_RETRY_AFTER = 5.0  # seconds, where nobody said how long
_RETRY_AFTER_LIMIT = 86_400.0


def status(error: MirrorproxyError) -> int:
    """The HTTP status of an error."""
    return next(STATUS[above] for above in type(error).__mro__ if above in STATUS)


def fields(error: MirrorproxyError) -> dict[str, str]:
    """The header fields that an error's response has beside those of every response."""
    code = status(error)
    extra = {"Content-Type": "application/json"}
    if code in (429, 503):
        wanted = error.retry_after if isinstance(error, UpstreamError | Overloaded) else None
        seconds = _RETRY_AFTER if wanted is None else min(wanted, _RETRY_AFTER_LIMIT)
        extra["Retry-After"] = str(max(1, math.ceil(seconds)))
    if code == 405:
        extra["Allow"] = "GET, HEAD"
    if error.negative:
        extra["Cache-Status"] = "mirrorproxy; hit; detail=negative"
    return extra


def body(code: str, message: str, detail: object = None) -> bytes:
    """`{"errors": [{"code", "message", "detail"}]}`, ASCII alone."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": detail}]}, default=str).encode()
