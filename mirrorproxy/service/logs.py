"""The log of the service, on standard error: JSON lines for collectors, text for people."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from mirrorproxy.config import LogSettings

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def wants_json(settings: LogSettings, stream: TextIO) -> bool:
    """Is `stream` to get JSON? `auto` is text on a terminal, JSON anywhere else."""
    return settings.format == "json" or (settings.format == "auto" and not stream.isatty())


def set_up(settings: LogSettings) -> None:
    """Log to standard error as the settings say, from now on. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    if wants_json(settings, sys.stderr):
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries say what is wrong, and no more
    logging.getLogger("mirrorproxy").setLevel(_LEVELS[settings.level])
