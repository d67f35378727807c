"""What the configuration comes to, shown and compared."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorproxy.cli import config_command
from mirrorproxy.config import (
    Settings,
    changes,
    dump,
    load,
    to_yaml,
)
from tests.config.support import HOME, Write, problems


class TestShow:
    """`dump` and `to_yaml`."""

    def test_what_is_shown_loads_again(self, write: Write) -> None:
        """To the same settings, also where a password's file is named."""
        Path("secret").write_text("hunter2")
        Path("secret").chmod(0o600)
        settings = load(
            write("""
server: {listen: ["unix:/s", "[::1]:1"], workers: auto, grace: 1h30m, tls: {cert: a, key: b}}
cache: {max_size: 12.5%, min_free: 1500}
fills: {abandoned: {linger: 90s}}
partials: {keep: 36h}
upstreams:
  docker.io: {credentials: {username: "null", password_file: secret}, repositories: ["**"], token_realms: a.io}
  ghcr.io: {credentials: docker-config, proxy: http://p:1, max_connections: 2, min_rate: 1500B/s, prefetch: off}
  quay.io: {credentials: {username: 'no', password_env: P}}
"""),
            HOME | {"P": "hunter2"},
        ).settings
        shown = to_yaml(settings)
        assert "hunter2" not in shown
        assert load(write(shown), HOME | {"P": "hunter2"}).settings == settings

    def test_a_password_is_masked(self, write: Write) -> None:
        """And the mask is not taken for a password."""
        settings = load(write("upstreams: {a.io: {credentials: {username: u, password: hunter2}}}"), HOME).settings
        assert dump(settings)["upstreams"]["a.io"]["credentials"] == {"username": "u", "password": "**********"}
        assert "hunter2" not in to_yaml(settings)
        assert problems(write(to_yaml(settings)))[0].endswith(
            "is the mask that `config show` prints instead of a password; put the password here"
        )


class TestChanges:
    """What a reload takes over."""

    def _load(self, text: str, environ: dict[str, str] | None = None) -> Settings:
        return load(None, HOME | {"MIRRORPROXY__UPSTREAMS": text} | (environ or {})).settings

    def test_nothing_changed(self) -> None:
        """Is nothing to do."""
        assert changes(load(None, HOME).settings, load(None, HOME).settings).reloaded == []

    def test_sockets_processes_and_the_store_wait_for_a_restart(self) -> None:
        """All else is taken over, key by key; upstreams by their names."""
        old = self._load('{"docker.io": {}, "ghcr.io": {}}')
        new = self._load(
            '{"docker.io": {"tag_ttl": "1h", "credentials": {"username": "u", "password": "p"}, "max_connections": 3},'
            ' "quay.io": {}}',
            {
                "MIRRORPROXY__SERVER__LISTEN": "127.0.0.1:1",
                "MIRRORPROXY__SERVER__WORKERS": "2",
                "MIRRORPROXY__SERVER__GRACE": "1s",
                "MIRRORPROXY__SERVER__TLS__CERT": "c",
                "MIRRORPROXY__SERVER__TLS__KEY": "k",
                "MIRRORPROXY__CACHE__DIRECTORY": "/c",
                "MIRRORPROXY__CACHE__MAX_SIZE": "80%",
                "MIRRORPROXY__FILLS__ABANDONED": "stop",
                "MIRRORPROXY__PARTIALS__KEEP": "1d",
                "MIRRORPROXY__LOG__LEVEL": "debug",
            },
        )
        found = changes(old, new)
        assert found.needs_restart == ["server.listen", "server.tls", "server.workers", "cache.directory"]
        assert found.reloaded == [
            "server.grace",
            "cache.max_size",
            "upstreams.docker.io.credentials",
            "upstreams.docker.io.tag_ttl",
            "upstreams.docker.io.max_connections",
            "upstreams.docker.io.connections",
            "upstreams.docker.io.max_fills",
            "upstreams.ghcr.io",
            "upstreams.quay.io",
            "fills.abandoned",
            "partials.keep",
            "log.level",
        ]

    def test_other_certificate_files_and_other_passwords_are_taken_over(self) -> None:
        """The password's own change counts, wherever it is kept."""
        text = '{"docker.io": {"credentials": {"username": "u", "password_env": "P"}}}'
        tls = {"MIRRORPROXY__SERVER__TLS__CERT": "c", "MIRRORPROXY__SERVER__TLS__KEY": "k"}
        old = self._load(text, tls | {"P": "one"})
        found = changes(old, self._load(text, tls | {"P": "two", "MIRRORPROXY__SERVER__TLS__CERT": "d"}))
        assert found.needs_restart == []
        assert found.reloaded == ["server.tls.cert", "upstreams.docker.io.credentials.password"]


class TestCommand:
    """`mirrorproxy config check|show`."""

    def _run(self, *args: str) -> int:
        parser = argparse.ArgumentParser()
        config_command.add(parser.add_subparsers())
        parsed = parser.parse_args(["config", *args])
        code: int = parsed.run(parsed)
        return code

    def test_check_tells_what_a_good_file_comes_to(self, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        """On standard output, with warnings on the other."""
        path = write(
            "upstreams: {ghcr.io: {}, quay.io: {default: true, credentials: docker-config, endpoints: 'http://q.io'}}"
        )
        assert self._run("check", str(path), "--cache-dir", "/c", "--listen", "127.0.0.1:1", "--listen", "unix:/s") == 0
        out, err = capsys.readouterr()
        assert out == (
            "ok: config.yaml\n"
            "  listens on 127.0.0.1:1, unix:/s (HTTP)\n"
            "  keeps at most 50GiB in /c, and 5GiB free\n"
            "  serves ghcr.io, quay.io (default)\n"
        )
        assert err == (
            "warning: config.yaml:1: upstreams.quay.io.endpoints[0]: http://q.io is sent the credentials in clear "
            "text; use https\n"
        )

    @pytest.mark.parametrize("args", [("check",), ("show", "--config")])
    def test_problems_go_to_standard_error_and_exit_with_78(
        self, write: Write, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
    ) -> None:
        """EX_CONFIG, for service managers; one problem a line."""
        path = write("lgo: {}\ncache: {max_size: x}\n")
        assert self._run(*args, str(path)) == 78 == os.EX_CONFIG
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 2
        assert err.startswith("config.yaml:1: lgo: unknown key; did you mean log?\n")

    def test_show_prints_settings_in_effect(self, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        """With flags on top, as YAML that loads again."""
        path = write("cache: {max_size: 1GiB}")
        assert self._run("show", "--config", str(path), "--upstream", "docker.io=http://127.0.0.1:1") == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert load(write(out)).settings.upstreams["docker.io"].endpoints == ("http://127.0.0.1:1",)

    def test_nothing_heavy_is_imported_for_it(self) -> None:
        """Checking a configuration does not wait for the web server's libraries."""
        code = "import sys, mirrorproxy.config; print({'aiohttp', 'asyncio', 'diskcache'} & set(sys.modules))"
        assert (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
        )


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    """For every command alike, so that those beside a service see what it sees; the flag wins."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"cache: {{directory: /{name}}}\n")
    environ = HOME | {"MIRRORPROXY_CONFIG": str(tmp_path / "a.yaml"), "PATH": os.environ["PATH"]}
    show = [sys.executable, "-m", "mirrorproxy", "config", "show"]
    for more, directory in ((), "/a"), (("--config", str(tmp_path / "b.yaml")), "/b"):
        done = subprocess.run([*show, *more], env=environ, capture_output=True, text=True)
        assert f"directory: {directory}\n" in done.stdout
    done = subprocess.run([*show[:3], "config", "check"], env=environ, capture_output=True, text=True)
    assert done.stdout.startswith(f"ok: {tmp_path}/a.yaml\n")
    done = subprocess.run([*show[:3], "ls"], env=environ, capture_output=True, text=True)
    assert "there is no cache in /a" in done.stderr
