"""A table that is written while its rows come: the first ones decide how wide the columns are, nothing piles up."""

import os
import shutil
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self, TextIO

_FIRST = 500  # rows that decide
_GAP = "  "
_SHORTEST = 12  # characters that are left of a column that has to be cut


class Column(NamedTuple):
    """A column: its head, whether it is numbers, and what becomes of it on a terminal that is too narrow: it may be
    left out, those of the lowest `leave` first, or be cut.
    """

    head: str
    right: bool = False
    cut: bool = False
    leave: int = 0


class Table:
    """Writes rows under `columns` to `stream`; `with` writes what is left at the end. Without rows it writes nothing.

    A terminal gets a bold head, unless NO_COLOR is set (no-color.org), and rows that fit into its width: columns are
    left out for that, then cells are cut. Anything else gets every row whole. `rows` is how many there were.
    """

    def __init__(self, stream: TextIO, columns: Sequence[Column]) -> None:
        self._stream = stream
        self._columns = columns
        self._terminal = stream.isatty()
        self._waiting: list[Sequence[str]] = []
        self._widths: list[int] = []
        self._shown = list(range(len(columns)))
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self._decide()

    def row(self, *cells: str) -> None:
        """Add a row. What cannot be printed, and may come from an upstream, becomes a question mark."""
        self.rows += 1
        cells = tuple("".join(each if each.isprintable() else "?" for each in cell) for cell in cells)
        if self._widths:
            self._write(cells)
            return
        self._waiting.append(cells)
        if len(self._waiting) >= _FIRST:
            self._decide()

    def _decide(self) -> None:
        """Choose the widths, and write what waited."""
        waiting, self._waiting = self._waiting, []
        if self._widths or not waiting:
            return
        heads = [column.head for column in self._columns]
        self._widths = [max(map(len, cells)) for cells in zip(heads, *waiting, strict=True)]
        if self._terminal:
            self._fit(shutil.get_terminal_size().columns)
        self._write(heads, bold=self._terminal and not os.environ.get("NO_COLOR"))
        for cells in waiting:
            self._write(cells)

    def _fit(self, width: int) -> None:
        leave = sorted((column.leave, number) for number, column in enumerate(self._columns) if column.leave)
        for _, number in leave:
            if self._over(width) > 0:
                self._shown.remove(number)
        for shortest in (_SHORTEST, 2):
            for number in reversed(self._shown):  # what is to the left says most
                if (over := self._over(width)) > 0 and self._columns[number].cut:
                    self._widths[number] = max(min(shortest, self._widths[number]), self._widths[number] - over)

    def _over(self, width: int) -> int:
        return sum(self._widths[number] for number in self._shown) + len(_GAP) * (len(self._shown) - 1) - width

    def _write(self, cells: Sequence[str], *, bold: bool = False) -> None:
        shown = (self._cell(cells[each], self._widths[each], self._columns[each]) for each in self._shown)
        line = _GAP.join(shown).rstrip()
        self._stream.write(f"\x1b[1m{line}\x1b[0m\n" if bold else f"{line}\n")

    def _cell(self, text: str, width: int, column: Column) -> str:
        if self._terminal and column.cut and len(text) > width:
            start = width // 3  # the end tells more: a tag
            text = f"{text[:start]}…{text[start + 1 - width :]}"
        return text.rjust(width) if column.right else text.ljust(width)
