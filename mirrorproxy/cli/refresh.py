"""`mirrorproxy refresh`: ask upstream about a tag now."""

import argparse
from typing import Any

from mirrorproxy.cli import words
from mirrorproxy.cli.completion import completes_images
from mirrorproxy.cli.steering import add_common_flags, operate, print_row, run_command
from mirrorproxy.config import Settings


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "refresh",
        help="ask upstream about a tag now",
        description="Ask upstream about a tag now, however fresh the answer kept, and keep the manifest that it points"
        " at. Layers come when a client asks for them.",
    )
    completes_images(parser.add_argument("reference", metavar="IMAGE", help="alpine:3.20, ghcr.io/team/app"))
    add_common_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask; 3 when upstream has no such tag, 75 when it cannot be asked."""
    return run_command(args, _refresh)


def _refresh(args: argparse.Namespace, settings: Settings) -> bool:
    return operate(settings, "refresh", {"reference": args.reference}, print_row if args.json else _print)


def _print(row: dict[str, Any]) -> None:
    if row["before"] is None:
        state = f"is {row['digest']}, and was not cached"
    elif row["changed"]:
        state = f"is {row['digest']} now, and was {row['before']}"
    else:
        state = f"is {row['digest']} still"
    by = f", says {row['endpoint']}" if row["endpoint"] else ""
    fresh = words.until(row["fresh_until"])
    print(f"{row['name']} {state}{by}; " + ("asked again at each pull" if fresh == "expired" else f"fresh for {fresh}"))
