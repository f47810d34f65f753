"""What capturing the changes of a table costs whoever writes to it, side by side: one server, one run, taking turns.

Usage: capture.py [--kinds KIND,...] [--repetitions N] [--rows N] [--seconds S] [--quick] ...

But for the last scenario nothing is copied, refreshed or swapped: the capture is on, and pgbench updates single rows.

none       no capture at all, the measure of the others
trigger    the triggers of pglean, which record keys
wal        a logical replication slot, whose keys are decoded and recorded meanwhile
pg_repack  the trigger of pg_repack, which records keys and whole rows

flat-out   as fast as they can: what is left of the throughput; how far the decoder is behind
steady     at a fixed rate: what they feel; how far the decoder is behind
bulk       one transaction that updates all rows: keys per second, from its commit until all are recorded
reading    flat-out, while a transaction that has written stays open, as the build of an index does: how far behind is
           whoever reads the slot as a stream, as pglean does, and by SQL functions, ten times a second
repack     a whole run of pglean, idle and at the fixed rate, on the table with its key, and without
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import resource
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg

import machine
from ground import DATABASE, Ground
from load import Load
from pglean import capture, catalog
from pglean.blockers import Mode
from pglean.embedded import EmbeddedServer
from pglean.locks import locked
from pglean.options import Capture, Options
from pglean.patience import Patience, Policy
from pglean.rewrite import job as jobs
from pglean.rewrite import schema
from pglean.server import Server
from pglean.session import scalar, transaction
from pglean.version import __version__
from result import Metric, Results, Run
from run import BINDIR, SETTINGS, private_server
from template import Template
from tool import PGLEAN, Tool, told
from workload import UNIFORM, WORKLOADS

NONE: Final = "none"
PG_REPACK: Final = "pg_repack's trigger"
KINDS: Final = (NONE, "trigger", "wal", PG_REPACK)
PEEK: Final = "wal, by SQL functions"
FLAT_OUT, STEADY, BULK, READING, REPACK = "flat-out", "steady", "bulk", "reading", "repack"
WITH_KEY, WITHOUT, WITHOUT_WAL = "with a key", "without a key", "without a key, from the WAL"
_CAP_S: Final = 180.0
OUTPUT: Final = Path(__file__).parent / "CAPTURE.md"

_LAG: Final = (
    Metric("lag_ms", "decoder behind, median, ms", 1),
    Metric("worst_lag_ms", "decoder behind, worst, ms", 1),
    Metric("retained_mb", "WAL retained at most, MB", 1),
)
_CLIENT: Final = (Metric("cpu_s", "client, processor time, s", 2), Metric("rss_mb", "client, peak memory, MB", 1))
METRICS: Final = {
    FLAT_OUT: (
        Metric("tps", "transactions/s", 0, better="higher"),
        Metric("share", "of those without capture, %", 1, better="higher"),
        Metric("p99_ms", "p99, ms", 2),
        *_LAG,
        *_CLIENT,
    ),
    STEADY: (
        Metric("tps", "transactions/s", 0, better="higher"),
        Metric("p50_ms", "p50, ms", 2),
        Metric("p99_ms", "p99, ms", 2),
        Metric("worst_ms", "worst, ms", 1),
        *_LAG,
        *_CLIENT,
    ),
    BULK: (
        Metric("update_s", "the UPDATE itself, s", 2),
        Metric("after_s", "until all was recorded, s", 2),
        Metric("keys_per_s", "keys per second after the commit", 0, better="higher"),
        *_CLIENT,
    ),
    READING: (Metric("tps", "transactions/s", 0, better="higher"), *_LAG),
    REPACK: (
        Metric("idle_s", "idle: time, s", 2),
        Metric("wal_mb", "idle: WAL, MB", 0),
        Metric("elapsed_s", "at the rate: time, s", 2),
        Metric("changes", "at the rate: changes taken over", 0),
        Metric("p50_ms", "at the rate: p50, ms", 2),
        Metric("p99_ms", "at the rate: p99, ms", 2),
        Metric("worst_ms", "at the rate: worst, ms", 1),
        Metric("tps", "at the rate: transactions/s", 0, better="higher"),
    ),
}
EXPLANATIONS: Final = {
    FLAT_OUT: "Clients of pgbench update single rows one after the other as fast as they can. Behind: how long it takes"
    " until all is recorded that was committed at a moment.",
    STEADY: "The same at a fixed rate.",
    BULK: "One transaction updates every row. What triggers record is there when it ends; what is decoded comes after"
    " its commit.",
    READING: "As flat-out, while a transaction that has written stays open, as one does that builds an index. The"
    " stream decodes each byte of the WAL once; a function begins again where the oldest transaction began. By SQL"
    " functions: peek, and advance the slot, ten times a second.",
    REPACK: "Whole runs of `pglean repack`. Without a key: the primary key was dropped for an index that is not unique,"
    " so that whole rows are recorded and counted; from the WAL, with REPLICA IDENTITY FULL.",
}


#: An update that leaves the key alone, with a single column published: the key's text begins at byte 13.
_PEEK: Final = """
INSERT INTO keys
SELECT convert_from(substr(data, 14), 'UTF8')::bigint
  FROM pg_logical_slot_peek_binary_changes('peeked', NULL, NULL, 'proto_version', '1', 'publication_names', 'peeked')
 WHERE get_byte(data, 0) IN (73, 85)
"""


class Captured:
    """A capture that is switched on, for as long as the block lasts. Nothing of it is used up."""

    def __init__(self, control: psycopg.Connection, catch_up: Callable[[], None]) -> None:
        """`catch_up` returns when all is recorded that was committed before."""
        self._control, self._catch_up = control, catch_up
        self.lags_ms: list[float] = []
        self.retained_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def pull(self) -> float:
        """Wait until all is recorded; returns the seconds it took."""
        began = time.perf_counter()
        self._catch_up()
        return time.perf_counter() - began

    def watch(self) -> None:
        """From now on, note how far behind it is."""
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        retained = (
            "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0) FROM pg_replication_slots"
        )
        while not self._stop.wait(0.1):
            self.lags_ms.append(1000 * self.pull())
            (found,) = self._control.execute(retained).fetchone() or (0,)
            self.retained_bytes = max(self.retained_bytes, int(found))


@contextlib.contextmanager
def captured(kind: str, conninfo: str) -> Iterator[Captured | None]:
    """Switch the capture of a kind on; the database is thrown away afterwards."""
    if kind == NONE:
        yield None
    elif kind == PG_REPACK:
        with psycopg.connect(conninfo, autocommit=True) as conn:
            statements = "SELECT create_pktype, create_log, create_trigger, enable_trigger FROM repack.tables"
            row = conn.execute(statements).fetchone()
            assert row is not None
            for statement in row:
                conn.execute(statement)
            yield None
    elif kind == PEEK:
        with _by_functions(conninfo) as found:
            yield found
    else:
        with _of_pglean(Capture(kind), conninfo) as found:
            yield found


@contextlib.contextmanager
def _by_functions(conninfo: str) -> Iterator[Captured]:
    """What could be done without the protocol of replication."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute("CREATE PUBLICATION peeked FOR TABLE orders (id)")
        conn.execute("SELECT pg_create_logical_replication_slot('peeked', 'pgoutput')")
        conn.execute("CREATE TABLE keys (k bigint)")

        def peek() -> None:
            conn.execute(_PEEK)
            conn.execute("SELECT pg_replication_slot_advance('peeked', pg_current_wal_flush_lsn())")

        try:
            yield Captured(conn, peek)
        finally:
            conn.execute("SELECT pg_drop_replication_slot('peeked')")


@contextlib.contextmanager
def _of_pglean(kind: Capture, conninfo: str) -> Iterator[Captured]:
    server = Server(conninfo)
    options = Options(capture=kind)
    patience = Patience(server, Policy.of(options), lambda _: None)
    with server.connect("bench") as control:
        schema.ensure(control)
        oid = int(scalar(control, "SELECT 'public.orders'::regclass::oid"))
        table = catalog.load(control, oid)
        fingerprint = catalog.fingerprint(control, oid)
        assert fingerprint is not None
        job = jobs.create(control, table, options, fingerprint, None, __version__)
        recording = capture.of(server, table, job.id, options)
        try:
            with transaction(control):
                recording.prepare(control)
            recording.start(control, patience, lambda: None, None)
            with locked(server, control, table, Mode.SHARE_ROW_EXCLUSIVE, patience):
                recording.switch_on(control)
            yield Captured(control, recording.pull)
        finally:
            recording.close()
            # The server takes a moment to notice; until then the database cannot be dropped.
            while scalar(control, "SELECT count(*) FROM pg_replication_slots"):
                time.sleep(0.02)


class Benchmark:
    """All kinds by turns, each on a fresh copy of the table."""

    def __init__(self, options: argparse.Namespace, server: EmbeddedServer) -> None:
        self._options, self._server = options, server
        extensions = ("pg_repack",) if PG_REPACK in options.kinds else ()
        self._ground = Ground.private(server)
        self._orders = Template(self._ground, WORKLOADS["orders"], options.rows, extensions=extensions, vacuumed=True)
        tools = [*options.kinds, PEEK, WITH_KEY, WITHOUT, WITHOUT_WAL]
        self.results = Results(METRICS, EXPLANATIONS, tools)

    def run(self) -> None:
        """Do all runs, adding to the results as they come."""
        for scenario in self._options.only:
            for repetition in range(1, self._options.repetitions + 1):
                without = 0.0
                # Without capture first: the others are compared with the run of their own turn.
                for kind in self._kinds(scenario):
                    values = self._measure(scenario, kind)
                    if kind == NONE:
                        without = values["tps"]
                    if scenario == FLAT_OUT and without:
                        values["share"] = 100 * values["tps"] / without
                    run = Run(scenario, kind, self._orders.rows, repetition, values, "", False, "")
                    self.results.runs.append(run)
                    shown = (f"{m.label} {m.show(values[m.key])}" for m in METRICS[scenario] if m.key in values)
                    print(f"{scenario}, {kind}, run {repetition}: " + "; ".join(shown), flush=True)

    def _kinds(self, scenario: str) -> list[str]:
        if scenario == REPACK:
            return [WITH_KEY, WITHOUT, WITHOUT_WAL]
        if scenario == READING:
            return ["wal", PEEK]
        return [kind for kind in self._options.kinds if scenario != BULK or kind != NONE]

    def _repack(self, kind: str) -> dict[str, float]:
        extra = ("--capture", "wal") if kind == WITHOUT_WAL else ()
        tool = Tool(PGLEAN, self._ground, self._orders.workload, 2, extra)
        values = {}
        for loaded in (False, True):
            self._orders.refresh()
            if kind != WITH_KEY:
                with psycopg.connect(self._server.conninfo(DATABASE)) as conn:
                    conn.execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey; CREATE INDEX ON orders (id)")
                    conn.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
            time.sleep(1)
            if not loaded:
                finished = tool.run(_CAP_S)
                values["idle_s"] = finished.elapsed_s
                values["wal_mb"] = told(finished)["wal_bytes"] / 1e6
                continue
            with self._load_of(self._options.rate) as load:
                time.sleep(self._options.warmup)
                finished = tool.run(_CAP_S)
                transactions, problems = load.stop()
            during = transactions.during(finished.started, finished.ended)
            if problems or finished.exit_status != 0:
                raise RuntimeError(problems or finished.errors)
            values |= {
                "elapsed_s": finished.elapsed_s,
                "changes": told(finished)["changes_applied"],
                "p50_ms": during.p50_ms,
                "p99_ms": during.p99_ms,
                "worst_ms": during.worst_ms,
                "tps": during.per_second,
            }
        return values

    def _measure(self, scenario: str, kind: str) -> dict[str, float]:
        if scenario == REPACK:
            return self._repack(kind)
        self._orders.refresh()
        conninfo = self._server.conninfo(DATABASE)
        with captured(kind, conninfo) as found, contextlib.ExitStack() as stack:
            if scenario == READING:
                other = stack.enter_context(psycopg.connect(conninfo))
                other.execute("CREATE TABLE old ()")
            cpu_s = _cpu_s()
            values = self._bulk(found) if scenario == BULK else self._load(scenario, found)
            if found is not None:
                usage = resource.getrusage(resource.RUSAGE_SELF)
                values |= {"cpu_s": _cpu_s() - cpu_s, "rss_mb": usage.ru_maxrss / 1000}
        return values

    def _load_of(self, rate: int | None) -> Load:
        return Load(self._ground, self._orders.workload, self._orders.rows, UNIFORM, rate=rate)

    def _load(self, scenario: str, found: Captured | None) -> dict[str, float]:
        rate = self._options.rate if scenario == STEADY else None
        with self._load_of(rate) as load:
            time.sleep(self._options.warmup)
            if found is not None:
                found.watch()
            start = time.time()
            time.sleep(self._options.seconds)
            end = time.time()
            if found is not None:
                found.stop()
            transactions, problems = load.stop()
        if problems:
            raise RuntimeError(problems)
        during = transactions.during(start, end)
        values = {
            "tps": during.per_second,
            "p50_ms": during.p50_ms,
            "p99_ms": during.p99_ms,
            "worst_ms": during.worst_ms,
        }
        if found is not None and found.retained_bytes:
            values["lag_ms"] = sorted(found.lags_ms)[len(found.lags_ms) // 2]
            values["worst_lag_ms"] = max(found.lags_ms)
            values["retained_mb"] = found.retained_bytes / 1e6
        return values

    def _bulk(self, found: Captured | None) -> dict[str, float]:
        with psycopg.connect(self._server.conninfo(DATABASE), autocommit=True) as conn:
            began = time.perf_counter()
            conn.execute("UPDATE orders SET status = 'sent'")
            update_s = time.perf_counter() - began
        after_s = 0.0 if found is None else found.pull()
        values = {"update_s": update_s, "after_s": after_s}
        if after_s > 0.05:
            values["keys_per_s"] = self._orders.pairs / after_s
        return values


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for; what is not given depends on --quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="capture.py [OPTION]..."
    )
    add = parser.add_argument
    add("--only", default=",".join(METRICS), metavar="SCENARIO,...", help="of the five above (all)")
    add("--kinds", default="none,trigger,wal,pg_repack", metavar="KIND,...", help="of the four above (all)")
    add("--repetitions", type=int, metavar="N", help="of each (3; quick: 1)")
    add("--rows", type=int, metavar="N", help="before half of them are deleted (2000000; quick: 100000)")
    add("--seconds", type=float, metavar="S", help="of load that are measured (8; quick: 2)")
    add("--warmup", type=float, metavar="S", help="of load before that (2; quick: 1)")
    add("--rate", type=int, default=4000, metavar="TPS", help="transactions per second of steady (4000)")
    add("--bindir", type=Path, default=BINDIR, metavar="DIR", help=f"the server's programs ({BINDIR})")
    add("--output", type=Path, metavar="FILE", help="what to write (bench/CAPTURE.md; quick: nothing)")
    add("--quick", action="store_true", help="a small table and one repetition, to see that it works")
    options = parser.parse_args(arguments)
    usual: dict[str, Any] = {"repetitions": 3, "rows": 2_000_000, "seconds": 8.0, "warmup": 2.0, "output": OUTPUT}
    quick: dict[str, Any] = {"repetitions": 1, "rows": 100_000, "seconds": 2.0, "warmup": 1.0, "output": None}
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    names = [PG_REPACK if name == "pg_repack" else name for name in options.kinds.split(",")]
    if unknown := [name for name in names if name not in KINDS]:
        parser.error(f"no such kind: {unknown[0]}")
    options.only = options.only.split(",")
    options.kinds = [kind for kind in KINDS if kind in names]
    # What `run.private_server` looks at.
    options.settings, options.directory, options.fsync = ["wal_level=logical"], None, "on"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; raises where a run failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)
    start = datetime.datetime.now(datetime.UTC)
    with private_server(options) as server:
        facts = machine.facts(server.datadir)
        with psycopg.connect(server.conninfo()) as conn:
            facts |= machine.versions(conn, None)
        benchmark = Benchmark(options, server)
        benchmark.run()
        about = {
            "command": f"`{shlex.join(['bench/capture.py', *words])}`",
            "begun": f"{start:%Y-%m-%d %H:%M} UTC",
            "table": f"{options.rows:,} rows, one of every two deleted and vacuumed; three indexes",
            "load": f"{options.seconds:g} s; steady: {options.rate:,} transactions per second",
        }
        settings = {**SETTINGS, **server.settings}
        if options.output is not None:
            options.output.write_text(
                benchmark.results.markdown(
                    facts,
                    settings,
                    about,
                    title="What capturing changes costs",
                    introduction="Written by `bench/capture.py`. The kinds took turns on one server, each on a fresh"
                    " copy of the same table; figures are medians.",
                )
            )
        for scenario in options.only:
            print(f"\n{scenario}\n{benchmark.results.table(scenario)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
