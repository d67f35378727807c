"""The `Link` header of paged listings (RFC 8288; distribution specification, "Listing Tags")."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

_LINK = re.compile(r'<([^<>]*)>((?:[ \t]*;[ \t]*[^\s;,="]+(?:[ \t]*=[ \t]*(?:"[^"]*"|[^\s;,"]*))?)*)')
_NEXT = re.compile(r';[ \t]*rel[ \t]*=[ \t]*(?:"(?:[^"]*[ \t])?next(?:[ \t][^"]*)?"|next(?=[\s;]|$))', re.IGNORECASE)


def next_query(headers: Iterable[str]) -> str | None:
    """The query, still encoded, of the link with `rel=next`; None on the last page.

    Only the query counts, and of it all but `ns`: where the next page is, is known, and not for an upstream to say.
    """
    for header in headers:
        for target, parameters in _LINK.findall(header):
            if _NEXT.search(parameters):
                return _query(target)
    return None


def _query(target: str) -> str | None:
    try:
        query = urlsplit(target).query
    except ValueError:
        return None
    return "&".join(part for part in query.split("&") if part and not part.startswith("ns=")) or None
