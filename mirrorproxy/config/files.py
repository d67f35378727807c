"""The files that settings name: are they there, and what they should be? Looked at before a service starts."""

import ssl
from collections.abc import Iterator
from pathlib import Path

from mirrorproxy.config.problems import Problem
from mirrorproxy.config.settings import DockerConfigSettings, Settings


def check_files(settings: Settings) -> list[Problem]:
    """What is wrong with certificates, keys and Docker configurations. Blocks, as files do."""
    return list(_problems(settings))


def _problems(settings: Settings) -> Iterator[Problem]:
    tls = settings.server.tls
    if tls is not None:
        unreadable = [*_unreadable("server.tls.cert", tls.cert), *_unreadable("server.tls.key", tls.key)]
        yield from unreadable
        if not unreadable:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key)
            except (ssl.SSLError, OSError):
                yield _problem(
                    "server.tls", f"{tls.cert} and {tls.key} are not a certificate and its key, in PEM format"
                )
    for name, upstream in settings.upstreams.items():
        if upstream.ca_file is not None:
            key = f"upstreams.{name}.ca_file"
            unreadable = list(_unreadable(key, upstream.ca_file))
            yield from unreadable
            if not unreadable:
                try:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(upstream.ca_file)
                except (ssl.SSLError, OSError):
                    yield _problem(key, f"{upstream.ca_file} holds no certificates in PEM format")
        if isinstance(upstream.credentials, DockerConfigSettings):
            yield from _unreadable(f"upstreams.{name}.credentials.docker_config", upstream.credentials.docker_config)


def _unreadable(key: str, path: Path) -> Iterator[Problem]:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        yield _problem(key, f"{path} cannot be read: {error.strerror}")


def _problem(key: str, message: str) -> Problem:
    return Problem(key, None, message, "")
