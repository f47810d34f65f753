"""The copy: ranges of numbered pieces, several at a time, each in a transaction of its own.

Pieces are the heap's blocks or, where the rows are to be sorted, ranges of values (`order`); or there is one only.

Invariant: a row whose key is not written between the capture's start and the first refresh is copied by exactly one
chunk. Its version lies in a block below `run.pieces` (what was added to the heap later was written, hence
recorded), does not move, and is visible to the snapshot of every chunk. The same holds of ranges of values: its value
stays what it is, and lies in one of them.
Whatever else chunks copy (one version, two, none, of rows that are being written) is replaced by the refresh.
Of a table without a key nothing can be replaced: there all chunks read the same snapshot (`baseline`).

Locks: ACCESS SHARE on the table during a chunk, none in between. Killed: chunks are there with their checkpoint, or
not at all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from psycopg import sql

from pglean import guard
from pglean.errors import Paused
from pglean.processors import Meter
from pglean.rewrite import baseline
from pglean.rewrite import job as jobs
from pglean.rewrite.courtesy import Courtesy
from pglean.rewrite.order import MOST_AT_ONCE, has_index, prepare
from pglean.rewrite.run import Run
from pglean.rewrite.shadow import clear_dead, columns, older_snapshots, vacuum
from pglean.session import Connection
from pglean.table import Table, quote_name

_FIRST_BLOCKS, _LEAST_BLOCKS, _MOST_BLOCKS = 512, 8, 1 << 17

#: For so long one worker copies alone, then all, before it is decided whether they all go on; and a look at that.
_TRIAL_S, _ASK_S = 0.2, 0.05
#: All workers together must be so much faster than one.
_PAYS = 1.25
#: The target time of a chunk after which there was a queue.
_GENTLE_MS = 100
#: Share of the table that is copied when a worker begins to freeze.
_FREEZE_FROM = 0.7


def gaps(blocks: int, done: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of `[0, blocks)` beside the ranges that are done; ends are exclusive."""
    left, reached = [], 0
    for first, end in sorted(done):
        if first > reached:
            left.append((reached, first))
        reached = max(reached, end)
    if reached < blocks:
        left.append((reached, blocks))
    return left


@dataclass(frozen=True, slots=True)
class Grain:
    """How many pieces a chunk has."""

    #: The first, before anything was measured.
    first: int
    #: Later ones, at least and at most.
    least: int
    most: int
    #: Towards the end chunks get smaller, but not for that reason smaller than this.
    last: int


class Ranges:
    """Hands out ranges of pieces, of a size that makes each take about the target time."""

    def __init__(
        self,
        pieces: int,
        target_ms: float,
        takers: int = 1,
        grain: Grain | None = None,
        done: Iterable[tuple[int, int]] = (),
    ) -> None:
        self._gaps = deque(gaps(pieces, done))
        self._pieces = pieces
        self._left = sum(end - first for first, end in self._gaps)
        self._takers = takers
        self._target_ms = target_ms
        self._grain = grain or Grain(_FIRST_BLOCKS, _LEAST_BLOCKS, _MOST_BLOCKS, _FIRST_BLOCKS)
        self._size = float(self._grain.first)
        self._lock = threading.Lock()

    @property
    def handed_out(self) -> float:
        """Share of the pieces."""
        with self._lock:
            return 1 - self._left / self._pieces if self._pieces else 1.0

    def take(self) -> tuple[int, int] | None:
        """The next range, its end exclusive; None when all pieces are handed out."""
        with self._lock:
            if not self._gaps:
                return None
            first, end = self._gaps.popleft()
            size = self._size
            if self._takers > 1:
                # Towards the end chunks get smaller, so that all workers finish at about the same time.
                size = min(size, max(self._left // (2 * self._takers), self._grain.last))
            reached = min(first + int(size), end)
            if reached < end:
                self._gaps.appendleft((reached, end))
            self._left -= reached - first
            return first, reached

    def alone(self) -> None:
        """From now on one worker takes them all."""
        with self._lock:
            self._takers = 1

    def gently(self) -> None:
        """From now on make them short."""
        with self._lock:
            if self._target_ms > _GENTLE_MS:
                self._size = max(self._size * _GENTLE_MS / self._target_ms, self._grain.least)
                self._target_ms = _GENTLE_MS

    def took(self, pieces: int, elapsed_ms: float) -> None:
        """Learn from a chunk: at most twice, at least half the size next time."""
        ideal = pieces * self._target_ms / max(elapsed_ms, 0.1)
        with self._lock:
            size = min(max(ideal, self._size / 2), self._size * 2)
            self._size = min(max(size, self._grain.least), self._grain.most)


class Crew:
    """Whether all workers copy, or one alone.

    Several sessions that fill one file wait for each other to extend it, and for the WAL. Where that eats up what a
    second processor would give, it is better left to the application. So one begins; the others join for a trial
    where a processor is idle meanwhile, and stay only if the whole gets faster.
    """

    def __init__(self, workers: int) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._pieces = 0
        self._alone = 0.0
        #: Set once it is known whether the others stay.
        self.decided = threading.Event()
        #: Set while the others may work.
        self.joined = threading.Event()
        if workers == 1:
            self.decided.set()

    def did(self, pieces: int, crowded: Callable[[], bool] = lambda: False) -> None:
        """Learn from a chunk; `crowded` tells whether all processors have been busy."""
        with self._lock:
            self._pieces += pieces
            elapsed = time.monotonic() - self._began
            if self.decided.is_set() or elapsed < _TRIAL_S:
                return
            rate = self._pieces / elapsed
            if not self.joined.is_set():
                self._alone = rate
                if crowded():
                    self.decided.set()
                else:
                    self.joined.set()
            else:
                if rate < _PAYS * self._alone:
                    self.joined.clear()
                self.decided.set()
            self._began, self._pieces = time.monotonic(), 0

    def works(self, number: int) -> bool:
        """Whether this worker takes another chunk; waits a moment where that is not known yet."""
        if number == 0 or self.joined.is_set():
            return True
        self.joined.wait(_ASK_S)
        return self.joined.is_set()


def _first_blocks(table: Table) -> int:
    """The first chunk's size, before anything was measured: smaller where much of a row lies in the TOAST table."""
    share = table.heap_bytes / max(table.heap_bytes + (table.toast.bytes if table.toast else 0), 1)
    return max(int(_FIRST_BLOCKS * share), _LEAST_BLOCKS)


def _grain(run: Run, takers: int, *, indexed: bool) -> Grain:
    order = run.job.order
    if order is None:
        return Grain(_first_blocks(run.table), _LEAST_BLOCKS, _MOST_BLOCKS, _FIRST_BLOCKS)
    if not indexed:
        # Each chunk reads all of the table.
        return Grain(run.pieces, run.pieces, run.pieces, run.pieces)
    if takers == 1:
        return Grain(1, 1, run.pieces, 1)
    return Grain(1, 1, max(int(MOST_AT_ONCE * run.pieces / takers), 1), 1)


def _indexed(run: Run) -> bool:
    """Whether there is an index for the ranges; somebody may have dropped it since they were made."""
    ranges = None if run.job.order is None else run.job.order.ranges
    if ranges is None:
        return False
    if has_index(run.control, run.table, ranges.column):
        return True
    run.reporter.message(f"no index begins with {quote_name(ranges.column)} any more: the rest is copied at once")
    return False


def run(run: Run) -> None:
    """Copy all pieces that are not copied yet. Raises what `Run.step` raises."""
    if run.table.key is not None:
        _run(run)
        return
    with baseline.held(run):
        _run(run)


def _run(run: Run) -> None:
    done = jobs.chunks(run.control, run.job.id)
    order, indexed = run.job.order, _indexed(run)
    takers = run.workers.count if order is None else order.workers(run.workers.count)
    ranges = Ranges(
        run.pieces,
        run.job.options.chunk_ms,
        takers,
        _grain(run, takers, indexed=indexed),
        [(first, end) for first, end, _ in done],
    )
    if order is None:
        run.reporter.total(run.pieces, "blocks")
    else:
        run.reporter.message(f"the rows are sorted {order.way}: {order.reason}", informational=True)
        # Of a single statement nobody knows how far it has come.
        run.reporter.total(run.pieces if order.ranges is not None else 0, "ranges")
    run.reporter.resumed(sum(end - first for first, end, _ in done), rows=sum(rows for _, _, rows in done))
    crew = Crew(takers)
    meter = Meter(run.control, [conn.info.backend_pid for conn in run.server.connections])

    def work(conn: Connection, worker: str, number: int) -> None:
        def crowded() -> bool:
            run.crowded = meter.busy(conn)
            return run.crowded

        _copy(run, conn, worker, number, ranges, indexed, crew, crowded)

    run.workers.each(list(range(takers)), work)
    run.halt()
    if takers > 1 and crew.decided.is_set():
        run.parallel_pays = crew.joined.is_set()


def _copy(
    run: Run,
    conn: Connection,
    worker: str,
    number: int,
    ranges: Ranges,
    indexed: bool,
    crew: Crew,
    crowded: Callable[[], bool],
) -> None:
    courtesy = Courtesy(run.server)
    # One of several, once: what is still in the buffers is frozen at little cost, and less is left for the end.
    freezes = number == 1
    while not run.workers.stopping.is_set() and run.pause is None and ranges.handed_out < 1:
        if not crew.works(number):
            if crew.decided.is_set():
                ranges.alone()
                run.parallel_pays = False
                if freezes:
                    _freeze(run, conn, ranges)
                return
            continue
        if freezes and ranges.handed_out >= _FREEZE_FROM:
            freezes = False
            _freeze(run, conn, ranges)
        if not _let_in(run) or (pieces := ranges.take()) is None:
            return
        first, end = pieces
        run.reach("copy: before a chunk")
        run.purpose(conn, f"copy {100 * first // max(run.pieces, 1)}%")
        started = time.monotonic()
        rows = run.again(partial(_piece, run, conn, worker, first, end, indexed=indexed))
        ranges.took(end - first, (time.monotonic() - started) * 1000)
        crew.did(end - first, crowded)
        if courtesy.give_way(conn, time.monotonic() - started):
            ranges.gently()
        run.reporter.advance(end - first, rows=rows)


def _let_in(run: Run) -> bool:
    """Wait for the throttle; False where a pause was asked for, before which the other workers finish their chunks."""
    try:
        run.pass_gate()
    except Paused:
        return False
    return True


def _freeze(run: Run, conn: Connection, ranges: Ranges) -> None:
    """Freeze the first part of the shadow while others copy the rest; wait until there is enough of it.

    Not where that would be in vain, and all would be read a second time for nothing.
    """
    if run.baseline is not None:
        # What a snapshot is held from before cannot be frozen.
        return
    while ranges.handed_out < _FREEZE_FROM:
        if run.workers.stopping.is_set() or run.pause is not None:
            return
        run.server.rest(_ASK_S)
    if not run.workers_to_spare(conn) or not _let_in(run):
        return
    if not older_snapshots(conn, time.monotonic() - run.captured_at):
        vacuum(run, conn, patient=False)


def _piece(run: Run, conn: Connection, worker: str, first: int, end: int, *, indexed: bool) -> int:
    order = run.job.order
    if order is not None and (order.ranges is None or not indexed):
        # What an attempt that was ended has left is a large part of the table.
        run.again(partial(clear_dead, run, conn))
    return _chunk(run, conn, worker, first, end, indexed=indexed)


def _chunk(run: Run, conn: Connection, worker: str, first: int, end: int, *, indexed: bool) -> int:
    with run.chunk(conn):
        if run.job.order is not None:
            prepare(conn, run.job.order, indexed=indexed)
        rows = guard.execute(conn, run.table, worker, lambda source: _statement(run, source, first, end))
        jobs.record_chunk(conn, run.job.id, first, end, rows)
        run.reach("copy: in a chunk")
    return rows


def _statement(run: Run, source: guard.Source, first: int, end: int) -> sql.Composed:
    names, _ = columns(run.table)
    order = run.job.order
    rows = _blocks(source, first, end) if order is None else order.select(run.table, source, first, end)
    return sql.SQL("INSERT INTO {shadow} ({names}) SELECT {values} FROM {rows}").format(
        shadow=run.job.shadow, names=names, values=run.job.layout.values(), rows=rows
    )


def _blocks(source: guard.Source, first: int, end: int) -> sql.Composed:
    return sql.SQL("{table} AS t WHERE t.{tid} >= {first} AND t.{tid} < {end}").format(
        table=source.relation, tid=source.tid, first=_tid(first), end=_tid(end)
    )


def _tid(block: int) -> sql.Composed:
    return sql.SQL("{}::pg_catalog.tid").format(sql.Literal(f"({block},0)"))
