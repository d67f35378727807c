"""The command line: one file a command, no logic of its own."""

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from mirrorproxy import __version__

_COMMANDS = (  # in the order of --help, a line each
    "serve",
    "ls",
    "du",
    "why",
    "rm",
    "prune",
    "pin",
    "refresh",
    "verify",
    "config_command",
    "setup_command",
    "healthcheck",
    "demo",
    "completion",
)


def program() -> argparse.ArgumentParser:
    """The command line with all commands."""
    parser = argparse.ArgumentParser(
        prog="mirrorproxy",
        description="A pull-through cache for container images, for slow, lossy, metered and restricted networks.",
    )
    parser.add_argument("--version", action="version", version=f"mirrorproxy {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in _COMMANDS:
        import_module(f"mirrorproxy.cli.{name}").add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the process's exit status: 0 well, 1 not, 2 wrong words, 78 wrong configuration (EX_CONFIG), 130
    interrupted. Those that see and steer a cache have more: see `steering`.
    """
    try:
        parsed = program().parse_args(sys.argv[1:] if arguments is None else arguments)
        status: int = parsed.run(parsed)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status
