"""What comes on top of the file: environment, then flags."""

from pathlib import Path

import pytest

from mirrorproxy.config import (
    Overrides,
    load,
)
from mirrorproxy.config.registries import WELL_KNOWN
from mirrorproxy.config.sources import VARIABLES
from mirrorproxy.units import Share, Size
from tests.config.support import HOME, Write, problems


class TestEnvironment:
    """MIRRORPROXY__ variables."""

    def test_variables_win_over_the_file(self, write: Write) -> None:
        """And keep what they do not name."""
        settings = load(
            write("cache: {max_size: 1GiB, min_free: 2GiB}\nlog: {access: true}"),
            HOME | {"MIRRORPROXY__CACHE__MAX_SIZE": "80%", "MIRRORPROXY__LOG__ACCESS": "false"},
        ).settings
        assert (settings.cache.max_size, settings.cache.min_free) == (Share(80), Size(2**31))
        assert settings.log.access is False

    def test_there_is_one_for_every_setting(self) -> None:
        """All of `upstreams` is one, since no shell exports a name with dots."""
        assert set(VARIABLES) == {
            f"MIRRORPROXY__{name}"
            for name in (
                *("SERVER__LISTEN", "SERVER__TLS__CERT", "SERVER__TLS__KEY", "SERVER__WORKERS", "SERVER__GRACE"),
                "SERVER__METRICS_LISTEN",
                *("SERVER__WRITE_TIMEOUT", "CACHE__DIRECTORY", "CACHE__MAX_SIZE", "CACHE__MIN_FREE", "CACHE__VERIFY"),
                *("CACHE__HIGH_WATERMARK", "CACHE__LOW_WATERMARK", "RETENTION", "PINS"),
                *("UPSTREAMS", "FILLS__BUDGET", "FILLS__MAX_ACTIVE", "FILLS__MAX_WAITING", "FILLS__MAX_READERS"),
                *("FILLS__ABANDONED", "PARTIALS__KEEP", "PARTIALS__MAX_COUNT"),
                *("SCRUB__EVERY", "SCRUB__RATE"),
                *("LOG__LEVEL", "LOG__FORMAT", "LOG__ACCESS"),
            )
        }

    @pytest.mark.parametrize("text", ["[::1]:5000, unix:/s", '["[::1]:5000", "unix:/s"]', "[::1]:5000,unix:/s"])
    def test_a_list_is_written_with_commas_or_in_json(self, text: str) -> None:
        """An IPv6 address begins like JSON, and is none."""
        listen = load(None, HOME | {"MIRRORPROXY__SERVER__LISTEN": text}).settings.server.listen
        assert [str(address) for address in listen] == ["[::1]:5000", "unix:/s"]

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("finish", None),
            ("stop", 0.0),
            *((text, 60.0) for text in ("linger: 60s", "linger:60s", "linger 1m", "{linger: 60s}", "{ linger: 60s }")),
        ],
    )
    def test_what_becomes_of_abandoned_downloads_is_one_value(
        self, write: Write, text: str, seconds: float | None
    ) -> None:
        """In the file a word or a mapping, in a variable its text, with and without braces."""
        path = write("fills: {abandoned: {linger: 5s}}")
        assert load(path, HOME).settings.fills.abandoned_after == 5.0
        environ = HOME | {"MIRRORPROXY__FILLS__ABANDONED": text}
        assert load(path, environ).settings.fills.abandoned_after == seconds

    def test_upstreams_are_json_and_replace_those_of_the_file(self, write: Write) -> None:
        """Numbers, booleans and null mean what they mean in the file."""
        upstreams = load(
            write("upstreams: {quay.io: {}}"),
            {
                **HOME,
                "MIRRORPROXY__UPSTREAMS": '{"ghcr.io": {"tag_ttl": "1h", "max_connections": 5, "default": true,'
                '"proxy": null},\n\t"registry-1.docker.io": {"negative_ttl": 0}}',
            },
        ).settings.upstreams
        assert list(upstreams) == ["ghcr.io", "docker.io"]
        assert (upstreams["ghcr.io"].tag_ttl, upstreams["ghcr.io"].max_connections) == (3600, 5)
        assert upstreams["ghcr.io"].default
        assert upstreams["docker.io"].negative_ttl == 0

    def test_an_empty_variable_counts_as_not_set(self) -> None:
        """Compose files write `${VARIABLE:-}`."""
        assert load(None, HOME | {"MIRRORPROXY__CACHE__MAX_SIZE": ""}).settings == load(None, HOME).settings

    def test_problems_name_the_variable(self, write: Write) -> None:
        """Unknown variables are refused with a suggestion; those of the file come first."""
        environ = {
            "MIRRORPROXY__CACHE__MAX_SIZ": "1",
            "MIRRORPROXY__UPSTREAMS__GHCR_IO__TAG_TTL": "1m",
            "MIRRORPROXY__FILLS__BUDGET": "long",
            "MIRRORPROXY__SERVER__TLS__CERT": "c.pem",
            "MIRRORPROXY__LOG__FORMAT": "a\nb",
            "MIRRORPROXY__UPSTREAMS": '{"docker.io": {"tag_tll": "1m"}, "docker.io": {}, "a\\nb": {}}',
        }
        assert problems(write("log: {level: loud}\nupstreams: {docker.io: {tag_tll: 5}}"), environ) == [
            "config.yaml:1: log.level: 'loud' is not known here; write debug, info, warning or error",
            "MIRRORPROXY__CACHE__MAX_SIZ: unknown variable; did you mean MIRRORPROXY__CACHE__MAX_SIZE?",
            (
                "MIRRORPROXY__LOG__FORMAT: log.format: has a line break, or another character that cannot be printed, "
                "in it"
            ),
            "MIRRORPROXY__UPSTREAMS: the key 'docker.io' is given twice; keep one",
            "MIRRORPROXY__UPSTREAMS: a key must be a plain word",
            (
                "MIRRORPROXY__UPSTREAMS__GHCR_IO__TAG_TTL: unknown variable; upstreams are set as one, in JSON, by "
                "MIRRORPROXY__UPSTREAMS"
            ),
            "MIRRORPROXY__SERVER__TLS__CERT: server.tls.key: is missing",
            "MIRRORPROXY__UPSTREAMS: upstreams.docker.io.tag_tll: unknown key; did you mean tag_ttl?",
            "MIRRORPROXY__FILLS__BUDGET: fills.budget: 'long' is not a duration; write 500ms, 30s, 10m, 1h30m or 7d",
        ]

    def test_bad_json_is_told_without_showing_it(self) -> None:
        """It may hold a password."""
        for text in ('{"a.b": hunter2}', "[" * 100_000):
            (problem,) = problems(None, {"MIRRORPROXY__UPSTREAMS": text})
            assert problem.startswith("MIRRORPROXY__UPSTREAMS: upstreams: is ")
            assert "hunter2" not in problem

    def test_a_missing_underscore_gets_a_warning(self) -> None:
        """Not a refusal: Kubernetes sets MIRRORPROXY_PORT and the like for a service of that name."""
        environ = {"MIRRORPROXY_CACHE_MAX_SIZE": "1GiB", "MIRRORPROXY_PORT": "tcp://10.0.0.1:5000"}
        loaded = load(None, HOME | environ)
        assert [str(warning) for warning in loaded.warnings] == [
            "MIRRORPROXY_CACHE_MAX_SIZE: is not read; did you mean MIRRORPROXY__CACHE__MAX_SIZE?"
        ]

    def test_relative_paths_are_relative_to_the_current_folder(self, write: Write, tmp_path: Path) -> None:
        """Those of variables and flags; the file's own stay relative to it."""
        (tmp_path / "etc").mkdir()
        path = write("server: {tls: {cert: a, key: b}}").rename(tmp_path / "etc" / "config.yaml")
        settings = load(path, HOME | {"MIRRORPROXY__SERVER__TLS__KEY": "k"}, Overrides(cache_dir="c")).settings
        assert settings.server.tls
        assert settings.server.tls.cert == tmp_path / "etc" / "a"
        assert settings.server.tls.key == tmp_path / "k"
        assert settings.cache.directory == tmp_path / "c"


class TestFlags:
    """--listen, --cache-dir, --upstream."""

    def test_flags_win(self, write: Write) -> None:
        """Over the environment and the file."""
        settings = load(
            write("server: {listen: 127.0.0.1:1}\ncache: {directory: /file}"),
            HOME | {"MIRRORPROXY__SERVER__LISTEN": "127.0.0.1:2", "MIRRORPROXY__CACHE__DIRECTORY": "/environ"},
            Overrides(listen=("127.0.0.1:3", "[::1]:3"), cache_dir="/flag"),
        ).settings
        assert [str(address) for address in settings.server.listen] == ["127.0.0.1:3", "[::1]:3"]
        assert settings.cache.directory == Path("/flag")

    def test_an_upstream_flag_replaces_the_endpoints_of_one_that_is_there(self, write: Write) -> None:
        """Under any of its names, keeping its other settings; more of one name are tried in order."""
        flags = Overrides(
            upstreams=("registry-1.docker.io=http://127.0.0.1:5001", "docker.io=http://127.0.0.1:5002/docker.io")
        )
        upstreams = load(
            write("upstreams: {docker.io: {tag_ttl: 1h, endpoints: http://x}}"), HOME, flags
        ).settings.upstreams
        assert upstreams["docker.io"].endpoints == ("http://127.0.0.1:5001", "http://127.0.0.1:5002/docker.io")
        assert upstreams["docker.io"].tag_ttl == 3600
        built_in = load(None, HOME, flags).settings
        assert tuple(built_in.upstreams) == WELL_KNOWN
        assert built_in.default_registry == "docker.io"

    def test_an_upstream_flag_for_a_new_name_adds_it(self, write: Write) -> None:
        """And leaves the default where it was, also where it was so for being the only one."""
        flags = Overrides(upstreams=("localhost:5005=http://127.0.0.1:5005",))
        assert [*load(None, HOME, flags).settings.upstreams] == [*WELL_KNOWN, "localhost:5005"]
        settings = load(write("upstreams: {ghcr.io: {}}"), HOME, flags).settings
        assert list(settings.upstreams) == ["ghcr.io", "localhost:5005"]
        assert settings.default_registry == "ghcr.io"

    def test_problems_name_the_flag(self) -> None:
        """And never show a password in a URL."""
        flags = Overrides(
            listen=("nowhere",),
            upstreams=("ghcr.io", "foo=http://a", "a.io=ftp://x", "b.io=http://me:hunter2@b", "u:p@h"),
        )
        found = problems(None, overrides=flags)
        assert sorted(found) == [
            (
                "--listen: server.listen[0]: 'nowhere' is not an address to listen on; write host:port, [IPv6]:port or "
                "unix:/path"
            ),
            "--upstream: 'foo' could be a repository as well; a registry's name has a dot or a port in it",
            "--upstream: 'ghcr.io' is not NAME=URL, as in docker.io=http://127.0.0.1:5001",
            (
                "--upstream: upstreams.a.io.endpoints[0]: 'ftp://x' is not the URL of an endpoint; write "
                "https://registry.example.com or http://cache:5000/docker.io"
            ),
            (
                "--upstream: upstreams.b.io.endpoints[0]: has a name or password in it; use credentials: with a "
                "password_file instead"
            ),
            "--upstream: what was given is not NAME=URL, as in docker.io=http://127.0.0.1:5001",
        ]
