"""`mirrorproxy verify`: is what the cache holds what it should be?"""

import argparse
from typing import Any

from mirrorproxy.cli import words
from mirrorproxy.cli.steering import add_common_flags, operate, print_row, run_command
from mirrorproxy.config import Settings

_SHOWN = 3  # images


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "verify",
        help="check all that is in the cache",
        description="Read and hash all content, and compare manifests, tags, parts of downloads and the accounting with"
        " what is on the disk; also while the service runs. The exit code is 0 when all is right or was repaired, 1"
        " when something is wrong.",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="put wrong content into quarantine and fetch it again, and drop wrong records, which the next pull renews",
    )
    add_common_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check it."""
    return run_command(args, _verify)


def _verify(args: argparse.Namespace, settings: Settings) -> bool:
    return operate(settings, "verify", {"repair": args.repair}, print_row if args.json else _print)


def _print(row: dict[str, Any]) -> None:
    if row["kind"] == "incomplete":  # as many as there are images of which not all platforms were pulled
        return
    if row["kind"] == "stranger":
        print(f"file {row['name']} is no content; look what it is, and remove it")
        return
    if row["kind"] == "finding":
        images = row["images"]
        more = f" and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
        repaired = f" (repaired{f', {became}' if (became := row['became']) else ''})" if row["repaired"] else ""
        of = f" [{', '.join(images[:_SHOWN])}{more}]" if images else ""
        print(f"{row['what']} {row['name']} {row['problem']}{of}{repaired}")
        return
    blobs, manifests = words.count(row["blobs"], "piece"), words.count(row["manifests"], "manifest")
    tags, parts = words.count(row["tags"], "tag"), words.count(row["parts"], "part")
    print(
        f"{blobs} of content ({words.size(row['bytes'])}), {manifests} ({row['incomplete']:,} not complete), "
        f"{tags} ({row['absent']:,} evicted), {parts}"
    )
    again = f", {words.count(row['refetched'], 'piece')} fetched again" if row["refetched"] else ""
    print(
        f"{row['wrong']:,} wrong, {row['repaired']:,} of them repaired{again}" if row["wrong"] else "nothing is wrong"
    )
