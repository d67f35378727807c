"""The words of the protocol: what distribution/reference takes is taken, but for what is said here."""

import pickle
import time
from collections.abc import Callable

import pytest

from mirrorproxy.errors import DigestInvalid, Invalid, NameInvalid, TagInvalid
from mirrorproxy.names import DOCKER_HUB, Digest, Repository, Tag, image, reference, registry_name, repository

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "0",
        "team/app",
        "a/b/c/d/e/f/g/h",
        "a.b",
        "a_b",
        "a__b",
        "a-b",
        "a--b",
        "a----------b",
        "a.b_c__d-e---f",
        "a--b.c--d.e---f--g",
        "test.example.com/app",
        "xn--7o8h.com/app",
        "library/ubuntu",
        "0a1/2b3",
        HEX,  # docker itself takes it for an image id; registries do not
        "v2/blobs/manifests/tags",
        "a" * 255,
        "a/" * 127 + "a",
    ],
)
def test_a_repository_name_is_taken(name: str) -> None:
    """And kept as it is."""
    assert repository("quay.io", name) == Repository("quay.io", name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A",
        "team/App",
        "a..b",
        "a___b",
        "a._b",
        "a-.b",
        "a.-b",
        "a_-b",
        "a-_b",
        "-a",
        "a-",
        ".a",
        "a.",
        "_a",
        "a_",
        "a/-b",
        "a-/b",
        "a/.b/c",
        "a/__b/c",
        "__/__",
        ".",
        "..",
        "a/../b",
        "../a",
        "a/.",
        "a\\b",
        "a%2fb",
        "a%00",
        "a\0",
        "a b",
        " a",
        "a\n",
        "a:b",
        "a@b",
        "a^b",
        "a~b",
        "a+b",
        "ä",
        "а",  # noqa: RUF001  # the Cyrillic letter is the point
        "a٣",
        "\u212a",
        "\ud800",
        "a" * 256,
        "a/" * 128 + "a",
    ],
)
def test_a_repository_name_is_refused(name: str) -> None:
    """With the name in the detail, so that people see what arrived here."""
    with pytest.raises(NameInvalid) as caught:
        repository("quay.io", name)
    assert caught.value.detail == {"name": name[:160]}
    assert caught.value.code == "NAME_INVALID"


def test_the_limit_counts_the_name_alone() -> None:
    """Clients count so since distribution/reference 0.6 (pull request 9), and registries always did.

    Docker Hub's `library/` is part of the name.
    """
    far = "registry.with.a.long.name.example.com:5000"
    assert repository(far, "a" * 255).name == "a" * 255
    assert len(repository(DOCKER_HUB, "a" * 247).name) == 255
    with pytest.raises(NameInvalid):
        repository(DOCKER_HUB, "a" * 248)
    assert repository(DOCKER_HUB, "b/" + "a" * 253).name == "b/" + "a" * 253


@pytest.mark.parametrize("alias", ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"])
def test_docker_hub_has_one_name(alias: str) -> None:
    """Its aliases are one registry, whose single-word repositories are under `library/`."""
    assert str(repository(registry_name(alias), "alpine")) == "docker.io/library/alpine"
    assert str(repository(registry_name(alias), "library/alpine")) == "docker.io/library/alpine"
    assert str(repository(registry_name(alias), "team/alpine")) == "docker.io/team/alpine"


@pytest.mark.parametrize("other", ["quay.io", "docker.io:443", "localhost:5000", "hub.docker.io", "docker.io.example"])
def test_nobody_else_gets_a_library(other: str) -> None:
    """A port makes another registry, as it does in an image's name."""
    assert str(repository(registry_name(other), "alpine")) == f"{other}/alpine"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ghcr.io", "ghcr.io"),
        ("GHCR.io", "ghcr.io"),
        ("localhost", "localhost"),
        ("localhost:5000", "localhost:5000"),
        ("registry", "registry"),
        ("a", "a"),
        ("a-b.example", "a-b.example"),
        ("xn--n3h.com", "xn--n3h.com"),
        ("0101.example:443", "0101.example:443"),
        ("192.168.1.1:5000", "192.168.1.1:5000"),
        ("example.com:80", "example.com:80"),
        ("[::1]", "[::1]"),
        ("[::1]:5000", "[::1]:5000"),
        ("[FD00:1:2::3]:5000", "[fd00:1:2::3]:5000"),
        ("[2001:0db8:85a3:0000:0000:8a2e:0370:7334]:5000", "[2001:0db8:85a3:0000:0000:8a2e:0370:7334]:5000"),
        ("[::ffff:10.0.0.1]:5000", "[::ffff:10.0.0.1]:5000"),  # not in distribution/reference; no client can write it
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_a_registry_name_is_taken(text: str, name: str) -> None:
    """In lower case; a port is part of it, the well-known ones too."""
    assert registry_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a..b",
        ".example.com",
        "example.com.",
        "-a.com",
        "a-.com",
        "a.-com",
        "a.com-",
        "a_b.com",
        "a__b:5000",
        "example.com:",
        "example.com:http",
        "example.com:-1",
        "example.com:123456",  # distribution/reference leaves the number of digits open
        "example.com:5000:5000",
        "example.com/",
        "example.com/a",
        "https://example.com",
        "user@example.com",
        "user:pass@example.com",
        "example.com\n",
        "example.com ",
        "example.com\0",
        "example.com%00",
        "exämple.com",
        "doc\u212aer.io",  # its lower case is docker.io
        "example。com",
        "::1",
        "fd00::3:5000",
        "[]",
        "[::1",
        "::1]",
        "[::1]5000",
        "[::1]::5000",
        "[::1]:",
        "[fe80::1%eth0]",
        "[fe80::1%25eth0]:5000",
        "[::g]",
        "[example.com]",
        "a" * 64 + ".com",  # nor a label's length; DNS does not
        "a." * 127 + "aa",
    ],
)
def test_a_registry_name_is_refused(text: str) -> None:
    """Nothing of it gets anywhere but into the error, cut to length."""
    with pytest.raises(NameInvalid) as caught:
        registry_name(text)
    assert caught.value.detail == {"registry": text[:160]}


@pytest.mark.parametrize(
    "tag",
    ["latest", "3.20", "V1", "_", "__", "0", "a-", "a.", "a..b", "1.0-rc.1_2", "sha256-" + HEX + ".sig", "a" * 128],
)
def test_a_tag_is_taken(tag: str) -> None:
    """128 characters at most, the first a letter, a digit or an underscore."""
    found = reference(tag)
    assert found == tag
    assert isinstance(found, Tag)


@pytest.mark.parametrize("tag", ["", ".", "..", ".a", "-a", "a/b", "a b", "a+b", "a\n", "é", "٣", "a" * 129, "a%2e"])
def test_a_tag_is_refused_as_unknown(tag: str) -> None:
    """To clients it is a manifest that does not exist: the conformance suite asks `.INVALID_MANIFEST_NAME`."""
    with pytest.raises(TagInvalid) as caught:
        reference(tag)
    assert caught.value.code == "MANIFEST_UNKNOWN"


@pytest.mark.parametrize(
    "text",
    [
        "sha256:",
        "sha256:" + HEX[1:],
        "sha256:" + HEX + "0",
        "sha256:" + HEX.upper(),
        "sha256:" + HEX + "\n",
        " sha256:" + HEX,
        "SHA256:" + HEX,
        "sha512:" + HEX,
        "sha256:" + HEX * 2,
        "sha384:" + HEX + HEX[:32],
        "md5:" + HEX[:32],
        "blake3:" + HEX,
        "sha256+b64:" + HEX,
        "sha256:../../../../../../etc/passwd",
        "sha256:" + "g" * 64,
        "sha256:" + "٣" * 64,
        "tag:with:colons",
        ":" + HEX,
        ":",
    ],
)
def test_a_digest_is_refused(text: str) -> None:
    """Also where distribution/reference takes it: of other algorithms the bytes cannot be checked."""
    with pytest.raises(DigestInvalid) as caught:
        reference(text)
    assert caught.value.detail == {"digest": text[:160]}


def test_known_digests() -> None:
    """Of nothing, by both algorithms (FIPS 180-4)."""
    empty = Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    assert Digest.of(b"") == empty
    long = reference(
        "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
        "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
    )
    assert isinstance(long, Digest)
    assert long.of_same_algorithm(b"") == long


def test_words_stay_what_they_are_when_they_travel() -> None:
    """Through a pickle and a set, and as the text that they are."""
    digest = Digest("sha256:" + HEX)
    words = {digest, Tag("latest"), repository(DOCKER_HUB, "alpine")}
    copied = pickle.loads(pickle.dumps(words))
    assert copied == words
    assert {type(word) for word in copied} == {Digest, Tag, Repository}
    assert "sha256:" + HEX in words
    assert f"{digest}" == "sha256:" + HEX


@pytest.mark.parametrize("parse", [Digest, Tag, reference, registry_name, lambda text: repository("a.b", text)])
@pytest.mark.parametrize(
    "text", ["a" * 65536, "a." * 32768, "a__" * 21845, "-" * 65536, "a" + "-" * 65535, "a/" * 32768, "[" + ":" * 65535]
)
def test_long_nonsense_is_refused_at_once(parse: Callable[[str], object], text: str) -> None:
    """In time that grows with the length alone, and with an error that repeats only its beginning."""
    began = time.process_time()
    with pytest.raises(Invalid) as caught:
        parse(text)
    assert time.process_time() - began < 0.5
    assert all(len(str(value)) <= 160 for value in (caught.value.detail or {}).values())


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx latest"),
        ("nginx:1.27", "docker.io/library/nginx 1.27"),
        ("team/app", "docker.io/team/app latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx latest"),
        ("GHCR.io/team/app:1", "ghcr.io/team/app 1"),
        ("localhost/app", "localhost/app latest"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b c"),
        (f"quay.io/a/b@sha256:{'0' * 64}", f"quay.io/a/b sha256:{'0' * 64}"),
        (f"quay.io/a/b:tag@sha256:{'0' * 64}", f"quay.io/a/b sha256:{'0' * 64}"),
    ],
)
def test_images_are_read_as_docker_reads_them(text: str, full: str) -> None:
    """What is left out is Docker Hub, library/ and latest; a digest says more than the tag before it."""
    assert " ".join(map(str, image(text))) == full


@pytest.mark.parametrize("text", ["", ":", "a:", "A", "a b", "ghcr.io/", "a@b", "a:b:c", "/a", "a/../b"])
def test_what_is_no_image_is_refused(text: str) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(Invalid):
        image(text)
