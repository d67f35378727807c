"""Whether a containerd's own configuration has it look into the directory."""

from pathlib import Path

import pytest

from mirrorproxy.cli import main
from mirrorproxy.setup import config_path_warnings
from tests.documents import snippets

HERE = "/etc/containerd/certs.d"
V2 = '[plugins."io.containerd.grpc.v1.cri".registry]\n'


def said(tmp_path: Path, text: str) -> list[str]:
    """The warnings about a configuration, without its path."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    return [warning.removeprefix(str(path)) for warning in config_path_warnings(Path(HERE), path)]


@pytest.mark.parametrize(
    "text",
    [
        *(each.text for each in snippets("docs/clients.md") if each.names[:1] == ("/etc/containerd/config.toml",)),
        f'[plugins.cri.registry]\nconfig_path = "{HERE}"\n',
        f'version = 2\n{V2}config_path = "/etc/docker/certs.d:{HERE}"\n',
        f'version = 2\n{V2}config_path = "{HERE}"\n{V2[:-2]}.mirrors]\n',
    ],
)
def test_configurations_that_are_right(text: str, tmp_path: Path) -> None:
    """Those of the document, and of each version."""
    assert said(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 2\n", ": containerd before version 2 looks"),
        ("", '[plugins."cri".registry]'),
        ("version = 3\n", '[plugins."io.containerd.cri.v1.images".registry]'),
        (f'version = 2\n{V2}config_path = "/other"\n', "config_path is /other"),
        (f'version = 3\n{V2}config_path = "{HERE}"\n', "no config_path"),
        ('version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n', "imports other files"),
        ("version = [\n", "cannot be read"),
        ('version = 2\nplugins = "none"\n', "no config_path"),
        ("version = [1]\n", "no config_path"),
    ],
)
def test_configurations_that_are_not(text: str, words: str, tmp_path: Path) -> None:
    """One line, with what to do."""
    (line,) = said(tmp_path, text)
    assert words in line


def test_tables_of_old(tmp_path: Path) -> None:
    """They exclude config_path: with both, containerd does not load its plugin for Kubernetes."""
    text = f'version = 2\n{V2}config_path = "{HERE}"\n{V2[:-2]}.mirrors."docker.io"]\nendpoint = ["http://a"]\n'
    (line,) = said(tmp_path, text)
    assert "registry.mirrors does not go together with config_path" in line


def test_no_configuration(tmp_path: Path) -> None:
    """In a pod there is none to see, and nothing else would tell why containerd 1.x passes every file by."""
    (line,) = config_path_warnings(Path(HERE), tmp_path / "config.toml")
    assert line.startswith(f"there is no {tmp_path}/config.toml")
    assert "before version 2 only with config_path" in line


def test_the_command_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the directory; the files are written all the same, and the removal says nothing of it."""
    (tmp_path / "config.toml").write_text("version = 2\n")
    certs = tmp_path / "certs.d"
    assert main(["setup", "containerd", "--directory", str(certs)]) == 0
    assert f'config_path = "{certs}"' in capsys.readouterr().err
    assert main(["setup", "containerd", "--directory", str(certs), "--remove"]) == 0
    assert capsys.readouterr().err == ""
