"""`mirrorproxy healthcheck`: does the service on this machine answer? For HEALTHCHECK, scripts and timers."""

import argparse
import os

from mirrorproxy.cli.config_command import add_config_flag, add_override_flags, overrides_of
from mirrorproxy.config import ConfigError, load
from mirrorproxy.selfcheck import ask


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "healthcheck",
        help="ask the running service whether it is ready (exit 0 or 1)",
        description="Ask the service that these settings start whether it is ready, at the first address that it "
        "listens on, of server.metrics_listen if there is any. Exits with 0 where it is and with 1 where it is not, "
        "and says so in one line.",
    )
    parser.add_argument(
        "--live", action="store_true", help="ask whether it runs at all (/livez): so it does while it stops, too"
    )
    add_config_flag(parser)
    add_override_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask; 0 or 1, as Docker has no other status for health checks."""
    try:
        server = load(args.config, os.environ, overrides_of(args)).settings.server
    except ConfigError as error:
        print(f"the configuration cannot be used: {error.problems[0]}")
        return 1
    health = ask(server, "/livez" if args.live else "/readyz")
    print(health.text)
    return 0 if health.well else 1
