"""Names and addresses of registries, and addresses to listen on."""

import json

import pytest

from mirrorproxy.config import (
    ListenAddress,
    Overrides,
    load,
)
from tests.config.support import HOME, Write, problems


class TestRegistries:
    """Names and addresses of upstreams."""

    @pytest.mark.parametrize(
        "name",
        [
            "ghcr.io",
            "GHCR.io",
            "localhost",
            "registry:5000",
            "a-b.c--d.io:65535",
            "127.0.0.1:5005",
            "[::1]:5000",
            "x.1a",
        ],
    )
    def test_a_name_is_what_an_image_may_begin_with(self, name: str) -> None:
        """In lower case from here on."""
        upstreams = load(None, HOME | {"MIRRORPROXY__UPSTREAMS": json.dumps({name: {}})}).settings.upstreams
        assert list(upstreams) == [name.lower()]

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "",
                "foo",
                "-a.io",
                "a-.io",
                "a..io",
                ".io",
                "a.io.",
                "a_b.io",
                "a.io:",
                "a.io:0",
                "a.io:65536",
                "a.io:x",
            ),
            *(
                "https://a.io",
                "a.io/b",
                "me@a.io",
                "a.io ",
                "ä.io",
                "1.2.3",
                "256.1.1.1",
                "[::g]",
                "::1",
                "[1.2.3.4]",
                "*.io",
            ),
            *("a" * 64 + ".io", ".".join(["a" * 55] * 5)),
        ],
    )
    def test_anything_else_is_refused(self, name: str) -> None:
        """A name is matched whole."""
        (problem,) = problems(None, {"MIRRORPROXY__UPSTREAMS": json.dumps({name: {}})})
        assert problem.startswith("MIRRORPROXY__UPSTREAMS: upstreams.")

    @pytest.mark.parametrize(
        "url",
        [
            *(
                "ghcr.io",
                "ftp://a",
                "http://",
                "http://a:0",
                "http://a:65536",
                "http://a:b",
                "http://a b",
                "http://a/b c",
            ),
            *(
                "http://a/../b",
                "http://a/./b",
                "http://a/%2e",
                "http://a//b",
                "http://a/v2",
                "https://a/b/v2/",
                "http:/a",
            ),
            *(
                "http://a?b",
                "http://a#b",
                "http://a\\b",
                "http://1.2.3",
                "http://[::g]",
                "http://[1.2.3.4]",
                "http://a..b",
            ),
            *("http://-a", "http://ä", "javascript:alert(1)", "//a", "http://a\u2028", "file:///etc/passwd"),
        ],
    )
    def test_an_endpoint_is_a_plain_url(self, url: str) -> None:
        """No query, no fragment, no escape, nothing that a URL library might read otherwise than we do."""
        environ = {"MIRRORPROXY__UPSTREAMS": json.dumps({"a.io": {"endpoints": [url]}})}
        (problem,) = problems(None, environ)
        assert problem.startswith("MIRRORPROXY__UPSTREAMS: upstreams.a.io.endpoints[0]: ") or "printed" in problem

    @pytest.mark.parametrize(
        ("listen", "endpoint", "loops"),
        [
            ("127.0.0.1:5000", "http://127.0.0.1:5000", True),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/docker.io", True),
            ("[::1]:80", "http://[::1]", True),
            ("127.0.0.1:5000", "http://127.0.0.1:5001", False),
            ("127.0.0.1:0", "http://127.0.0.1:5000", False),
            ("unix:/s", "http://127.0.0.1", False),
        ],
    )
    def test_the_service_s_own_address_is_no_endpoint(self, listen: str, endpoint: str, loops: bool) -> None:
        """It would wait for itself."""
        flags = Overrides(listen=(listen,), upstreams=(f"docker.io={endpoint}",))
        if not loops:
            assert load(None, HOME, flags).settings.upstreams["docker.io"].endpoints == (endpoint,)
            return
        (problem,) = problems(None, overrides=flags)
        assert problem == (
            f"--upstream: upstreams.docker.io.endpoints[0]: {endpoint} is an address that this service listens on "
            "itself"
        )

    @pytest.mark.parametrize(
        ("text", "default"),
        [
            ("{ghcr.io: {}}", "ghcr.io"),
            ("{ghcr.io: {}, docker.io: {}}", "docker.io"),
            ("{ghcr.io: {default: true}, docker.io: {}}", "ghcr.io"),
            ("{ghcr.io: {default: true}, docker.io: {default: false}}", "ghcr.io"),
            ("{ghcr.io: {default: false}}", "ghcr.io"),
        ],
    )
    def test_one_upstream_is_the_default(self, write: Write, text: str, default: str) -> None:
        """The one marked, the only one, or Docker Hub."""
        settings = load(write(f"upstreams: {text}"), HOME).settings
        assert settings.default_registry == default
        assert [name for name, upstream in settings.upstreams.items() if upstream.default] == [default]

    @pytest.mark.parametrize("text", ["{ghcr.io: {}, quay.io: {}}", "{ghcr.io: {}, docker.io: {default: false}}"])
    def test_no_default_is_a_problem(self, write: Write, text: str) -> None:
        """A Docker daemon names no registry: somebody has to be meant."""
        (problem,) = problems(write(f"upstreams: {text}"))
        assert problem.endswith("is the default; add `default: true` to the one that clients mean")


class TestListen:
    """Where to accept connections."""

    @pytest.mark.parametrize(
        ("text", "loopback"),
        [
            ("127.0.0.1:5000", True),
            ("127.8.9.10:0", True),
            ("[::1]:5000", True),
            ("localhost:5000", True),
            ("LocalHost:5000", True),
            ("unix:/run/m.sock", True),
            ("0.0.0.0:5000", False),
            ("[::]:5000", False),
            ("10.0.0.1:5000", False),
            ("mirror.example.com:5000", False),
            ("localhost.example.com:5000", False),
        ],
    )
    def test_loopback_is_told_from_the_world(self, text: str, loopback: bool) -> None:
        """A name that might resolve to anything counts as the world, a unix socket as this machine."""
        address = ListenAddress.parse(text)
        assert address.is_loopback is loopback
        assert ListenAddress.parse(str(address)) == address

    @pytest.mark.parametrize(
        "text", ["", ":", "a:", "127.0.0.1", "::1:5000", "[::1]5000", "a:b:1", "http://a:1", "a_b:1", "٣:1", "a:٣"]
    )
    def test_what_is_no_address_is_refused(self, text: str) -> None:
        """Addresses are matched whole."""
        with pytest.raises(ValueError, match="is not an address to listen on; write host:port"):
            ListenAddress.parse(text)

    def test_a_socket_s_path_has_to_fit_the_kernel(self) -> None:
        """107 bytes."""
        assert ListenAddress.parse("unix:/" + "a" * 106).path
        with pytest.raises(ValueError, match="at most 107 bytes, this one has 108"):
            ListenAddress.parse("unix:/" + "a" * 107)

    def test_any_port_may_be_asked_for_twice(self) -> None:
        """Those are two ports."""
        assert len(load(None, HOME, Overrides(listen=("127.0.0.1:0", "127.0.0.1:0"))).settings.server.listen) == 2
