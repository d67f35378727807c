"""What the operations are made of: names, counts, what an image consists of, and the shape of the answers."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mirrorproxy.admin import explanation, images, pinning, refreshing, removing, usage
from mirrorproxy.admin.anatomy import Anatomist, Piece, State
from mirrorproxy.admin.census import Census
from mirrorproxy.admin.events import Failed, Refused
from mirrorproxy.admin.images import matcher, moment
from mirrorproxy.admin.references import parse, written
from mirrorproxy.config import Settings
from mirrorproxy.errors import CacheFailed, Invalid, ManifestUnknown, ServerFailed, TagInvalid
from mirrorproxy.manifests import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST
from mirrorproxy.names import Descriptor, Digest, Tag, repository
from tests.admin.conftest import settings_for

DIGEST = Digest.of(b"")
SETTINGS = settings_for(Path("/nowhere"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine:1", "docker.io/library/alpine:1"),
        ("ghcr.io/a/b:c", "ghcr.io/a/b:c"),
        ("GHCR.io/a/b", "ghcr.io/a/b:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("localhost/a:1", "localhost/a:1"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3.20@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
    ],
)
def test_names_are_read_as_docker_reads_them(text: str, name: str) -> None:
    """The registry, `library/` and the tag may be left out."""
    assert written(*parse(text, SETTINGS)) == name


@given(st.text() | st.from_regex(r"[a-z:/@.\[\]-]{1,60}", fullmatch=True))
def test_any_text_is_a_name_or_is_refused(text: str) -> None:
    """Nothing but `Invalid` comes of it; and what was read reads the same when it is written."""
    try:
        found = parse(text, SETTINGS)
    except Invalid:
        return
    assert parse(written(*found), SETTINGS) == found


def test_a_configured_registry_needs_no_dot() -> None:
    """Its name is known."""
    upstreams = {**SETTINGS.upstreams, "corp": SETTINGS.upstreams["ghcr.io"]}
    settings: Settings = SETTINGS.model_copy(update={"upstreams": upstreams})
    assert written(*parse("corp/app", settings)) == "corp/app:latest"
    assert written(*parse("corp/app", SETTINGS)) == "docker.io/corp/app:latest"


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        (None, "a/b:c", True),
        ("b:c", "a/b:c", True),
        ("a**c", "a/b:c", False),
        ("a/*:c", "a/b:c", True),
        ("a/*", "a/b:c", True),
        ("*:c", "a/b:c", False),
        ("**:c", "a/b:c", True),
        ("b:*", "a/b:c", False),
        ("A/B", "a/b:c", False),
        ("[", "a/b:c", False),
    ],
)
def test_patterns(pattern: str | None, name: str, matches: bool) -> None:
    """A part of the name, or with wildcards all of it."""
    assert matcher(pattern)(name) is matches


def piece(number: int) -> Piece:
    """A piece of a size of its own."""
    return Piece(Digest.of(b"%d" % number), 1 << number, 1 << number)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), st.frozensets(st.integers(0, 12))))
def test_a_census_counts_what_sets_would(holders: dict[str, frozenset[int]]) -> None:
    """Own, shared, what nobody holds; also where a holder is counted twice, in parts, or with what is missing."""
    census = Census()
    try:
        for name, numbers in holders.items():
            assert census.add(name, [piece(number) for number in numbers])
            assert not census.add(name, [piece(13)])
            census.extend(name, [piece(number) for number in numbers])
            census.extend(name, [piece(14)._replace(blocks=None)])
        assert census.holders() == sorted(holders)
        for name, numbers in holders.items():
            elsewhere = {each for other, theirs in holders.items() if other != name for each in theirs}
            share = census.share(name)
            assert share.own == sum(1 << number for number in numbers - elsewhere)
            assert share.shared == sum(1 << number for number in numbers & elsewhere)
            assert share.objects == len(numbers)
        held = {each for numbers in holders.values() for each in numbers}
        assert census.strange(map(piece, range(15))) == [piece(each) for each in range(15) if each not in held]
    finally:
        census.close()


class Disk:
    """Content in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.anatomist = Anatomist(self.path)

    def path(self, digest: Digest) -> Path:
        """Where it is."""
        return self._folder / digest.hex

    def put(self, data: bytes, media_type: str = "x") -> Descriptor:
        """Content, and its descriptor."""
        self.path(Digest.of(data)).write_bytes(data)
        return Descriptor(media_type, Digest.of(data), len(data))

    def manifest(self, config: bytes, *layers: Descriptor) -> Descriptor:
        """An image."""
        document = {"schemaVersion": 2, "config": told(self.put(config)), "layers": [told(each) for each in layers]}
        return self.put(json.dumps(document).encode(), OCI_MANIFEST)

    def index(self, *entries: tuple[Descriptor, str]) -> Descriptor:
        """An index of images."""
        manifests = [
            {**told(each), "platform": dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))}
            for each, name in entries
        ]
        return self.put(json.dumps({"schemaVersion": 2, "manifests": manifests}).encode(), OCI_INDEX)


def told(descriptor: Descriptor) -> dict[str, object]:
    """A descriptor as JSON."""
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """An empty one."""
    return Disk(tmp_path)


def test_an_index_is_complete_when_what_was_pulled_of_it_is(disk: Disk) -> None:
    """A platform that nobody pulled, and an attestation, do not count; a layer that is missing does."""
    layer, other = disk.put(os.urandom(9000)), disk.put(os.urandom(5000))
    amd, arm, never, proof = (disk.manifest(b"%d" % n, layer, *([other] * (n == 1))) for n in range(4))
    root = disk.index((amd, "linux/amd64"), (arm, "linux/arm/v7"), (never, "linux/s390x"), (proof, "unknown/unknown"))
    for gone in (never, proof):
        disk.path(gone.digest).unlink()
    anatomy = disk.anatomist.look(root)
    assert [(each.platform, each.state) for each in anatomy.variants] == [
        ("linux/amd64", State.COMPLETE),
        ("linux/arm/v7", State.COMPLETE),
        ("linux/s390x", State.ABSENT),
        ("unknown/unknown", State.ABSENT),
    ]
    assert anatomy.state is State.COMPLETE
    disk.path(other.digest).unlink()
    anatomy = disk.anatomist.look(root)
    assert (anatomy.state, anatomy.variants[1].state) == (State.PARTIAL, State.PARTIAL)
    assert [piece.digest for piece in anatomy.variants[1].missing] == [other.digest]
    assert len({piece.digest for piece in anatomy.pieces()}) == len(anatomy.pieces())


def test_an_index_in_an_index(disk: Disk) -> None:
    """Its images are the image's; one that names itself, or too deep ones, end."""
    image = disk.manifest(b'{"os":"linux","architecture":"amd64"}', disk.put(b"layer"))
    inner = disk.index((image, "linux/amd64"))
    outer = disk.index((inner, "linux/amd64"))
    anatomy = disk.anatomist.look(outer)
    assert [(each.platform, each.state) for each in anatomy.variants] == [("linux/amd64", State.COMPLETE)]
    assert set(anatomy.manifests()) == {outer.digest, inner.digest, image.digest}
    for _ in range(20):
        outer = disk.index((outer, "linux/amd64"))
    assert disk.anatomist.look(outer).state is State.PARTIAL


@pytest.mark.parametrize("harm", ["gone", "flipped", "link", "folder", "garbage"])
def test_a_manifest_that_cannot_be_read_is_as_good_as_missing(disk: Disk, harm: str) -> None:
    """Nothing of it is believed, and nothing is touched."""
    image = disk.manifest(b"{}", disk.put(b"layer"))
    path = disk.path(image.digest)
    body = path.read_bytes()
    path.unlink()
    if harm == "flipped":
        path.write_bytes(body[:-1] + b" ")
    elif harm == "link":
        path.symlink_to("/etc/passwd")
    elif harm == "folder":
        path.mkdir()
    elif harm == "garbage":
        image = disk.put(b"no JSON", DOCKER_LIST)
    (variant,) = disk.anatomist.look(image).variants
    assert (variant.state, variant.blobs) == (State.ABSENT, ())


def test_the_platform_of_a_single_image_is_its_configs(disk: Disk) -> None:
    """None where that does not tell, or lies with what no terminal should see."""
    for config, name in (
        (b'{"os":"linux","architecture":"arm","variant":"v7"}', "linux/arm/v7"),
        (b'{"os":"linux"}', ""),
        (b'{"os":"\\u001b[31m","architecture":"arm"}', ""),
        (b"[" * 100_000, ""),
        (b"no JSON", ""),
    ):
        (variant,) = disk.anatomist.look(disk.manifest(config)).variants
        assert (variant.platform, variant.state) == (name, State.COMPLETE)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TagInvalid("x"), "invalid"),
        (ManifestUnknown("x", detail={"near": ["a:1"]}), "not-found"),
        (ServerFailed("x"), "temporary"),
        (CacheFailed("x"), "temporary"),
        (Refused("x"), "refused"),
    ],
)
def test_an_error_has_a_reason(error: Invalid, reason: str) -> None:
    """Which decides the exit code."""
    failed = Failed.of(error)
    assert (failed.reason, failed.message) == (reason, "x")
    assert failed.near == (["a:1"] if reason == "not-found" else [])


def test_moments_are_what_json_wants() -> None:
    """RFC 3339 in UTC; what is not known, or no moment, is None."""
    assert moment(0.0) is None
    assert moment(None) is None
    assert moment(1e9) == "2001-09-09T01:46:40Z"
    assert moment(1e300) == "9999-12-31T23:59:59Z"


ROWS = (
    images.Image(
        "docker.io/library/a:1",
        "docker.io",
        "library/a",
        "1",
        DIGEST,
        [images.PlatformState("linux/amd64", State.COMPLETE)],
        True,
        1,
        2,
        True,
        [],
        None,
        "2001-09-09T01:46:40Z",
        None,
    ),
    images.Name("docker.io/library/a:1"),
    usage.Usage("total", "", 1, 0, 1, 1),
    refreshing.Refreshed("a", None, DIGEST, False, None, None),
    removing.Removed("a", DIGEST, False, True),
    removing.Content(DIGEST, 1, None),
    removing.Part(DIGEST, 1, None),
    removing.Freed(1, 2, False),
    pinning.Pinned("a", None, False, True, [], []),
    explanation.Why(
        "a", DIGEST, OCI_MANIFEST, True, 1, False, [], [], None, None, None, True, None, [], 0, 0, "hit", "", [], ""
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_every_row_is_documented_and_true_to_its_types(row: images.Image) -> None:
    """docs/storage.md names each kind and each field of it; as JSON the row is what its types say."""
    document = json.loads(json.dumps(row.document()))
    kind = document.pop("kind")
    assert TypeAdapter(type(row)).validate_python(document) == row
    with pytest.raises(ValidationError):
        TypeAdapter(type(row)).validate_python({**document, next(iter(document)): 5.5})
    text = (Path(__file__).parents[2] / "docs" / "storage.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{kind}` |")]
    assert [name for name in document if f"`{name}`" not in line] == []


def test_the_names_of_rows_are_repositories_and_tags() -> None:
    """As every other part of mirrorproxy writes them."""
    assert written(repository("docker.io", "alpine"), Tag("1")) == "docker.io/library/alpine:1"
