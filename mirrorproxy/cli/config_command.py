"""`mirrorproxy config check|show`: is the configuration right, and what does it come to?"""

import argparse
import os
import sys
from pathlib import Path

from mirrorproxy.config import ConfigError, Loaded, Overrides, Settings, check_files, load, to_yaml

_CONFIG_HELP = "the configuration (default: the file that $MIRRORPROXY_CONFIG names, else built-in settings)"


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser("config", help="check a configuration, or show what it comes to")
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", metavar="check|show", required=True)
    check = actions.add_parser("check", help="tell everything that is wrong with a configuration (exit 78), or ok")
    check.add_argument("config", nargs="?", type=Path, metavar="FILE", default=_default_config(), help=_CONFIG_HELP)
    show = actions.add_parser("show", help="print the settings in effect as YAML, with secrets masked")
    add_config_flag(show)
    for action in (check, show):
        add_override_flags(action)


def _default_config() -> Path | None:
    named = os.environ.get("MIRRORPROXY_CONFIG")
    return Path(named) if named else None


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the configuration file."""
    parser.add_argument("--config", type=Path, metavar="FILE", default=_default_config(), help=_CONFIG_HELP)


def add_override_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that win over file and environment."""
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="host:port, [IPv6]:port or unix:/path to listen on; may be given more than once",
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="where the cache is kept")
    parser.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="ask registry NAME at URL; may be given more than once, also for one registry: tried in order",
    )


def overrides_of(args: argparse.Namespace) -> Overrides:
    """What the flags of `add_override_flags` say."""
    return Overrides(listen=tuple(args.listen), cache_dir=args.cache_dir, upstreams=tuple(args.upstream))


def run(args: argparse.Namespace) -> int:
    """Do what was asked; the exit code is 78 (EX_CONFIG) when the configuration cannot be used."""
    try:
        loaded = load(args.config, os.environ, overrides_of(args))
        if args.action == "check" and (problems := check_files(loaded.settings)):
            raise ConfigError(problems)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(_summary(loaded) if args.action == "check" else to_yaml(loaded.settings), end="")
    return os.EX_OK


def _summary(loaded: Loaded) -> str:
    settings = loaded.settings
    lines = [
        f"ok: {loaded.path or 'built-in settings'}",
        f"  listens on {', '.join(map(str, settings.server.listen))} ({'HTTPS' if settings.server.tls else 'HTTP'})",
        f"  keeps at most {settings.cache.max_size} in {settings.cache.directory}, and {settings.cache.min_free} free",
        f"  serves {', '.join(_registries(settings))}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _registries(settings: Settings) -> list[str]:
    return [f"{name} (default)" if upstream.default else name for name, upstream in settings.upstreams.items()]
