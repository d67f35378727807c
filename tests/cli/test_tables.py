"""What people see: tables, bars, sizes and times."""

import io
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorproxy.cli import ls, progress, table, words
from mirrorproxy.cli.progress import ProgressBar
from mirrorproxy.cli.table import Column, Table

COLUMNS = (Column("NAME", cut=True), Column("SIZE", right=True))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 24 characters."""
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_columns_are_aligned_and_nothing_is_cut_for_programs(narrow: None) -> None:
    """Text to the left, numbers to the right."""
    out = io.StringIO()
    with Table(out, COLUMNS) as rows:
        rows.row("a" * 30, "1 B")
        rows.row("b", "10 GB")
    assert out.getvalue().splitlines() == [f"{'NAME':30}   SIZE", f"{'a' * 30}    1 B", f"{'b':30}  10 GB"]


def test_a_terminal_gets_what_fits_into_it(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long name is cut, with a sign; the head is bold, but for those who want no colour."""
    for quiet in (False, True):
        if quiet:
            monkeypatch.setenv("NO_COLOR", "1")
        out = Terminal()
        with Table(out, COLUMNS) as rows:
            rows.row("a" * 20 + "b" * 10, "1 B")
        head, line = out.getvalue().splitlines()
        assert line == f"aaaaaa…a{'b' * 10}   1 B"
        assert len(line) == 24
        assert head.startswith("\x1b[1mNAME") is not quiet


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_images_fit_and_names_are_cut_last(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns go before names are cut, and no line is longer than the terminal is wide."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    names = ["docker.io/library/alpine:3.20", "ghcr.io/team/application:1.27.3"]
    with Table(out, ls._COLUMNS) as rows:
        for name in names:
            rows.row(*(name, "linux/amd64,linux/arm64/v8", "complete, pinned", "1.4 GB", "12.3 MB", "3 h ago", "4 min"))
    head, *lines = out.getvalue().splitlines()
    assert max(map(len, [head, *lines])) <= width
    assert [line.split()[0] for line in lines] == names or width < 60
    assert ("SHARED" in head, "OWN" in head) == (width == 120, width == 120)


def test_without_rows_there_is_no_table() -> None:
    """Not even a head."""
    out = io.StringIO()
    with Table(out, COLUMNS):
        pass
    assert out.getvalue() == ""


def test_many_rows_do_not_wait_for_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones decide the widths, and are written then."""
    monkeypatch.setattr(table, "_FIRST", 2)
    out = io.StringIO()
    with Table(out, COLUMNS) as rows:
        rows.row("a", "1 B")
        assert out.getvalue() == ""
        rows.row("b", "2 B")
        assert len(out.getvalue().splitlines()) == 3
        rows.row("longer than those before", "3 B")
        assert out.getvalue().splitlines()[-1].split() == ["longer", "than", "those", "before", "3", "B"]


@given(st.text())
def test_nothing_that_a_terminal_would_obey_is_written(text: str) -> None:
    """What upstream called a thing is shown, not done."""
    out = io.StringIO()
    with Table(out, COLUMNS) as rows:
        rows.row(text, "1 B")
    assert all(line.isprintable() for line in out.getvalue().split("\n"))
    assert out.getvalue().count("\n") == 2


@given(st.integers(0, 999 * 10**12))
def test_a_size_is_short_and_near(count: int) -> None:
    """At most three digits, at most half a percent off; decimal, as Docker has it."""
    number, unit = words.size(count).split()
    value = float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert abs(value - count) <= 0.006 * count
    assert len(number.replace(".", "")) <= 3


def test_times_in_words() -> None:
    """The largest unit of which there are two."""
    assert [words.span(seconds) for seconds in (0, 119, 120, 7199, 7200, 200_000)] == [
        "0 s",
        "119 s",
        "2 min",
        "120 min",
        "2 h",
        "2 d",
    ]
    past = (datetime.now(UTC) - timedelta(hours=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    future = (datetime.now(UTC) + timedelta(hours=5, seconds=9)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (words.ago(past), words.until(past), words.until(future)) == ("5 h ago", "expired", "5 h")
    assert (words.ago(None), words.until(None), words.size(None)) == ("-", "-", "-")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second later."""
    ticks = itertools.count()
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(ticks)))
    return


def test_a_bar_is_drawn_on_a_terminal_alone_and_goes_away(clock: None) -> None:
    """Bytes as sizes; what has no total has no bar."""
    event = {"doing": "reading", "done": 512_000, "total": 1_024_000, "unit": "bytes"}
    for terminal in (True, False):
        out = Terminal() if terminal else io.StringIO()
        with ProgressBar(out) as bar:
            bar.show(event)
            bar.show({**event, "total": None, "unit": "objects", "done": 12_345})
        said = out.getvalue()
        assert ("reading 512 kB of 1.02 MB [" in said, "reading 12,345" in said) == (terminal, terminal)
        assert said.endswith("\r\x1b[K") is terminal
        assert said.isascii()
