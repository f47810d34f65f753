"""Figures from the server: a query per topic, however many tables there are; no table is read, none is locked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pglean import foreign
from pglean.advice.advice import Age
from pglean.advice.figures import DEAD_ROW_BYTES, Activity, IndexUse, Settings, Vacuum
from pglean.bloat.finding import TableBloat
from pglean.parameters import integer, parameters
from pglean.server import Server
from pglean.session import Connection
from pglean.sql import query
from pglean.table import quote_name

#: Up to so many tables the server is told their names, and need not look at the statistics of all others.
_FEW = 1000
#: The first version that counts updates to another page.
_COUNTS_MOVED = 160000
#: From this share of its limit on an age is told.
_NEAR = 0.8
#: Storage parameters by which a table has a lower one of its own.
_LIMITS = {"transactions": "autovacuum_freeze_max_age", "multixacts": "autovacuum_multixact_freeze_max_age"}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of tables by their OIDs."""

    activities: dict[int, Activity]
    indexes: dict[int, tuple[IndexUse, ...]]


def settings(server: Server, conn: Connection) -> Settings:
    """Of the server. Takes no lock."""
    row = conn.execute(query("advice.settings")).fetchone()
    assert row is not None
    capabilities = server.capabilities
    return Settings(
        capabilities.version,
        capabilities.database,
        server.words,
        capabilities.block_bytes,
        capabilities.is_superuser,
        *row,
    )


def read(server: Server, conn: Connection, tables: Sequence[TableBloat]) -> Figures:
    """Of these tables; those that were dropped meanwhile are missing. Takes no lock."""
    oids = [table.oid for table in tables]
    names = [table.name for table in tables] if len(tables) <= _FEW else None
    indexes: dict[int, list[IndexUse]] = defaultdict(list)
    fetched: dict[int, int] = defaultdict(int)
    for row in conn.execute(query("advice.indexes"), {"oids": oids, "names": names}):
        index, tuples_fetched = _index(*row)
        indexes[index.table_oid].append(index)
        fetched[index.table_oid] += tuples_fetched
    moved: dict[int, int] = {}
    if server.capabilities.version >= _COUNTS_MOVED:
        moved = dict(conn.execute(query("advice.moved"), {"oids": oids}).fetchall())
    activities = {}
    for row in conn.execute(query("advice.tables"), {"oids": oids}):
        activity = _activity(*row, moved=moved.get(row[0]))
        by_index = activity.fetched_by_index + fetched[activity.oid]
        activities[activity.oid] = replace(activity, fetched_by_index=by_index)
    return Figures(activities, {oid: tuple(found) for oid, found in indexes.items()})


def _activity(
    oid: int,
    kind: str,
    persistence: str,
    rows: float | None,
    live: float,
    dead: float,
    updated: int,
    deleted: int,
    hot: int,
    fetched: int,
    scans: int,
    visible: float,
    options: list[str] | None,
    vacuumed: Any,
    autovacuumed: Any,
    *,
    moved: int | None,
) -> Activity:
    given = parameters(options)
    return Activity(
        oid=oid,
        kind=kind,
        persistence=persistence,
        rows=rows,
        live_rows=live,
        dead_rows=dead,
        updated=updated,
        deleted=deleted,
        hot_updated=hot,
        moved=moved,
        fetched_by_index=fetched,
        scans=scans,
        visible_share=min(visible, 1.0),
        fillfactor=integer(given, "fillfactor", 100),
        options=given,
        vacuumed=vacuumed,
        autovacuumed=autovacuumed,
    )


def _index(
    oid: int,
    table: int,
    schema: str,
    name: str,
    method: str,
    columns: list[str | None],
    numbers: list[str],
    classes: list[str],
    parameters: list[str],
    collations: list[str],
    directions: list[str],
    expressions: str,
    predicate: str,
    *others: Any,
) -> tuple[IndexUse, int]:
    (
        unique,
        nulls_not_distinct,
        deferrable,
        exclusion,
        constraint,
        replica_identity,
        clustered,
        owned,
        valid,
        in_build,
        age,
        made,
        *counts,
        correlation,
    ) = others
    scans, read, fetched = counts
    # Columns that are only included have a number alone.
    included = [(number,) for number in numbers[len(columns) :]]
    index = IndexUse(
        oid=oid,
        table_oid=table,
        schema=schema,
        name=name,
        method=method,
        columns=tuple(columns),
        keys=(*zip(numbers, classes, parameters, collations, directions, strict=False), *included),
        expressions=expressions,
        predicate=predicate,
        unique=unique,
        nulls_not_distinct=nulls_not_distinct,
        deferrable=deferrable,
        exclusion=exclusion,
        constraint=constraint,
        replica_identity=replica_identity,
        clustered=clustered,
        owned=owned,
        valid=valid,
        in_build=in_build,
        age_transactions=age,
        made=made,
        scans=scans,
        tuples_read=read,
        correlation=correlation,
    )
    return index, fetched


def ages(conn: Connection, oids: list[int] | None, vacuums: Sequence[Vacuum]) -> tuple[Age, ...]:
    """Of these tables, or of all and of other databases: the ages that are near their limit, the nearest first."""
    running = {vacuum.oid for vacuum in vacuums}
    found = []
    for oid, schema, name, toast, of, age, options, setting, failsafe, size, temporary, pid in conn.execute(
        query("advice.ages"), {"oids": oids, "share": _NEAR}
    ):
        limit = min(integer(parameters(options), _LIMITS[of], setting), setting)
        if age < _NEAR * limit:
            continue
        qualified = f"{quote_name(schema)}.{quote_name(name)}"
        found.append(Age(qualified, oid, toast, of, age, limit, failsafe, size, oid in running, temporary, pid))
    if oids is None:
        for name, of, age, limit, failsafe in foreign.rows(conn, query("advice.databases"), {"share": _NEAR}):
            found.append(Age(f"database {quote_name(name)}", None, False, of, age, limit, failsafe, 0))
    return tuple(sorted(found, key=lambda age: -age.share))


def vacuums(conn: Connection, block_bytes: int) -> tuple[Vacuum, ...]:
    """Those that are running, of all databases. Takes no lock."""
    return tuple(_vacuum(block_bytes, *row) for row in foreign.rows(conn, query("advice.vacuums")))


def _vacuum(
    block_bytes: int,
    pid: int,
    database: str | None,
    oid: int | None,
    schema: str | None,
    name: str | None,
    automatic: bool | None,
    wraparound: bool | None,
    elapsed_s: float | None,
    progress: dict[str, Any],
) -> Vacuum:
    def figure(*names: str) -> int:
        return next((int(progress[name]) for name in names if progress.get(name) is not None), 0)

    dead_rows = figure("num_dead_item_ids", "num_dead_tuples")
    return Vacuum(
        pid=pid,
        database=database or "",
        table="" if schema is None or name is None else f"{quote_name(schema)}.{quote_name(name)}",
        oid=oid,
        automatic=bool(automatic),
        to_prevent_wraparound=bool(wraparound),
        elapsed_s=elapsed_s,
        phase=progress.get("phase") or "",
        heap_bytes=figure("heap_blks_total") * block_bytes,
        scanned_bytes=figure("heap_blks_scanned") * block_bytes,
        removed_bytes=figure("heap_blks_vacuumed") * block_bytes,
        passes=figure("index_vacuum_count"),
        indexes=figure("indexes_total"),
        indexes_done=figure("indexes_processed"),
        dead_rows=dead_rows,
        dead_bytes=figure("dead_tuple_bytes") or dead_rows * DEAD_ROW_BYTES,
        max_dead_rows=figure("max_dead_tuples") or None,
        max_dead_bytes=figure("max_dead_tuple_bytes") or None,
    )
