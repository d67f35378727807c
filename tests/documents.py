"""The files that documents tell users to write, taken out of them: what the tests use is what users copy."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(
    r"(?P<before>[^\n]+(?:\n[^\n]+)*)\n\n```(?P<language>[a-z]+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_PATH = re.compile(r"`((?:[~.]?/|\.)?[\w./~-]+\.(?:json|toml|yaml|yml|conf))`")


class Snippet(NamedTuple):
    """A fenced block, and the names of files in the paragraph before it."""

    names: tuple[str, ...]
    language: str
    text: str


def snippets(document: str) -> list[Snippet]:
    """Every fenced block of a document (`docs/clients.md`) that follows a paragraph, in order."""
    found = _BLOCK.finditer((ROOT / document).read_text())
    return [Snippet(tuple(_PATH.findall(each["before"])), each["language"], each["text"]) for each in found]


def snippet(document: str, name: str) -> str:
    """The first block under a paragraph that names this file first."""
    return next(each.text for each in snippets(document) if each.names[:1] == (name,))
