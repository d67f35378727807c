"""Registries upstream: with credentials, through proxies, again where that helps, one endpoint after another.

`connect()` is all that the rest of the program needs. What comes out are the contract's types and errors; aiohttp
stays in here. By file: `failover` (the endpoints of an upstream) over `client` (one endpoint, its answers checked) over
`endpoint` (redirects) with `authorization` (challenges, credentials, tokens) over `transport` (aiohttp).
"""

from mirrorproxy.config import CredentialsSettings, UpstreamSettings
from mirrorproxy.metrics import Metrics
from mirrorproxy.upstream import credentials, docker_config
from mirrorproxy.upstream.authorization import Authorizer
from mirrorproxy.upstream.client import Upstream
from mirrorproxy.upstream.credentials import Credentials, Source
from mirrorproxy.upstream.endpoint import Endpoint
from mirrorproxy.upstream.failover import Failover
from mirrorproxy.upstream.tokens import Tokens
from mirrorproxy.upstream.transport import Transport

__all__ = ["Failover", "connect"]


def connect(registry: str, settings: UpstreamSettings, metrics: Metrics) -> Failover:
    """The registry with the canonical name `registry`, as a `Registry`. Close it with `aclose()`.

    Dials nothing and reads nothing before the first request. To be called within a running event loop.
    """
    transport = Transport(registry, settings, metrics)
    known = Credentials(_source(registry, settings))
    tokens = Tokens()
    upstreams = []
    for url in settings.endpoints:
        authorizer = Authorizer(url, transport, known, tokens, settings.token_realms)
        upstreams.append(Upstream(registry, Endpoint(registry, url, transport, authorizer, metrics), metrics))

    async def aclose() -> None:
        await tokens.aclose()
        await known.aclose()
        await transport.aclose()

    return Failover(upstreams, aclose)


def _source(registry: str, settings: UpstreamSettings) -> Source:
    """Where the credentials come from. A password's file and variable are preferred to what they held at the start."""
    given = settings.credentials
    if given is None:
        return credentials.nothing
    if given == "docker-config":
        return docker_config.from_docker_config(registry)
    if not isinstance(given, CredentialsSettings):
        return docker_config.from_docker_config(registry, given.docker_config)
    if given.password_file is not None:
        return credentials.from_file(given.username, given.password_file)
    if given.password_env is not None:
        return credentials.from_environment(given.username, given.password_env)
    return credentials.static(given.username, given.password.get_secret_value() if given.password else "")
