"""Levers that are hardly any: what a load feels of a neighbour, and of single statements of the server's own.

Whatever runs beside an application takes processors and the disk from it. What it feels of a program that only
computes, or only writes a file as large as the new table; of a single index build, or of the old table being dropped;
is what no rewrite on that machine can be below.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from lever import Figures, Lever, Way
from load import Load
from pglean.session import Connection
from result import Metric
from workbench import DELETED, DOUBLED, INDEXES, OLD, SHADOW, Workbench, build, drop
from workload import WORKLOADS

_RATE: Final = 4000
_WARMUP_S, _SECONDS, _TAIL_S = 2.0, 5.0, 0.5
#: Of the file, as large as what `orders` is rewritten to at 4x.
_MEGABYTES: Final = 350

_COMPUTES: Final = f"""
import time
end = time.monotonic() + {_SECONDS}
while time.monotonic() < end:
    pass
"""
#: By 1 MB at a time, not faster than a copy of a table is; then it is brought to the disk, and removed.
_WRITES: Final = f"""
import os, tempfile, time
page = os.urandom(1 << 20)
began = time.monotonic()
with tempfile.TemporaryFile(dir={{directory!r}}, buffering=0) as file:
    for number in range({_MEGABYTES}):
        file.write(page)
        time.sleep(max(began + {_SECONDS} / 2 * number / {_MEGABYTES} - time.monotonic(), 0))
    os.fsync(file.fileno())
"""


@contextlib.contextmanager
def _loaded(bench: Workbench, state: str) -> Iterator[Figures]:
    """What the load felt while the block lasted; the figures are there afterwards."""
    bench.fresh(state)
    figures: Figures = {}
    with Load(bench.ground, WORKLOADS["orders"], 2 * bench.rows, "uniform", rate=_RATE) as load:
        time.sleep(_WARMUP_S)
        start = time.time()
        yield figures
        end = time.time()
        time.sleep(_TAIL_S)
        transactions, problems = load.stop()
    if problems:
        raise RuntimeError(problems)
    felt = transactions.during(start, end)
    figures.update(worst_ms=felt.worst_ms, p99_ms=felt.p99_ms, silence_ms=felt.silence_ms)


def _beside(bench: Workbench, *programs: str) -> Figures:
    """What the load felt while the programs ran, or for as long as they would have."""
    with _loaded(bench, DELETED) as figures, contextlib.ExitStack() as stack:
        for program in programs:
            stack.enter_context(subprocess.Popen([sys.executable, "-c", program]))
        if not programs:
            time.sleep(_SECONDS)
    return figures


def _while(bench: Workbench, *, state: str, job: Callable[[Workbench, Connection], None]) -> Figures:
    """What the load felt while a session did something, and half a second longer, for what that left behind."""
    with _loaded(bench, state) as figures, bench.connect() as conn:
        job(bench, conn)
        time.sleep(_TAIL_S)
    return figures


def _builds(_: Workbench, conn: Connection, *, helpers: bool) -> None:
    if not helpers:
        conn.execute("SET max_parallel_maintenance_workers = 0")
    conn.execute(build(INDEXES[0], unique=False))


def _analyzes(_: Workbench, conn: Connection) -> None:
    conn.execute("ANALYZE public.orders")


def _drops(_: Workbench, conn: Connection) -> None:
    conn.execute(f"DROP TABLE {SHADOW}")


def _drops_in_turn(bench: Workbench, conn: Connection) -> None:
    courtesy = bench.courtesy()
    for index in INDEXES:
        conn.execute(drop(index))
        courtesy.give_way(conn)
    _drops(bench, conn)


def _computing(bench: Workbench) -> Figures:
    return _beside(bench, _COMPUTES)


def _writing(bench: Workbench, *, and_computing: bool) -> Figures:
    writes = _WRITES.format(directory=str(Path(bench.directory)))
    return _beside(bench, writes, *([_COMPUTES] if and_computing else []))


_FELT: Final = (
    Metric("worst_ms", "longest stall of a client, ms", 1),
    Metric("p99_ms", "p99, ms", 2),
    Metric("silence_ms", "longest time without a commit, ms", 1),
)

NEIGHBOURS: Final = Lever(
    "neighbours",
    f"What does a load of {_RATE:,} transactions a second feel of a program that has nothing to do with the server?",
    _FELT,
    (
        Way("nothing runs beside it", _beside),
        Way("one processor is kept busy", _computing),
        Way(f"a file of {_MEGABYTES} MB is written, synchronized, removed", partial(_writing, and_computing=False)),
        Way("both", partial(_writing, and_computing=True)),
    ),
    "Nothing to decide: it is what any rewrite is to be compared with. A tool that uses a processor, writes the new"
    " table and removes the old one takes from the application what these programs do, unless it takes its time.",
)

STATEMENTS: Final = Lever(
    "statements",
    f"What does a load of {_RATE:,} transactions a second feel of statements that a rewrite cannot do without, each by"
    " itself? With 2,000,000 rows, each is as large as in a run on `orders` at 4x.",
    _FELT,
    (
        Way(
            "CREATE INDEX, with helpers (the server)",
            partial(_while, state=DOUBLED, job=partial(_builds, helpers=True)),
        ),
        Way(
            "CREATE INDEX, without helpers (pglean)",
            partial(_while, state=DOUBLED, job=partial(_builds, helpers=False)),
        ),
        Way("ANALYZE", partial(_while, state=DELETED, job=_analyzes)),
        Way("the old table is dropped with its indexes", partial(_while, state=OLD, job=_drops)),
        Way("its indexes first, one by one (pglean)", partial(_while, state=OLD, job=_drops_in_turn)),
    ),
    "Indexes are built without helpers, and one after the other, where processors are busy. Before the old heap is"
    " dropped its indexes go, each by itself, statistics are made first, and between all of these a queue of commits"
    " may pass: in a run the end was felt most, ANALYZE beginning right after all files had been truncated. What is"
    " left is the server's own: a single index build, or the heap's file being truncated, is felt more than 50 ms on"
    " this machine, whoever asks for it; and the file system takes the disk for as long as it frees the blocks (it is"
    " mounted with `discard`).",
)
