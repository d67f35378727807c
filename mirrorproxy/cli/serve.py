"""`mirrorproxy serve`: run the service until SIGTERM or SIGINT."""

import argparse
import os
import sys
from dataclasses import replace

from mirrorproxy.cli.config_command import add_config_flag, add_override_flags, overrides_of
from mirrorproxy.config import ConfigError, Loaded, check_files, load


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "serve",
        help="run the service",
        description="Serve until SIGTERM, which lets transfers finish first. SIGHUP loads the configuration anew.",
    )
    add_config_flag(parser)
    add_override_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve; 78 (EX_CONFIG) when the configuration cannot be used, 69 (EX_UNAVAILABLE) when it cannot start."""
    from mirrorproxy.service import address_of, serve, take_over  # aiohttp takes 0.2 s: not for the other commands

    try:
        inherited = take_over(os.environ)
    except OSError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    overrides = replace(overrides_of(args), inherited=tuple(map(address_of, inherited)))

    def reload() -> Loaded:
        loaded = load(args.config, os.environ, overrides)
        if problems := check_files(loaded.settings):
            raise ConfigError(problems)
        return loaded

    try:
        loaded = reload()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    return serve(loaded, reload, inherited)
