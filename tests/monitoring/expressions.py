"""What the dashboard asks Prometheus."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

_DASHBOARD = Path(__file__).parent.parent.parent / "monitoring" / "dashboard.json"


def expressions() -> Iterator[tuple[str, str]]:
    """The title of each panel with each of its expressions, as they are in the file."""
    for panel in json.loads(_DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def names(expression: str) -> set[str]:
    """The metrics of ours in an expression."""
    return set(re.findall(r"\bmirrorproxy_[a-z_]+", expression))
