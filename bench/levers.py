"""What could be done otherwise, measured: for each lever several ways on one server, taking turns, and the decision.

Usage: levers.py [--only NAME,...] [--repetitions N] [--rows N] [--quick] ...

Not whole runs: the statements that pglean sends, or would send, on tables as it makes them. The tables of medians and
ratios are printed and, with what was decided, written to LEVERS.md beside this file; not by --quick.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg

import machine
from building import ANALYZE, BUILDS, FREEZE
from copying import CHUNK, COMPRESSION, COPY, FLUSH, SCANS
from lever import Findings, Lever
from neighbours import NEIGHBOURS, STATEMENTS
from refreshing import CHANGES, IN_PLACE, ORDER, SORTING, WORKERS
from removing import REMOVAL
from run import BINDIR, SETTINGS, private_server
from workbench import Workbench

LEVERS: Final = (
    FLUSH,
    COMPRESSION,
    COPY,
    CHUNK,
    SCANS,
    ORDER,
    WORKERS,
    SORTING,
    IN_PLACE,
    CHANGES,
    BUILDS,
    FREEZE,
    ANALYZE,
    REMOVAL,
    NEIGHBOURS,
    STATEMENTS,
)
OUTPUT: Final = Path(__file__).parent / "LEVERS.md"
_INTRODUCTION: Final = (
    "Written by `bench/levers.py`. For each lever the ways took turns on one server, in the sessions and with the"
    " statements of pglean; nothing else was going on. Figures are medians; ratios are to the first way of each"
    " case, above 1 is more. full_page_writes is on only where a checkpoint is part of the question, and for the"
    " table that is not vacuumed: what a run writes again it has, as a rule, written since the last checkpoint,"
    " which is not so of the pages of a database that was copied for a measurement."
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for; what is not given depends on --quick."""
    names = [lever.name for lever in LEVERS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="levers.py [OPTION]..."
    )
    add = parser.add_argument
    add("--only", default=",".join(names), metavar="NAME,...", help=f"of {', '.join(names)} (all)")
    add("--repetitions", type=int, metavar="N", help="of each way (3; quick: 1)")
    add("--rows", type=int, metavar="N", help="before half of them are deleted (2000000; quick: 100000)")
    add("--bindir", type=Path, default=BINDIR, metavar="DIR", help=f"the server's programs, 15 or newer ({BINDIR})")
    add("--output", type=Path, metavar="FILE", help="what to write (bench/LEVERS.md; --only and --quick: nothing)")
    add("--quick", action="store_true", help="a small table and one repetition, to see that it works")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"no such lever: {unknown[0]}")
    options.levers = [lever for lever in LEVERS if lever.name in chosen]
    usual: dict[str, Any] = {"repetitions": 3, "rows": 2_000_000, "output": None}
    if len(options.levers) == len(LEVERS):
        usual["output"] = OUTPUT
    quick: dict[str, Any] = {"repetitions": 1, "rows": 100_000, "output": None}
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    # What `run.private_server` looks at. An autovacuum that comes by would be measured as well; of full pages
    # `Workbench.full_pages` tells.
    options.settings, options.directory, options.fsync = ["autovacuum=off", "full_page_writes=off"], None, "on"
    return options


def measure(lever: Lever, bench: Workbench, findings: Findings, repetitions: int) -> None:
    """All ways by turns, there and back again, for each to come first as often."""
    for repetition in range(1, repetitions + 1):
        for way in lever.ways if repetition % 2 else reversed(lever.ways):
            found = findings.of(lever, way)
            if found.failure:
                continue
            name = f"{lever.name}, {way.case + ', ' if way.case else ''}{way.name}, run {repetition}"
            try:
                figures = way.measure(bench)
            except psycopg.errors.InvalidParameterValue as error:
                # A setting that this server was not built with.
                found.failure = str(error).partition("\n")[0]
                print(f"{name}: {found.failure}", flush=True)
                continue
            found.runs.append(figures)
            shown = (f"{m.label} {m.show(figures[m.key])}" for m in lever.metrics if m.key in figures)
            print(f"{name}: {'; '.join(shown)}", flush=True)


def markdown(
    levers: Sequence[Lever], findings: Findings, about: dict[str, str], facts: dict[str, str], settings: dict[str, str]
) -> Iterator[str]:
    """The lines of what is written."""
    yield from ("# Levers that were tried", "", _INTRODUCTION, "")
    for told in (about, facts):
        yield from (*(f"- {name}: {value}" for name, value in told.items()), "")
    yield "- " + ", ".join(f"`{name} = {value}`" for name, value in settings.items())
    for lever in levers:
        yield from ("", f"## {lever.name}", "", lever.question, "", findings.table(lever))
        yield from ("", f"**Decision.** {lever.decision}")
    yield from ("", "<details>", "<summary>Every single run</summary>", "", *findings.details(levers), "", "</details>")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; raises where something failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)
    start = datetime.datetime.now(datetime.UTC)
    findings = Findings()
    with private_server(options) as server:
        facts = machine.facts(server.datadir)
        with psycopg.connect(server.conninfo()) as conn:
            facts |= machine.versions(conn, None)
        bench = Workbench(server, options.rows)
        for lever in options.levers:
            measure(lever, bench, findings, options.repetitions)
        settings = {**SETTINGS, **server.settings}
    took = datetime.datetime.now(datetime.UTC) - start
    about = {
        "command": f"`{shlex.join(['bench/levers.py', *words])}`",
        "begun": f"{start:%Y-%m-%d %H:%M} UTC, took {took.total_seconds() / 60:.0f} minutes",
        "table": f"{options.rows:,} rows, one of every two deleted and vacuumed; three indexes",
        "runs": f"{options.repetitions} of each way",
    }
    for lever in options.levers:
        print(f"\n{lever.name}\n{findings.table(lever)}")
    if options.output is not None:
        options.output.write_text("\n".join(markdown(options.levers, findings, about, facts, settings)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
