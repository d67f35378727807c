"""`mirrorproxy pin`, `unpin` and `pins`: images that stay in the cache."""

import argparse
import sys
from typing import Any

from mirrorproxy.cli.completion import completes_images
from mirrorproxy.cli.steering import add_common_flags, operate, print_row, run_command
from mirrorproxy.cli.table import Column, Table
from mirrorproxy.config import Settings

_COLUMNS = (Column("IMAGE", cut=True), Column("PLATFORM", leave=2), Column("BY", leave=1), Column("CACHED", cut=True))
_DIGEST = 19  # characters: the algorithm and twelve digits


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the program's."""
    pin = subparsers.add_parser(
        "pin",
        help="keep an image in the cache, whatever happens",
        description="Keep an image, with all that it needs: it is not evicted, pruned or removed. It may be pulled"
        " later; what of it is missing is told.",
    )
    unpin = subparsers.add_parser("unpin", help="let a pinned image go again")
    for parser, action in ((pin, "pin"), (unpin, "unpin")):
        completes_images(parser.add_argument("reference", metavar="IMAGE", help="alpine:3.20, ghcr.io/a/b@sha256:..."))
        parser.add_argument("--platform", metavar="OS/ARCH", help="linux/amd64: this one alone (default: all)")
        add_common_flags(parser)
        parser.set_defaults(run=run, action=action)
    pins = subparsers.add_parser("pins", help="list the pinned images, and what is missing of them")
    add_common_flags(pins)
    pins.set_defaults(run=run, action="pins")


def run(args: argparse.Namespace) -> int:
    """Do it; 1 when one to be unpinned is pinned by the configuration, 3 when it is not pinned."""
    return run_command(args, _list if args.action == "pins" else _change)


def _change(args: argparse.Namespace, settings: Settings) -> bool:
    arguments = {"reference": args.reference, "platform": args.platform}
    if args.json:
        return operate(settings, args.action, arguments, print_row)
    return operate(settings, args.action, arguments, _print_pinned if args.action == "pin" else _print_unpinned)


def _print_pinned(row: dict[str, Any]) -> None:
    print(f"pinned: {_name(row)}")
    if row["configured"]:
        print("the configuration pins it: it stays until it is taken out of `pins:`", file=sys.stderr)
    if not row["complete"]:
        print(f"it is not complete, a pull would fetch {_missing(row)}", file=sys.stderr)
    for near in row["near"]:
        print(f"  did you mean {near}", file=sys.stderr)


def _print_unpinned(row: dict[str, Any]) -> None:
    print(f"unpinned: {_name(row)}")


def _list(args: argparse.Namespace, settings: Settings) -> bool:
    if args.json:
        return operate(settings, "pins", {}, print_row)
    with Table(sys.stdout, _COLUMNS) as table:
        well = operate(settings, "pins", {}, lambda row: table.row(*_cells(row)))
    if not table.rows:
        print("nothing is pinned", file=sys.stderr)
    return well


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    by = "configuration" if row["configured"] else "command"
    return row["name"], row["platform"] or "all", by, "complete" if row["complete"] else f"lacks {_missing(row)}"


def _name(row: dict[str, Any]) -> str:
    return f"{row['name']} ({row['platform']})" if row["platform"] else str(row["name"])


def _missing(row: dict[str, Any]) -> str:
    missing = row["missing"]
    if len(missing) > 1:
        return f"{len(missing)} pieces"
    return missing[0][:_DIGEST] if missing[0].startswith("sha") else str(missing[0])
