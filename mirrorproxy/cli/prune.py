"""`mirrorproxy prune`: remove what was not used for long."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from mirrorproxy.cli import words
from mirrorproxy.cli.confirming import add_flags, confirmed
from mirrorproxy.cli.steering import add_common_flags, operate, print_row, run_command
from mirrorproxy.cli.table import Column, Table
from mirrorproxy.config import Settings
from mirrorproxy.units import parse_duration, parse_size

T = TypeVar("T")

_COLUMNS = (Column("DIGEST", cut=True), Column("SIZE", right=True), Column("LAST USED", right=True))


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "prune",
        help="remove what was not used for long",
        description="Remove content that was not used for some time, or what was not used for longest until the rest"
        " takes no more than a size. Parts of downloads that did not end go first. What is pinned, being read or being"
        " pulled stays, and what was used in the last minute, unless --unused-for is less.",
    )
    parser.add_argument("--unused-for", type=_reads(parse_duration), metavar="7d", help="what was not used for so long")
    parser.add_argument("--to", type=_reads(parse_size), metavar="20GiB", help="the oldest, until this much is left")
    add_flags(parser)
    add_common_flags(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Remove it; 1 when the answer was no."""
    if args.unused_for is None and args.to is None:
        args.parser.error("say what is to go: --unused-for 7d, --to 20GiB, or both")
    return run_command(args, _prune)


def _prune(args: argparse.Namespace, settings: Settings) -> bool:
    def work(*, dry_run: bool) -> bool:
        arguments = {"unused_for": args.unused_for, "to": args.to, "dry_run": dry_run}
        if args.json:
            return operate(settings, "prune", arguments, print_row)
        freed: dict[str, Any] = {}
        with Table(sys.stdout, _COLUMNS) as table:

            def take(row: dict[str, Any]) -> None:
                if row["kind"] == "freed":
                    freed.update(row)
                elif dry_run:
                    part = " (part)" if row["kind"] == "part" else ""
                    table.row(row["digest"] + part, words.size(row["size"]), words.ago(row["last_used"]))

            well = operate(settings, "prune", arguments, take)
        would = "would be " if dry_run else ""
        print(f"{would}freed: {words.size(freed['size'])} in {words.count(freed['objects'], 'piece')}")
        return well

    return confirmed(args, work)


def _reads(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` as argparse wants it: with the words of the error."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read
