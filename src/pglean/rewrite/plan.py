"""What a run would do, with sizes: made from the catalog alone, printed by --dry-run, carried out by `pipeline`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pglean.catalog import Fingerprint
from pglean.errors import Finding
from pglean.options import Capture, Options, Verify
from pglean.rewrite.job import Stored
from pglean.rewrite.layout import Layout
from pglean.rewrite.order import Order
from pglean.rewrite.phase import RESUMES_WITH
from pglean.table import Table

#: Of an index on a hash: what an entry takes; and of a row, about, where nothing has counted them.
_ENTRY_BYTES, _ROW_BYTES = 24, 64


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that preflight has let through."""

    table: Table
    options: Options
    #: What the run relies on, read before `table`.
    fingerprint: Fingerprint
    #: Findings that do not refuse the run.
    warnings: tuple[Finding, ...]
    #: The database's default tablespace.
    default_tablespace: str
    #: By what the rows of the copy are sorted; None: they lie as in the table.
    order: Order | None = None
    #: The run that was kept, or interrupted, and is gone on with.
    kept: Stored | None = None
    #: Why changes are captured by triggers, where it was left to us; else empty.
    why_triggers: str = ""

    @property
    def capture_reason(self) -> str:
        """How changes are captured, and why, where it was left to us to choose; else empty."""
        return f"changes are captured by triggers: {self.why_triggers}" if self.why_triggers else ""

    @property
    def _recording(self) -> str:
        key, options = self.table.key, self.options
        record = (
            "record changed rows as they were and as they are"
            if key is None
            else f"record the keys ({', '.join(column.name for column in key.columns)}) of changed rows"
        )
        lock = f"(SHARE ROW EXCLUSIVE, a moment; waits at most {options.lock_timeout_ms} ms at a time)"
        if options.capture is not Capture.WAL:
            because = f", because {self.why_triggers}" if self.why_triggers else ""
            return f"{record}, by three triggers{because} {lock}"
        slot = "temporary" if options.max_slot_wal_bytes is None else "permanent"
        return f"{record}, from the WAL by a {slot} replication slot {lock}"

    @property
    def disk_bytes(self) -> int:
        """The present size of the table, as a bound for that of the copy beside it, until the old files are dropped.

        What a run really needs is this times the share of live data, plus the change table; a fillfactor that was
        lowered since the rows were written may ask for more (of which `checks` warns).
        """
        sort = self.table.heap_bytes if self.order is not None and self.order.ranges is None else 0
        return self.table.total_bytes + self._images_bytes + sort

    @property
    def _images_bytes(self) -> int:
        """Of the temporary index on the copy of a table without a key."""
        table = self.table
        if table.key is not None:
            return 0
        rows = table.heap_bytes // _ROW_BYTES if table.estimated_rows is None else table.estimated_rows
        return rows * _ENTRY_BYTES

    @property
    def disk_bytes_by_tablespace(self) -> dict[str | None, int]:
        """The same for each tablespace by name, None for the database's default; TOAST lies where the heap does."""
        table, layout = self.table, self.layout
        heap = table.heap_bytes + (table.toast.bytes if table.toast else 0) + self._images_bytes
        needed = {layout.tablespace: heap}
        for index in table.indexes:
            tablespace = layout.index_tablespace(index)
            needed[tablespace] = needed.get(tablespace, 0) + index.bytes
        if self.order is not None and self.order.ranges is None:
            # What does not fit into memory is sorted in temporary files (in temp_tablespaces, where these are set).
            needed[None] = needed.get(None, 0) + table.heap_bytes
        return needed

    @property
    def layout(self) -> Layout:
        """Of the files that the table gets."""
        return Layout(self.table, self.options, self.default_tablespace)

    @property
    def _copy(self) -> str:
        """How the rows are copied."""
        options, order = self.options, self.order
        jobs = options.jobs if order is None else order.workers(options.jobs)
        snapshot = ", all under one snapshot" if self.table.key is None else ""
        chunks = f"in chunks of about {options.chunk_ms} ms, {jobs} at a time{snapshot}"
        layout = f" ({self.layout.description})" if self.layout.description else ""
        if order is None:
            return f"copy the rows {chunks}{layout}"
        way = order.way if order.ranges is None else f"{order.way} {chunks}"
        return f"copy the rows sorted by {order.text} ({order.origin}) {way}: {order.reason}{layout}"

    @property
    def _waits(self) -> Iterator[str]:
        """What the exchange waits for."""
        options = self.options
        if options.hold:
            yield "stay in sync until `pglean swap`"
        elif options.swap_window is not None:
            yield f"stay in sync until it is {options.swap_window}"
        if options.mvcc_safe:
            yield "wait until no older snapshot is left (SHARE ROW EXCLUSIVE at the end of it)"

    @property
    def steps(self) -> tuple[str, ...]:
        """The run in words, in order."""
        table, options = self.table, self.options
        index = "" if table.key is not None else "build a temporary index on the copy; "
        verify = {
            Verify.NONE: "do not compare the tables (--verify none)",
            Verify.COUNT: "compare the number of rows in both tables",
            Verify.FULL: "compare both tables row by row",
        }[options.verify]
        count = len(table.indexes)
        indexes = "the index" if count == 1 else f"{count} indexes, {min(options.jobs, max(count, 1))} at a time"
        if self.kept is not None:
            phase = RESUMES_WITH[self.kept.phase]
            first = [f"go on with run {self.kept.id}, which had come to {self.kept.phase.label}, from {phase.label} on"]
        else:
            first = []
        steps = [
            *first,
            self._recording,
            self._copy,
            f"{index}take over the changes recorded meanwhile; freeze the copy",
            f"build {indexes}",
            "catch up with the changes",
            verify,
            *self._waits,
            f"exchange the files (ACCESS EXCLUSIVE, at most {options.max_lock_ms} ms)",
            "drop the old files" + ("; ANALYZE" if options.analyze else ""),
        ]
        return tuple(steps)
