"""A bar for long work: on a terminal, on standard error, and gone when the work is done."""

import shutil
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import Any, Self, TextIO

from mirrorproxy.cli.words import size

_WIDTH = 30  # characters
_REDRAW = 0.1  # seconds between two pictures
_PATIENCE = 0.3  # seconds for which nothing is drawn: most work is done by then


class ProgressBar:
    """Draws progress events on `stream`, where that is a terminal. `with` takes it away at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._next = monotonic() + _PATIENCE
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hide()

    def show(self, event: Mapping[str, Any]) -> None:
        """Draw this state, if the last picture is old enough."""
        now = monotonic()
        if not self._live or now < self._next:
            return
        self._next = now + _REDRAW
        self._drawn = True
        done, total = int(event["done"]), event["total"]
        said = size if event["unit"] == "bytes" else "{:,}".format
        words = f"{event['doing']} {said(done)}" if done else str(event["doing"])
        if total:
            width = max(0, min(_WIDTH, shutil.get_terminal_size().columns - 60))
            full = "#" * min(width, width * done // total)
            words = f"{words} of {said(total)} [{full:.<{width}}]"
        self._stream.write(f"\r\x1b[K{words}")
        self._stream.flush()

    def hide(self) -> None:
        """Take the bar away, so that a line can be written."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
