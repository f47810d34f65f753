"""The copy: ranges of the heap's blocks, several at a time, each in a transaction of its own.

Invariant: a row whose key is not written between the capture's start and the first refresh is copied by exactly one
chunk. Its version lies in a block below `run.blocks` (what was added to the heap later was written, hence
recorded), does not move, and is visible to the snapshot of every chunk.
Whatever else chunks copy (one version, two, none, of rows that are being written) is replaced by the refresh.

Locks: ACCESS SHARE on the table during a chunk, none in between. Killed: chunks are there with their checkpoint, or
not at all.
"""

from __future__ import annotations

import threading
import time
from functools import partial

from psycopg import sql

from pglean import guard
from pglean.rewrite import job as jobs
from pglean.rewrite.run import Run
from pglean.rewrite.shadow import columns
from pglean.server import Connection
from pglean.table import Table

_FIRST_BLOCKS, _LEAST_BLOCKS, _MOST_BLOCKS = 512, 8, 1 << 17


class Ranges:
    """Hands out ranges of blocks, of a size that makes each take about the target time."""

    def __init__(self, blocks: int, target_ms: float, takers: int = 1, first: int = _FIRST_BLOCKS) -> None:
        self._next, self._end = 0, blocks
        self._takers = takers
        self._target_ms = target_ms
        self._size = float(first)
        self._lock = threading.Lock()

    def take(self) -> tuple[int, int] | None:
        """The next range, its end exclusive; None when all blocks are handed out."""
        with self._lock:
            if self._next >= self._end:
                return None
            first = self._next
            # Towards the end the pieces get smaller, so that all workers finish at about the same time.
            fair = max((self._end - first) // (2 * self._takers), _FIRST_BLOCKS)
            self._next = min(first + int(min(self._size, fair)), self._end)
            return first, self._next

    def took(self, blocks: int, elapsed_ms: float) -> None:
        """Learn from a chunk: at most twice, at least half the size next time."""
        ideal = blocks * self._target_ms / max(elapsed_ms, 0.1)
        with self._lock:
            size = min(max(ideal, self._size / 2), self._size * 2)
            self._size = min(max(size, _LEAST_BLOCKS), _MOST_BLOCKS)


def _first_blocks(table: Table) -> int:
    """The first chunk's size, before anything was measured: smaller where much of a row lies in the TOAST table."""
    share = table.heap_bytes / max(table.heap_bytes + (table.toast.bytes if table.toast else 0), 1)
    return max(int(_FIRST_BLOCKS * share), _LEAST_BLOCKS)


def run(run: Run) -> None:
    """Copy all blocks. Raises what `Run.step` raises."""
    ranges = Ranges(run.blocks, run.job.options.chunk_ms, run.workers.count, _first_blocks(run.table))
    run.reporter.total(run.blocks, "blocks")
    run.workers.every(lambda conn, worker, _: _copy(run, conn, worker, ranges))


def _copy(run: Run, conn: Connection, worker: str, ranges: Ranges) -> None:
    while not run.workers.stopping.is_set():
        if (blocks := ranges.take()) is None:
            return
        first, end = blocks
        run.reach("copy: before a chunk")
        run.purpose(conn, f"copy {100 * first // max(run.blocks, 1)}%")
        started = time.monotonic()
        rows = run.again(partial(_chunk, run, conn, worker, first, end))
        ranges.took(end - first, (time.monotonic() - started) * 1000)
        run.reporter.advance(end - first, rows=rows)


def _chunk(run: Run, conn: Connection, worker: str, first: int, end: int) -> int:
    with run.step(conn):
        rows = guard.execute(conn, run.table, worker, lambda source: _statement(run, source, first, end))
        jobs.record_chunk(conn, run.job.id, first, end, rows)
        run.reach("copy: in a chunk")
    return rows


def _statement(run: Run, source: guard.Source, first: int, end: int) -> sql.Composed:
    names, values = columns(run.table)
    return sql.SQL(
        "INSERT INTO {shadow} ({names}) SELECT {values} FROM {table} AS t WHERE t.{tid} >= {first} AND t.{tid} < {end}"
    ).format(
        shadow=run.job.shadow,
        names=names,
        values=values,
        table=source.relation,
        tid=source.tid,
        first=_tid(first),
        end=_tid(end),
    )


def _tid(block: int) -> sql.Composed:
    return sql.SQL("{}::pg_catalog.tid").format(sql.Literal(f"({block},0)"))
