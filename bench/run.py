"""Compare pglean with pg_repack, side by side: one server, one run, taking turns.

Usage: run.py [--only SCENARIO] [--tools TOOL,...] [--repetitions N] [--rows N] [--quick] ...

It starts a private server, builds a bloated table, and lets each tool rewrite fresh copies of it:

idle      nothing else happens: time, WAL, size
steady    applications update rows at a fixed rate: what they feel
flat-out  applications update rows as fast as they can: whether it ends, and what it costs them
memory    what the client process needs, for tables of a sixteenth, a quarter and all of the rows

The tables of medians and ratios are printed and, with every single run, written to RESULTS.md
beside this file; not by --quick, which only shows that all of it works.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import psycopg

import machine
from orders import Orders
from pglean.embedded import EmbeddedError, EmbeddedServer
from result import Results
from scenario import EXPLANATIONS, FLAT_OUT, IDLE, MEMORY, METRICS, STEADY, Conditions, Scenarios, loads
from tool import NAMES, PG_REPACK, VACUUM_FULL, Tool, find_pg_repack

SCENARIOS: Final = (IDLE, STEADY, FLAT_OUT, MEMORY)
RESULTS: Final = Path(__file__).parent / "RESULTS.md"
BINDIR: Final = Path("/usr/lib/postgresql/15/bin")
BUSY: Final = 0.05
_TITLE: Final = "pglean and pg_repack side by side"
_INTRODUCTION: Final = (
    "Written by `bench/run.py`. The tools took turns on one server, each run on a fresh copy of the same\n"
    "bloated table; figures are medians. A ratio below 1 is in favour of pglean, save where it is marked as\n"
    "better when higher."
)
SETTINGS: Final = {
    "shared_buffers": "1GB",
    "maintenance_work_mem": "256MB",
    "wal_level": "replica",
    "max_wal_size": "8GB",
    # Segments are reused from the first run on, not made anew by the first and reused by the second.
    "min_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "synchronous_commit": "on",
    "autovacuum": "on",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for; what is not given depends on --quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="run.py [OPTION]..."
    )
    add = parser.add_argument
    add("--only", type=_choice(SCENARIOS), default=list(SCENARIOS), metavar="SCENARIO,...", help="of the four above")
    add("--tools", type=_choice(NAMES), default=list(NAMES), metavar="TOOL,...", help="of " + ", ".join(NAMES))
    add("--repetitions", type=_positive, metavar="N", help="runs of each tool in each scenario (3; quick: 1)")
    add("--rows", type=_positive, metavar="N", help="before half of them are deleted (4000000; quick: 200000)")
    add("--vacuumed", action="store_true", help="VACUUM the table once the rows are deleted")
    add("--jobs", type=_positive, default=2, metavar="N", help="-j of both tools (2)")
    add("--rate", type=_positive, default=4000, metavar="TPS", help="transactions per second of steady (4000)")
    add("--warmup", type=float, metavar="SECS", help="load that is not measured (5; quick: 1)")
    add("--before", type=float, metavar="SECS", help="load before the tool is started (30; quick: 3)")
    add("--cap", type=float, metavar="SECS", help="when a run is given up (300; quick: 60)")
    add("--fsync", choices=("on", "off"), default="on", help="of the server (on)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="a setting of the server")
    add("--bindir", type=Path, default=BINDIR, metavar="DIR", help=f"the server's programs ({BINDIR})")
    add("--directory", type=Path, metavar="DIR", help="where the data directory is made (/tmp)")
    add("--output", type=Path, metavar="FILE", help="what to write (bench/RESULTS.md; quick: nothing)")
    add("--quick", action="store_true", help="a small table and one repetition, to see that it works")
    options = parser.parse_args(arguments)
    usual = {"repetitions": 3, "rows": 4_000_000, "warmup": 5.0, "before": 30.0, "cap": 300.0, "output": RESULTS}
    quick = {"repetitions": 1, "rows": 200_000, "warmup": 1.0, "before": 3.0, "cap": 60.0, "output": None}
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for pair in options.settings:
        if "=" not in pair:
            parser.error(f"not of the form NAME=VALUE: {pair}")
    return options


def _choice(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    def some_of(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(allowed)}")
        return [name for name in allowed if name in names]

    return some_of


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be positive")
    return value


class Benchmark:
    """Everything the command line asks for, on one server."""

    def __init__(self, options: argparse.Namespace, server: EmbeddedServer) -> None:
        self._options, self._server = options, server
        self._tools = {name: Tool(name, server, options.jobs) for name in options.tools}
        conditions = Conditions(options.rate, options.warmup, options.before, options.cap)
        self._scenarios = Scenarios(server, conditions)
        self.results = Results(METRICS, EXPLANATIONS, options.tools)

    def run(self) -> None:
        """Do all runs, adding to the results as they come."""
        for tool in self._tools.values():
            tool.warm_up()
        rows: int = self._options.rows
        tables: dict[str, list[int]] = {name: [rows] for name in self._options.only}
        if MEMORY in tables:
            tables[MEMORY] = [rows // 16, rows // 4, rows]
        # One template at a time, so that the disk holds two tables at most.
        for size in sorted({size for sizes in tables.values() for size in sizes}, reverse=True):
            print(f"building a table of {size:,} rows, half of them deleted", flush=True)
            orders = Orders(self._server, size, pg_repack=PG_REPACK in self._tools, vacuumed=self._options.vacuumed)
            for scenario in (name for name, sizes in tables.items() if size in sizes):
                self._repeat(scenario, orders)
            orders.discard()

    def _repeat(self, scenario: str, orders: Orders) -> None:
        names = [name for name in self._tools if name != VACUUM_FULL or scenario == IDLE]
        # Memory does not vary as time does, and the largest table has its repetitions in idle.
        repetitions = 1 if scenario == MEMORY else self._options.repetitions
        for repetition in range(1, repetitions + 1):
            # There and back again, for each to come first as often.
            for name in names if repetition % 2 else reversed(names):
                run = self._scenarios.run(scenario, self._tools[name], orders, repetition)
                self.results.runs.append(run)
                print(run.summary(METRICS[scenario]), flush=True)
                if run.note:
                    print(f"    {run.note}", flush=True)


@contextlib.contextmanager
def private_server(options: argparse.Namespace) -> Iterator[EmbeddedServer]:
    """A server for the benchmark alone, gone afterwards."""
    settings = {**SETTINGS, **dict(pair.split("=", 1) for pair in options.settings)}
    with contextlib.ExitStack() as stack:
        datadir = None
        if options.directory is not None:
            parent = Path(tempfile.mkdtemp(prefix="pglean-bench-", dir=options.directory))
            stack.callback(shutil.rmtree, parent, ignore_errors=True)
            datadir = parent / "data"
        server = EmbeddedServer(options.bindir, datadir, settings=settings, fsync=options.fsync == "on")
        yield stack.enter_context(server)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a run failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)
    try:
        pg_repack = find_pg_repack(options.bindir) if PG_REPACK in options.tools else None
        busy = machine.busy_now()
        if busy > BUSY:
            print(f"warning: the machine is busy with other things ({busy:.0%})", file=sys.stderr)
        with private_server(options) as server:
            return _benchmark(options, server, pg_repack, busy, shlex.join(["bench/run.py", *words]))
    except (EmbeddedError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _benchmark(
    options: argparse.Namespace, server: EmbeddedServer, pg_repack: Path | None, busy: float, command: str
) -> int:
    start, start_cpu = datetime.datetime.now(datetime.UTC), machine.CpuTime.now()
    facts = machine.facts(server.datadir)
    with psycopg.connect(server.conninfo()) as conn:
        facts |= machine.versions(conn, pg_repack)
    benchmark = Benchmark(options, server)
    complete = False
    try:
        benchmark.run()
        complete = True
    finally:
        # What was measured before something went wrong was dearly paid for.
        facts |= {
            "busy with other things before": f"{busy:.0%}",
            "processor time taken by other virtual machines": f"{machine.CpuTime.now().stolen_since(start_cpu):.1%}",
        }
        about = {
            "command": f"`{command}`" + ("" if complete else ", **which did not come to its end**"),
            "begun": f"{start:%Y-%m-%d %H:%M} UTC",
            "table": f"{options.rows:,} rows, one of every two deleted"
            f" {'and vacuumed' if options.vacuumed else 'but not vacuumed'}; three indexes",
            **{f"{name} is run as": f"`{Tool(name, server, options.jobs).shown()}`" for name in options.tools},
        }
        if any(loads(name) for name in options.only):
            about["load"] = (
                f"{options.warmup:g} s of warming up, {options.before:g} s before the tool is started, which has"
                f" {options.cap:g} s; steady: {options.rate:,} transactions per second"
            )
        settings = {**server.settings, "fsync": options.fsync}
        markdown = benchmark.results.markdown(facts, settings, about, title=_TITLE, introduction=_INTRODUCTION)
        _report(benchmark.results, options, markdown)
    return 1 if any(run.failure for run in benchmark.results.runs) else 0


def _report(results: Results, options: argparse.Namespace, markdown: str) -> None:
    for scenario in SCENARIOS:
        if any(run.scenario == scenario for run in results.runs):
            print(f"\n{scenario}\n{results.table(scenario)}")
    if options.output is not None and results.runs:
        options.output.write_text(markdown)
        print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    sys.exit(main())
