"""The example and the reference say what the program does: every key, every default, and what a reload takes over."""

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from docs import generate
from mirrorproxy.config import Settings, load
from mirrorproxy.config.keys import KEYS, SECTIONS, Pattern
from mirrorproxy.config.sources import VARIABLES
from mirrorproxy.config.values import MinRate

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "config.example.yaml"
REFERENCE = ROOT / "docs" / "configuration.md"
HOME = {"HOME": "/home/me"}

SETTINGS = [pattern for pattern in KEYS if pattern not in SECTIONS and pattern != ("upstreams",)]


def written(pattern: Pattern) -> str:
    """A key as the reference has it."""
    return ".".join("<registry>" if part == "*" else part for part in pattern)


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


def test_the_reference_is_what_the_code_says() -> None:
    """Every key, with its type, default, meaning and whether a reload takes it over."""
    try:
        made = generate.page(REFERENCE.read_text())
    except generate.Undocumented as missing:
        pytest.fail(str(missing), pytrace=False)
    assert made == REFERENCE.read_text(), "docs/configuration.md is not what the settings say: run `make docs`"
    keys = {row[0] for row in re.findall(r"(?m)^\| `([a-z_.<>]+)` \|(.*)$", made)}
    assert keys == {written(pattern) for pattern in SETTINGS} | {"upstreams.<registry>.credentials"}
    assert re.findall(r"(?m)^## (\w+)$", made) == [pattern[0] for pattern in KEYS if len(pattern) == 1]


def test_the_reference_s_examples_are_right() -> None:
    """Each is what settings of its type take."""
    examples = list(generate.examples())
    assert len(examples) > 20
    for annotation, text in examples:
        if (annotation, text) != (MinRate, "0") and text in ("0s", "0"):
            continue  # where 0 may be written, its meaning says
        TypeAdapter(annotation).validate_python(text)


def test_a_setting_without_words_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what to write, and where."""
    monkeypatch.setattr(generate, "_texts", lambda _: {})
    with pytest.raises(
        generate.Undocumented, match=r"server.listen has no description: .* in ServerSettings .*make docs"
    ):
        generate.page("")


def test_the_reference_s_variables_are_read() -> None:
    """Every MIRRORPROXY__ name in the reference is one."""
    named = set(re.findall(r"MIRRORPROXY__[A-Z_]+", REFERENCE.read_text()))
    assert named
    assert named <= set(VARIABLES)
