"""A request's target, parsed into a type; and written again. Pure.

Distribution specification, "Endpoints" and "Registry Proxying" (`ns`). The upstream can be named in three places, and
in several of them at once if they agree: `/<mount>/v2/...`, `/v2/<prefix>/...`, `?ns=`. It is looked up among the
configured registries, a closed world: what a client sends never becomes a host to dial.

Paths are taken raw, decoded once, and then fully matched by the grammars of `names`. Names contain slashes, so a path
is split from the right.
"""

import re
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import quote, unquote

from mirrorproxy.errors import NameInvalid, NameUnknown, QueryInvalid
from mirrorproxy.names import Digest, Reference, Repository, reference, registry_name, repository

READS = frozenset({"GET", "HEAD"})

_PATH_LIMIT = 4096  # bytes; a name has 255, a digest 135
_QUERY_LIMIT = 4096
_PARAMETERS = 32
_PATH = re.compile(r"/(?:[!-$&-\[\]-~]|%[0-9A-Fa-f]{2})*")  # printable ASCII without % alone and backslash
_QUERY = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*")
_ORIGIN = re.compile(r"https?://[^/?#]+", re.IGNORECASE)
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-~:[]")  # may come escaped
_NUMBER = re.compile(r"[0-9]{1,9}")


class Names(NamedTuple):
    """The registries there are, by canonical name; `default` answers a client that names none."""

    default: str | None
    registries: frozenset[str]


class Form(NamedTuple):
    """Where the client named the registry, each as it wrote it; nowhere: the default one answers."""

    mount: str | None = None
    prefix: str | None = None
    ns: str | None = None


BARE = Form()


class Base(NamedTuple):
    """`/v2/`"""

    form: Form = BARE


class ManifestRoute(NamedTuple):
    """`<name>/manifests/<reference>`"""

    repository: Repository
    reference: Reference
    form: Form = BARE


class BlobRoute(NamedTuple):
    """`<name>/blobs/<digest>`"""

    repository: Repository
    digest: Digest
    form: Form = BARE


class TagsRoute(NamedTuple):
    """`<name>/tags/list`; `query` as the client encoded it, without `ns`."""

    repository: Repository
    query: str = ""
    form: Form = BARE


class ReferrersRoute(NamedTuple):
    """`<name>/referrers/<digest>`; `query` as in `TagsRoute`."""

    repository: Repository
    digest: Digest
    query: str = ""
    form: Form = BARE


class CatalogRoute(NamedTuple):
    """`_catalog`: of one registry where the client named one, else of all."""

    registry: str | None = None
    n: int | None = None
    last: str | None = None
    form: Form = BARE


class Push(NamedTuple):
    """Whatever would write: no cache of others' content does that."""


class Page(StrEnum):
    """The pages beside the registry protocol."""

    INDEX = "/"
    LIVEZ = "/livez"
    READYZ = "/readyz"
    HEALTHZ = "/healthz"
    METRICS = "/metrics"


class PageRoute(NamedTuple):
    """One of our own pages."""

    page: Page
    query: str = ""


class Unknown(NamedTuple):
    """Nothing is there."""


Route = Base | ManifestRoute | BlobRoute | TagsRoute | ReferrersRoute | CatalogRoute | Push | PageRoute | Unknown

_PAGES = {page.value: page for page in Page}


def split(target: str) -> tuple[str, str]:
    """Path and query of a request's target, raw; a proxy's absolute form counts as the path in it (RFC 9112, 3.2.2)."""
    if not target.startswith("/") and (origin := _ORIGIN.match(target)):
        target = target[origin.end() :]
        if not target.startswith("/"):
            target = f"/{target}"
    path, _, query = target.partition("?")
    return path, query


def parse(method: str, raw_path: str, raw_query: str, names: Names) -> Route:
    """What a request asks for. `raw_path` and `raw_query` as they stood on the wire.

    Raises `NameInvalid`, `DigestInvalid`, `TagInvalid`, `QueryInvalid`, and `NameUnknown` for a registry that is not
    configured.
    """
    if method not in READS:
        return Push()
    path = _decoded(raw_path)
    if path == "/v2" or path.startswith("/v2/"):
        mount, rest = None, path[4:]
    elif page := _PAGES.get(path):
        return PageRoute(page, _query(raw_query)[1])
    else:
        mount, _, rest = path[1:].partition("/")
        if rest != "v2" and not rest.startswith("v2/"):
            return Unknown()
        rest = rest[3:]
    ns, query = _query(raw_query) if raw_query else (None, "")
    registry = _named(mount, ns, names)
    if not rest:
        return Base(Form(mount, None, ns))
    if rest == "_catalog":
        n, last = _page(query)
        return CatalogRoute(registry, n, last, Form(mount, None, ns))
    return _content(rest, query, registry, Form(mount, None, ns), names)


def unparse(route: Route) -> str:
    """The target, path and query, that parses to `route` (with GET)."""
    match route:
        case Base(form):
            return _target(form, "", "")
        case ManifestRoute(repository, reference, form):
            return _target(form, f"{repository.name}/manifests/{reference}", "")
        case BlobRoute(repository, digest, form):
            return _target(form, f"{repository.name}/blobs/{digest}", "")
        case TagsRoute(repository, query, form):
            return _target(form, f"{repository.name}/tags/list", query)
        case ReferrersRoute(repository, digest, query, form):
            return _target(form, f"{repository.name}/referrers/{digest}", query)
        case CatalogRoute(_, n, last, form):
            parameters = ([] if n is None else [f"n={n}"]) + ([] if last is None else [f"last={quote(last, safe='')}"])
            return _target(form, "_catalog", "&".join(parameters))
        case PageRoute(page, query):
            return f"{page}?{query}" if query else page.value
        case Push():
            return "/v2/a/blobs/uploads/"
        case Unknown():
            return "/unknown"


def _target(form: Form, path: str, query: str) -> str:
    mount = f"/{form.mount}" if form.mount else ""
    prefix = f"{form.prefix}/" if form.prefix else ""
    if form.ns is not None:
        query = f"{query}{'&' if query else ''}ns={quote(form.ns, safe='')}"
    return f"{mount}/v2/{prefix}{path}{'?' if query else ''}{query}"


def _decoded(raw: str) -> str:
    """The path with what may stand in a word unescaped, once. Slashes, controls and bytes above ASCII may not."""
    if len(raw) > _PATH_LIMIT:
        raise NameInvalid(f"the path is longer than {_PATH_LIMIT} bytes")
    if not _PATH.fullmatch(raw):
        raise NameInvalid("the path has characters that no name has")
    return _ESCAPE.sub(_unescaped, raw) if "%" in raw else raw


def _unescaped(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    if character not in _WORD:
        raise NameInvalid("the path has an escaped character that no name has", detail={"escape": match[0]})
    return character


def _query(raw: str) -> tuple[str | None, str]:
    """`ns`, decoded, and the rest of the query as it came. `ns` is ours alone and never goes upstream."""
    if not raw:
        return None, ""
    if len(raw) > _QUERY_LIMIT or not _QUERY.fullmatch(raw):
        raise QueryInvalid(f"not a query of at most {_QUERY_LIMIT} printable characters")
    parameters = raw.split("&")
    if len(parameters) > _PARAMETERS:
        raise QueryInvalid(f"more than {_PARAMETERS} query parameters")
    ns: str | None = None
    rest = []
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if unquote(key) != "ns":
            rest.append(parameter)
        elif ns is None:
            ns = unquote(value)
        else:
            raise NameInvalid("ns is given twice")
    return ns, "&".join(rest)


def _page(query: str) -> tuple[int | None, str | None]:
    """`n` and `last` of a listing's query. Raises `QueryInvalid`."""
    n: int | None = None
    last: str | None = None
    for parameter in query.split("&"):
        key, _, value = parameter.partition("=")
        if key == "n":
            if not _NUMBER.fullmatch(value):
                raise QueryInvalid("n is not a number of entries", detail={"n": value[:160]})
            n = int(value)
        elif key == "last":
            last = unquote(value)
    return n, last


def _configured(text: str, names: Names) -> str | None:
    """The canonical name of the registry `text` where it is a configured one."""
    if text in names.registries:
        return text
    try:
        name = registry_name(text)
    except NameInvalid:
        return None
    return name if name in names.registries else None


def _must_be_configured(text: str, names: Names) -> str:
    name = registry_name(text)
    if name not in names.registries:
        raise NameUnknown(
            f"{name} is not served here; these are: {', '.join(sorted(names.registries))}", detail={"registry": name}
        )
    return name


def _looks_like_a_host(component: str) -> bool:
    """distribution/reference, splitDockerDomain: what tells a registry from the first word of a repository."""
    return "." in component or ":" in component or component == "localhost"


def _named(mount: str | None, ns: str | None, names: Names) -> str | None:
    """The registry that mount and `ns` name, None where there is neither."""
    named = None if mount is None else _must_be_configured(mount, names)
    if ns is None:
        return named
    by_ns = _must_be_configured(ns, names)
    if named is not None and named != by_ns:
        raise NameInvalid(f"the path names {named}, ns names {by_ns}")
    return by_ns


def _repository(name: str, registry: str | None, form: Form, names: Names) -> tuple[Repository, Form]:
    first, slash, rest = name.partition("/")
    if slash:
        prefix = _configured(first, names)
        if prefix is not None:
            if registry is not None and registry != prefix:
                raise NameInvalid(f"the path names {prefix}, ns or the path's beginning names {registry}")
            return repository(prefix, rest), form._replace(prefix=first)
        if registry is None and _looks_like_a_host(first):
            _must_be_configured(first, names)
    if registry is None:
        registry = names.default
    if registry is None:
        raise NameUnknown("name the registry: there is no default one", detail={"name": name[:160]})
    return repository(registry, name), form


def _content(rest: str, query: str, registry: str | None, form: Form, names: Names) -> Route:
    parts = rest.rsplit("/", 2)
    if len(parts) < 3:
        return Unknown()
    name, kind, last = parts
    if kind == "uploads" and name.endswith("/blobs"):
        return Push()
    if kind == "manifests":
        owner, form = _repository(name, registry, form, names)
        return ManifestRoute(owner, reference(last), form)
    if kind == "blobs":
        if last == "uploads":
            return Push()
        owner, form = _repository(name, registry, form, names)
        return BlobRoute(owner, Digest(last), form)
    if kind == "tags" and last == "list":
        owner, form = _repository(name, registry, form, names)
        _page(query)
        return TagsRoute(owner, query, form)
    if kind == "referrers":
        owner, form = _repository(name, registry, form, names)
        _page(query)
        return ReferrersRoute(owner, Digest(last), query, form)
    return Unknown()
