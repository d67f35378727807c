"""What the tests of the configuration share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorproxy.config import ConfigError, Overrides, load

HOME = {"HOME": "/home/me"}

Write = Callable[[str], Path]


def problems(path: Path | None, environ: dict[str, str] | None = None, overrides: Overrides | None = None) -> list[str]:
    """What is wrong with a configuration that must be wrong."""
    with pytest.raises(ConfigError) as caught:
        load(path, HOME | (environ or {}), overrides)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return [str(problem) for problem in caught.value.problems]
