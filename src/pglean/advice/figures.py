"""What is known of a table beyond its bloat: what was written to it, how it is vacuumed, how its indexes are used."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pglean.bloat.finding import Method, TableBloat
from pglean.parameters import boolean, real

#: Up to this version a dead row takes six bytes of VACUUM's memory, of which it uses 1 GB at most.
LAST_WITH_ARRAY, DEAD_ROW_BYTES, MOST_MEMORY_BYTES = 169999, 6, 1 << 30
#: What initdb makes has OIDs below that.
_FIRST_ORDINARY, _SYSTEM_SCHEMAS = 16384, ("pg_catalog", "information_schema", "pg_toast", "pglean")
#: A line pointer and the header of a row version.
_LEAST_ROW_BYTES = 28


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the server."""

    version: int
    database: str
    #: Options of the command line that lead to it.
    connection: str
    block_bytes: int
    #: Whether the role is a superuser.
    superuser: bool
    #: Whether autovacuum runs: `autovacuum` and `track_counts` are on.
    autovacuum: bool
    vacuum_threshold: float
    vacuum_scale_factor: float
    #: autovacuum_vacuum_max_threshold (PostgreSQL 18); None where there is none.
    vacuum_max_threshold: float | None
    maintenance_bytes: int
    #: autovacuum_work_mem, or maintenance_work_mem where it says so.
    autovacuum_bytes: int
    autovacuum_workers: int
    #: How many of them are at work.
    busy_workers: int
    now: datetime.datetime
    #: When this database's counters began, or a crash has lost them.
    counted_since: datetime.datetime
    #: Standbys that stream from here, and physical slots.
    standbys: int
    in_recovery: bool
    #: How often a standby was promoted, or a backup restored, and one more; None on a standby.
    timeline: int | None
    #: In all databases.
    transactions_per_s: float
    #: How much autovacuum's workers do, all together, before they rest, and for how long: 0 where they do not.
    cost_limit: int
    cost_delay_ms: float


@dataclass(frozen=True, slots=True)
class Activity:
    """What the server counts of a table, and how it is set to be vacuumed."""

    oid: int
    #: pg_class.relkind and relpersistence.
    kind: str
    persistence: str
    #: Rows by the last VACUUM or ANALYZE, by which autovacuum takes its threshold; None where nobody has counted.
    rows: float | None
    #: Rows by the counters; 0 where these have been reset since.
    live_rows: float
    dead_rows: float
    updated: int
    deleted: int
    hot_updated: int
    #: Updates whose new version went to another page (PostgreSQL 16); None where that is not counted.
    moved: int | None
    #: Rows that were fetched from the table by indexes, and whether anybody has read it at all.
    fetched_by_index: int
    scans: int
    #: Share of the pages that VACUUM need not read.
    visible_share: float
    fillfactor: int
    #: Storage parameters.
    options: Mapping[str, str]
    #: The last VACUUM of any kind, and the last by itself.
    vacuumed: datetime.datetime | None
    autovacuumed: datetime.datetime | None

    def within(self, heap_bytes: int) -> Activity:
        """With no more dead rows than so large a file can hold; counters can be wrong, as after a restore."""
        return replace(self, dead_rows=min(self.dead_rows, float(heap_bytes // _LEAST_ROW_BYTES)))


@dataclass(frozen=True, slots=True)
class IndexUse:
    """An index, what makes it the same as another, and how it is used."""

    oid: int
    table_oid: int
    schema: str
    name: str
    method: str
    #: Key columns by name; None for an expression.
    columns: tuple[str | None, ...]
    #: Of each key column and of those that are only included: number, operator class, its parameters, collation,
    #: direction.
    keys: tuple[tuple[str, ...], ...]
    #: Expressions and predicate as the server stores them.
    expressions: str
    predicate: str
    unique: bool
    #: Whether NULL is a value like any other (PostgreSQL 15), and whether it is looked at only at the commit perhaps.
    nulls_not_distinct: bool
    deferrable: bool
    exclusion: bool
    #: Whether a constraint needs it: its own, or somebody's foreign key.
    constraint: bool
    #: Whether it identifies rows for subscribers, and whether the table is clustered on it.
    replica_identity: bool
    clustered: bool
    #: Whether it belongs to an extension, or to the index of a partitioned table.
    owned: bool
    valid: bool
    #: Whether indexes of its table are being built, as far as the role may see: it may be one of them.
    in_build: bool
    #: How many transactions were begun since it was made or altered.
    age_transactions: int
    #: When that was, where commits leave their time.
    made: datetime.datetime | None
    scans: int
    tuples_read: int
    #: Of its first column, as pg_stats has it: 1 where rows lie in this order, 0 where they lie anyhow.
    correlation: float | None

    @property
    def promise(self) -> tuple[bool, bool, bool]:
        """What it says of the rows."""
        return self.unique, self.nulls_not_distinct, self.deferrable

    @property
    def needed_by_others(self) -> bool:
        """Whether it cannot be dropped by itself, or identifies rows."""
        return self.exclusion or self.constraint or self.replica_identity or self.clustered or self.owned

    @property
    def needed(self) -> bool:
        """Whether it does more than be searched."""
        return self.needed_by_others or self.unique or not self.valid


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known of a table."""

    bloat: TableBloat
    activity: Activity
    indexes: tuple[IndexUse, ...]
    settings: Settings
    #: Gains that are smaller are not worth an action.
    min_gain_bytes: int
    #: Who keeps its dead rows from being removed, as a phrase; None where nobody does, as far as is known.
    kept_by: str | None = None
    #: Whether it is being vacuumed.
    in_vacuum: bool = False

    @property
    def name(self) -> str:
        """Qualified, quoted where psql would."""
        return self.bloat.qualified_name

    @property
    def system(self) -> bool:
        """Whether it belongs to the server, or to pglean: these pglean leaves alone, and they cannot be altered."""
        return self.bloat.oid < _FIRST_ORDINARY or self.bloat.schema in _SYSTEM_SCHEMAS

    @property
    def rows(self) -> float:
        """By the last VACUUM or ANALYZE, 0 where that is not known."""
        return self.activity.rows or 0.0

    @property
    def live_rows(self) -> float:
        """The same by what was written since."""
        return self.activity.live_rows or self.rows

    @property
    def row_bytes(self) -> float:
        """What a row takes in the heap."""
        live = self.bloat.heap.live_bytes
        if live and self.rows:
            return live / self.rows
        return self.bloat.heap.bytes / max(self.rows + self.activity.dead_rows, 1.0)

    @property
    def dead_bytes(self) -> int:
        """What dead rows take in heap and TOAST."""
        heap, toast = self.bloat.heap, self.bloat.toast
        measured = heap.dead_bytes if heap.method in (Method.APPROX, Method.EXACT) else None
        counted = int(min(self.activity.dead_rows * self.row_bytes, heap.bytes))
        in_toast = (toast.dead_bytes or 0) if toast is not None else 0
        return (counted if measured is None else measured) + in_toast

    @property
    def dead_share(self) -> float:
        """Of the rows and row versions of the heap."""
        return self.activity.dead_rows / max(self.live_rows + self.activity.dead_rows, 1.0)

    # ---- autovacuum

    @property
    def autovacuumed(self) -> bool:
        """Whether autovacuum looks after it."""
        return self.settings.autovacuum and not self.switched_off

    @property
    def switched_off(self) -> bool:
        """Whether that was switched off for this table."""
        return not boolean(self.activity.options, "autovacuum_enabled", default=True)

    @property
    def scale_factor(self) -> float:
        """autovacuum_vacuum_scale_factor as it is for this table."""
        return self._option("autovacuum_vacuum_scale_factor", self.settings.vacuum_scale_factor)

    @property
    def base_threshold(self) -> float:
        """autovacuum_vacuum_threshold as it is for this table."""
        return self._option("autovacuum_vacuum_threshold", self.settings.vacuum_threshold)

    @property
    def threshold(self) -> float:
        """So many dead rows must there be before autovacuum comes."""
        reached = self.base_threshold + self.scale_factor * self.rows
        most = self._option("autovacuum_vacuum_max_threshold", self.settings.vacuum_max_threshold or -1.0)
        return min(reached, most) if most >= 0 else reached

    def _option(self, name: str, default: float) -> float:
        given = real(self.activity.options, name, -1.0)
        return given if given >= 0 else default

    @property
    def churn_bytes(self) -> int:
        """What collects between two autovacuums, and is used again after each: no bloat, but what churn needs."""
        return math.ceil(self.threshold * self.row_bytes)


@dataclass(frozen=True, slots=True)
class Vacuum:
    """A VACUUM that is running."""

    pid: int
    database: str
    #: Qualified; empty where the role may not see it, or it belongs to another database.
    table: str
    oid: int | None
    automatic: bool
    to_prevent_wraparound: bool
    elapsed_s: float | None
    #: As in pg_stat_progress_vacuum; empty where the role may not see it.
    phase: str
    heap_bytes: int
    scanned_bytes: int
    removed_bytes: int
    #: Passes over the indexes that are done.
    passes: int
    #: Of the pass that is going on (PostgreSQL 17).
    indexes: int
    indexes_done: int
    #: Dead rows that are remembered, and what that takes; one of the maxima is known.
    dead_rows: int
    dead_bytes: int
    max_dead_rows: int | None
    max_dead_bytes: int | None

    @property
    def scanned(self) -> float:
        """Share of the heap."""
        return min(self.scanned_bytes / self.heap_bytes, 1.0) if self.heap_bytes else 1.0

    @property
    def memory_share(self) -> float | None:
        """How full its memory is; None where that is not known."""
        if self.max_dead_bytes:
            return self.dead_bytes / self.max_dead_bytes
        return self.dead_rows / self.max_dead_rows if self.max_dead_rows else None

    @property
    def memory_bytes(self) -> int | None:
        """What it may use of memory for dead rows; None where that is not known."""
        return self.max_dead_bytes or (self.max_dead_rows and self.max_dead_rows * DEAD_ROW_BYTES)

    @property
    def begun_passes(self) -> int:
        """Passes over the indexes, the present one among them."""
        return self.passes + (self.phase == "vacuuming indexes")

    @property
    def expected_passes(self) -> int:
        """In all, if dead rows lie in the rest of the heap as in what was scanned; those that were begun at least.

        Of that which is remembered a pass is made at the end; a pass before that means that the memory was full.
        """
        share = self.memory_share
        if share is None or self.phase != "scanning heap" or self.scanned < 0.05:
            return self.begun_passes
        return max(math.ceil((self.passes + share) / self.scanned), self.passes + (share > 0))

    @property
    def too_little_memory(self) -> bool:
        """Whether it needs more than one pass."""
        return self.begun_passes > 1 or (self.passes == 1 and self.phase == "scanning heap")
