"""Where an upstream's credentials come from, and when they are read."""

from pathlib import Path

import pytest

from mirrorproxy.errors import Unauthorized
from mirrorproxy.upstream.credentials import (
    Credential,
    Credentials,
    Unreadable,
    from_environment,
    from_file,
    nothing,
    static,
)

SECRET = "correct horse"


class Changing:
    """A source that counts how often it is read."""

    def __init__(self, *values: Credential | Unreadable | None) -> None:
        self.values = list(values)
        self.reads = 0

    def __call__(self) -> Credential | None:
        value = self.values[min(self.reads, len(self.values) - 1)]
        self.reads += 1
        if isinstance(value, Unreadable):
            raise value
        return value


def test_basic() -> None:
    """RFC 7617, with UTF-8."""
    assert Credential("Aladdin", "open sesame").basic() == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert Credential("test", "123£").basic() == "Basic dGVzdDoxMjPCow=="


def test_a_credential_shows_nothing() -> None:
    """Neither the secret nor the name, in no form of text; a fingerprint tells two apart."""
    credential = Credential("ann", SECRET)
    for text in (repr(credential), str(credential), f"{credential}", f"{[credential]}"):
        assert "ann" not in text
        assert SECRET not in text
    assert credential.fingerprint == Credential("ann", SECRET).fingerprint
    assert len({credential.fingerprint, Credential("ann", "x").fingerprint, Credential("bob", SECRET).fingerprint}) == 3


async def test_none_configured() -> None:
    """Requests go without."""
    assert await Credentials(nothing).get() is None


async def test_one_in_the_configuration() -> None:
    """As it stands there."""
    assert await Credentials(static("ann", SECRET)).get() == Credential("ann", SECRET)


@pytest.mark.parametrize("content", [SECRET, f"{SECRET}\n", f"{SECRET}\r\n"])
async def test_one_in_a_file(tmp_path: Path, content: str) -> None:
    """Without the line break at its end."""
    path = tmp_path / "password"
    path.write_bytes(content.encode())
    assert await Credentials(from_file("ann", path)).get() == Credential("ann", SECRET)


async def test_one_in_the_environment(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Read when it is needed."""
    credentials = Credentials(from_environment("ann", "HUB_PASSWORD"))
    with pytest.raises(Unauthorized):
        await credentials.get()
    assert "HUB_PASSWORD" in caplog.text
    monkeypatch.setenv("HUB_PASSWORD", SECRET)
    assert await credentials.get() == Credential("ann", SECRET)


async def test_a_file_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Named in the log, and not to clients; going on without would look like something else."""
    with pytest.raises(Unauthorized) as absent:
        await Credentials(from_file("ann", tmp_path / "absent")).get()
    assert "absent cannot be read: No such file" in caplog.text
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + SECRET.encode())
    with pytest.raises(Unauthorized) as binary:
        await Credentials(from_file("ann", tmp_path / "binary")).get()
    assert "not UTF-8" in caplog.text
    assert SECRET not in f"{absent.value} {binary.value} {caplog.text}"
    assert str(tmp_path) not in f"{absent.value} {binary.value}"


async def test_it_is_not_read_for_each_request() -> None:
    """Once in a while is enough."""
    source = Changing(Credential("ann", "1"))
    credentials = Credentials(source)
    for _ in range(100):
        await credentials.get()
    assert source.reads == 1


async def test_it_is_read_again_after_a_refusal() -> None:
    """A password that was changed on both sides works at once; another's refusal changes nothing."""
    old, new = Credential("ann", "1"), Credential("ann", "2")
    source = Changing(old, new)
    credentials = Credentials(source)
    assert await credentials.get() == old
    assert await credentials.get(refused=new) == old
    assert source.reads == 1
    assert await credentials.get(refused=old) == new
    assert await credentials.get(refused=old) == new
    assert source.reads == 2


async def test_it_is_read_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed file is seen without a refusal."""
    monkeypatch.setattr("mirrorproxy.upstream.credentials._KEEP", 0.0)
    path = tmp_path / "password"
    path.write_text("1")
    credentials = Credentials(from_file("ann", path))
    assert await credentials.get() == Credential("ann", "1")
    path.write_text("2")
    assert await credentials.get() == Credential("ann", "2")


async def test_a_source_that_fails_later_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A file that is just being replaced is no reason to stop; it is told."""
    credential = Credential("ann", SECRET)
    credentials = Credentials(Changing(credential, Unreadable("the file is gone")))
    assert await credentials.get() == credential
    assert await credentials.get(refused=credential) == credential
    assert "the file is gone" in caplog.text
    assert SECRET not in caplog.text
