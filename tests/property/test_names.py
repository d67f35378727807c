"""Names against a second reading of the grammar, without regular expressions (distribution/reference, its page)."""

import string
from itertools import groupby
from typing import TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mirrorproxy.errors import DigestInvalid, NameInvalid, TagInvalid
from mirrorproxy.names import DOCKER_HUB, Digest, Tag, reference, registry_name, repository

LOWER = set(string.ascii_lowercase + string.digits)
WORD = set(string.ascii_letters + string.digits + "_")
T = TypeVar("T")

components = st.from_regex(r"[a-z0-9]{1,4}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,3}){0,3}", fullmatch=True)
names = st.lists(components, min_size=1, max_size=5).map("/".join)
near_names = st.text("ab0._-/A:@%\\ \n\x00é", max_size=14)  # mostly wrong, and by one character
labels = st.from_regex(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,5}[a-zA-Z0-9])?", fullmatch=True)
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
near_hosts = st.text("aZ0.-:[]/@ \nK", max_size=12)
digests = st.one_of(
    st.binary(max_size=64).map(Digest.of),
    st.text("0123456789abcdef", min_size=128, max_size=128).map("sha512:".__add__),
)
near_digests = st.builds(
    "{}{}{}".format,
    st.sampled_from(["sha256", "sha512", "SHA256", "sha384", "md5", "", "sha256+b64"]),
    st.sampled_from([":", "", "-", "::", ": "]),
    st.one_of(st.sampled_from([32, 63, 64, 65, 127, 128, 129]).map("a".__mul__), st.just("A" * 64), st.just("g" * 64)),
)


def is_component(text: str) -> bool:
    """Words of [a-z0-9], joined by one dot, one or two underscores, or any number of dashes."""
    runs = [(word, "".join(run)) for word, run in groupby(text, key=lambda character: character in LOWER)]
    if not runs or not runs[0][0] or not runs[-1][0]:
        return False
    return all(word or run in {".", "_", "__"} or set(run) == {"-"} for word, run in runs)


def is_name(text: str) -> bool:
    """Components, joined by single slashes, 255 characters at most."""
    return len(text) <= 255 and all(is_component(part) for part in text.split("/"))


def is_domain(text: str) -> bool:
    """Labels of ASCII letters, digits and inner dashes, then a port or none. (IPv6 has examples of its own.)"""
    host, colon, port = text.partition(":")
    good_port = not colon or (0 < len(port) <= 5 and set(port) <= set(string.digits))
    letters = WORD - {"_"} | {"-"}
    return good_port and all(
        part and set(part) <= letters and part[0] != "-" and part[-1] != "-" for part in host.split(".")
    )


def accepts(parse: "type[Digest] | type[Tag]", text: str, error: type[Exception]) -> bool:
    """Whether `parse` takes it; anything but the one error that is promised fails the test."""
    try:
        assert parse(text) == text
    except error:
        return False
    return True


@settings(deadline=None)
@given(st.one_of(names, near_names))
@example("a" * 255)
@example("a" * 256)
@example("/".join(["a"] * 128))
@example("a\n")
def test_repository_names_are_those_of_the_grammar(text: str) -> None:
    """Accepted or refused as the second reading says; an accepted one is unchanged, and safe as a path."""
    if not is_name(text):
        with pytest.raises(NameInvalid) as caught:
            repository("ghcr.io", text)
        assert caught.value.detail == {"name": text[:160]}
        return
    found = repository("ghcr.io", text)
    assert (found.registry, found.name, str(found)) == ("ghcr.io", text, f"ghcr.io/{text}")
    assert not {"", ".", ".."} & set(text.split("/"))
    assert not set(text) - LOWER - set("._-/")


@settings(deadline=None)
@given(names)
def test_docker_hub_gets_its_library_once(name: str) -> None:
    """`alpine` is `library/alpine` on Docker Hub alone, and putting the result in again changes nothing."""
    found = repository(DOCKER_HUB, name)
    assert found.name == (name if "/" in name else f"library/{name}")
    assert repository(*found) == found
    assert repository("quay.io", name).name == name


@settings(deadline=None)
@given(st.one_of(st.builds("{}{}".format, hosts, ports), near_hosts))
@example("doc\u212aer.io")  # the Kelvin sign, whose lower case is an ASCII k
@example("docker.io\n")
def test_registry_names_are_those_of_the_grammar(text: str) -> None:
    """Accepted or refused as the second reading says; canonical ones are lower-case ASCII, and stay as they are."""
    try:
        found = registry_name(text)
    except NameInvalid:
        assert not is_domain(text)
        return
    if not text.startswith("["):
        assert is_domain(text)
    assert found == text.lower()
    assert found.isascii()
    assert not {"/", "\\", "\0", "\n", "@"} & set(found)
    assert registry_name(found) == found
    assert registry_name(text.upper()) == found


@settings(deadline=None)
@given(st.one_of(st.text("aZ09_.-:/ \né", max_size=6), st.text("a.-_", min_size=126, max_size=130)))
def test_tags_are_those_of_the_grammar(text: str) -> None:
    """At most 128 of [A-Za-z0-9_.-], and the first is no dot and no dash."""
    expected = 0 < len(text) <= 128 and text[0] in WORD and set(text) <= WORD | set(".-")
    assert accepts(Tag, text, TagInvalid) is expected


@settings(deadline=None)
@given(st.one_of(digests, near_digests))
def test_digests_are_those_of_the_grammar(text: str) -> None:
    """Two algorithms, each with as many lower-case hex digits as it has."""
    algorithm, _, digits = text.partition(":")
    expected = {"sha256": 64, "sha512": 128}.get(algorithm) == len(digits) and set(digits) <= set("0123456789abcdef")
    assert accepts(Digest, text, DigestInvalid) is expected


@settings(deadline=None)
@given(digests)
def test_a_digest_falls_into_its_parts(text: str) -> None:
    """And can be put together again."""
    digest = Digest(text)
    assert f"{digest.algorithm}:{digest.hex}" == digest
    assert digest.hasher().name == digest.algorithm


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_a_digest_is_over_the_bytes(data: bytes) -> None:
    """By either algorithm, at once or piece by piece."""
    digest = Digest.of(data)
    assert digest.of_same_algorithm(data) == digest
    hasher = digest.hasher()
    hasher.update(data[:7])
    hasher.update(data[7:])
    assert hasher.hexdigest() == digest.hex
    long = Digest("sha512:" + "0" * 128).of_same_algorithm(data)
    assert long.algorithm == "sha512"
    assert long != digest.of_same_algorithm(data + b".")


@settings(deadline=None)
@given(st.one_of(digests, near_digests, st.text("aZ09_.-:", max_size=6)))
def test_a_reference_is_a_digest_or_a_tag(text: str) -> None:
    """A colon makes the difference: no tag has one, no digest lacks it."""
    expected: type[Digest] | type[Tag] = Digest if ":" in text else Tag
    error = DigestInvalid if ":" in text else TagInvalid
    if not accepts(expected, text, error):
        with pytest.raises(error):
            reference(text)
        return
    found = reference(text)
    assert type(found) is expected
    assert found == text
