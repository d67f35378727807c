"""The command line: one file a command, no logic of its own."""

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

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


_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


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
    interrupted, 141 the reader of its output had enough, 74 (EX_IOERR) its output cannot be written. Those that see
    and steer a cache have more: see `steering`.
    """
    _open_what_is_closed()
    try:
        parsed = program().parse_args(sys.argv[1:] if arguments is None else arguments)
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `| head` has had enough
        _give_up_output()
        return 128 + signal.SIGPIPE
    except OSError as error:  # of a write; those of a file have its name, those of the cache are `CacheFailed`
        if error.filename is not None or error.errno not in _LOST:
            raise
        _give_up_output()
        with contextlib.suppress(OSError):
            print(f"mirrorproxy: the output cannot be written: {error.strerror}", file=sys.stderr)
        return os.EX_IOERR
    return status


def _open_what_is_closed() -> None:
    """`<&-`: Python has None for a standard stream that is closed, and files that are opened get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # as long as the process


def _give_up_output() -> None:
    """Have what is still in its buffer go nowhere: Python writes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
