"""`mirrorproxy du`: what registries and repositories take on the disk."""

import argparse
import sys
from typing import Any

from mirrorproxy.cli import words
from mirrorproxy.cli.steering import add_common_flags, operate, print_row, run_command
from mirrorproxy.cli.table import Column, Table
from mirrorproxy.config import Settings

_COLUMNS = (
    Column("WHERE", cut=True),
    Column("OWN", right=True, leave=3),
    Column("SHARED", right=True, leave=2),
    Column("SIZE", right=True),
    Column("PIECES", right=True, leave=1),
)
_NAMES = {"other": "(of no repository)", "partial": "(partial downloads)", "total": "TOTAL"}


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "du",
        help="tell what registries and repositories take on the disk",
        description="Tell what each repository and each registry takes on the disk by itself (own) and together with"
        " others (shared). In the total every piece counts once.",
    )
    add_common_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tell it."""
    return run_command(args, _tell)


def _tell(args: argparse.Namespace, settings: Settings) -> bool:
    if args.json:
        return operate(settings, "du", {}, print_row)
    with Table(sys.stdout, _COLUMNS) as table:
        return operate(settings, "du", {}, lambda usage: table.row(*_cells(usage)))


def _cells(usage: dict[str, Any]) -> tuple[str, ...]:
    name = _NAMES.get(usage["scope"]) or (f"{usage['name']} (all)" if usage["scope"] == "registry" else usage["name"])
    sizes = (words.size(usage[each]) for each in ("own", "shared", "size"))
    return (name, *sizes, f"{usage['objects']:,}")
