"""`mirrorproxy ls`: the images in the cache."""

import argparse
import sys
from typing import Any

from mirrorproxy.cli import words
from mirrorproxy.cli.steering import add_common_flags, operate, print_row, run_command
from mirrorproxy.cli.table import Column, Table
from mirrorproxy.config import Settings

_COLUMNS = (
    Column("IMAGE", cut=True),
    Column("PLATFORMS", cut=True),
    Column("CACHED"),
    Column("OWN", right=True),
    Column("SHARED", right=True),
    Column("LAST USED", right=True),
    Column("FRESH FOR", right=True),
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
    """List them."""
    return run_command(args, _list)


def _list(args: argparse.Namespace, settings: Settings) -> bool:
    arguments = {"pattern": args.pattern}
    if args.quiet:
        return operate(settings, "names", arguments, print_row if args.json else lambda row: print(row["name"]))
    if args.json:
        return operate(settings, "ls", arguments, print_row)
    with Table(sys.stdout, _COLUMNS) as table:
        well = operate(settings, "ls", arguments, lambda image: table.row(*_cells(image)))
    if not table.rows:
        matching = "" if args.pattern is None else f" that matches {args.pattern!r}"
        print(f"nothing is cached{matching}", file=sys.stderr)
    return well


def _cells(image: dict[str, Any]) -> tuple[str, ...]:
    name = image["name"] if image["tag"] else image["name"][: -len(image["digest"])] + image["digest"][:_DIGEST]
    here = [each for each in image["platforms"] if each["state"] != "absent"]
    state = "complete" if image["complete"] else "partial"
    return (
        name,
        ",".join(each["platform"] or "?" for each in here),
        f"{state}, pinned" if image["pinned"] else state,
        words.size(image["own"]),
        words.size(image["shared"]),
        words.ago(image["last_used"]),
        words.until(image["fresh_until"]) if image["tag"] else "ever",
    )
