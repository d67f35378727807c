"""`mirrorproxy setup containerd` on a directory: what it writes, leaves alone, keeps and takes back."""

import subprocess
import sys
from pathlib import Path

import pytest

from mirrorproxy.cli import main
from mirrorproxy.setup import BACKUP, is_ours

THEIRS = '[host."https://other.example.com"]\n  capabilities = ["pull"]\n'


def setup(directory: Path, *words: str) -> int:
    """Runs the command."""
    return main(["setup", "containerd", "--directory", str(directory), *words])


def files(directory: Path) -> dict[str, str]:
    """All files below a directory."""
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def write(path: Path, text: str = THEIRS) -> Path:
    """A file with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_all_registries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file, readable by everybody, made with the directories it needs; a second run changes nothing."""
    certs = tmp_path / "etc" / "certs.d"
    assert setup(certs) == 0
    path = certs / "_default" / "hosts.toml"
    assert list(files(certs)) == ["_default/hosts.toml"]
    assert is_ours(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat()
    assert setup(certs) == 0
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert capsys.readouterr().out.splitlines() == [f"write {path}", "nothing to change"]


def test_other_words_replace_the_earlier_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another mirror upgrades the file; other registries take the place of those before."""
    setup(tmp_path)
    setup(tmp_path, "--mirror", "http://10.0.0.1:30050")
    assert '[host."http://10.0.0.1:30050"]' in files(tmp_path)["_default/hosts.toml"]
    setup(tmp_path, "--registry", "docker.io", "--registry", "r.example.com:8443")
    assert set(files(tmp_path)) == {"docker.io/hosts.toml", "r.example.com_8443_/hosts.toml"}
    done = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in done] == ["write", "write", "remove"]  # never without any for a moment
    assert not (tmp_path / "_default").exists()


def test_files_of_others_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command refuses, says what to do, and has changed nothing at all."""
    write(tmp_path / "ghcr.io" / "hosts.toml")
    setup(tmp_path, "--registry", "quay.io")
    before = files(tmp_path)
    assert setup(tmp_path, "--registry", "docker.io", "--registry", "ghcr.io") == 1
    assert files(tmp_path) == before
    assert "--replace" in capsys.readouterr().err


def test_files_of_others_are_kept_and_come_back(tmp_path: Path) -> None:
    """--replace keeps them, whatever is written over ours afterwards; --remove restores them to the byte."""
    theirs = write(tmp_path / "_default" / "hosts.toml")
    write(tmp_path / "quay.io" / "hosts.toml")
    before = files(tmp_path)
    assert setup(tmp_path, "--replace") == 0
    assert is_ours(theirs.read_text())
    assert theirs.with_name(BACKUP).read_text() == THEIRS
    assert setup(tmp_path, "--replace", "--mirror", "http://10.0.0.1:5000") == 0
    assert theirs.with_name(BACKUP).read_text() == THEIRS
    assert setup(tmp_path, "--remove") == 0
    assert files(tmp_path) == before


def test_naming_fewer_registries_restores_too(tmp_path: Path) -> None:
    """What is no longer asked for is as it was before."""
    write(tmp_path / "_default" / "hosts.toml")
    setup(tmp_path, "--replace")
    assert setup(tmp_path, "--registry", "docker.io") == 0
    assert files(tmp_path).keys() == {"_default/hosts.toml", "docker.io/hosts.toml"}
    assert files(tmp_path)["_default/hosts.toml"] == THEIRS


def test_an_edited_file_belongs_to_who_edited_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is neither upgraded nor removed, and both say so; with --replace it is kept beside, and never comes back."""
    setup(tmp_path)
    path = tmp_path / "_default" / "hosts.toml"
    edited = write(path, path.read_text() + "# mine\n").read_text()
    assert setup(tmp_path, "--mirror", "http://10.0.0.1:5000") == 1
    assert setup(tmp_path, "--remove") == 0
    assert path.read_text() == edited
    assert "changed since mirrorproxy wrote it, and is left alone" in capsys.readouterr().err
    assert setup(tmp_path, "--replace") == 0
    assert path.with_name("hosts.toml.edited").read_text() == edited
    assert setup(tmp_path, "--remove") == 0
    assert files(tmp_path) == {"_default/hosts.toml.edited": edited}


def test_certificates_without_a_hosts_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They count while there is no hosts.toml, and no longer after: writing one would break that registry."""
    write(tmp_path / "r.example.com" / "ca.crt", "PEM")
    assert setup(tmp_path, "--registry", "r.example.com") == 1
    assert "has certificates" in capsys.readouterr().err
    assert setup(tmp_path, "--registry", "r.example.com", "--replace") == 0
    assert setup(tmp_path, "--remove") == 0
    assert files(tmp_path) == {"r.example.com/ca.crt": "PEM"}


def test_a_folder_that_wins_over_the_default_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pulls from there silently pass mirrorproxy, even where the folder is empty."""
    (tmp_path / "ghcr.io").mkdir()
    assert setup(tmp_path) == 0
    assert f"{tmp_path}/ghcr.io wins over _default" in capsys.readouterr().err
    assert setup(tmp_path, "--registry", "_default", "--registry", "ghcr.io") == 0
    assert "wins over" not in capsys.readouterr().err


def test_a_wrong_name_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is written, for the right ones neither."""
    assert setup(tmp_path, "--registry", "docker.io", "--registry", "foo/bar") == 2
    assert "--registry 'foo/bar': write a host" in capsys.readouterr().err
    assert files(tmp_path) == {}


def test_what_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the place and the reason, and no number of the system's."""
    (tmp_path / "certs.d").write_text("a file")
    assert setup(tmp_path / "certs.d") == 1
    said = capsys.readouterr().err
    assert f"mirrorproxy setup containerd: {tmp_path}/certs.d" in said
    assert "Not a directory" in said
    assert "Errno" not in said


def test_a_certificate_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is told, and no error: in a pod the node's files are not to be seen."""
    words = ("--mirror", "https://mirror.example.com:5000", "--ca")
    assert setup(tmp_path / "certs.d", *words, "/nonexistent/ca.crt") == 0
    assert "there is no file /nonexistent/ca.crt here" in capsys.readouterr().err
    certificate = write(tmp_path / "ca.crt", "PEM")
    assert setup(tmp_path / "certs.d", *words, str(certificate)) == 0
    assert "no file" not in capsys.readouterr().err


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Says it, does nothing."""
    assert setup(tmp_path, "--dry-run") == 0
    assert files(tmp_path) == {}
    assert capsys.readouterr().out == f"would write {tmp_path}/_default/hosts.toml\n"


@pytest.mark.parametrize(
    ("words", "status"),
    [(("--mirror", "mirror:5000"), 2), (("--registry", "../a"), 2), (("--ca", "/ca.crt"), 2), (("--remove",), 0)],
)
def test_wrong_words_and_nothing_to_do(tmp_path: Path, words: tuple[str, ...], status: int) -> None:
    """Wrong words write nothing; removing where there is nothing is right."""
    assert setup(tmp_path / "absent", *words) == status
    assert not (tmp_path / "absent").exists()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """One line, no traceback."""
    argv = [sys.executable, "-m", "mirrorproxy", "setup", "containerd", "--directory", "/proc/self/certs.d"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "/proc/self/certs.d" in done.stderr


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A full disk: containerd goes on with what it had, and nothing of the attempt is left."""
    setup(tmp_path)
    before = files(tmp_path)
    limit = "ulimit -f 0; trap '' XFSZ; exec \"$@\""
    argv = [sys.executable, "-m", "mirrorproxy", "setup", "containerd", "--directory", str(tmp_path)]
    done = subprocess.run(["sh", "-c", limit, "sh", *argv, "--mirror", "http://10.0.0.1:1"], capture_output=True)
    assert done.returncode == 1
    assert files(tmp_path) == before
