"""Secrets come from files and from the environment, and are never told."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorproxy.config import (
    ConfigError,
    CredentialsSettings,
    DockerConfigSettings,
    load,
    to_yaml,
)
from tests.config.support import HOME, Write, problems


class TestCredentials:
    """Secrets come from files and from the environment, and are never told."""

    def test_a_password_comes_from_a_file_a_variable_or_the_configuration(self, write: Write) -> None:
        """One newline at a file's end is the editor's; the rest is the password, spaces included."""
        Path("secret").write_bytes(b" s3cret \r\n")
        Path("secret").chmod(0o600)
        path = write("""
upstreams:
  docker.io: {credentials: {username: u, password_file: secret}}
  ghcr.io: {credentials: {username: u, password_env: GHCR}}
  quay.io: {credentials: {username: u, password: pass word}}
  a.io: {credentials: docker-config}
  b.io: {credentials: {docker_config: ~/config.json}}
""")
        path.chmod(0o600)
        loaded = load(path, HOME | {"GHCR": "token"})
        credentials = [upstream.credentials for upstream in loaded.settings.upstreams.values()]
        passwords = [
            pair.password.get_secret_value()
            for pair in credentials
            if isinstance(pair, CredentialsSettings) and pair.password
        ]
        assert passwords == [" s3cret ", "token", "pass word"]
        assert credentials[3:] == ["docker-config", DockerConfigSettings(docker_config=Path("/home/me/config.json"))]
        assert loaded.warnings == []
        for text in (repr(loaded), str(loaded.settings), to_yaml(loaded.settings), repr(credentials)):
            assert not any(password in text for password in ("s3cret", "token:", "pass word"))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: None, "cannot be read: No such file or directory"),
            (Path.mkdir, "cannot be read: Is a directory"),
            (os.mkfifo, "is not a regular file"),
            (lambda path: path.write_bytes(b"\n"), "is empty"),
            (
                lambda path: path.write_bytes(b"a\nb\n"),
                "has a line break, or another character that cannot be printed, in it",
            ),
            (lambda path: path.write_bytes(b"\xff"), "is not UTF-8 text"),
            (lambda path: path.write_bytes(b"a" * 65537), "is larger than 65536 bytes, too large for a password"),
        ],
    )
    def test_a_file_without_a_password_is_refused(
        self, write: Write, make: Callable[[Path], object], message: str
    ) -> None:
        """At once: a named pipe that nobody writes to does not hold up the start."""
        path = write("upstreams: {docker.io: {credentials: {username: u, password_file: secret}}}")
        make(Path("secret"))
        (problem,) = problems(path)
        assert problem == f"config.yaml:1: upstreams.docker.io.credentials.password_file: {Path.cwd()}/secret {message}"

    @pytest.mark.parametrize(
        ("credentials", "message"),
        [
            ("{username: u}", "has no password; add password_file, or password_env with the name of a variable"),
            ("{username: u, password: p, password_env: E}", "has both password and password_env; keep one"),
            ("{password: p}", "is missing"),
            ("{username: u, password_env: UNSET}", "the environment variable it names is not set, or empty"),
            ("{username: u, password: '**********'}", "is the mask that `config show` prints"),
            ("{username: u, password: ''}", "is empty"),
            ("{username: u, password: [hunter2]}", "must be a single value, not a list"),
            ("{username: u, docker_config: f}", "cannot stand beside docker_config; keep one"),
            ("hunter2", "must be {username: ..., password_file: ...}, {docker_config: FILE} or the word docker-config"),
            ("{username: u, password: *hunter2}", "is not YAML, .*found undefined alias"),
            ("{username: u, password: !hunter2 x}", "a YAML tag .!name. has no meaning here"),
            ('{username: u, password: "hunter2\\n"}', "has a line break"),
            ("{username: u, password_env: hunter-2}", "must be the name of an environment variable"),
            ("[hunter2]", "must be"),
        ],
    )
    def test_what_is_wrong_with_credentials_is_told_without_them(
        self, write: Write, credentials: str, message: str
    ) -> None:
        """Whatever was written in the place of a password stays out of the message."""
        with pytest.raises(ConfigError, match=message) as caught:
            load(write(f"upstreams: {{docker.io: {{credentials: {credentials}}}}}"), HOME)
        assert len(caught.value.problems) == 1
        assert "hunter" not in str(caught.value)

    @pytest.mark.parametrize("key", ["endpoints", "proxy", "token_realms"])
    def test_a_url_with_a_password_is_refused_without_showing_it(self, write: Write, key: str) -> None:
        """URLs get into logs; there are other places for passwords."""
        (problem,) = problems(write(f'upstreams: {{docker.io: {{{key}: "http://me:hunter2@a:1"}}}}'))
        assert "has a name or password in it; " in problem
        assert "hunter2" not in problem

    @pytest.mark.parametrize("credentials", ["docker-config", "{username: u, password_env: P}", "{docker_config: c}"])
    @pytest.mark.parametrize("listen", ["0.0.0.0:5000", "mirror.example.com:5000", "[::]:5000"])
    def test_credentials_for_everybody_need_a_list_of_what_may_be_served(
        self, write: Write, credentials: str, listen: str
    ) -> None:
        """Whoever reaches the port could pull private images. Patterns or loopback addresses alone make it good."""
        text = 'server: {listen: ["unix:/s", "%s"]}\nupstreams: {docker.io: {credentials: %s, repositories: %s}}'
        environ = {"P": "p"}
        (problem,) = problems(write(text % (listen, credentials, "[]")), environ)
        assert problem.startswith(
            f"config.yaml:2: upstreams.docker.io.credentials: whoever reaches {listen} could pull private images"
        )
        for good in (text % (listen, credentials, '["team/*"]'), text % ("127.0.0.1:5000", credentials, "[]")):
            assert load(write(good), HOME | environ).settings.upstreams["docker.io"].credentials is not None

    def test_secrets_that_others_can_read_get_a_warning(self, write: Write) -> None:
        """In their own file and in the configuration itself; it starts all the same."""
        Path("secret").write_text("s")
        Path("secret").chmod(0o644)
        path = write("""\
upstreams:
  docker.io: {credentials: {username: u, password_file: secret}}
  ghcr.io: {credentials: {username: u, password: p}}
""")
        path.chmod(0o644)
        secret = Path.cwd() / "secret"
        assert [str(warning) for warning in load(path, HOME).warnings] == [
            (
                f"config.yaml:2: upstreams.docker.io.credentials.password_file: {secret} can be read by every user of "
                f"this machine; chmod o-r {secret}"
            ),
            (
                "config.yaml:3: upstreams.ghcr.io.credentials.password: stands in a file that every user of this "
                "machine can read; use password_file"
            ),
        ]

    def test_credentials_in_clear_text_get_a_warning(self, write: Write) -> None:
        """Except on this machine."""
        path = write("""\
upstreams:
  a.io: {credentials: docker-config, default: true, endpoints: [https://a.io, "http://b.io", "http://127.0.0.1:1"]}
  c.io: {endpoints: "http://c.io"}
""")
        assert [str(warning) for warning in load(path, HOME).warnings] == [
            "config.yaml:2: upstreams.a.io.endpoints[1]: http://b.io is sent the credentials in clear text; use https"
        ]

    def test_a_secret_file_s_mode_is_what_counts(self, write: Write) -> None:
        """A file for owner and group alone raises no warning: a Kubernetes secret with `defaultMode: 0440`."""
        Path("secret").write_text("s")
        Path("secret").chmod(0o440)
        loaded = load(write("upstreams: {a.io: {credentials: {username: u, password_file: secret}}}"), HOME)
        assert loaded.warnings == []
