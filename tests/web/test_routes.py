"""What a target means, one line each."""

import pytest

from mirrorproxy.errors import (
    DigestInvalid,
    MirrorproxyError,
    NameInvalid,
    NameUnknown,
    QueryInvalid,
    TagInvalid,
)
from mirrorproxy.names import Digest, Tag, repository
from mirrorproxy.web.routes import (
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

NAMES = Names("docker.io", frozenset({"docker.io", "ghcr.io", "reg.local:5000", "[::1]:5000", "plain"}))
DIGEST = Digest("sha256:" + "a" * 64)
LONG = Digest("sha512:" + "b" * 128)
ALPINE = repository("docker.io", "alpine")
GHCR = repository("ghcr.io", "a/b")
LOCAL = repository("reg.local:5000", "a")


def parsed(target: str, method: str = "GET", names: Names = NAMES) -> Route:
    """The route of a target."""
    return parse(method, *split(target), names)


@pytest.mark.parametrize(
    ("target", "route"),
    [
        ("/v2/", Base()),
        ("/v2", Base()),
        ("/v2/?ns=docker.io", Base(Form(ns="docker.io"))),
        ("/ghcr.io/v2/", Base(Form(mount="ghcr.io"))),
        ("/ghcr.io/v2", Base(Form(mount="ghcr.io"))),
        ("http://mirror:5000/v2/", Base()),
        ("HTTP://mirror:5000?ns=x", PageRoute(Page.INDEX)),
        # the four forms, and their combinations
        ("/v2/library/alpine/manifests/3.20", ManifestRoute(ALPINE, Tag("3.20"))),
        ("/v2/alpine/manifests/3.20", ManifestRoute(ALPINE, Tag("3.20"))),
        ("/v2/library/alpine/manifests/1?ns=docker.io", ManifestRoute(ALPINE, Tag("1"), Form(ns="docker.io"))),
        ("/v2/a/b/manifests/1?ns=ghcr.io", ManifestRoute(GHCR, Tag("1"), Form(ns="ghcr.io"))),
        ("/v2/ghcr.io/a/b/manifests/1", ManifestRoute(GHCR, Tag("1"), Form(prefix="ghcr.io"))),
        ("/ghcr.io/v2/a/b/manifests/1", ManifestRoute(GHCR, Tag("1"), Form(mount="ghcr.io"))),
        ("/v2/ghcr.io/a/b/manifests/1?ns=ghcr.io", ManifestRoute(GHCR, Tag("1"), Form(None, "ghcr.io", "ghcr.io"))),
        (
            "/ghcr.io/v2/ghcr.io/a/b/manifests/1?ns=ghcr.io",
            ManifestRoute(GHCR, Tag("1"), Form("ghcr.io", "ghcr.io", "ghcr.io")),
        ),
        # Docker Hub by other names, and in other letters
        ("/v2/alpine/manifests/1?ns=index.docker.io", ManifestRoute(ALPINE, Tag("1"), Form(ns="index.docker.io"))),
        (
            "/v2/registry-1.docker.io/alpine/manifests/1?ns=docker.io",
            ManifestRoute(ALPINE, Tag("1"), Form(None, "registry-1.docker.io", "docker.io")),
        ),
        ("/v2/Docker.IO/alpine/manifests/1", ManifestRoute(ALPINE, Tag("1"), Form(prefix="Docker.IO"))),
        # ports
        ("/v2/a/manifests/1?ns=reg.local%3A5000", ManifestRoute(LOCAL, Tag("1"), Form(ns="reg.local:5000"))),
        ("/v2/a/manifests/1?ns=reg.local:5000", ManifestRoute(LOCAL, Tag("1"), Form(ns="reg.local:5000"))),
        ("/v2/reg.local%3A5000/a/manifests/1", ManifestRoute(LOCAL, Tag("1"), Form(prefix="reg.local:5000"))),
        (
            "/v2/%5B::1%5D:5000/a/manifests/1",
            ManifestRoute(repository("[::1]:5000", "a"), Tag("1"), Form(prefix="[::1]:5000")),
        ),
        # a registry without a dot is known by its being configured
        ("/v2/plain/a/manifests/1", ManifestRoute(repository("plain", "a"), Tag("1"), Form(prefix="plain"))),
        ("/v2/plain/manifests/1", ManifestRoute(repository("docker.io", "plain"), Tag("1"))),
        # a repository may begin with a word that has a dot, where the registry is named otherwise
        (
            "/v2/x.y/z/manifests/1?ns=ghcr.io",
            ManifestRoute(repository("ghcr.io", "x.y/z"), Tag("1"), Form(ns="ghcr.io")),
        ),
        ("/ghcr.io/v2/x.y/z/tags/list", TagsRoute(repository("ghcr.io", "x.y/z"), "", Form(mount="ghcr.io"))),
        # names that look like the words of paths
        ("/v2/a/manifests/manifests/1", ManifestRoute(repository("docker.io", "a/manifests"), Tag("1"))),
        ("/v2/manifests/manifests/manifests", ManifestRoute(repository("docker.io", "manifests"), Tag("manifests"))),
        ("/v2/a/tags/list/tags/list", TagsRoute(repository("docker.io", "a/tags/list"))),
        ("/v2/v2/manifests/1", ManifestRoute(repository("docker.io", "v2"), Tag("1"))),
        # the other kinds
        (f"/v2/alpine/manifests/{DIGEST}", ManifestRoute(ALPINE, DIGEST)),
        (f"/v2/alpine/manifests/{DIGEST.replace(':', '%3A')}", ManifestRoute(ALPINE, DIGEST)),
        (f"/v2/alpine/blobs/{LONG}", BlobRoute(ALPINE, LONG)),
        (f"/v2/alpine/blobs/{DIGEST}?ns=docker.io&x=y", BlobRoute(ALPINE, DIGEST, Form(ns="docker.io"))),
        ("/v2/alpine/tags/list?n=5&last=a%2Bb", TagsRoute(ALPINE, "n=5&last=a%2Bb")),
        ("/v2/alpine/tags/list?n=5&ns=docker.io&last=b", TagsRoute(ALPINE, "n=5&last=b", Form(ns="docker.io"))),
        (f"/v2/alpine/referrers/{DIGEST}?artifactType=a%2Fb", ReferrersRoute(ALPINE, DIGEST, "artifactType=a%2Fb")),
        ("/v2/_catalog", CatalogRoute()),
        ("/v2/_catalog?n=3&last=a%2Fb&ns=ghcr.io", CatalogRoute("ghcr.io", 3, "a/b", Form(ns="ghcr.io"))),
        ("/ghcr.io/v2/_catalog", CatalogRoute("ghcr.io", None, None, Form(mount="ghcr.io"))),
        # pages
        ("/", PageRoute(Page.INDEX)),
        ("/livez", PageRoute(Page.LIVEZ)),
        ("/readyz?verbose", PageRoute(Page.READYZ, "verbose")),
        ("/metrics", PageRoute(Page.METRICS)),
        # uploads are asked for by GET as well
        ("/v2/a/blobs/uploads/", Push()),
        ("/v2/a/blobs/uploads/12-34", Push()),
        ("/v2/a/blobs/uploads", Push()),
        # nothing
        ("/v1/search?q=alpine", Unknown()),
        ("/v2/a", Unknown()),
        ("/v2/a/tags/latest", Unknown()),
        ("/v2/alpine/manifests/3.20/", Unknown()),
        ("/v2//", Unknown()),
        ("/v2/../v2/", Unknown()),
        ("/livez/", Unknown()),
        ("/favicon.ico", Unknown()),
    ],
)
def test_a_target_means(target: str, route: Route) -> None:
    """The route that is meant, and no other."""
    found = parsed(target)
    assert found == route
    assert type(found) is type(route)


@pytest.mark.parametrize(
    ("target", "error"),
    [
        # registries
        ("/v2/a/manifests/1?ns=evil.example", NameUnknown),
        ("/v2/?ns=evil.example", NameUnknown),
        ("/v2/evil.example/a/manifests/1", NameUnknown),
        ("//v2/", NameInvalid),
        ("/v2/localhost/a/manifests/1", NameUnknown),
        ("/v2/localhost:1/a/manifests/1", NameUnknown),
        ("/evil.example/v2/a/manifests/1", NameUnknown),
        ("/v2/ghcr.io/a/manifests/1?ns=docker.io", NameInvalid),
        ("/ghcr.io/v2/a/manifests/1?ns=docker.io", NameInvalid),
        ("/ghcr.io/v2/docker.io/a/manifests/1", NameInvalid),
        ("/v2/a/manifests/1?ns=docker.io&ns=docker.io", NameInvalid),
        ("/v2/a/manifests/1?ns=docker.io&%6es=ghcr.io", NameInvalid),
        ("/v2/a/manifests/1?ns=", NameInvalid),
        ("/v2/a/manifests/1?ns=docker.io%2F..", NameInvalid),
        ("/v2/a/manifests/1?ns=docker%252Eio", NameInvalid),
        ("/v2/a/manifests/1?ns=http%3A%2F%2Fevil.example", NameInvalid),
        ("/v2/a/manifests/1?ns=docker.io%00", NameInvalid),
        ("/v2/a/manifests/1?ns=docker.io%0d%0aX-A:b", NameInvalid),
        ("/v2/a/manifests/1?ns=doc%E2%84%AAer.io", NameInvalid),  # a Kelvin sign is a k in lower case
        ("/v2/a/manifests/1?ns=user@docker.io", NameInvalid),
        # names
        ("/v2/A/manifests/1", NameInvalid),
        ("/v2/a//b/manifests/1", NameInvalid),
        ("/v2//a/manifests/1", NameInvalid),
        ("/v2/-a/manifests/1", NameInvalid),
        ("/v2/a/../b/manifests/1", NameInvalid),
        ("/v2/a/./b/manifests/1", NameInvalid),
        ("/v2/a/%2e%2e/b/manifests/1", NameInvalid),
        ("/v2/a/%2E./b/manifests/1", NameInvalid),
        ("/v2/%2e%2e%2fetc/manifests/1", NameInvalid),
        ("/v2/a%2Fb/manifests/1", NameInvalid),
        ("/v2/a%5Cb/manifests/1", NameInvalid),
        ("/v2/a\\b/manifests/1", NameInvalid),
        ("/v2/a%00/manifests/1", NameInvalid),
        ("/v2/a%C0%AE%C0%AE/manifests/1", NameInvalid),
        ("/v2/a%252e/manifests/1", NameInvalid),
        ("/v2/a%/manifests/1", NameInvalid),
        ("/v2/a%zz/manifests/1", NameInvalid),
        ("/v2/a\udcff/manifests/1", NameInvalid),
        ("/v2/" + "a" * 250 + "/manifests/1", NameInvalid),
        ("/v2/" + "a/" * 3000 + "manifests/1", NameInvalid),
        ("*", NameInvalid),
        # references
        ("/v2/a/manifests/.INVALID_MANIFEST_NAME", TagInvalid),
        ("/v2/a/manifests/", TagInvalid),
        ("/v2/a/manifests/..", TagInvalid),
        ("/v2/a/manifests/%2e%2e", TagInvalid),
        ("/v2/a/manifests/a+b", TagInvalid),
        ("/v2/a/manifests/" + "a" * 129, TagInvalid),
        ("/v2/a/manifests/sha256:abc", DigestInvalid),
        ("/v2/a/manifests/sha256:" + "A" * 64, DigestInvalid),
        ("/v2/a/manifests/md5:" + "a" * 32, DigestInvalid),
        ("/v2/a/blobs/latest", DigestInvalid),
        ("/v2/a/blobs/", DigestInvalid),
        (f"/v2/a/blobs/{DIGEST}a", DigestInvalid),
        (f"/v2/a/blobs/{DIGEST}%0a", NameInvalid),
        ("/v2/a/blobs/sha256:" + "../" * 20 + "etc", Unknown),
        ("/v2/a/referrers/1", DigestInvalid),
        # queries
        ("/v2/a/tags/list?n=-1", QueryInvalid),
        ("/v2/a/tags/list?n=", QueryInvalid),
        ("/v2/a/tags/list?n=1e3", QueryInvalid),
        ("/v2/a/tags/list?n=" + "9" * 30, QueryInvalid),
        ("/v2/_catalog?n=x", QueryInvalid),
        ("/v2/a/tags/list?last=a\x01", QueryInvalid),
        ("/v2/a/tags/list?last=%", QueryInvalid),
        ("/v2/a/tags/list?" + "a" * 5000, QueryInvalid),
        ("/v2/a/tags/list?" + "a&" * 40, QueryInvalid),
    ],
)
def test_a_target_that_means_nothing(target: str, error: type[MirrorproxyError | Unknown]) -> None:
    """The error that says what is wrong with it."""
    if issubclass(error, MirrorproxyError):
        with pytest.raises(error):
            parsed(target)
    else:
        assert isinstance(parsed(target), error)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "CONNECT"])
def test_other_methods_are_pushes(method: str) -> None:
    """Whatever they are sent to, and however malformed that is."""
    assert parsed("/v2/a/../b", method) == Push()


def test_an_unknown_registry_is_told_the_known_ones() -> None:
    """Whoever configures a client sees at once what is wrong."""
    with pytest.raises(NameUnknown, match=r"evil\.example is not served here.*docker\.io, ghcr\.io"):
        parsed("/v2/evil.example/a/manifests/1")


def test_without_a_default_the_registry_must_be_named() -> None:
    """And named it may be."""
    names = Names(None, frozenset({"ghcr.io"}))
    with pytest.raises(NameUnknown):
        parsed("/v2/a/b/manifests/1", names=names)
    assert parsed("/v2/a/b/manifests/1?ns=ghcr.io", names=names)


def test_a_link_is_written_in_the_clients_form() -> None:
    """With `ns` escaped as containerd does."""
    route = TagsRoute(LOCAL, "n=1", Form("reg.local:5000", "reg.local:5000", "reg.local:5000"))
    assert unparse(route) == "/reg.local:5000/v2/reg.local:5000/a/tags/list?n=1&ns=reg.local%3A5000"
