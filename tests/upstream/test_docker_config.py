"""Credentials from a Docker `config.json`, helpers included."""

import base64
import json
from pathlib import Path

import pytest

from mirrorproxy.upstream import docker_config
from mirrorproxy.upstream.credentials import Credential, Credentials, Unreadable
from mirrorproxy.upstream.docker_config import from_docker_config

SECRET = "correct:horse"
AUTH = base64.b64encode(f"ann:{SECRET}".encode()).decode()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Where the configuration goes."""
    return tmp_path / "config.json"


def helper(folder: Path, name: str, script: str) -> None:
    """Put a credential helper into a folder."""
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the PATH for helpers."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


@pytest.mark.parametrize(
    ("registry", "key"),
    [
        ("ghcr.io", "ghcr.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("ghcr.io", "https://ghcr.io/v2/"),
        ("registry.example.com:5000", "registry.example.com:5000"),
        ("docker.io", "https://index.docker.io/v1/"),
        ("docker.io", "index.docker.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_auths(config: Path, registry: str, key: str) -> None:
    """By the registry's name, in all the spellings that `docker login` left behind."""
    config.write_text(json.dumps({"auths": {"other.example": {"auth": "eDp5"}, key: {"auth": AUTH}}}))
    assert from_docker_config(registry, config)() == Credential("ann", SECRET)


def test_nothing_for_this_registry(config: Path) -> None:
    """Requests go without; a name within another is another."""
    config.write_text(json.dumps({"auths": {"ghcr.io.example": {"auth": AUTH}, "x.ghcr.io": {"auth": AUTH}}}))
    assert from_docker_config("ghcr.io", config)() is None
    config.write_text("{}")
    assert from_docker_config("ghcr.io", config)() is None


def test_an_identity_token(config: Path) -> None:
    """What `docker login` keeps for Azure and the like: an OAuth2 refresh token."""
    config.write_text(json.dumps({"auths": {"r.example": {"auth": "YW5uOg==", "identitytoken": SECRET}}}))
    assert from_docker_config("r.example", config)() == Credential("ann", SECRET, identity=True)


def test_name_and_password_apart(config: Path) -> None:
    """As Kubernetes writes them."""
    config.write_text(json.dumps({"auths": {"r.example": {"username": "ann", "password": SECRET}}}))
    assert from_docker_config("r.example", config)() == Credential("ann", SECRET)


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": {"ghcr.io": {"auth": "%%%"}}}', "[" * 100_000])
def test_a_broken_file_is_told(config: Path, content: str) -> None:
    """Going on without would look like a limit of the registry's."""
    config.write_text(content)
    with pytest.raises(Unreadable, match=r"config\.json"):
        from_docker_config("ghcr.io", config)()


def test_a_missing_file_is_told(config: Path) -> None:
    """It was asked for by name."""
    with pytest.raises(Unreadable, match="No such file"):
        from_docker_config("ghcr.io", config)()


def test_odd_entries_are_none(config: Path) -> None:
    """What is not what it should be is not used."""
    config.write_text(json.dumps({"auths": {"a.example": 1, "b.example": {"auth": 5}}, "credHelpers": []}))
    assert from_docker_config("a.example", config)() is None
    assert from_docker_config("b.example", config)() is None


def test_where_docker_keeps_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$DOCKER_CONFIG`, else the home."""
    config.write_text(json.dumps({"auths": {"ghcr.io": {"auth": AUTH}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(config.parent))
    assert from_docker_config("ghcr.io")() == Credential("ann", SECRET)
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", str(config.parent / "home"))
    assert docker_config.default_path() == config.parent / "home" / ".docker" / "config.json"


@pytest.mark.parametrize("setting", [{"credHelpers": {"ghcr.io": "test"}}, {"credsStore": "test"}])
async def test_a_helper_is_asked(config: Path, helpers: Path, setting: dict[str, object]) -> None:
    """It reads the registry's name, and is run off the event loop."""
    config.write_text(json.dumps({"auths": {"ghcr.io": {}}, **setting}))
    answer = json.dumps({"ServerURL": "ghcr.io", "Username": "ann", "Secret": SECRET})
    helper(helpers, "test", f'read server; [ "$1 $server" = "get ghcr.io" ] && echo \'{answer}\'')
    assert await Credentials(from_docker_config("ghcr.io", config)).get() == Credential("ann", SECRET)


def test_a_helper_for_docker_hub_is_asked_by_its_old_name(config: Path, helpers: Path) -> None:
    """`https://index.docker.io/v1/`, as `docker login` has it."""
    config.write_text(json.dumps({"credsStore": "test"}))
    helper(helpers, "test", 'read server; echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"$server\\"}"')
    expected = Credential("<token>", "https://index.docker.io/v1/", identity=True)
    assert from_docker_config("docker.io", config)() == expected


def test_a_helper_for_this_registry_is_preferred(config: Path, helpers: Path) -> None:
    """To the store, and to what the file itself has."""
    config.write_text(
        json.dumps({"auths": {"ghcr.io": {"auth": "eDp5"}}, "credsStore": "absent", "credHelpers": {"ghcr.io": "test"}})
    )
    helper(helpers, "test", 'echo \'{"Username": "ann", "Secret": "1"}\'')
    assert from_docker_config("ghcr.io", config)() == Credential("ann", "1")


def test_a_helper_that_knows_nothing(config: Path, helpers: Path) -> None:
    """Requests go without."""
    config.write_text(json.dumps({"credsStore": "test"}))
    helper(helpers, "test", "echo credentials not found in native keychain; exit 1")
    assert from_docker_config("ghcr.io", config)() is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"echo {SECRET}; exit 3", "failed with exit status 3"),
        (f"echo {SECRET}", "did not answer with"),
        ("echo []", "did not answer with"),
        ("echo '{}'", "did not answer with"),
        ("exec sleep 60", "gave no answer within"),
    ],
)
def test_a_helper_that_fails(
    config: Path, helpers: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    """Told, without its words."""
    monkeypatch.setattr(docker_config, "_HELPER_TIME", 0.3)
    config.write_text(json.dumps({"credsStore": "test"}))
    helper(helpers, "test", script)
    with pytest.raises(Unreadable, match=words) as caught:
        from_docker_config("ghcr.io", config)()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("name", "words"), [("absent", "cannot be run"), ("../x", "cannot be one"), (5, "cannot be")])
def test_a_helper_that_is_none(config: Path, name: object, words: str) -> None:
    """A name with a slash would run any program."""
    config.write_text(json.dumps({"credsStore": name}))
    with pytest.raises(Unreadable, match=words):
        from_docker_config("ghcr.io", config)()
