"""The text of a hosts.toml: right TOML, right words, and known again."""

import tomllib
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorproxy.errors import NameInvalid
from mirrorproxy.setup import DEFAULT, Mirror, folder_of, hosts_toml, is_ours, mirror_url
from mirrorproxy.setup.hosts import is_edited

NEAR = Mirror("http://127.0.0.1:5000")
FAR = Mirror("https://mirror.example.com:5000", PurePosixPath("/etc/mirror/ca.crt"))

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
registries = st.builds(lambda host, port: f"{host}:{port}" if port else host, hosts, st.integers(0, 65535))


def test_for_all_registries_each_falls_back_to_itself() -> None:
    """`_default` names no server: containerd then takes the registry that the image names."""
    assert tomllib.loads(hosts_toml(DEFAULT, NEAR)) == {
        "host": {"http://127.0.0.1:5000": {"capabilities": ["pull", "resolve"], "dial_timeout": "200ms"}}
    }


@pytest.mark.parametrize(
    ("registry", "server"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("index.docker.io", "https://registry-1.docker.io"),
        ("GHCR.io", "https://ghcr.io"),
        ("r.example.com:8443", "https://r.example.com:8443"),
    ],
)
def test_for_one_registry(registry: str, server: str) -> None:
    """It falls back to where that registry answers; a mirror on another machine may take longer to be dialled."""
    table = {"capabilities": ["pull", "resolve"], "ca": "/etc/mirror/ca.crt", "dial_timeout": "2s"}
    assert tomllib.loads(hosts_toml(registry, FAR)) == {
        "server": server,
        "host": {"https://mirror.example.com:5000": table},
    }


@pytest.mark.parametrize("registry", [DEFAULT, "docker.io"])
def test_without_fallback(registry: str) -> None:
    """The mirror is the server too, beside its own table: containerd before 1.7.32 refuses a file without one."""
    text = hosts_toml(registry, Mirror(FAR.url, FAR.ca, fallback=False))
    settings = tomllib.loads(text)
    assert settings["server"] == FAR.url
    assert settings["ca"] == "/etc/mirror/ca.crt"
    assert list(settings["host"]) == [FAR.url]


@given(registries, st.sampled_from([NEAR, FAR]), st.booleans())
def test_it_is_toml_and_known_again(registry: str, mirror: Mirror, fallback: bool) -> None:
    """Whatever the words; and with any one character more or less it is an edited one."""
    text = hosts_toml(registry, Mirror(mirror.url, mirror.ca, fallback=fallback))
    assert tomllib.loads(text)["host"].keys() == {mirror.url}
    assert is_ours(text)
    assert not is_edited(text)
    for other in (text + "\n", text[:-1]):
        assert is_edited(other)
        assert not is_ours(other)


@given(st.text())
def test_nothing_else_is_ours(text: str) -> None:
    """Not by chance, and not for a broken signature."""
    assert not is_ours(text)
    assert not is_edited(text)


@given(registries)
def test_a_folder_is_one_name(registry: str) -> None:
    """No two registries share one, but those that are one registry; and none leads out of the directory."""
    folder = folder_of(registry)
    assert "/" not in folder
    assert ":" not in folder
    assert not folder.startswith(".")
    assert folder == (f"{registry.replace(':', '_')}_" if ":" in registry else registry)


@pytest.mark.parametrize("registry", ["../etc", "a/b", "", "a b", ".", "-a", "_default2"])
def test_no_name_no_folder(registry: str) -> None:
    """What the grammar does not know never becomes a path."""
    with pytest.raises(NameInvalid):
        folder_of(registry)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://mirror.example.com/", "https://mirror.example.com"),
        ("http://[fd00::1]:5000", "http://[fd00::1]:5000"),
    ],
)
def test_mirror_urls(text: str, url: str) -> None:
    """Scheme, host, port."""
    assert mirror_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:5000",
        "ftp://a",
        "http://",
        "http://a:0",
        "http://a:70000",
        "http://a/v2",
        "http://a?b",
        "http://u:p@a",
        "http://$(NODE_IP):5000",
        'http://a"b',
        "http://a b",
        "http://[::1",
    ],
)
def test_no_mirror_urls(text: str) -> None:
    """A file with one of them would be passed over as a whole, with a line in its log alone."""
    with pytest.raises(ValueError, match=r".+"):
        mirror_url(text)


@pytest.mark.parametrize("mirror", [("http://a", "/ca.crt"), ("https://a", "ca.crt")])
def test_a_certificate_needs_https_and_a_whole_path(mirror: tuple[str, str]) -> None:
    """With http, containerd would try https first."""
    with pytest.raises(ValueError, match=r"certificate"):
        Mirror(mirror[0], PurePosixPath(mirror[1]))
