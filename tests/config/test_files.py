"""The files that a configuration names are looked at before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest
import trustme

COMMAND = [sys.executable, "-m", "mirrorproxy"]


def told(*arguments: str | Path) -> tuple[int, str]:
    """The exit status of a command, and what it said of errors."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [("config", "check"), ("serve", "--config")])
def test_every_file_that_cannot_be_used_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Missing, or not what it should be: all at once, each with its key, exit 78."""
    (tmp_path / "junk.pem").write_text("no certificate")
    (tmp_path / "config.yaml").write_text(
        """
server: {listen: ["127.0.0.1:0"], tls: {cert: missing.crt, key: missing.key}}
cache: {directory: cache}
upstreams:
  docker.io: {ca_file: missing.pem}
  ghcr.io: {ca_file: junk.pem}
  quay.io: {credentials: {docker_config: missing.json}, repositories: ["a/*"]}
"""
    )
    status, errors = told(*command, tmp_path / "config.yaml")
    assert status == 78
    for key in (
        "server.tls.cert",
        "server.tls.key",
        "upstreams.docker.io.ca_file",
        "upstreams.ghcr.io.ca_file",
        "upstreams.quay.io.credentials.docker_config",
    ):
        assert f"{key}: " in errors
    assert len(errors.splitlines()) == 5


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """Each is right, together they are not; the right pair is."""
    authority = trustme.CA()
    for name in ("one", "two"):
        issued = authority.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.crt"))
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
    config = tmp_path / "config.yaml"
    config.write_text("server: {tls: {cert: one.crt, key: two.key}}")
    status, errors = told("config", "check", config)
    assert (status, "server.tls: " in errors) == (78, True)
    config.write_text("server: {tls: {cert: one.crt, key: one.key}}")
    assert told("config", "check", config) == (0, "")
