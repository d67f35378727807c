"""Without a file there are defaults; with one, what is written becomes typed settings."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from mirrorproxy.config import (
    ConfigError,
    CredentialsSettings,
    Linger,
    ListenAddress,
    Overrides,
    load,
)
from mirrorproxy.config.registries import WELL_KNOWN
from mirrorproxy.units import Share, Size
from tests.config.support import HOME, Write, problems


class TestDefaults:
    """Without a file."""

    def test_the_well_known_registries_are_served_to_this_machine(self) -> None:
        """Seven registries, Docker Hub for who names none, on loopback, with a cache in the user's folder."""
        loaded = load(None, HOME)
        settings = loaded.settings
        assert (loaded.path, loaded.warnings) == (None, [])
        assert tuple(settings.upstreams) == WELL_KNOWN
        assert settings.default_registry == "docker.io"
        assert [name for name, upstream in settings.upstreams.items() if upstream.default] == ["docker.io"]
        assert settings.upstreams["docker.io"].endpoints == ("https://registry-1.docker.io",)
        assert settings.upstreams["ghcr.io"].endpoints == ("https://ghcr.io",)
        assert settings.server.listen == (ListenAddress("127.0.0.1", 5000),)
        assert settings.server.tls is None
        assert settings.cache.directory == Path("/home/me/.cache/mirrorproxy")
        assert settings.cache.max_size == 50 * 2**30 == settings.cache.max_size.resolve(10)
        assert settings.cache.min_free == 5 * 2**30
        assert (settings.server.grace, settings.server.write_timeout) == (30.0, 60.0)
        assert (settings.fills.budget, settings.fills.max_active) == (600.0, 64)
        assert (settings.fills.max_waiting, settings.fills.max_readers) == (1024, 10_000)
        assert (settings.fills.abandoned, settings.fills.abandoned_after) == ("finish", None)
        assert (settings.partials.keep, settings.partials.max_count) == (7 * 86_400, 1000)
        assert (settings.log.level, settings.log.format, settings.log.access) == ("info", "auto", True)
        hub = settings.upstreams["docker.io"]
        assert (hub.tag_ttl, hub.negative_ttl, hub.max_connections) == (300.0, 10.0, 32)
        assert (hub.connect_timeout, hub.idle_timeout, hub.header_timeout, hub.revalidate_timeout) == (10, 30, 30, 5)
        assert (hub.connections, hub.parallel_from, hub.max_fills) == (4, 16 * 2**20, 16)
        assert (hub.min_rate, hub.prefetch) == (0, "auto")
        assert (hub.credentials, hub.proxy, hub.ca_file, hub.repositories, hub.token_realms) == (
            None,
            None,
            None,
            (),
            (),
        )

    @pytest.mark.parametrize(
        ("environ", "directory"),
        [
            ({"XDG_CACHE_HOME": "/caches", "HOME": "/home/me"}, "/caches/mirrorproxy"),
            ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/mirrorproxy"),
            ({"STATE_DIRECTORY": "/var/lib/mirrorproxy", "XDG_CACHE_HOME": "/caches"}, "/var/lib/mirrorproxy"),
            ({"STATE_DIRECTORY": "/var/lib/a", "CACHE_DIRECTORY": "/var/cache/b:/var/cache/c"}, "/var/cache/b"),
            ({"STATE_DIRECTORY": "relative", "CACHE_DIRECTORY": "", "HOME": "/home/me"}, "/home/me/.cache/mirrorproxy"),
        ],
    )
    def test_the_cache_goes_where_caches_go(self, environ: dict[str, str], directory: str) -> None:
        """To the directory that systemd made; XDG_CACHE_HOME when it is absolute, as the specification has it."""
        assert load(None, environ).settings.cache.directory == Path(directory)
        configured = environ | {"MIRRORPROXY__CACHE__DIRECTORY": "/configured"}
        assert load(None, configured).settings.cache.directory == Path("/configured")

    def test_a_machine_that_names_no_place_for_caches_has_to_be_told(self) -> None:
        """A service without HOME gets a sentence, not a folder in the root."""
        with pytest.raises(ConfigError, match=r"^cache\.directory: is needed, .* --cache-dir$"):
            load(None, {})
        assert load(None, {}, Overrides(cache_dir="/c")).settings.cache.directory == Path("/c")

    def test_empty_files_and_empty_keys_change_nothing(self, write: Write) -> None:
        """A key whose values are all commented out has its default."""
        defaults = load(None, HOME).settings
        for text in ("", "\ufeff", "# nothing\n", "---\n", "{}", "server:\ncache:\n  max_size:\nupstreams:\nlog: ~\n"):
            assert load(write(text), HOME).settings == defaults

    def test_the_environment_is_the_process_s_own_when_none_is_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For programs that load a configuration themselves."""
        monkeypatch.setenv("MIRRORPROXY__LOG__LEVEL", "debug")
        assert load(None).settings.log.level == "debug"

    def test_settings_cannot_be_changed(self) -> None:
        """A reload makes new ones."""
        settings = load(None, HOME).settings
        with pytest.raises(ValidationError, match="frozen"):
            settings.log.level = "debug"  # type: ignore[misc]  # this is the point


class TestFile:
    """YAML."""

    def test_every_setting_is_taken_over(self, write: Write, tmp_path: Path) -> None:
        """A file with all there is, as typed values; relative paths are relative to the file."""
        Path("secret").write_text("s3cret\n")
        Path("secret").chmod(0o600)
        settings = load(
            write("""
server:
  listen: ["0.0.0.0:0", "[::1]:5001", "unix:run/m.sock", "LOCALHOST:5002"]
  tls: {cert: tls.crt, key: /etc/tls.key}
  workers: auto
  grace: 1m30s
  write_timeout: 5s
cache: {directory: ~/c, max_size: 80%, min_free: 0}
upstreams:
  Registry.Example.com:5000:
    endpoints: [http://SITE-cache:5000/registry.example.com/, "http://[::1]:80"]
    proxy: http://egress:3128/
    ca_file: ca.pem
    credentials: {username: no, password_file: secret}
    repositories: ["team/*", library/alpine]
    default: Yes
    tag_ttl: 0s
    negative_ttl: 0
    token_realms: [auth.example.com, "https://AUTH.example.com:8443/", "http://127.0.0.1:9"]
    connect_timeout: 1s
    idle_timeout: 2s
    header_timeout: 3s
    revalidate_timeout: 400ms
    max_connections: 5
    connections: 3
    parallel_from: 8MB
    min_rate: 10kB/s
    max_fills: 2
    prefetch: off
  ghcr.io:
fills: {budget: 1h, max_active: 7, abandoned: {linger: 1m30s}}
partials: {keep: 12h}
log: {level: debug, format: json, access: off}
"""),
            HOME,
        ).settings
        assert [str(address) for address in settings.server.listen] == [
            "0.0.0.0:0",
            "[::1]:5001",
            f"unix:{tmp_path}/run/m.sock",
            "localhost:5002",
        ]
        assert settings.server.tls
        assert (settings.server.tls.cert, settings.server.tls.key) == (tmp_path / "tls.crt", Path("/etc/tls.key"))
        assert (settings.server.workers, settings.server.grace, settings.server.write_timeout) == ("auto", 90, 5)
        assert settings.cache.directory == Path("/home/me/c")
        assert (settings.cache.max_size, settings.cache.min_free) == (Share(80), Size(0))
        assert list(settings.upstreams) == ["registry.example.com:5000", "ghcr.io"]
        upstream = settings.upstreams["registry.example.com:5000"]
        assert upstream.endpoints == ("http://site-cache:5000/registry.example.com", "http://[::1]:80")
        assert (upstream.proxy, upstream.ca_file) == ("http://egress:3128", tmp_path / "ca.pem")
        assert isinstance(upstream.credentials, CredentialsSettings)
        assert upstream.credentials.username == "no"
        assert upstream.credentials.password == SecretStr("s3cret")
        assert upstream.repositories == ("team/*", "library/alpine")
        assert upstream.default
        assert (upstream.tag_ttl, upstream.negative_ttl, upstream.revalidate_timeout) == (0, 0, 0.4)
        assert upstream.token_realms == (
            "https://auth.example.com",
            "https://auth.example.com:8443",
            "http://127.0.0.1:9",
        )
        assert (upstream.connect_timeout, upstream.idle_timeout, upstream.header_timeout) == (1, 2, 3)
        assert (upstream.max_connections, upstream.connections, upstream.max_fills) == (5, 3, 2)
        assert (upstream.parallel_from, upstream.min_rate) == (8_000_000, 10_000)
        assert upstream.prefetch == "off"
        assert settings.upstreams["ghcr.io"].endpoints == ("https://ghcr.io",)
        assert (settings.fills.budget, settings.fills.max_active) == (3600, 7)
        assert (settings.fills.abandoned, settings.fills.abandoned_after) == (Linger(90.0), 90.0)
        assert settings.partials.keep == 12 * 3600
        assert (settings.log.level, settings.log.format, settings.log.access) == ("debug", "json", False)

    def test_scalars_keep_the_text_they_were_written_as(self, write: Write) -> None:
        """YAML's own ideas of `0123`, `no` and `1:30` do not reach a password or a user name."""
        for text in ("0123", "no", "1:30", "2020-01-01", "1e3", "0x1F", "'null'", '"~"'):
            credentials = (
                load(write(f"upstreams: {{docker.io: {{credentials: {{username: no, password: {text}}}}}}}"), HOME)
                .settings.upstreams["docker.io"]
                .credentials
            )
            assert isinstance(credentials, CredentialsSettings)
            assert credentials.username == "no"
            assert credentials.password == SecretStr(text.strip("'\""))

    def test_anchors_and_merges_spare_repetition(self, write: Write) -> None:
        """What an upstream says itself wins over what it merges; a mistake is told where it was written."""
        text = """\
upstreams:
  docker.io: &common
    proxy: http://egress:3128
    tag_ttl: 1h
  ghcr.io:
    <<: *common
    tag_ttl: 2h
  quay.io: *common
"""
        upstreams = load(write(text), HOME).settings.upstreams
        assert [upstream.tag_ttl for upstream in upstreams.values()] == [3600, 7200, 3600]
        assert {upstream.proxy for upstream in upstreams.values()} == {"http://egress:3128"}
        assert problems(write(text.replace("1h", "soon").replace("2h", "later"))) == [
            f"config.yaml:{line}: upstreams.{name}.tag_ttl: '{value}' is not a duration; write 500ms, 30s, 10m, 1h30m "
            "or 7d"
            for line, name, value in ((4, "docker.io", "soon"), (4, "quay.io", "soon"), (7, "ghcr.io", "later"))
        ]
        text = "{a.io: &a {tag_ttl: 1s}, b.io: &b {tag_ttl: 2s, default: on}, c.io: {<<: [*a, *b], default: off}}"
        first_wins = load(write(f"upstreams: {text}"), HOME).settings.upstreams["c.io"]
        assert (first_wins.tag_ttl, first_wins.default) == (1, False)
        assert problems(write("log: {<<: [a]}")) == ["config.yaml:1: << takes a mapping, as in `<<: *other`"]
