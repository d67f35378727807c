"""Routes: what is written parses to what was meant, and nothing that is sent gets past the grammars."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from mirrorproxy.errors import Invalid, NameInvalid, NameUnknown
from mirrorproxy.names import Digest, Repository, Tag, repository
from mirrorproxy.web.routes import (
    BARE,
    Base,
    BlobRoute,
    CatalogRoute,
    Form,
    ManifestRoute,
    Names,
    Page,
    PageRoute,
    Push,
    ReferrersRoute,
    Route,
    TagsRoute,
    Unknown,
    parse,
    split,
    unparse,
)

HUB = ("docker.io", "index.docker.io", "registry-1.docker.io", "Docker.io")
SPELLINGS = {
    "docker.io": HUB,
    "ghcr.io": ("ghcr.io", "GHCR.io"),
    "reg.local:5000": ("reg.local:5000",),
    "plain": ("plain",),
}
NAMES = Names("docker.io", frozenset(SPELLINGS))

components = st.from_regex(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", fullmatch=True).filter(lambda word: len(word) < 40)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True).map(Tag)
digests = st.from_regex(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", fullmatch=True).map(Digest)
numbers = st.integers(0, 999_999_999)
queries = (
    st.lists(
        st.builds(
            "{}={}".format,
            st.sampled_from(["last", "artifactType", "page"]),
            st.from_regex(r"[a-z0-9%2F.]{0,9}", fullmatch=True),
        ),
        max_size=4,
    )
    .map("&".join)
    .filter(lambda query: re.fullmatch(r"(?:[^%]|%[0-9A-F]{2})*", query))
)


@st.composite
def named(draw: st.DrawFn) -> tuple[Repository, Form]:
    """A repository, and a way to name it."""
    registry = draw(st.sampled_from(sorted(SPELLINGS)))
    spelling = st.none() | st.sampled_from(SPELLINGS[registry])
    form = Form(draw(spelling), draw(spelling), draw(spelling))
    owner = repository(registry, "/".join(draw(st.lists(components, min_size=1, max_size=4))))
    first, slash, _ = owner.name.partition("/")
    if form.prefix is None and slash and first in SPELLINGS:
        form = form._replace(prefix=draw(st.sampled_from(SPELLINGS[registry])))
    if form == BARE and (registry != "docker.io" or (slash and ("." in first or first == "localhost"))):
        form = form._replace(ns=draw(st.sampled_from(SPELLINGS[registry])))
    return owner, form


@st.composite
def routes(draw: st.DrawFn) -> Route:
    """Any route."""
    owner, form = draw(named())
    without_prefix = form._replace(prefix=None)
    registry = None if form.mount is None and form.ns is None else owner.registry
    route: Route = draw(
        st.one_of(
            st.just(Base(without_prefix)),
            st.builds(ManifestRoute, st.just(owner), tags | digests, st.just(form)),
            st.builds(BlobRoute, st.just(owner), digests, st.just(form)),
            st.builds(TagsRoute, st.just(owner), queries, st.just(form)),
            st.builds(ReferrersRoute, st.just(owner), digests, queries, st.just(form)),
            st.builds(
                CatalogRoute,
                st.just(registry),
                st.none() | numbers,
                st.none() | st.text(max_size=20).filter(_encodes),
                st.just(without_prefix),
            ),
            st.builds(PageRoute, st.sampled_from(Page), st.sampled_from(["", "verbose"])),
            st.just(Push()),
            st.just(Unknown()),
        )
    )
    return route


def _encodes(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


@given(routes())
def test_what_is_written_parses_to_what_was_meant(route: Route) -> None:
    """`parse(unparse(x)) == x`, of the same type."""
    found = parse("GET", *split(unparse(route)), NAMES)
    assert found == route
    assert type(found) is type(route)


targets = st.lists(
    st.sampled_from(
        [
            "/",
            "v2",
            "..",
            "%2e%2e",
            "%2F",
            "\\",
            "%00",
            "a",
            "A",
            "library",
            "docker.io",
            "evil.example",
            "manifests",
            "blobs",
            "tags",
            "list",
            "referrers",
            "uploads",
            "_catalog",
            "sha256:",
            "a" * 64,
            "?",
            "&",
            "ns=",
            "n=",
            "last=",
            "=",
            "%",
            "#",
            ":",
            "\udcff",
            "é",
        ]
    )
    | st.text(max_size=3),
    max_size=14,
).map("".join)


@given(st.sampled_from(["GET", "HEAD", "PUT"]), targets | targets.map("/v2/{}".format) | st.text())
@example("GET", "/v2/a/../../etc/passwd")
def test_whatever_is_sent_ends_in_a_route_or_in_its_own_error(method: str, target: str) -> None:
    """No other exception; and the parts of what parses fully match their grammars, in configured registries alone."""
    try:
        route = parse(method, *split(target), NAMES)
    except (Invalid, NameUnknown):
        return
    if isinstance(route, ManifestRoute | BlobRoute | TagsRoute | ReferrersRoute):
        assert route.repository.registry in NAMES.registries
        assert repository(*route.repository) == route.repository
        assert not {"", ".", ".."} & set(route.repository.name.split("/"))
    if isinstance(route, TagsRoute | ReferrersRoute):
        assert "ns" not in [parameter.partition("=")[0] for parameter in route.query.split("&")]
        assert re.fullmatch(r"[!-~]*", route.query)
    if isinstance(route, Base | ManifestRoute | CatalogRoute) and route.form.ns is not None:
        assert re.fullmatch(r"[!-~]+", route.form.ns)


@given(st.text(st.characters(max_codepoint=127), max_size=30))
def test_ns_is_taken_for_a_configured_registry_or_refused(ns: str) -> None:
    """Closed world: a spelling of a configured name, or an error."""
    try:
        route = parse("GET", "/v2/", f"ns={ns}", NAMES)
    except (Invalid, NameUnknown):
        return
    assert isinstance(route, Base)
    if route.form.ns is None:
        raise NameInvalid("ns was lost")
    assert route.form.ns.lower() in {spelling.lower() for spellings in SPELLINGS.values() for spelling in spellings}
