"""Nothing is deleted without `--yes`, an answer on a terminal, or `--dry-run`, which deletes nothing."""

import argparse
import sys
from typing import Protocol

from mirrorproxy.cli.steering import Stop


class Work(Protocol):
    """Deletes, or only tells what would be deleted; whether all is as it should be."""

    def __call__(self, *, dry_run: bool) -> bool: ...


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that deletes."""
    parser.add_argument("--dry-run", action="store_true", help="tell what would go, and remove nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def confirmed(args: argparse.Namespace, work: Work) -> bool:
    """Do the work as the flags say; without any, show what would go, and ask. Raises `Stop` where it may not be."""
    if args.dry_run:
        return work(dry_run=True)
    if not args.yes:
        if not sys.stdin.isatty():
            print("mirrorproxy: nothing is removed without an answer: add --yes, or --dry-run to see", file=sys.stderr)
            raise Stop(2)
        work(dry_run=True)
        print("Remove this? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("mirrorproxy: nothing was removed", file=sys.stderr)
            raise Stop(1)
    return work(dry_run=False)
