"""`mirrorproxy serve`: run the service until SIGTERM or SIGINT."""

import argparse
import os
import sys
from pathlib import Path

from mirrorproxy.cli.config_command import add_override_flags, overrides_of
from mirrorproxy.config import ConfigError, Loaded, check_files, load


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "serve",
        help="run the service",
        description="Serve until SIGTERM, which lets transfers finish first. SIGHUP loads the configuration anew.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration (default: built-in settings)")
    add_override_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve; 78 (EX_CONFIG) when the configuration cannot be used, 1 when the service cannot start."""

    def reload() -> Loaded:
        loaded = load(args.config, os.environ, overrides_of(args))
        if problems := check_files(loaded.settings):
            raise ConfigError(problems)
        return loaded

    try:
        loaded = reload()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    from mirrorproxy.service import serve  # aiohttp takes 0.2 s to import: not for the other commands

    return serve(loaded, reload)
