"""Manifests as registries and builders really write them, and what must never pass for one."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorproxy.errors import BadAnswer
from mirrorproxy.manifests import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    MEDIA_TYPES,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    Contents,
    bare_media_type,
    parse,
)
from mirrorproxy.names import Descriptor, Digest

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
Json = dict[str, Any]


def descriptor(text: str, media_type: str = OCI_MANIFEST, size: int = 7, **more: object) -> Json:
    """A descriptor of the content `text`, as JSON has it."""
    return {"mediaType": media_type, "digest": str(Digest.of(text.encode())), "size": size, **more}


def parsed(json_descriptor: Json) -> Descriptor:
    """The same as our type."""
    return Descriptor(json_descriptor["mediaType"], Digest(json_descriptor["digest"]), json_descriptor["size"])


def read(document: object, content_type: str) -> Contents:
    """What is read from `document`."""
    return parse(json.dumps(document).encode(), content_type)


IMAGE: Json = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": descriptor("config", OCI_CONFIG, 1469),
    "layers": [descriptor("base", f"{OCI_LAYER}+gzip", 3_623_807), descriptor("top", f"{OCI_LAYER}+zstd", 144)],
    "annotations": {"org.opencontainers.image.created": "2025-01-01T00:00:00Z"},
}
INDEX: Json = {
    "schemaVersion": 2,
    "mediaType": OCI_INDEX,
    "manifests": [
        descriptor("amd64", platform={"architecture": "amd64", "os": "linux"}),
        descriptor("arm", platform={"architecture": "arm", "os": "linux", "variant": "v7"}),
        descriptor(
            "attestation",
            size=566,
            annotations={
                "vnd.docker.reference.digest": str(Digest.of(b"amd64")),
                "vnd.docker.reference.type": "attestation-manifest",
            },
            platform={"architecture": "unknown", "os": "unknown"},
        ),
    ],
}
SCHEMA2: Json = {
    "schemaVersion": 2,
    "mediaType": DOCKER_MANIFEST,
    "config": descriptor("config", "application/vnd.docker.container.image.v1+json", 1500),
    "layers": [
        descriptor("empty", "application/vnd.docker.image.rootfs.diff.tar.gzip", 32),
        descriptor("empty", "application/vnd.docker.image.rootfs.diff.tar.gzip", 32),
        descriptor(
            "windows",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            1_718_332_879,
            urls=["https://example.com/layer"],
        ),
    ],
}
LIST: Json = {
    "schemaVersion": 2,
    "mediaType": DOCKER_LIST,
    "manifests": [
        descriptor("amd64", DOCKER_MANIFEST, 528, platform={"architecture": "amd64", "os": "linux"}),
        descriptor("s390x", DOCKER_MANIFEST, 528, platform={"architecture": "s390x", "os": "linux"}),
    ],
}


def test_an_image() -> None:
    """Config first, then the layers in their order, gzip and zstd alike."""
    contents = read(IMAGE, OCI_MANIFEST)
    assert contents.media_type == OCI_MANIFEST
    assert contents.config == parsed(IMAGE["config"])
    assert contents.layers == tuple(parsed(layer) for layer in IMAGE["layers"])
    assert contents.children == (parsed(IMAGE["config"]), *contents.layers)
    assert (contents.manifests, contents.subject, contents.artifact_type) == ((), None, None)


def test_an_index_with_an_attestation() -> None:
    """As BuildKit pushes it: the attestation is a child like the images, since clients ask for it."""
    contents = read(INDEX, OCI_INDEX)
    assert contents.manifests == contents.children == tuple(parsed(child) for child in INDEX["manifests"])
    assert (contents.config, contents.layers) == (None, ())


def test_an_attestation() -> None:
    """An image manifest whose layers are in-toto statements."""
    layer = descriptor("sbom", "application/vnd.in-toto+json", 18_000, annotations={"in-toto.io/predicate-type": "x"})
    contents = read({**IMAGE, "layers": [layer]}, OCI_MANIFEST)
    assert contents.children == (parsed(IMAGE["config"]), parsed(layer))


def test_schema_2() -> None:
    """Layers that occur twice are kept twice; foreign ones are named like others."""
    contents = read(SCHEMA2, DOCKER_MANIFEST)
    assert contents.media_type == DOCKER_MANIFEST
    assert contents.layers == tuple(parsed(layer) for layer in SCHEMA2["layers"])


def test_a_manifest_list() -> None:
    """Docker's form of an index."""
    contents = read(LIST, DOCKER_LIST)
    assert contents.media_type == DOCKER_LIST
    assert contents.children == tuple(parsed(child) for child in LIST["manifests"])


def test_an_artifact_with_a_subject() -> None:
    """Image specification 1.1: a signature of an image. What it is about is no part of it."""
    empty = descriptor("{}", "application/vnd.oci.empty.v1+json", 2, data="e30=")
    subject = descriptor("amd64", size=610)
    signature = {**IMAGE, "config": empty, "layers": [empty], "subject": subject, "artifactType": "application/x.sig"}
    contents = read(signature, OCI_MANIFEST)
    assert contents.subject == parsed(subject)
    assert contents.artifact_type == "application/x.sig"
    assert contents.children == (parsed(empty), parsed(empty))


def test_an_artifact_manifest_of_the_release_candidate() -> None:
    """It has `blobs`, and neither config nor layers nor schemaVersion."""
    blob, subject = descriptor("sbom", "application/spdx+json", 90), descriptor("amd64")
    document = {"mediaType": OCI_ARTIFACT, "artifactType": "x/y", "blobs": [blob], "subject": subject}
    contents = read(document, OCI_ARTIFACT)
    assert contents.children == contents.layers == (parsed(blob),)
    assert (contents.subject, contents.artifact_type) == (parsed(subject), "x/y")


def test_an_index_as_an_artifact() -> None:
    """An index may have a subject and a type as well, and name other indexes."""
    nested = descriptor("nested", OCI_INDEX, 900)
    contents = read({**INDEX, "manifests": [nested], "subject": descriptor("s"), "artifactType": "x/y"}, OCI_INDEX)
    assert contents.children == (parsed(nested),)
    assert contents.subject == parsed(descriptor("s"))
    assert contents.artifact_type == "x/y"


def test_an_empty_index() -> None:
    """Has no children, and is an index all the same."""
    assert read({"schemaVersion": 2, "manifests": []}, OCI_INDEX) == Contents(OCI_INDEX)


@pytest.mark.parametrize(
    ("document", "media_type"),
    [(IMAGE, OCI_MANIFEST), (INDEX, OCI_INDEX), (SCHEMA2, DOCKER_MANIFEST), (LIST, DOCKER_LIST)],
)
@pytest.mark.parametrize(
    "sent", ["{}", "{}; charset=utf-8", "{};charset=UTF-8;q=1", " {} ", "application/json", "text/plain; charset=x", ""]
)
def test_the_media_type_is_found(document: Json, media_type: str, sent: str) -> None:
    """In the Content-Type, whatever is added to it, else in the body."""
    assert read(document, sent.format(media_type)).media_type == media_type
    assert read(document, sent.format(media_type.upper())).media_type == media_type


@pytest.mark.parametrize(("document", "media_type"), [(IMAGE, OCI_MANIFEST), (INDEX, OCI_INDEX)])
@pytest.mark.parametrize("sent", ["", "application/json", "application/octet-stream"])
def test_the_media_type_is_guessed_where_nobody_says_it(document: Json, media_type: str, sent: str) -> None:
    """`mediaType` is optional in OCI documents, and some registries send any Content-Type."""
    silent = {key: value for key, value in document.items() if key != "mediaType"}
    assert read(silent, sent).media_type == media_type
    assert read(silent, media_type) == read(document, media_type)


def test_the_content_type_wins_over_the_body() -> None:
    """Clients are told what upstream told us, and decide for themselves (GHSA-77vh-xpmg-72qh)."""
    assert read({**IMAGE, "mediaType": OCI_INDEX}, OCI_MANIFEST).media_type == OCI_MANIFEST
    both = read({**IMAGE, "manifests": INDEX["manifests"]}, OCI_INDEX)
    assert both.children == (both.config, *both.layers, *both.manifests)
    assert len(both.children) == 6


def test_of_equal_keys_the_last_counts() -> None:
    """As for the clients, which are written in Go."""
    layers, other = json.dumps(IMAGE["layers"]), json.dumps([descriptor("other", OCI_LAYER)])
    body = f'{{"schemaVersion": 2, "layers": {layers}, "layers": {other}}}'.encode()
    assert parse(body, OCI_MANIFEST).layers == (parsed(descriptor("other", OCI_LAYER)),)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": None},
        {"digest": 5},
        {"digest": ""},
        {"digest": "md5:d41d8cd98f00b204e9800998ecf8427e"},
        {"digest": "sha384:" + "0" * 96},
        {"digest": "sha256:" + "A" * 64},
        {"digest": "sha256:../../../etc/passwd"},
        {"size": None},
        {"size": -1},
        {"size": 1.5},
        {"size": "7"},
        {"size": True},
        {"size": 2**63},  # an int64, by the specification
        {"size": 10**400},
    ],
)
def test_a_descriptor_that_names_nothing_is_left_out(change: Json) -> None:
    """The others stay: an algorithm of tomorrow in one layer is no reason to refuse the image."""
    good = descriptor("good", OCI_LAYER)
    broken = {**descriptor("bad", OCI_LAYER), **change}
    contents = read({**IMAGE, "config": broken, "layers": [broken, good, broken], "subject": broken}, OCI_MANIFEST)
    assert contents.children == (parsed(good),)
    assert contents.subject is None


@pytest.mark.parametrize("value", [None, 5, "x", [], [[]], [None], [5], ["x"], {}, {"0": {}}, [{}], True])
def test_fields_of_the_wrong_shape_name_nothing(value: object) -> None:
    """What is not a list of descriptors is none."""
    fields = ("config", "layers", "blobs", "manifests", "subject", "annotations")
    assert read({"schemaVersion": 2} | dict.fromkeys(fields, value), OCI_MANIFEST) == Contents(OCI_MANIFEST)


def test_descriptors_keep_what_is_needed() -> None:
    """The largest size, none at all, the longer digest, and a media type only where it is text."""
    long = {"mediaType": 5, "digest": "sha512:" + "0" * 128, "size": 2**63 - 1}
    contents = read({**IMAGE, "layers": [long, descriptor("", OCI_LAYER, 0)]}, OCI_MANIFEST)
    assert contents.layers == (
        Descriptor("", Digest("sha512:" + "0" * 128), 2**63 - 1),
        Descriptor(OCI_LAYER, Digest.of(b""), 0),
    )
    assert read({**IMAGE, "artifactType": 5}, OCI_MANIFEST).artifact_type is None


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "text/html"),
        (b"<html>behind a manifest's type</html>", OCI_MANIFEST),
        (b"", OCI_MANIFEST),
        (b" ", OCI_MANIFEST),
        (json.dumps(IMAGE).encode()[:-1], OCI_MANIFEST),
        (json.dumps(IMAGE).encode() + b"}", OCI_MANIFEST),
        (b"\x1f\x8b\x08\x00gzip", OCI_MANIFEST),
        (b'{"config": "\xff\xfe"}', OCI_MANIFEST),
        (b"\xff\xfe\x00", OCI_MANIFEST),
        (b"null", OCI_MANIFEST),
        (b"5", OCI_MANIFEST),
        (b'"manifest"', OCI_MANIFEST),
        (b"[]", OCI_INDEX),
        (b"{}", "application/json"),
        (b"{}", ""),
        (b'{"schemaVersion": 2}', "application/json"),
        (b'{"schemaVersion": 2, "mediaType": ""}', "application/json"),
        (b'{"schemaVersion": 3, "manifests": []}', "application/json"),
        (b'{"errors": [{"code": "UNAUTHORIZED"}]}', "application/json"),
        (b'{"mediaType": "application/vnd.cncf.helm.config.v1+json"}', "application/json"),
        (b'{"mediaType": 5, "manifests": []}', "application/json"),
        (b"[" * 100_000, OCI_MANIFEST),
        (b'{"a":' * 100_000, OCI_MANIFEST),
        (b'{"layers":' + b"[" * 50_000 + b"]" * 50_000 + b"}", OCI_MANIFEST),
        (b'{"size": ' + b"9" * 100_000 + b"}", OCI_MANIFEST),
    ],
)
def test_what_is_no_manifest_is_refused(body: bytes, content_type: str) -> None:
    """Portals, errors, half of a manifest, bombs: one error, and nothing of the body in it."""
    with pytest.raises(BadAnswer) as caught:
        parse(body, content_type)
    assert len(str(caught.value)) < 250
    assert "log in" not in str(caught.value)


@pytest.mark.parametrize("media_type", [DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED])
@pytest.mark.parametrize("charset", ["", "; charset=utf-8"])
def test_schema_1_is_refused_by_name(media_type: str, charset: str) -> None:
    """Its digest is not over the bytes that are sent, so it cannot be kept; the message says what came."""
    body = {"schemaVersion": 1, "name": "library/old", "tag": "1", "fsLayers": [{"blobSum": "sha256:" + "0" * 64}]}
    with pytest.raises(BadAnswer, match=media_type.replace("+", r"\+")):
        read(body, media_type + charset)


@pytest.mark.parametrize("content_type", ["text/" + "x" * 8000, "", "text/\x1b[31mred"])
@pytest.mark.parametrize("body", [b"no JSON", b"{}", b'{"mediaType": "' + b"y" * 8000 + b'\\u0000\\n"}'])
def test_messages_stay_short_and_printable(body: bytes, content_type: str) -> None:
    """Whatever upstream wrote: it goes into the log and to clients."""
    with pytest.raises(BadAnswer) as caught:
        parse(body, content_type)
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("field", ["layers", "manifests", "blobs"])
def test_the_number_of_children_is_bounded(field: str) -> None:
    """10,000 are read, one more is not: the index has a row for each."""
    child = descriptor("child", OCI_LAYER)
    assert len(read({"schemaVersion": 2, field: [child] * 10_000}, OCI_MANIFEST).children) == 10_000
    with pytest.raises(BadAnswer, match="10001"):
        read({"schemaVersion": 2, field: [child] * 10_001}, OCI_MANIFEST)


def test_everything_that_can_be_kept_is_asked_for() -> None:
    """Our own Accept names each media type once, without parameters, and OCI's before Docker's."""
    asked = ACCEPT.split(", ")
    assert sorted(asked) == sorted(MEDIA_TYPES)
    assert asked.index(OCI_INDEX) < asked.index(DOCKER_LIST)
    assert asked.index(OCI_MANIFEST) < asked.index(DOCKER_MANIFEST)
    assert not {DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED} & MEDIA_TYPES


def test_a_bare_media_type() -> None:
    """Lower case, no parameters, no spaces; nothing of nothing."""
    assert bare_media_type(" Text/HTML ; charset=utf-8; q=1") == "text/html"
    assert bare_media_type("") == ""
    assert bare_media_type(";charset=utf-8") == ""


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["config", "layers", "manifests", "blobs", "subject", "mediaType", "digest", "size", "schemaVersion"]
            ),
            inner | st.sampled_from([OCI_INDEX, "sha256:" + "0" * 64, 2, 2**70]),
            max_size=6,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(anything, st.sampled_from(["", "application/json", OCI_INDEX, OCI_MANIFEST]))
def test_any_json_is_read_or_refused(document: object, content_type: str) -> None:
    """Never another error, and whatever is read is well-formed."""
    try:
        contents = read(document, content_type)
    except BadAnswer:
        return
    assert contents.media_type in MEDIA_TYPES
    for child in contents.children:
        assert Digest(child.digest) == child.digest
        assert 0 <= child.size < 2**63


@settings(deadline=None)
@given(st.binary(max_size=40), st.sampled_from([OCI_MANIFEST, "text/html"]))
def test_any_bytes_are_read_or_refused(body: bytes, content_type: str) -> None:
    """Never another error."""
    try:
        contents = parse(body, content_type)
    except BadAnswer:
        return
    assert contents.media_type == content_type


def test_media_types_are_kept_once() -> None:
    """However many descriptors have them: each is a new string as JSON is read."""
    first, second = (read(IMAGE, OCI_MANIFEST).layers[0].media_type for _ in range(2))
    assert first is second
