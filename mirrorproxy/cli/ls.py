"""`mirrorproxy ls`: the images in the cache."""

import argparse
import sys
from typing import Any

from mirrorproxy.cli import words
from mirrorproxy.cli.steering import NOT_FOUND, Stop, add_common_flags, operate, print_row, run_command
from mirrorproxy.cli.table import Column, Table
from mirrorproxy.config import Settings

_COLUMNS = (
    Column("IMAGE", cut=True),
    Column("PLATFORMS", cut=True, leave=5),
    Column("CACHED", cut=True),
    Column("OWN", right=True, leave=2),
    Column("SHARED", right=True, leave=1),
    Column("LAST USED", right=True, leave=3),
    Column("FRESH FOR", right=True, leave=4),
)
_DIGEST = 19  # characters: the algorithm and twelve digits


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "ls",
        help="list the images in the cache",
        description="List the images in the cache: what of them is there, what they take on the disk by themselves and"
        " together with others, when they were last used, and for how long their tags are believed.",
    )
    parser.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        help="a part of a name, or a whole one with * (anything but a slash) or ** (anything): alpine, ghcr.io/**:v1.*",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="names of tags alone; quick")
    add_common_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List them; 3 when a pattern matches none."""
    return run_command(args, _list)


def _list(args: argparse.Namespace, settings: Settings) -> bool:
    arguments = {"pattern": args.pattern}
    if args.quiet or args.json:
        rows = 0

        def take(row: dict[str, Any]) -> None:
            nonlocal rows
            rows += 1
            if args.json:
                print_row(row)
            else:
                print(row["name"])

        well = operate(settings, "names" if args.quiet else "ls", arguments, take)
        return _found(args, rows, well=well)
    with Table(sys.stdout, _COLUMNS) as table:
        well = operate(settings, "ls", arguments, lambda image: table.row(*_cells(image)))
    if not table.rows and args.pattern is None:
        print("nothing is cached", file=sys.stderr)
    return _found(args, table.rows, well=well)


def _found(args: argparse.Namespace, rows: int, *, well: bool) -> bool:
    """Nothing in the cache is called as the pattern says: that is said. Raises `Stop`."""
    pattern = args.pattern
    if rows or pattern is None:
        return well
    print(f"nothing is cached that matches {pattern!r}", file=sys.stderr)
    if "*" in pattern and "**" not in pattern:
        wider = pattern.replace("*", "**")
        has_registry = "." in wider.partition("/")[0] or wider.startswith(("**", "localhost"))
        whole = wider if has_registry else f"**{wider}"
        print(
            f"  a whole name is meant, with its registry, and * is anything but a slash: try {whole}", file=sys.stderr
        )
    raise Stop(NOT_FOUND)


def _cells(image: dict[str, Any]) -> tuple[str, ...]:
    name = image["name"] if image["tag"] else image["name"][: -len(image["digest"])] + image["digest"][:_DIGEST]
    here = [each for each in image["platforms"] if each["state"] != "absent"]
    state = "complete" if image["complete"] else "partial"
    return (
        name,
        ",".join(each["platform"] or "?" for each in here),
        f"{state}, {words.pinned(image)}" if image["pinned"] else state,
        words.size(image["own"]),
        words.size(image["shared"]),
        words.ago(image["last_used"]),
        words.until(image["fresh_until"]) if image["tag"] else "ever",
    )
