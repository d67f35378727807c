"""Fixtures of the configuration's tests."""

from pathlib import Path

import pytest

from tests.config.support import Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a configuration into an own folder, which becomes the current one: messages begin with its bare name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("config.yaml").write_text(text)
        return Path("config.yaml")

    return write
