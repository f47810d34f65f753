"""Compare pglean with its peers, side by side: one server, one run, taking turns.

Usage: run.py [--workload NAME,...] [--only LOAD,...] [--scale N,...] [--peer NAME=DSN] [--quick] ...

It starts a private server, builds bloated tables, and lets each tool rewrite fresh copies of them:

idle      nothing else happens: time, WAL, size
steady    applications write rows at a fixed rate: what they feel
flat-out  applications write rows as fast as they can: whether it ends, and what it costs them
sampling  no tool at all: what the sampling costs by which the others are measured

Not every combination is measured, but a list of usual ones, which --workload, --only, --access and
--scale shorten; with --every, all combinations of what these name are.

What needs a server that has it is measured there, beside pglean, where one is named:

squeeze   pg_squeeze
repack19  PostgreSQL 19's REPACK (CONCURRENTLY)

The figures are added to results.json beside this file, from which RESULTS.md is written anew; not
by --quick, which only shows that all of it works.
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
from typing import Final, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict

import machine
from ground import Ground
from peer import EXTENSIONS, absent
from pglean.embedded import EmbeddedError, EmbeddedServer
from record import Record, Section, Session
from report import NOTES, markdown, section_table
from result import Run
from scenario import LOADS, SCALES, Scenario, chosen, rows
from template import Template
from tool import NAMES, PEERS, PG_REPACK, PGLEAN, Tool, find_pg_repack
from trial import Conditions, sampling_cost, trial
from workload import ACCESSES, WORKLOADS

HERE: Final = Path(__file__).parent
BINDIR: Final = Path("/usr/lib/postgresql/15/bin")
BUSY: Final = 0.05
SAMPLING: Final = "sampling"
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
#: Takes up a section when it is done, or as far as it came.
Kept: TypeAlias = Callable[[Section, Session], None]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for; what is not given depends on --quick."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="run.py [OPTION]...",
    )
    add = parser.add_argument
    kinds = (*LOADS, SAMPLING)
    add("--workload", type=_choice(*WORKLOADS), default=list(WORKLOADS), metavar="NAME,...", help=", ".join(WORKLOADS))
    add("--only", type=_choice(*kinds), default=list(kinds), metavar="LOAD,...", help="of the four above")
    add("--access", type=_choice(*ACCESSES), default=list(ACCESSES), metavar="NAME,...", help=", ".join(ACCESSES))
    add("--scale", type=_numbers, default=list(SCALES), metavar="N,...", help="times the usual rows (1,4,16)")
    add("--every", action="store_true", help="all combinations of the four before, not only usual ones")
    add("--tools", type=_choice(*NAMES), default=list(NAMES), metavar="TOOL,...", help="of " + ", ".join(NAMES))
    add(
        "--peer", type=_peer, action="append", default=[], metavar="NAME=DSN", dest="peers", help="a server with a peer"
    )
    add("--no-private", action="store_true", help="only the servers named by --peer")
    add("--repetitions", type=_positive, metavar="N", help="runs of each tool in each scenario (3; quick: 1)")
    add("--shrink", type=_positive, metavar="N", help="divide the rows of all tables by N (1; quick: 20)")
    add("--vacuumed", action="store_true", help="VACUUM the table once the rows are deleted")
    add("--jobs", type=_positive, default=2, metavar="N", help="-j of the tools that have it (2)")
    add("--rate", type=_positive, default=4000, metavar="TPS", help="transactions per second of steady (4000)")
    add("--warmup", type=float, metavar="SECS", help="load that is not measured (2; quick: 0.5)")
    add("--before", type=float, metavar="SECS", help="load before the tool is started (4; quick: 1)")
    add("--cap", type=float, metavar="SECS", help="when a run is given up (300; quick: 60)")
    add("--fsync", choices=("on", "off"), default="on", help="of the private server (on)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="a setting of it")
    add("--bindir", type=Path, default=BINDIR, metavar="DIR", help=f"its programs ({BINDIR})")
    add("--directory", type=Path, metavar="DIR", help="where its data directory is made (/tmp)")
    add("--output", type=Path, metavar="DIR", help="where RESULTS.md and results.json are (bench; quick: nowhere)")
    add("--render", action="store_true", help="measure nothing, only write RESULTS.md anew")
    add("--quick", action="store_true", help="small tables and one repetition, to see that it works")
    options = parser.parse_args(arguments)
    usual = {"repetitions": 3, "shrink": 1, "warmup": 2.0, "before": 4.0, "cap": 300.0, "output": HERE}
    quick = {"repetitions": 1, "shrink": 20, "warmup": 0.5, "before": 1.0, "cap": 60.0, "output": None}
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for pair in options.settings:
        if "=" not in pair:
            parser.error(f"not of the form NAME=VALUE: {pair}")
    if options.shrink > 1 and options.output == HERE:
        parser.error("--shrink changes what is compared: name another directory by --output")
    return options


def _choice(*allowed: str) -> Callable[[str], list[str]]:
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


def _numbers(text: str) -> list[int]:
    return sorted({_positive(word) for word in text.split(",")})


def _peer(text: str) -> tuple[str, str]:
    name, equals, conninfo = text.partition("=")
    if name not in PEERS or not equals:
        raise argparse.ArgumentTypeError(f"not of the form NAME=DSN with a name of {', '.join(PEERS)}")
    try:
        conninfo_to_dict(conninfo)
    except psycopg.Error:
        # Not which: there may be a password in it.
        raise argparse.ArgumentTypeError(f"what follows {name}= is no connection string") from None
    return name, conninfo


class Benchmark:
    """The scenarios that were asked for, on one server."""

    def __init__(self, options: argparse.Namespace, ground: Ground, command: str, busy: float, start: str) -> None:
        """Raises `psycopg.Error` where the server cannot be reached."""
        self._options, self._ground = options, ground
        self._conditions = Conditions(options.rate, options.warmup, options.before, options.cap, options.repetitions)
        wanted = [PGLEAN, ground.peer] if ground.peer else options.tools
        #: What cannot be run here, with the reason.
        self.skipped = {name: reason for name in wanted if (reason := absent(name, ground))}
        self._tools = [name for name in wanted if name not in self.skipped]
        self._extensions = tuple(EXTENSIONS[name] for name in self._tools if name in EXTENSIONS)
        self._busy, self._start, self._cpu = busy, start, machine.CpuTime.now()
        #: Of the server.
        self.major = ground.version() // 10000
        with ground.connect(None) as conn:
            self._facts = machine.versions(conn, find_pg_repack(ground.bindir) if PG_REPACK in self._tools else None)
            query = "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY (%s)"
            names = [*SETTINGS, "fsync", *(pair.partition("=")[0] for pair in options.settings)]
            shown = dict(conn.execute(query, (names,)).fetchall())
        self._settings = {name: shown[name] for name in names if name in shown}
        local = ground.local()
        self._facts |= machine.facts(local.datadir) if local else {"machine": "the server is on another one"}
        self._command = command
        #: Whether a run failed.
        self.failed = False

    def session(self) -> Session:
        """The circumstances, up to now."""
        revision = self._facts["pglean"]
        facts = {
            **{name: value for name, value in self._facts.items() if name != "pglean"},
            "busy with other things before": f"{self._busy:.0%}",
            "processor time taken by other virtual machines": f"{machine.CpuTime.now().stolen_since(self._cpu):.1%}",
        }
        conditions = (
            f"{self._options.warmup:g} s of warming up, {self._options.before:g} s before the tool is started, which"
            f" has {self._options.cap:g} s; steady: {self._options.rate:,} transactions per second"
        )
        return Session(self._start, self._command, revision, facts, self._settings, conditions, self._ground.peer)

    def run(self, kept: Kept, sampled: Callable[[dict[str, float], Session], None]) -> None:
        """Do all runs, handing over each section when it is done, or as far as it came."""
        options = self._options
        loads = [load for load in LOADS if load in options.only]
        scenarios = chosen(options.workload, loads, options.access, options.scale, every=options.every)
        sampling = SAMPLING in options.only and not self._ground.peer
        tables = list(dict.fromkeys((scenario.workload, scenario.scale) for scenario in scenarios))
        # One template at a time, so that the disk holds two tables at most.
        for name, scale in tables or [("orders", 1)] * sampling:
            workload = WORKLOADS[name]
            size = rows(workload, scale, options.shrink)
            print(f"{self._where()}building {name} of {size:,} rows, half of them deleted", flush=True)
            template = Template(self._ground, workload, size, extensions=self._extensions, vacuumed=options.vacuumed)
            try:
                if sampling:
                    sampled(sampling_cost(template, self._conditions, options.repetitions), self.session())
                    sampling = False
                for scenario in scenarios:
                    if (scenario.workload, scenario.scale) == (name, scale):
                        self._measure(scenario, template, kept)
            finally:
                template.discard()

    def _measure(self, scenario: Scenario, template: Template, kept: Kept) -> None:
        tools = [
            Tool(name, self._ground, template.workload, self._options.jobs)
            for name in self._tools
            if scenario.takes(name)
        ]
        runs: list[Run] = []
        complete = False
        try:
            for tool in tools:
                tool.warm_up()
            for repetition in range(1, self._options.repetitions + 1):
                # There and back again, for each to come first as often.
                for tool in tools if repetition % 2 else reversed(tools):
                    run = trial(template, scenario, tool, self._conditions, repetition)
                    runs.append(run)
                    self.failed |= bool(run.failure)
                    print(f"{self._where()}{run.summary(scenario.metrics)}", flush=True)
                    if run.note:
                        print(f"    {run.note}", flush=True)
            complete = True
        finally:
            # What was measured before something went wrong was dearly paid for.
            if runs:
                session = self.session()
                commands = {tool.name: tool.shown() for tool in tools}
                section = Section(
                    scenario, self._ground.peer, self.major, session.name, commands, tuple(runs), complete
                )
                kept(section, session)
                print(f"\n{section.title}\n{section_table(section)}\n", flush=True)

    def _where(self) -> str:
        return f"{self._ground.peer}: " if self._ground.peer else ""


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


class Book:
    """The record and its rendering, kept up to date on disk; without a directory, nowhere."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._record = Record() if directory is None else Record.read(directory / "results.json")

    def add(self, section: Section, session: Session) -> None:
        """Take up a section."""
        self._record.add(section, session)
        self.write()

    def add_sampling(self, values: dict[str, float], session: Session) -> None:
        """Take up what the sampling costs."""
        self._record.add_sampling(values, session)
        self.write()

    def skip(self, tool: str, server: str, reason: str) -> None:
        """Note what could not be measured."""
        self._record.skip(tool, server, reason)
        self.write()

    def write(self) -> None:
        """Write both files."""
        if self._directory is not None:
            self._directory.mkdir(exist_ok=True)
            self._record.write(self._directory / "results.json")
            (self._directory / "RESULTS.md").write_text(markdown(self._record, self._directory / NOTES))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a run failed, or a server that was named is of no use."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)
    book = Book(options.output)
    if options.render:
        book.write()
        return 0
    command = shlex.join(["bench/run.py", *told(words)])
    busy = machine.busy_now()
    if busy > BUSY:
        print(f"warning: the machine is busy with other things ({busy:.0%})", file=sys.stderr)
    start = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    good = True
    try:
        if not options.no_private:
            with private_server(options) as server:
                ground = Ground.private(server)
                good &= _benchmark(Benchmark(options, ground, command, busy, start), ground, book)
        for name, conninfo in options.peers:
            try:
                ground = Ground(name, conninfo, None)
                good &= _benchmark(Benchmark(options, ground, command, busy, start), ground, book)
            except (psycopg.Error, RuntimeError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                good = False
    except (EmbeddedError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.output is not None:
        print(f"written to {options.output / 'RESULTS.md'}")
    return 0 if good else 1


def _benchmark(benchmark: Benchmark, ground: Ground, book: Book) -> bool:
    server = f"PostgreSQL {benchmark.major}" + (f", named for {ground.peer}" if ground.peer else "")
    for name, reason in benchmark.skipped.items():
        print(f"skipped: {name}: {reason}", file=sys.stderr)
        book.skip(name, server, reason)
    if ground.peer in benchmark.skipped:
        # Nothing is left to compare with, and somebody expected it.
        return False
    benchmark.run(book.add, book.add_sampling)
    return not benchmark.failed


def told(words: Sequence[str]) -> Iterator[str]:
    """The command line without what may be a password, and without where the results were put."""
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name in {"--output", "--peer"} and not equals:
            value = next(left, "")
        if name == "--peer":
            yield f"--peer={value.partition('=')[0]}=…"
        elif name != "--output":
            yield word


if __name__ == "__main__":
    sys.exit(main())
