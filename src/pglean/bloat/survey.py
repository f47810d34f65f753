"""Which tables are looked at, by which method, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import psycopg

from pglean import selection
from pglean.bloat import measure, reckoning, sample, statistics
from pglean.bloat.figures import Table
from pglean.bloat.finding import Bloat, Method, RelationBloat, TableBloat, summed
from pglean.errors import Finding, PgleanError, Refused, UsageError
from pglean.selection import Selection
from pglean.server import Server
from pglean.session import Connection
from pglean.table import quote_name

#: How tables are looked at where nothing is asked for.
AUTO = "auto"
#: `auto` looks closer at tables of which so much may be given back, or nothing is known; so many of them at the most.
_CANDIDATE_BYTES, _CANDIDATE_SHARE, _CANDIDATES = 8 << 20, 0.1, 50
#: pgstatindex reads all of an index: up to here that is cheap.
_CHEAP_INDEX_BYTES = 256 << 20
#: So many tables are named in a warning.
_TOLD = 5

MAX_SCAN_BYTES = 10 << 30

#: What is being looked at, for a display.
Callback = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. Raises `UsageError` where a value makes no sense."""

    #: Names as in SQL, and patterns; a partitioned table stands for its partitions.
    tables: tuple[str, ...] = ()
    #: Schemas by name or pattern.
    schemas: tuple[str, ...] = ()
    #: auto, or one of `Method`.
    method: str = AUTO
    #: Tables that are smaller, or less bloated, are left out.
    min_bytes: int = 0
    min_bloat: float = 0.0
    #: So many at the most.
    top: int | None = None
    #: Relations that are larger are not read as a whole.
    max_scan_bytes: int = MAX_SCAN_BYTES
    #: Whether partitions are listed; else they are added up.
    partitions: bool = False

    def __post_init__(self) -> None:
        if self.method not in (AUTO, Method.ESTIMATE, Method.APPROX, Method.EXACT):
            raise UsageError(
                f"invalid value for option --method: {self.method}", hint="Give auto, estimate, approx or exact."
            )
        if not 0 <= self.min_bloat <= 1:
            raise UsageError("invalid value for option --min-bloat", hint="Give a percentage: --min-bloat 30%.")
        if self.top is not None and self.top < 1:
            raise UsageError(f"invalid value for option --top: {self.top}", hint="Give a number from 1 on.")
        if min(self.min_bytes, self.max_scan_bytes) < 0:
            raise UsageError("invalid value for a size: it is negative")


def look(server: Server, conn: Connection, request: Request, on_table: Callback) -> Bloat:
    """Look at the tables that are meant.

    Locks: ACCESS SHARE on a relation while it is read, of which `statistics`, `measure` and `sample` tell more.
    Raises `UsageError` where a name means nothing, `Refused` where a method is asked for that is not to be had.
    """
    block_bytes = server.capabilities.block_bytes
    missing = None if request.method == Method.ESTIMATE else measure.available(conn)
    if missing is not None and request.method != AUTO:
        raise Refused(
            "the database",
            [
                Finding(
                    "no-extension",
                    f"method {request.method} is not to be had: {missing}",
                    None,
                    "CREATE EXTENSION pgstattuple; GRANT pg_stat_scan_tables to the role. --method auto does without.",
                )
            ],
        )
    found = figures_of(server, conn, request)
    tables = {figures.oid: _reckoned(figures, partial(reckoning.table, figures, block_bytes)) for figures in found}
    large = [figures for figures in found if tables[figures.oid].bytes >= request.min_bytes]
    chosen = large
    if request.method == AUTO:
        chosen = large if request.tables else _candidates(large, tables)
    elif request.method == Method.ESTIMATE:
        chosen = []
    for number, figures in enumerate(chosen, 1):
        on_table(f"{tables[figures.oid].qualified_name} ({number} of {len(chosen)})")
        closer = _Closer(server, conn, request, figures, tables[figures.oid])
        tables[figures.oid] = _reckoned(figures, closer.sampled if missing is not None else closer.measured)
    kept: Sequence[TableBloat] = [tables[figures.oid] for figures in found]
    kept = kept if request.partitions else summed(kept)
    kept = [
        table
        for table in kept
        if table.bytes >= request.min_bytes and (request.min_bloat == 0 or (table.bloat or 0) >= request.min_bloat)
    ]
    ordered = sorted(kept, key=lambda t: (t.bloat is None, -t.gain_bytes, -t.bytes, t.schema, t.name))
    return Bloat(tuple(ordered[: request.top]), len(found), (*_warnings(request, missing), *_locked(found)))


def _reckoned(figures: Table, look_at: Callable[[], TableBloat]) -> TableBloat:
    """What is told of a table: of one whose figures make no sense that, so that all others are told of."""
    try:
        return look_at()
    except (PgleanError, psycopg.Error):
        raise
    except Exception as error:
        return reckoning.unreckoned(figures, f"could not be reckoned: {type(error).__name__}: {error}")


def figures_of(server: Server, conn: Connection, request: Request) -> list[Table]:
    """What the statistics say of the tables that are meant. Raises `UsageError`."""
    # Validates that names and schemas are not mixed.
    wanted = Selection(tables=request.tables, schemas=request.schemas)
    schemas = selection.schemas(conn, wanted) if wanted.schemas else None
    oids = None
    if wanted.tables:
        oids = [oid for name in wanted.tables for oid in selection.oids(server, conn, name)]
    found = statistics.read(server, conn, oids, schemas)
    if wanted.tables and not found:
        raise UsageError(
            f"{', '.join(wanted.tables)}: there is no table that holds rows",
            hint="Name tables, materialized views, or partitioned tables; indexes are told of with their table.",
        )
    return found


def _candidates(found: Sequence[Table], tables: dict[int, TableBloat]) -> list[Table]:
    def worth(figures: Table) -> int:
        table = tables[figures.oid]
        return table.gain_bytes if table.heap.known else table.bytes

    chosen = [
        figures
        for figures in found
        if figures.is_heap
        and worth(figures) >= _CANDIDATE_BYTES
        and worth(figures) >= _CANDIDATE_SHARE * tables[figures.oid].bytes
    ]
    return sorted(chosen, key=worth, reverse=True)[:_CANDIDATES]


def _warnings(request: Request, missing: str | None) -> tuple[Finding, ...]:
    if missing is None or request.method != AUTO:
        return ()
    return (
        Finding(
            "no-extension",
            f"{missing}: what is looked at closer is sampled",
            None,
            "GRANT pg_stat_scan_tables TO the role; --method exact then reads all of a table."
            if "may not" in missing
            else "CREATE EXTENSION pgstattuple; --method exact then reads all of a table.",
            fatal=False,
        ),
    )


def _locked(found: Sequence[Table]) -> Iterator[Finding]:
    """Those of which the present size is not known, be they so small that they are left out."""
    names = [
        f"{quote_name(table.schema)}.{quote_name(table.name)}"
        for table in found
        if not all(part.size_is_present for part in (table, table.toast or table, *table.indexes))
    ]
    if names:
        told = ", ".join(names[:_TOLD]) + (f" and {len(names) - _TOLD:,} more" if len(names) > _TOLD else "")
        yield Finding(
            "locked",
            f"locked by somebody: {told}; sizes are those of the last VACUUM or ANALYZE",
            None,
            "Look again when the lock is gone.",
            fatal=False,
        )


@dataclass(frozen=True, slots=True)
class _Closer:
    """A closer look at one table; what cannot be looked at stays as the statistics say, which is said."""

    server: Server
    conn: Connection
    request: Request
    figures: Table
    estimated: TableBloat

    @property
    def _block_bytes(self) -> int:
        return self.server.capabilities.block_bytes

    @property
    def _method(self) -> Method:
        return Method.EXACT if self.request.method == Method.EXACT else Method.APPROX

    def measured(self) -> TableBloat:
        """By pgstattuple."""
        heap, toast, figures = self.estimated.heap, self.estimated.toast, self.figures
        outcome = self._read(figures.oid, figures.bytes) if figures.is_heap else ""
        if isinstance(outcome, str):
            heap = heap.noting(f"not measured: {outcome}") if outcome else heap
        else:
            heap = reckoning.measured_heap(figures, outcome, self._block_bytes)
            figures = replace(figures, rows=outcome.items, counted_rows=None)
        if toast is not None and figures.toast is not None and figures.toast.bytes == 0:
            toast = replace(toast, method=heap.method)
        elif toast is not None and figures.toast is not None:
            outcome = self._read(figures.toast.oid, figures.toast.bytes)
            if isinstance(outcome, str):
                toast = toast.noting(f"TOAST table not measured: {outcome}")
            else:
                toast = reckoning.measured_toast(figures, outcome, self._block_bytes)
        rows = figures.present_rows
        indexes = tuple(self._index(number, index, rows) for number, index in enumerate(self.estimated.indexes))
        return replace(self.estimated, heap=heap, toast=toast, indexes=indexes)

    def _read(self, oid: int, size: int) -> measure.Outcome:
        # The visibility map spares pgstattuple_approx most of a table, but nobody knows beforehand how much.
        if size > self.request.max_scan_bytes:
            return "larger than --max-scan"
        return measure.heap(self.server, self.conn, oid, self._method, size / self._block_bytes)

    def _index(self, number: int, estimated: RelationBloat, rows: float | None) -> RelationBloat:
        index = self.figures.indexes[number]
        now = reckoning.index(index, rows, self._block_bytes, Method.ESTIMATE)
        if index.btree is None:
            return estimated
        if self._method is Method.APPROX and index.bytes > _CHEAP_INDEX_BYTES:
            return now
        if index.bytes > self.request.max_scan_bytes:
            return now.noting("not measured: larger than --max-scan")
        outcome = measure.btree(self.server, self.conn, index.oid, self._method, self._block_bytes)
        if isinstance(outcome, str):
            return now.noting(f"not measured: {outcome}")
        return reckoning.index(index, rows, self._block_bytes, self._method, outcome)

    def sampled(self) -> TableBloat:
        """By some of its blocks."""
        if not self.figures.is_heap:
            return self.estimated
        outcome = sample.take(self.server, self.conn, self.figures, self._block_bytes)
        if isinstance(outcome, str):
            return replace(self.estimated, heap=self.estimated.heap.noting(f"not sampled: {outcome}"))
        indexes = tuple(
            reckoning.index(index, outcome.figures.rows, self._block_bytes, Method.SAMPLE)
            for index in self.figures.indexes
        )
        return replace(self.estimated, heap=outcome.heap, toast=outcome.toast, indexes=indexes)
