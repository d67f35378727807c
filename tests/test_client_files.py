"""The files of docs/clients.md: right by the parser of the client they are for, and in step with the program."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirrorproxy.config import load
from mirrorproxy.setup import DEFAULT, Mirror, hosts_toml
from tests.documents import ROOT, Snippet, snippet, snippets
from tests.k8s.manifests import tool

DOCUMENT = "docs/clients.md"
PARSERS: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}


def parsed(name: str) -> Any:
    """The first file of this name."""
    found = next(each for each in snippets(DOCUMENT) if each.names[:1] == (name,))
    return PARSERS[found.language](found.text)


@pytest.mark.parametrize("found", snippets(DOCUMENT), ids=lambda found: found.names[0])
def test_every_file_parses(found: Snippet) -> None:
    """By what its client takes: JSON, TOML or YAML; and the paragraph before says where it goes."""
    assert found.names
    assert PARSERS[found.language](found.text)


def test_all_clients_are_there() -> None:
    """Those that the README promises, each with a heading and a file."""
    text = (ROOT / DOCUMENT).read_text()
    headings = " ".join(re.findall(r"(?m)^## (.*)$", text))
    for client in ("Docker", "containerd", "Kubernetes", "podman", "CRI-O", "BuildKit", "k3s", "kind", "GitLab CI"):
        assert client in headings
    assert all("```" in section for section in text.split("\n## ")[1:])


@pytest.mark.parametrize("registry", [DEFAULT, "docker.io"])
def test_setup_writes_what_the_document_says(registry: str) -> None:
    """To the key."""
    written = tomllib.loads(hosts_toml(registry, Mirror("http://127.0.0.1:5000")))
    assert written == parsed(f"/etc/containerd/certs.d/{registry}/hosts.toml")


def test_registries_conf() -> None:
    """Each registry is its own prefix and its own location, and the mirror's ends with its name."""
    tables = parsed("/etc/containers/registries.conf.d/50-mirrorproxy.conf")["registry"]
    assert [table["prefix"] for table in tables] == ["docker.io", "ghcr.io"]
    for table in tables:
        assert table["location"] == table["prefix"]
        assert table["mirror"] == [{"location": f"127.0.0.1:5000/{table['prefix']}", "insecure": True}]


def test_buildkitd_toml() -> None:
    """Plain HTTP stands in the table of the mirror itself, which is where BuildKit looks."""
    tables = parsed("/etc/buildkit/buildkitd.toml")["registry"]
    mirrors = {name: table["mirrors"] for name, table in tables.items() if "mirrors" in table}
    assert mirrors == {name: [f"mirror.example.com:5000/{name}"] for name in ("docker.io", "ghcr.io")}
    assert tables["mirror.example.com:5000"] == {"http": True}


def test_gitlab_ci(tmp_path: Path) -> None:
    """It is a pipeline by GitLab's schema."""
    path = tmp_path / "gitlab-ci.yml"
    path.write_text(snippet(DOCUMENT, ".gitlab-ci.yml"))
    tool("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", path)


def test_every_address_is_one_of_two() -> None:
    """Those that the document says to put one's own for; and mirrorproxy listens on the first by default."""
    assert [str(address) for address in load(None, {"HOME": "/"}).settings.server.listen] == ["127.0.0.1:5000"]
    text = "".join(found.text for found in snippets(DOCUMENT))
    addresses = set(re.findall(r"[\w.]+:5\d\d\d\b", text))
    assert addresses == {"127.0.0.1:5000", "mirror.example.com:5000"}


@pytest.mark.parametrize("name", ["/etc/docker/daemon.json", "/etc/containerd/certs.d/_default/hosts.toml"])
def test_the_readme_says_the_same(name: str) -> None:
    """As far as it has the same files."""
    assert snippet("README.md", name) == snippet(DOCUMENT, name)


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(document: str) -> None:
    """To a file that is there, and to a heading in it."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / document).read_text()):
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", path.read_text())
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )
