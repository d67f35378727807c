"""What the commands that see and steer a cache have in common: flags, who does the work, exit codes."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from threading import Event as Pause
from time import monotonic
from typing import Any

from mirrorproxy.cli.config_command import add_config_flag
from mirrorproxy.cli.progress import ProgressBar
from mirrorproxy.config import ConfigError, Overrides, Settings, load
from mirrorproxy.errors import MirrorproxyError
from mirrorproxy.store.owner import InUse
from mirrorproxy.web.admin_client import NoService, ask

NOT_FOUND = 3
"""The exit code for "nothing cached is called so"."""

_CODES = {"invalid": 2, "not-found": NOT_FOUND, "temporary": os.EX_TEMPFAIL, "refused": 1, "fault": os.EX_SOFTWARE}
_PATIENCE = 10.0  # seconds for another command to leave the directory, or for a service to start in it

Take = Callable[[dict[str, Any]], None]


class Stop(Exception):
    """The command ends with this code; what there was to say has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add what all these commands have."""
    add_config_flag(parser)
    parser.add_argument("--cache-dir", metavar="DIR", help="the cache directory (default: the configuration's)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")


def run_command(args: argparse.Namespace, work: Callable[[argparse.Namespace, Settings], bool]) -> int:
    """Run `work` with the settings in effect, which says whether all is as it should be; the exit code.

    0 it is; 1 it is not, or was refused; 2 wrong words; 3 nothing cached is called so; 75 (EX_TEMPFAIL) not now, but
    another time: the directory is in use, an upstream away; 78 (EX_CONFIG) wrong configuration.
    """
    try:
        loaded = load(args.config, os.environ, Overrides(listen=(), cache_dir=args.cache_dir, upstreams=()))
        well = work(args, loaded.settings)
        return 0 if well else 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    except Stop as stop:
        return stop.code
    except MirrorproxyError as error:
        _say(error.message)
        return os.EX_TEMPFAIL


def operate(settings: Settings, name: str, arguments: Mapping[str, object], take: Take) -> bool:
    """Have an operation carried out by the service of the directory, or, where none runs, here; `take` gets the rows.

    Whether all is as it should be. Raises `Stop` where it failed, which was said; `CacheFailed`.
    """
    with ProgressBar(sys.stderr) as bar:
        end: dict[str, Any] = {}

        def sort(event: dict[str, Any]) -> None:
            if event["kind"] == "progress":
                bar.show(event)
            elif event["kind"] in ("end", "failed"):
                end.update(event)
            else:
                bar.hide()
                take(event)

        _events(settings, name, arguments, sort)
    if end["kind"] == "failed":
        _say(str(end["message"]))
        for near in end["near"]:
            print(f"  did you mean {near}", file=sys.stderr)
        raise Stop(_CODES.get(str(end["reason"]), 1))
    return bool(end["ok"])


def print_row(row: Mapping[str, object]) -> None:
    """A row as `--json` has it."""
    print(json.dumps(row, separators=(",", ":")))


def _events(settings: Settings, name: str, arguments: Mapping[str, object], take: Take) -> None:
    directory = settings.cache.directory
    until = monotonic() + _PATIENCE
    while True:
        try:
            with closing(ask(directory, name, arguments)) as events:
                for event in events:
                    take(event)
            return
        except NoService:
            pass
        if not (directory / "oci-layout").exists():
            _say(f"there is no cache in {directory}; name it with --cache-dir, or the service's --config")
            raise Stop(NOT_FOUND)
        from mirrorproxy.service.alone import carry_out_alone  # aiohttp takes 0.2 s to import

        try:
            carry_out_alone(settings, name, arguments, lambda event: take(event.document()))
            return
        except InUse:
            if monotonic() > until:
                raise
        Pause().wait(0.1)


def _say(message: str) -> None:
    print(f"mirrorproxy: {message}", file=sys.stderr)
