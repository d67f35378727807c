"""The package is built in floors; a module imports only from floors below its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "mirrorproxy"
FLOORS = [  # bottom first; the modules of one floor do not know each other
    {"errors", "heap", "logs", "patterns", "tracing", "units"},
    {"names", "spans", "tasks"},
    {"manifests"},
    {"registry", "config"},
    {"metrics", "selfcheck"},
    {"store", "upstream"},
    {"fill"},
    {"cache", "policy", "unified", "retention", "audit"},
    {"admin"},
    {"web", "setup"},
    {"listening"},
    {"workers"},
    {"service"},
    {"cli"},
]
FLOOR = {name: height for height, floor in enumerate(FLOORS) for name in floor}
ONLY_IN = {
    "aiohttp": {"upstream", "web", "listening", "service", "cli"},
    "aiocache": {"upstream"},
    "diskcache": {"store"},
    "yaml": {"config", "cli"},
    "pydantic": {"config"},
    "opentelemetry": {"tracing"},
    "prometheus_client": {"metrics", "web", "workers"},
}
MODULES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The absolute dotted name of everything that `path` imports."""
    package = ("mirrorproxy", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{stem}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    """Every import of our own points to a lower floor; outside libraries stay where they belong."""
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path):
        top, *rest = name.split(".")
        assert own in ONLY_IN.get(top, {own}), f"{own} must not know {top}"
        if top == "mirrorproxy" and rest and rest[0] in FLOOR and rest[0] != own:
            assert FLOOR[rest[0]] < FLOOR.get(own, 99), f"{own} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_stands_on_a_floor(path: Path) -> None:
    """A new module says where it belongs."""
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in FLOOR or own in {"__init__", "__main__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    """A file that passes 400 lines is split by role."""
    assert len(path.read_text().splitlines()) <= 400
