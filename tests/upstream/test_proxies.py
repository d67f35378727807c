"""Which proxy an URL is asked through."""

import pytest
from yarl import URL

from mirrorproxy.upstream.proxies import Proxies

PROXY = URL("http://egress.example:3128")


@pytest.mark.parametrize(
    ("environ", "url", "proxied"),
    [
        ({}, "https://ghcr.io", False),
        ({"HTTPS_PROXY": str(PROXY)}, "https://ghcr.io", True),
        ({"https_proxy": str(PROXY)}, "https://ghcr.io", True),
        ({"HTTPS_PROXY": "egress.example:3128"}, "https://ghcr.io", True),
        ({"HTTPS_PROXY": str(PROXY)}, "http://ghcr.io", False),
        ({"HTTP_PROXY": str(PROXY)}, "http://ghcr.io", True),
        ({"ALL_PROXY": str(PROXY)}, "http://ghcr.io", True),
        ({"HTTPS_PROXY": ""}, "https://ghcr.io", False),
        ({"HTTPS_PROXY": str(PROXY)}, "https://localhost", False),
        ({"HTTPS_PROXY": str(PROXY)}, "https://127.0.0.9:444", False),
        ({"HTTPS_PROXY": str(PROXY)}, "https://[::1]", False),
    ],
)
def test_the_environments(environ: dict[str, str], url: str, proxied: bool) -> None:
    """By the scheme of the URL; never for loopback."""
    assert Proxies(None, environ).of(URL(url)) == (PROXY if proxied else None)


@pytest.mark.parametrize(
    ("entry", "host", "direct"),
    [
        ("*", "ghcr.io", True),
        ("ghcr.io", "ghcr.io", True),
        ("ghcr.io", "GHCR.io", True),
        ("ghcr.io", "x.ghcr.io", True),
        ("ghcr.io", "notghcr.io", False),
        (".ghcr.io", "x.ghcr.io", True),
        (".ghcr.io", "ghcr.io", False),
        ("*.ghcr.io", "x.ghcr.io", True),
        (" quay.io , ghcr.io ", "ghcr.io", True),
        ("quay.io", "ghcr.io", False),
        ("ghcr.io:443", "ghcr.io", True),
        ("ghcr.io:8443", "ghcr.io", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/99", "10.1.2.3", False),
        ("2.3", "10.1.2.3", False),
        ("2001:db8::/32", "[2001:db8::7]", True),
        ("[2001:db8::7]", "[2001:db8::7]", True),
        ("[2001:db8::7]:443", "[2001:db8::7]", True),
        ("2001:db8::7", "[2001:db8::7]", True),
        ("", "ghcr.io", False),
    ],
)
def test_no_proxy(entry: str, host: str, direct: bool) -> None:
    """Names with all under them, ports, addresses, networks."""
    for name in ("NO_PROXY", "no_proxy"):
        found = Proxies(None, {"HTTPS_PROXY": str(PROXY), name: entry}).of(URL(f"https://{host}/v2/"))
        assert found == (None if direct else PROXY)


def test_the_upstreams_own() -> None:
    """Goes before the environment, and for all of the upstream's URLs."""
    environ = {"HTTPS_PROXY": "http://other.example:1", "NO_PROXY": "*"}
    proxies = Proxies(str(PROXY), environ)
    for url in ("https://ghcr.io", "http://ghcr.io", "http://127.0.0.1"):
        assert proxies.of(URL(url)) == PROXY
