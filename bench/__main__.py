"""`python -m bench`: run the rows, print the table and the bars.

Exit code 0, 1 for a run that failed, 2 for a bar that was missed.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from bench import Failure, hostile, rows
from bench.memory import Peaks
from bench.origin import Origin
from bench.peers import Certificate, Server, require_tools, start, versions
from bench.rows import ALL, DIRECT, GIB, LARGE, LAYERS, MEMORY, MEMORY_TLS, MIB, Row, Stage, Unable, make_warm

ROWS = (*rows.ROWS, *hostile.ROWS)
BARS = (*rows.BARS, *hostile.BARS)
COLUMNS = (*ALL, DIRECT)
_SPACE = 20 * GIB
"""The caches keep up to 5 GiB each of three rounds, and mirrorproxy keeps 5 GiB free by default."""

Medians = dict[str, dict[str, float]]


@dataclass
class Result:
    """By figure and server: a value a round, and the word for a server that was unable; and why it was, in lines."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    unable: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    reasons: list[str] = field(default_factory=list)

    def medians(self) -> Medians:
        """Those of the samples."""
        return {key: {name: statistics.median(taken) for name, taken in by.items()} for key, by in self.samples.items()}

    def take(self, row: Row, stage: Stage, server: Server) -> None:
        """Measure, unless the server was unable before."""
        if server.name in self.unable[row.name]:
            return
        try:
            for key, value in row.measure(stage, server).items():
                self.samples[key][server.name].append(value)
        except Unable as unable:
            for figure in row.figures:
                self.unable[figure.key][server.name] = unable.cell if figure is row.figures[0] else "-"
            self.reasons.append(f"{row.name}, {server.name}: {unable}")


def run(measured: list[Row], names: list[str], rounds: int, seconds: int, parent: str | None, workers: str) -> Result:
    """Every row, in every round. Servers are measured in turn, while the others are idle."""
    result = Result()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mirrorproxy-bench-", dir=parent)))
        folder.chmod(0o755)
        if (free := shutil.disk_usage(folder).free) < _SPACE:
            raise Failure(f"{folder} has {free / GIB:.1f} GiB free, {_SPACE / GIB:.0f} are needed (see --directory)")
        origin = stack.enter_context(contextlib.closing(Origin(LARGE)))
        stage = Stage(origin, origin.add("warm", LAYERS), seconds)
        certificate = Certificate(folder)
        servers = [_start(stack, stage, name, folder / name, certificate, workers) for name in names]
        figures = {(MEMORY.key, server.name): server.pid for server in servers}
        figures |= {(MEMORY_TLS.key, server.name): server.secure.pid for server in servers if server.secure}
        peaks = stack.enter_context(contextlib.closing(Peaks(figures)))
        for server in servers:
            make_warm(stage, server)
            if server.secure is not None:
                make_warm(stage, server.secure)
        os.sync()
        direct = Server(DIRECT, origin.host, origin.port, os.getpid(), folder)
        for number in range(rounds):
            for row in measured:
                turn = [server for server in (*servers, direct) if server.name in row.servers]
                for server in turn[number % len(turn) :] + turn[: number % len(turn)]:
                    if not (number and server.name in row.once):
                        _say(f"round {number + 1} of {rounds}: {row.name}, {server.name}")
                        for one in (server, server.secure):
                            if one is not None:
                                one.empty_logs()
                        result.take(row, stage, server)
        peaks.close()
        for (key, name), peak in peaks.bytes.items():
            result.samples[key][name].append(peak / MIB)
    return result


def _start(
    stack: contextlib.ExitStack, stage: Stage, name: str, folder: Path, certificate: Certificate, workers: str
) -> Server:
    _say(f"starting {name}")
    return stack.enter_context(start(name, folder, stage.origin, stage.image, certificate, workers))


def table(measured: list[Row], result: Result) -> str:
    """A line a figure: each server's median, and mirrorproxy's divided by each of the others'."""
    others, medians = COLUMNS[1:], result.medians()
    lines = [["", "", *COLUMNS, *(f"/ {other}" for other in others)]]
    for figure in [figure for row in measured for figure in row.figures] + [MEMORY, MEMORY_TLS]:
        values = medians.get(figure.key, {})
        words = result.unable.get(figure.key, {})
        cells = [words.get(name) or _number(values.get(name), figure.digits) for name in COLUMNS]
        mine = values.get("mirrorproxy")
        ratios = [_number(mine / values[name] if mine is not None and values.get(name) else None, 2) for name in others]
        lines.append([figure.title, figure.unit, *cells, *ratios])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), line[1].ljust(widths[1]), *map(str.rjust, line[2:], widths[2:])]).rstrip()
        for line in lines
    )


def bars(result: Result) -> tuple[list[str], bool]:
    """A line a bar, and whether one was missed. What was not measured is not missed, and said."""
    lines, missed, medians = [], False, result.medians()
    for bar in BARS:
        value, unable = bar.value(medians), "mirrorproxy" in result.unable.get(bar.figure, {})
        sign = ">=" if bar.at_least else "<="
        what = f"{bar.figure}{f' {bar.operator} {bar.against}' if bar.against else ''} {sign} {bar.bound:g}"
        if value is None and not unable:
            lines.append(f"{what}: not measured")
            continue
        met = value is not None and bar.met(value) and not unable
        missed |= not met
        lines.append(f"{what}: {'unable' if value is None else f'{value:.4f}'}, {'met' if met else 'MISSED'}")
    return lines, missed


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="mirrorproxy beside docker-registry, drayage and nginx."
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one short round: for a look, not for a claim")
    parser.add_argument("--only", action="append", choices=names, metavar="ROW", help=f"repeatable: {', '.join(names)}")
    parser.add_argument("--server", action="append", choices=ALL, help="repeatable: leave the other servers out")
    parser.add_argument(
        "--directory", help="where the caches are kept meanwhile (default: the system's temporary folder)"
    )
    parser.add_argument(
        "--workers",
        default="auto",
        metavar="N",
        help="server.workers of mirrorproxy (default: %(default)s, as nginx has)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples, medians and the machine there")
    options = parser.parse_args()
    measured = [row for row in ROWS if row.name in (options.only or names)]
    rounds, seconds = (1, 1) if options.quick else (options.rounds, 2)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of the servers' stops
    began = time.monotonic()
    try:
        require_tools()
        machine = versions()
        result = run(measured, options.server or list(ALL), rounds, seconds, options.directory, options.workers)
    except (Failure, OSError, subprocess.TimeoutExpired) as failure:
        _say(f"bench: {failure}")
        return 1
    lines, missed = bars(result)
    print(f"{machine}; medians of {rounds}, wrk for {seconds} s, {time.monotonic() - began:.0f} s in all\n")
    print(table(measured, result), *["", *lines, "", *result.reasons], sep="\n")
    if options.json:
        run_of = {"machine": machine, "rounds": rounds, "seconds": seconds, "workers": options.workers}
        found = {"samples": result.samples, "medians": result.medians(), "unable": result.reasons, "bars": lines}
        Path(options.json).write_text(json.dumps({**run_of, **found}, indent=2) + "\n")
    return 2 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
