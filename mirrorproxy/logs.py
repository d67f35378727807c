"""The log of the service, on standard error: JSON lines for collectors, text for people."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

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


def wants_json(form: str, stream: TextIO) -> bool:
    """Is `stream` to get JSON? `form` is `json`, `text`, or `auto`: text on a terminal, JSON anywhere else."""
    return form == "json" or (form == "auto" and not stream.isatty())


def set_up(level: str, form: str) -> None:
    """Log to standard error from now on, what is of this level or above (`debug` to `error`), in this form (see
    `wants_json`). May be called again.
    """
    handler = logging.StreamHandler(sys.stderr)
    if wants_json(form, sys.stderr):
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries say what is wrong, and no more
    logging.getLogger("mirrorproxy").setLevel(_LEVELS[level])
