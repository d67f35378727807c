"""What stays and what goes, as it is written."""

from pathlib import Path

import yaml

from mirrorproxy.config import PinnedImage, RetentionRule, dump, load
from mirrorproxy.units import Share
from tests.config.support import HOME, Write, problems

FILE = """
cache: {high_watermark: 90%, low_watermark: 80.5%}
retention:
  - {match: "ghcr.io/team/*:pr-*", unused_for: 30d, keep: 10}
  - {match: "registry.example.com:5000/**", keep: 3}
pins:
  - nginx
  - {image: "ghcr.io/team/app:1", platform: linux/arm64}
"""
RULES = (
    RetentionRule(match="ghcr.io/team/*:pr-*", unused_for=30 * 86_400.0, keep=10),
    RetentionRule(match="registry.example.com:5000/**", keep=3),
)
PINS = (
    PinnedImage(image="docker.io/library/nginx:latest"),
    PinnedImage(image="ghcr.io/team/app:1", platform="linux/arm64"),
)


def test_marks_rules_and_pins(write: Write, tmp_path: Path) -> None:
    """Names are written in full; what is shown loads again."""
    settings = load(write(FILE), HOME).settings
    assert (settings.cache.high_watermark, settings.cache.low_watermark) == (Share(90), Share(80.5))
    assert (settings.retention, settings.pins) == (RULES, PINS)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(dump(settings)))
    assert load(again, HOME).settings == settings


def test_from_the_environment() -> None:
    """As JSON; pins also as names with commas between."""
    environ = {
        "MIRRORPROXY__RETENTION": '[{"match": "registry.example.com:5000/**", "keep": 3}]',
        "MIRRORPROXY__PINS": "nginx, ghcr.io/team/app:1",
    }
    settings = load(None, HOME | environ).settings
    assert settings.retention == RULES[1:]
    assert [pin.image for pin in settings.pins] == ["docker.io/library/nginx:latest", "ghcr.io/team/app:1"]
    environ["MIRRORPROXY__PINS"] = '[{"image": "ghcr.io/team/app:1", "platform": "linux/arm64"}]'
    assert load(None, HOME | environ).settings.pins == PINS[1:]


def test_every_mistake_is_told_at_once(write: Write) -> None:
    """With its line, and with what to write instead."""
    path = write("""
retention:
  - match: "UPPER case"
    unused_for: 30d
  - match: "**"
  - {match: "**", keep: 0}
pins:
  - "not an image"
  - {image: nginx, platform: amd64}
  - {image: nginx, plattform: linux/amd64}
""")
    found = problems(path)
    assert [each.split(": ")[1] for each in found] == [
        "retention[0].match",
        "retention[1]",
        "retention[2].keep",
        "pins[0].image",
        "pins[1].platform",
        "pins[2].plattform",
    ]
    for text, words in zip(
        found,
        [
            "is not a pattern of images; write ghcr.io/team/*",
            "says nothing; add unused_for: 30d, or keep: 10",
            "write a number from 1",
            "is not the name of an image; write docker.io/library/nginx:1.27",
            "is not a platform; write linux/amd64",
            "unknown key; did you mean platform?",
        ],
        strict=True,
    ):
        assert words in text


def test_the_low_mark_is_below_the_high_one(write: Write) -> None:
    """Else eviction would not end."""
    (problem,) = problems(write("cache: {low_watermark: 99%}"))
    assert problem.endswith("cache.low_watermark: the low one, 99%, must be less than the high one, 98%; change one")


def test_rules_that_match_nothing_get_a_warning(write: Write) -> None:
    """Without a registry, of one that is no upstream, and what an earlier rule has; `*` may stand for registries."""
    matches = ["team/*", "example.com/a", "*", "**", "**:pr-*", "*.io/a/*", "ghcr.io/a/*", "ghcr.io/a/*"]
    rules = "".join(f"  - {{match: '{match}', keep: 3}}\n" for match in matches)
    loaded = load(write(f"retention:\n{rules}"), HOME)
    found = [str(each).split(": ") for each in loaded.warnings]
    assert [each[1] for each in found] == [f"retention[{position}].match" for position in (0, 1, 2, 7)]
    assert "write the registry first (ghcr.io/team/*)" in found[0][2]
    assert "is never asked" in found[3][2]


def test_no_other_wildcards(write: Write) -> None:
    """`[12]` would stand for itself, which no name has; the registry may be an address."""
    for match in ("ghcr.io/team/app-[12]", "ghcr.io/team/[", "ghcr.io/team/ap?"):
        (problem,) = problems(write(f"retention: [{{match: '{match}', keep: 1}}]"))
        assert "nothing but * and ** stands for anything else" in problem
    assert load(write("retention: [{match: '[::1]:5000/team/*', keep: 1}]"), HOME).settings.retention


def test_a_cache_for_nothing_gets_a_warning(write: Write) -> None:
    """A unit that was mistaken."""
    (warning,) = map(str, load(write("cache: {max_size: 1kB}"), HOME).warnings)
    assert "hardly anything is kept" in warning
    assert not load(write("cache: {max_size: 16MiB}"), HOME).warnings


def test_a_pin_of_no_upstream_gets_a_warning(write: Write) -> None:
    """It could never be complete."""
    loaded = load(write("pins: [example.com/a:1, nginx]\n"), HOME)
    (warning,) = map(str, loaded.warnings)
    assert "example.com is not one of the upstreams" in warning
