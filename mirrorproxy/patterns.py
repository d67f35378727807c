"""Patterns of names: `*` stands for anything but a slash, `**` for anything."""

import re


def expression(pattern: str) -> str:
    """The pattern as a regular expression, to be matched in full."""
    parts = re.split(r"(\*\*|\*)", pattern)
    return "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
