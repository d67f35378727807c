"""What the patterns do not name is denied, whoever asks and however, and nobody behind hears of it."""

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorproxy import manifests
from mirrorproxy.errors import Denied, ManifestUnknown, NameUnknown
from mirrorproxy.names import Digest, Tag, repository
from mirrorproxy.policy import Guarded
from mirrorproxy.registry import Registry
from tests.fakes.memory import MemoryRegistry

METHODS = [name for name, value in vars(Registry).items() if inspect.iscoroutinefunction(value)]
INDEX = b'{"schemaVersion": 2, "manifests": []}'
APP = repository("quay.io", "team/app")
SECRET = repository("quay.io", "secret/app")


def arguments(method: str) -> list[Any]:
    """What `method` needs beside the repository."""
    return [] if method == "tags" else [Digest.of(INDEX)]


@pytest.fixture
async def behind() -> MemoryRegistry:
    """A registry with the same content in a repository that is served, and in one that is not."""
    registry = MemoryRegistry()
    for place in (APP, SECRET):
        registry.put_manifest(place, INDEX, manifests.OCI_INDEX, "latest")
        registry.put_blob(place, INDEX)
    return registry


def allows(patterns: list[str], name: str) -> bool:
    """Whether a repository is served."""
    guarded = Guarded(MemoryRegistry(), patterns)
    call = guarded.tags(repository("quay.io", name))
    try:
        call.send(None)
    except Denied:
        return False
    except NameUnknown:  # the empty registry behind was asked
        return True
    raise AssertionError("the registry in memory never waits")


def test_every_method_is_there_with_the_same_parameters() -> None:
    """Spelled out: what is added to the contract fails closed until it is added here."""
    assert len(METHODS) == 6
    for name in METHODS:
        assert inspect.signature(vars(Guarded)[name]) == inspect.signature(getattr(Registry, name))
    assert not hasattr(Guarded, "__getattr__")


@pytest.mark.parametrize("method", METHODS)
async def test_others_are_denied(behind: MemoryRegistry, method: str) -> None:
    """By every method; the registry behind, the cache with it, is not asked."""
    guarded = Guarded(behind, ["team/*"])
    with pytest.raises(Denied, match=r"quay\.io/secret/app is not among the repositories"):
        await getattr(guarded, method)(SECRET, *arguments(method))
    assert behind.asked == []


@pytest.mark.parametrize("method", METHODS)
async def test_those_that_match_are_served(behind: MemoryRegistry, method: str) -> None:
    """By every method, with the answer of the registry behind."""
    guarded = Guarded(behind, ["team/*"])
    found = await getattr(guarded, method)(APP, *arguments(method))
    assert [line.split()[:2] for line in behind.asked] == [[method, str(APP)]]
    if method == "blob":
        await found.aclose()


async def test_arguments_and_errors_pass_unchanged(behind: MemoryRegistry) -> None:
    """`fresh`, ranges and queries reach the registry behind, its errors the caller."""
    guarded = Guarded(behind, ["**"])
    digest = Digest.of(INDEX)
    await guarded.resolve(APP, Tag("latest"), fresh=True)
    await guarded.manifest(APP, Tag("latest"), fresh=True)
    await (await guarded.blob(APP, digest, 3, 9)).aclose()
    await guarded.tags(APP, "n=1")
    await guarded.referrers(APP, digest, "artifactType=x")
    assert behind.asked == [
        f"resolve {APP} latest fresh",
        f"manifest {APP} latest fresh",
        f"blob {APP} {digest} 3-9",
        f"tags {APP} n=1",
        f"referrers {APP} {digest} artifactType=x",
    ]
    with pytest.raises(ManifestUnknown):
        await guarded.resolve(APP, Tag("absent"))


@pytest.mark.parametrize(
    ("pattern", "served", "denied"),
    [
        ("library/alpine", ["library/alpine"], ["library/alpine2", "a/library/alpine", "library/alpine/b", "library"]),
        ("team/*", ["team/a", "team/a-b.c"], ["team/a/b", "team", "teams/a", "a/team/a"]),
        ("team/**", ["team/a", "team/a/b/c"], ["team", "teams/a", "a/team/a"]),
        ("*", ["a", "a-b"], ["a/b"]),
        ("**", ["a", "a/b", "a/b/c"], []),
        ("*/app", ["a/app", "b/app"], ["app", "a/b/app", "a/app2", "a/app/c"]),
        ("**/app", ["a/app", "a/b/app"], ["app", "a/app/c", "a/myapp/d"]),
        ("team/app-*", ["team/app-1", "team/app-x.y"], ["team/app", "team/app-1/b", "team/app_1"]),
        ("a*b", ["ab", "axb"], ["a/b", "axbc"]),
        ("team.x/a", ["team.x/a"], ["teamyx/a", "team-x/a"]),  # a dot is a dot
        ("a.*", ["a.b"], ["ab", "axb"]),
    ],
)
def test_patterns(pattern: str, served: list[str], denied: list[str]) -> None:
    """`*` is anything but a slash, `**` anything, all else is itself; the whole name has to match."""
    assert [name for name in served if not allows([pattern], name)] == []
    assert [name for name in denied if allows([pattern], name)] == []


def test_several_patterns_serve_what_any_of_them_names() -> None:
    """Each stands for itself: what joins them is no part of them."""
    patterns = ["team/*", "library/alpine", "x"]
    assert [name for name in ("team/a", "library/alpine", "x") if not allows(patterns, name)] == []
    assert [name for name in ("team", "library/x", "xlibrary/alpine", "a/x") if allows(patterns, name)] == []


@pytest.mark.parametrize("patterns", [[], [""], ["("], ["|"], [".*"], [".+"], ["[a-z]+"], ["a|b"], ["^a$"], ["a\n"]])
def test_what_is_no_pattern_serves_nothing(patterns: list[str]) -> None:
    """No patterns name nothing, and regular expressions are not spoken."""
    assert [name for name in ("a", "b", "a/b") if allows(patterns, name)] == []


def matches(pattern: str, name: str) -> bool:
    """The second reading: letter by letter."""
    if not pattern:
        return not name
    if pattern.startswith("**"):
        return any(matches(pattern[2:], name[taken:]) for taken in range(len(name) + 1))
    if pattern[0] == "*":
        return any("/" not in name[:taken] and matches(pattern[1:], name[taken:]) for taken in range(len(name) + 1))
    return name[:1] == pattern[0] and matches(pattern[1:], name[1:])


@settings(deadline=None)
@given(
    st.lists(st.text("ab/*.", max_size=5), max_size=3),
    st.from_regex(r"[ab]{1,2}(?:[/.][ab]{1,2}){0,3}", fullmatch=True),
)
def test_patterns_mean_what_a_second_reading_says(patterns: list[str], name: str) -> None:
    """Any of them, over the whole name."""
    assert allows(patterns, name) is any(matches(pattern, name) for pattern in patterns)
