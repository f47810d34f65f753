"""Figures of tables and indexes from the server's statistics: a few queries, however many; no table is read."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from psycopg import errors as pg
from psycopg.rows import TupleRow

from pglean import foreign
from pglean.bloat.figures import Btree, Column, Index, Table, Toast
from pglean.errors import LockNotObtained
from pglean.parameters import boolean, integer, parameters
from pglean.server import Server
from pglean.session import Connection, transaction
from pglean.sql import query

#: How long the reading of sizes may wait for a lock, and how often it is tried.
_LOCK_TIMEOUT_MS, _ATTEMPTS = 200, 10
#: Up to so many tables the server is told their names, and need not look at the statistics of all others.
_FEW = 1000


def read(server: Server, conn: Connection, oids: list[int] | None, schemas: list[str] | None) -> list[Table]:
    """The tables with these OIDs (partitions, for a partitioned one), in these schemas, or all of the database.

    Locks: ACCESS SHARE on each, for the moment in which its size is read; nobody is waited for longer than 200 ms.
    Raises `LockNotObtained` where relations are locked again and again between the look at the locks and that at them.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        server.check()
        try:
            with transaction(conn):
                conn.execute("SELECT set_config('lock_timeout', %s, true)", (f"{_LOCK_TIMEOUT_MS}ms",))
                return _read(conn, oids, schemas)
        except (pg.LockNotAvailable, pg.DeadlockDetected):
            # Locked between the look at the locks and that at the relation.
            continue
        except pg.InternalError_:
            # Dropped between the look at the catalog and that at the relation; or something is broken.
            if attempt == _ATTEMPTS:
                raise
    raise LockNotObtained(
        "sizes cannot be read: relations are being locked all the time", hint="Try again, or name tables with -t."
    )


@dataclass(slots=True)
class _Shape:
    """Columns of a table."""

    columns: list[Column]
    width: int = 0
    reshaped: bool = False
    #: Rows of it that ANALYZE looks at.
    sampled: int = 0


def _read(conn: Connection, oids: list[int] | None, schemas: list[str] | None) -> list[Table]:
    # Of roles, who own tables, each database has its own idea of the encoding.
    rows = foreign.rows(conn, query("bloat.tables"), {"oids": oids, "schemas": schemas})
    found = [row[0] for row in rows]
    indexes = conn.execute(query("bloat.indexes"), {"oids": found}).fetchall()
    few = len(rows) <= _FEW
    asked = {"oids": found, "names": [row[2] for row in rows] + [row[2] for row in indexes] if few else None}
    shapes: dict[int, _Shape] = defaultdict(lambda: _Shape([]))
    for oid, name, length, alignment, packed, absent, reshaped, nulls, width, distinct, sampled in conn.execute(
        query("bloat.columns"), asked
    ):
        shape = shapes[oid]
        shape.width += 1
        shape.reshaped |= reshaped
        shape.sampled = max(shape.sampled, sampled)
        if not absent:
            shape.columns.append(Column(name, length, alignment, packed, nulls, width, n_distinct=distinct))
    keys: dict[int, list[Column]] = defaultdict(list)
    for oid, name, length, alignment, packed, nulls, width, distinct, shares in conn.execute(
        query("bloat.keys"), asked
    ):
        common = tuple(shares or ())
        keys[oid].append(
            Column(name, length, alignment, packed, nulls, width, n_distinct=distinct, common_shares=common)
        )
    tables = [_table(row, shapes[row[0]]) for row in rows]
    outdated = {table.oid for table in tables if table.outdated}
    by_table: dict[int, list[Index]] = defaultdict(list)
    for oid, index, name, method, size, present, options, share, unique, alike, distinct in indexes:
        given = parameters(options)
        deduplicated = alike and boolean(given, "deduplicate_items", default=True)
        btree = None
        if index in keys:
            sampled = shapes[oid].sampled * (1.0 if share is None else share)
            btree = Btree(tuple(keys[index]), unique, deduplicated, distinct, sampled, oid in outdated)
        by_table[oid].append(Index(index, name, method, size, integer(given, "fillfactor", 90), share, btree, present))
    return [replace(table, indexes=tuple(by_table[table.oid])) for table in tables]


def _table(row: TupleRow, shape: _Shape) -> Table:
    """Without its indexes."""
    (
        oid,
        schema,
        name,
        owner,
        owner_is_superuser,
        root,
        family,
        is_heap,
        size,
        options,
        rows,
        dead,
        changed,
        counted,
        *others,
    ) = row
    readable, row_security, present, toast_oid, toast_size, toast_index_size, *toast_counts = others
    toast = None
    if toast_oid is not None:
        toast = Toast(toast_oid, toast_size or 0, toast_index_size or 0, *toast_counts)
    return Table(
        oid=oid,
        schema=schema,
        name=name,
        owner=owner,
        owner_is_superuser=owner_is_superuser,
        root=None if root is None else (root[0], root[1]),
        family=None if family is None else (family[0], family[1]),
        is_heap=bool(is_heap),
        bytes=size,
        fillfactor=integer(parameters(options), "fillfactor", 100),
        rows=rows,
        dead_rows=dead,
        changed_rows=changed or 0.0,
        counted_rows=counted,
        readable=readable,
        row_security=row_security,
        columns=tuple(shape.columns),
        width=shape.width,
        reshaped=shape.reshaped,
        toast=toast,
        indexes=(),
        size_is_present=present,
    )
