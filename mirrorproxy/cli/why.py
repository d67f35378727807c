"""`mirrorproxy why`: what is cached of an image, where it came from, and what a pull would do."""

import argparse
from typing import Any

from mirrorproxy.cli import words
from mirrorproxy.cli.completion import completes_images
from mirrorproxy.cli.steering import add_common_flags, operate, print_row, run_command
from mirrorproxy.config import Settings


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "why",
        help="tell the story of an image: what is cached, from where, how fresh, what a pull would do",
        description="Tell what is cached of an image and from which endpoint it came, how fresh its tag is, what a pull"
        " would do now, and what could still be pulled if the upstream vanished.",
    )
    completes_images(parser.add_argument("reference", metavar="IMAGE", help="alpine:3.20, ghcr.io/a/b@sha256:..."))
    add_common_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tell it; 3 when it is not cached."""
    return run_command(args, _tell)


def _tell(args: argparse.Namespace, settings: Settings) -> bool:
    return operate(settings, "why", {"reference": args.reference}, print_row if args.json else _print)


def _print(row: dict[str, Any]) -> None:
    print(row["name"])
    for head, text in _lines(row):
        print(f"  {head:<14} {text}")


def _lines(row: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("digest", row["digest"]), ("media type", row["media_type"]), ("on the disk", words.size(row["size"]))]
    for each in row["platforms"]:
        partial = each["state"] == "partial"
        lacks = f", {each['missing']} missing ({words.size(each['missing_bytes'])})" if partial else ""
        here = "" if each["state"] == "absent" else f", {words.size(each['size'])}"
        lines.append(("platform", f"{each['platform']}: {each['state']}{here}{lacks}"))
    if row["begun_bytes"] or row["downloading"]:
        now = f"; {words.count(row['downloading'], 'download')} running now" if row["downloading"] else ""
        lines.append(("begun", f"{words.size(row['begun_bytes'])} of what is missing are here{now}"))
    lines.append(("came from", ", ".join(row["endpoints"]) or "not known"))
    if row["checked"] is not None:
        by = f" by {row['tag_endpoint']}" if row["tag_endpoint"] else ""
        state = f"fresh for {words.until(row['fresh_until'])}" if row["fresh"] else "no longer fresh"
        lines.append(("tag", f"checked {words.ago(row['checked'])}{by}, {state}"))
    return [
        *lines,
        ("pinned", _pinned(row)),
        ("last used", words.ago(row["last_used"])),
        ("a pull now", row["pull_words"]),
        ("upstream gone", row["survives_words"]),
    ]


def _pinned(row: dict[str, Any]) -> str:
    if row["pinned_for"]:
        return f"{', '.join(row['pinned_for'])}; other platforms may go"
    return "yes, it stays" if row["pinned"] else "no"
