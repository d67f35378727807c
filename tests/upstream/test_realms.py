"""Which token services are trusted with a registry's credentials."""

import pytest

from mirrorproxy.errors import BadAnswer
from mirrorproxy.upstream.realms import check, registrable_domain


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://registry-1.docker.io", "https://auth.docker.io/token"),
        ("https://ghcr.io", "https://ghcr.io/token"),
        ("https://ghcr.io", "https://GHCR.io:8443/token?a=b"),
        ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
        ("https://registry.example.co.uk", "https://auth.example.co.uk/token"),
        ("http://registry.example.com:5000", "https://auth.example.com/token"),
        ("http://registry.example.com:5000", "http://auth.example.com/token"),
        ("http://10.0.0.1:5000/docker.io", "http://10.0.0.1:5001/token"),
        ("https://[2001:db8::1]:5000", "https://[2001:db8::1]/token"),
        ("http://localhost:5000", "http://localhost:5001/token"),
        ("http://cache:5000", "http://cache/token"),
    ],
)
def test_trusted(registry: str, realm: str) -> None:
    """The registry's own host, or one under the same registrable domain, over TLS when the registry is."""
    assert check(realm, registry, ()) == realm


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://registry-1.docker.io", "https://auth.docker.io.evil.example/token"),
        ("https://registry-1.docker.io", "https://docker.com/token"),
        ("https://registry-1.docker.io", "https://notdocker.io/token"),
        ("https://a.co.uk", "https://b.co.uk/token"),
        ("https://registry.a.com.cn", "https://registry.b.com.cn/token"),
        ("http://127.0.0.1:5000", "http://127.0.0.2:5000/token"),
        ("http://10.0.0.1", "http://169.254.169.254/latest/meta-data"),
        ("http://1.2.3.4", "http://9.2.3.4/token"),
        ("http://localhost:5000", "http://127.0.0.1:5000/token"),
        ("http://cache", "http://other/token"),
        ("https://ghcr.io", "http://ghcr.io/token"),
        ("https://ghcr.io", "//ghcr.io/token"),
        ("https://ghcr.io", "/token"),
        ("https://ghcr.io", "ftp://ghcr.io/token"),
        ("https://ghcr.io", "https://user:pw@ghcr.io/token"),
        ("https://ghcr.io", "https://evil.example@ghcr.io/token"),
        ("https://ghcr.io", "https://ghcr.io:99999/token"),
        ("https://ghcr.io", "https://[ghcr.io/token"),
        ("https://ghcr.io", "https://ghcr.io/to\r\nken"),
        ("https://ghcr.io", "https://ghcr.io/tök"),
        ("https://ghcr.io", "https://"),
    ],
)
def test_not_trusted(registry: str, realm: str) -> None:
    """Anything else is refused."""
    with pytest.raises(BadAnswer):
        check(realm, registry, ())


def test_an_origin_of_the_configuration_is_trusted() -> None:
    """`token_realms` names origins, by which alone TLS may end."""
    assert check("https://ghcr.io/token", "https://lscr.io", ["https://ghcr.io"])
    assert check("https://auth.example:8443/t", "https://r.example.net", ["https://auth.example:8443"])
    assert check("http://127.0.0.2:81/token", "https://127.0.0.1", ["http://127.0.0.2:81"])
    for realm in ("https://ghcr.io:444/token", "http://ghcr.io/token", "https://x.ghcr.io/token"):
        with pytest.raises(BadAnswer):
            check(realm, "https://lscr.io", ["https://ghcr.io"])


def test_the_refusal_says_what_to_do() -> None:
    """With the line that would allow it, and without the realm's query."""
    with pytest.raises(BadAnswer) as caught:
        check("https://ghcr.io/token?secret=1", "https://lscr.io", ())
    assert "add https://ghcr.io to this upstream's token_realms" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("registry-1.docker.io", "docker.io"),
        ("docker.io.", "docker.io"),
        ("A.B.Example.COM", "example.com"),
        ("a.example.co.uk", "example.co.uk"),
        ("example.co.uk", "example.co.uk"),
        ("docker.elastic.co", "elastic.co"),
        ("localhost", "localhost"),
        ("10.20.30.40", "10.20.30.40"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_registrable_domain(host: str, domain: str) -> None:
    """What somebody registered; an address is one of its own."""
    assert registrable_domain(host) == domain
