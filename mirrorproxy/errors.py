"""What can go wrong, in the words of the OCI distribution specification.

One tree. Every error carries the code that a client sees (`code`), a message that says what happened and what to do,
and a JSON-able `detail`. No HTTP status here: `web/errors.py` holds the one table from these classes to HTTP, and
`upstream/` the one translation from what an upstream said to these classes.

    MirrorproxyError
    ├── Invalid                 the client's own words do not parse
    │   ├── NameInvalid, DigestInvalid, TagInvalid, QueryInvalid
    ├── NotFound                the upstream said that it is not there
    │   ├── NameUnknown, ManifestUnknown, BlobUnknown
    ├── Denied                  not for whoever asks here (policy, or the upstream's word)
    ├── Unsupported             not what a pull-through cache does
    ├── UpstreamError           the upstream did not answer as it should; another endpoint or a stale copy may
    │   ├── Unreachable         no connection: DNS, refused, TLS, reset
    │   ├── TimedOut            no answer, or no byte, in time
    │   ├── BadAnswer           an answer that is not what was asked for
    │   │   └── DigestMismatch  the bytes are not what their digest says
    │   ├── Unauthorized        the upstream does not accept the credentials (or their absence)
    │   ├── RateLimited         429
    │   └── ServerFailed        5xx
    ├── Overloaded              a limit of our own is reached; come back later
    └── CacheFailed             the disk or the index; never a reason to fail a pull that the upstream can serve
"""

from collections.abc import Mapping


class MirrorproxyError(Exception):
    """The root. `code` is the OCI error code, `negative` says that the answer came from memory of an earlier "no"."""

    code = "UNKNOWN"

    def __init__(self, message: str, *, detail: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.negative = False


class Invalid(MirrorproxyError):
    """What the client sent does not parse. Nothing was asked upstream."""

    code = "UNSUPPORTED"


class NameInvalid(Invalid):
    """A repository or registry name that the grammar does not know."""

    code = "NAME_INVALID"


class DigestInvalid(Invalid):
    """A digest that the grammar does not know, or of an algorithm that is not supported."""

    code = "DIGEST_INVALID"


class TagInvalid(Invalid):
    """A tag that can name nothing: to a client it is a manifest that does not exist (conformance suite)."""

    code = "MANIFEST_UNKNOWN"


class QueryInvalid(Invalid):
    """A query parameter that does not parse, `n=-1` for one."""

    code = "PAGINATION_NUMBER_INVALID"


class NotFound(MirrorproxyError):
    """The upstream, healthy, said that it is not there. Never raised for an outage: clients take it for final."""


class NameUnknown(NotFound):
    """No such repository, or a registry that is not configured."""

    code = "NAME_UNKNOWN"


class ManifestUnknown(NotFound):
    """No such manifest."""

    code = "MANIFEST_UNKNOWN"


class BlobUnknown(NotFound):
    """No such blob in this repository."""

    code = "BLOB_UNKNOWN"


class Denied(MirrorproxyError):
    """Not for whoever asks here: by our policy, or by the upstream after a token refresh."""

    code = "DENIED"


class Unsupported(MirrorproxyError):
    """Not what a pull-through cache does: pushes, deletes."""

    code = "UNSUPPORTED"


class UpstreamError(MirrorproxyError):
    """The upstream did not answer as it should. Another endpoint, another try or a stale copy may help.

    `retry_after` is the number of seconds that the upstream asked to wait, or None.
    """

    code = "UNAVAILABLE"

    def __init__(
        self, message: str, *, detail: Mapping[str, object] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, detail=detail)
        self.retry_after = retry_after


class Unreachable(UpstreamError):
    """No connection: DNS, refused, reset, TLS."""


class TimedOut(UpstreamError):
    """No connection, no headers or no byte in time."""


class BadAnswer(UpstreamError):
    """An answer that is not what was asked for: HTML, a wrong length, a wrong range, a content encoding."""


class DigestMismatch(BadAnswer):
    """The bytes are not what their digest says. Whoever gets them must not keep them."""

    code = "DIGEST_INVALID"


class Unauthorized(UpstreamError):
    """The upstream does not accept our credentials, or wants some (Docker Hub: also for what does not exist)."""

    code = "DENIED"


class RateLimited(UpstreamError):
    """The upstream said 429."""

    code = "TOOMANYREQUESTS"


class ServerFailed(UpstreamError):
    """The upstream said 5xx."""


class Overloaded(MirrorproxyError):
    """A limit of our own is reached. `retry_after`: seconds; `limit`: which, a label of the metrics; empty: a stop."""

    code = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: float = 5.0, limit: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.limit = limit


class CacheFailed(MirrorproxyError):
    """The disk or the index failed: full, read-only, broken. The pull goes on without the cache."""

    code = "UNAVAILABLE"
