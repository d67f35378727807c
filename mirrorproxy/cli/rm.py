"""`mirrorproxy rm`: remove images from the cache."""

import argparse
from typing import Any

from mirrorproxy.cli import words
from mirrorproxy.cli.completion import completes_images
from mirrorproxy.cli.confirming import add_flags, confirmed
from mirrorproxy.cli.steering import add_common_flags, operate, print_row, run_command
from mirrorproxy.config import Settings


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "rm",
        help="remove images from the cache",
        description="Remove images from the cache: their tags, and what no other cached image needs. The next pull"
        " fetches them again. One that is pinned stays.",
    )
    completes_images(
        parser.add_argument("references", nargs="+", metavar="IMAGE", help="alpine:3.20, ghcr.io/a/b@sha256:...")
    )
    add_flags(parser)
    add_common_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Remove them; 1 when the answer was no or one is pinned, 3 when one is not cached: then nothing was removed."""
    return run_command(args, _remove)


def _remove(args: argparse.Namespace, settings: Settings) -> bool:
    take = print_row if args.json else _print

    def work(*, dry_run: bool) -> bool:
        return operate(settings, "rm", {"references": args.references, "dry_run": dry_run}, take)

    return confirmed(args, work)


def _print(row: dict[str, Any]) -> None:
    would = "would be " if row["dry_run"] else ""
    if row["kind"] == "freed":
        print(f"{would}freed: {words.size(row['size'])} in {words.count(row['objects'], 'piece')}")
        return
    stays = "; its content stays, another image needs it" if row["stays"] else ""
    print(f"{would}removed: {row['name']}{stays}")
