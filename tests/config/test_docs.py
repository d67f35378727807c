"""The example and the reference say what the program does: every key, every default, and what a reload takes over."""

import re
from pathlib import Path

import pytest

from mirrorproxy.config import Settings, dump, load
from mirrorproxy.config.changes import NEEDS_RESTART
from mirrorproxy.config.keys import KEYS, SECTIONS, Pattern
from mirrorproxy.config.sources import VARIABLES

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "config.example.yaml"
REFERENCE = ROOT / "docs" / "configuration.md"
HOME = {"HOME": "/home/me"}

SETTINGS = [pattern for pattern in KEYS if pattern not in SECTIONS and pattern != ("upstreams",)]


def written(pattern: Pattern) -> str:
    """A key as the reference has it."""
    return ".".join("<registry>" if part == "*" else part for part in pattern)


def rows() -> dict[str, list[str]]:
    """The reference's tables of keys: type, default, meaning, reload by key."""
    cells = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in REFERENCE.read_text().splitlines()
    ]
    return {row[0].strip("`"): row[1:] for row in cells if len(row) == 5 and row[0].startswith("`")}


@pytest.fixture(scope="module")
def defaults() -> Settings:
    """The settings of a machine with nothing set."""
    return load(None, HOME).settings


def test_the_example_is_the_defaults(defaults: Settings) -> None:
    """It loads, without a warning, and changes nothing."""
    loaded = load(EXAMPLE, HOME)
    assert loaded.settings == defaults
    assert loaded.warnings == []


def test_the_example_s_commented_settings_load_too(tmp_path: Path, defaults: Settings) -> None:
    """With every `#key: value` taken in, all of it is still right, and each of them changes something."""
    text, taken_in = re.subn(r"(?m)^( *)#(?=[a-z_]+: )", r"\1", EXAMPLE.read_text())
    path = tmp_path / "config.yaml"
    path.write_text(text)
    (tmp_path / "docker-hub.password").write_text("secret")
    (tmp_path / "docker-hub.password").chmod(0o600)
    settings = load(path, HOME).settings
    assert taken_in == 5
    assert settings.server.tls
    assert settings.cache.directory != defaults.cache.directory
    hub = settings.upstreams["docker.io"]
    assert hub.proxy
    assert hub.ca_file
    assert hub.credentials


@pytest.mark.parametrize("pattern", [pattern for pattern in KEYS if pattern != ("upstreams",)], ids=written)
def test_the_example_has_every_key(pattern: Pattern) -> None:
    """Set or commented out."""
    assert re.search(rf"\b{pattern[-1]}: ", EXAMPLE.read_text() + " ") or re.search(
        rf"(?m)^ *{pattern[-1]}:$", EXAMPLE.read_text()
    )


def test_the_reference_has_every_key_and_no_other() -> None:
    """Sections are headings, everything else a row."""
    assert set(rows()) == {written(pattern) for pattern in SETTINGS} | {"upstreams.<registry>.credentials"}
    headings = re.findall(r"(?m)^## (\w+)$", REFERENCE.read_text())
    assert headings == [pattern[0] for pattern in KEYS if len(pattern) == 1]


@pytest.mark.parametrize("pattern", SETTINGS, ids=written)
def test_the_reference_s_defaults_are_the_program_s(pattern: Pattern, defaults: Settings) -> None:
    """As `config show` writes them, for a registry that is not the default one."""
    default = rows()[written(pattern)][1].split("`")
    value: object = dump(defaults)
    for part in pattern:
        value = value.get("ghcr.io" if part == "*" else part) if isinstance(value, dict) else None
    match value:
        case None:
            assert default == [""]
        case bool():
            assert default[1] == str(value).lower()
        case [single]:
            assert default[1] == str(single).replace("ghcr.io", "<registry>")
        case _ if pattern == ("cache", "directory"):
            assert default[3] == str(value).replace(HOME["HOME"], "~")
        case _:
            assert default[1] == str(value)


@pytest.mark.parametrize("pattern", SETTINGS, ids=written)
def test_the_reference_says_what_a_reload_takes_over(pattern: Pattern) -> None:
    """TLS files are taken over, TLS itself waits: the row says so."""
    row = rows()[written(pattern)]
    assert row[-1] == ("restart" if pattern in NEEDS_RESTART else "yes")
    if pattern == ("server", "tls", "cert"):
        assert "switching TLS on or off takes a restart" in row[2]


def test_the_reference_s_variables_are_read() -> None:
    """Every MIRRORPROXY__ name in the reference is one."""
    named = set(re.findall(r"MIRRORPROXY__[A-Z_]+", REFERENCE.read_text()))
    assert named
    assert named <= set(VARIABLES)
