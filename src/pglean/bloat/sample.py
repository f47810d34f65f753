"""Figures from some blocks of a table: TABLESAMPLE SYSTEM takes each block with the same probability.

What the rows of the sampled blocks take is divided by that probability. As blocks are drawn independently, the
variance of such a sum is estimated by the squares of what each block holds: the bound that is told holds in 19 cases
of 20.

Planning a statement on a table runs code of its owner with our rights (see guard.py). So a table is sampled only where
it belongs to a superuser or to the role itself, or where nothing of it would run; then that it stays so is held by
SHARE UPDATE EXCLUSIVE, which keeps index builds and DDL away for the moment (VACUUM too; readers and writers go on),
and which the role must be allowed to take (by UPDATE, DELETE, TRUNCATE or MAINTAIN). No lock is waited for longer than
200 ms, and none is kept for longer than a minute.

Values that lie in the TOAST table count by what they take there: those that are larger than a chunk.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean import catalog
from pglean.bloat import estimate, reckoning
from pglean.bloat.figures import Column, Table
from pglean.bloat.finding import Method, RelationBloat
from pglean.blockers import Mode
from pglean.errors import TableChanged
from pglean.locks import lock_here
from pglean.server import Server
from pglean.session import Connection, scalar, transaction
from pglean.sql import query

#: So many blocks are read in the mean, for so long at the most.
BLOCKS = 2000
_TIMEOUT_S = 60
_LOCK_TIMEOUT_MS = 200
#: Any of these lets a role take SHARE UPDATE EXCLUSIVE; so does MAINTAIN, where there is that.
_LOCK_PRIVILEGES, _MAINTAIN_VERSION = "UPDATE, DELETE, TRUNCATE", 170000
_POINTER_BYTES = 18
#: Parts of `_Sums.columns`, and how those of blocks become those of all.
_PARTS: dict[str, LiteralString] = {
    "values": "sum",
    "bytes": "sum",
    "toasted": "sum",
    "chunks": "sum",
    "data": "sum",
    "shortest": "min",
    "longest": "max",
}
#: How many standard errors a bound of 95 % has.
_BOUND = 1.96


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a sample says of a table."""

    #: The table with what the sample says in the place of the statistics.
    figures: Table
    heap: RelationBloat
    toast: RelationBloat | None


@dataclass(frozen=True, slots=True)
class _Sums:
    """What was found in the sampled blocks."""

    rows: float
    bytes: float
    bytes_squared: float
    #: Of each column: values, their bytes in the row; values in the TOAST table, their chunks and bytes; the shortest
    #: and the longest.
    columns: tuple[tuple[float, ...], ...]


def take(server: Server, conn: Connection, figures: Table, block_bytes: int) -> Sampled | str:
    """Read some blocks of a table; or why that was not done.

    Locks: those of `hold`, until the blocks are read, a minute at most.
    """
    server.check()
    share = min(BLOCKS * block_bytes / max(figures.bytes, 1), 1.0)
    try:
        with transaction(conn):
            conn.execute("SELECT set_config('statement_timeout', %s, true)", (f"{_TIMEOUT_S}s",))
            if (why := hold(server, conn, figures)) is not None:
                return why
            row = conn.execute(_statement(figures, share, block_bytes)).fetchone()
    except (psycopg.OperationalError, psycopg.InternalError, psycopg.ProgrammingError) as error:
        if conn.broken:
            raise
        server.check()
        return "somebody has it locked" if isinstance(error, pg.LockNotAvailable) else message(error)
    except TableChanged:
        return "it was renamed or dropped meanwhile"
    assert row is not None
    return _sampled(figures, _sums(row), share, block_bytes)


def message(error: psycopg.Error) -> str:
    """What the server says."""
    return error.diag.message_primary or str(error).strip()


def hold(server: Server, conn: Connection, figures: Table) -> str | None:
    """Lock a table so that a statement on it runs nobody's code; or why that cannot be had. In an open transaction.

    Locks, on exit: ACCESS SHARE; SHARE UPDATE EXCLUSIVE where the table belongs to another role that is no superuser.
    Until then ACCESS SHARE on its TOAST table and indexes, while their sizes are read. Each is waited for at most
    200 ms; raises psycopg's LockNotAvailable, and `TableChanged` where the table was renamed or dropped.
    """
    conn.execute("SELECT set_config('lock_timeout', %s, true)", (f"{_LOCK_TIMEOUT_MS}ms",))
    may_lock, why = _rights(server, conn, figures.oid)
    if why is not None:
        return why
    table = catalog.load(conn, figures.oid)
    if table.kind != "r":
        return "only tables are sampled"
    trusted = table.owner_is_superuser or table.owner == server.capabilities.role
    if not (trusted or may_lock):
        return f"its owner ({table.owner}) could change it meanwhile, and the role may not lock it against that"
    lock_here(conn, table, Mode.ACCESS_SHARE if trusted else Mode.SHARE_UPDATE_EXCLUSIVE, _LOCK_TIMEOUT_MS)
    # Anew, now that nobody can change it.
    table = catalog.load(conn, figures.oid)
    if table.owner_is_superuser or table.owner == server.capabilities.role:
        return None
    if trusted:
        return "its owner was changed meanwhile"
    why = scalar(conn, query("bloat.owners_code"), {"oid": figures.oid})
    return None if why is None else f"it has {why}, which is code of its owner ({table.owner}) that would run"


def _rights(server: Server, conn: Connection, oid: int) -> tuple[bool, str | None]:
    """Whether the role may lock a table against its owner, and why it may not read it.

    It is asked for, not tried: the server would log that as an error, with each look of a monitor.
    """
    maintain = ", MAINTAIN" if server.capabilities.version >= _MAINTAIN_VERSION else ""
    parameters = {"oid": oid, "privileges": f"{_LOCK_PRIVILEGES}{maintain}"}
    row = conn.execute(query("bloat.rights"), parameters).fetchone()
    if row is None:
        raise TableChanged(f"the relation with OID {oid} no longer exists")
    may_find, may_read, may_lock, row_security = row
    if not (may_find and may_read):
        return may_lock, f"the role may not read the {'table' if may_find else 'schema'}"
    return may_lock, "row security is in the way" if row_security else None


def _statement(figures: Table, share: float, block_bytes: int) -> sql.Composed:
    """Sums over blocks of sums over their rows."""
    within: list[sql.Composable] = []
    over: list[sql.Composable] = []
    row: list[sql.Composable] = [sql.SQL("28 * count(*)")]
    longest = sql.Literal(estimate.chunk_bytes(block_bytes))
    for number, column in enumerate(figures.columns):
        size = sql.SQL("pg_column_size(t.{})").format(sql.Identifier(column.name))
        names = [sql.Identifier(f"{part}{number}") for part in _PARTS]
        outside = sql.SQL("{} > {}").format(size, longest) if _toastable(column) else sql.SQL("false")
        inside = sql.SQL("sum(CASE WHEN {} THEN {} ELSE {} END)").format(outside, sql.Literal(_POINTER_BYTES), size)
        parts = (
            sql.SQL("count({})").format(size),
            inside,
            sql.SQL("count(*) FILTER (WHERE {})").format(outside),
            sql.SQL("sum(ceil({} / {}::float8)) FILTER (WHERE {})").format(size, longest, outside),
            sql.SQL("sum({}) FILTER (WHERE {})").format(size, outside),
            sql.SQL("min({})").format(size),
            sql.SQL("max({})").format(size),
        )
        within += [sql.SQL("{} AS {}").format(part, name) for part, name in zip(parts, names, strict=True)]
        over += [
            sql.SQL("coalesce({}({}), 0)::float8").format(sql.SQL(added), name)
            for added, name in zip(_PARTS.values(), names, strict=True)
        ]
        row.append(sql.SQL("coalesce({}, 0)").format(inside))
    return sql.SQL(
        "SELECT {over} FROM (SELECT {within} FROM ONLY {table} AS t TABLESAMPLE SYSTEM ({percent})"
        " REPEATABLE ({seed}) GROUP BY (ctid::text::point)[0]) AS blocks"
    ).format(
        over=sql.SQL(", ").join(
            [
                sql.SQL("coalesce(sum(n), 0)::float8, coalesce(sum(size), 0)::float8"),
                sql.SQL("coalesce(sum(size::float8 * size), 0)"),
                *over,
            ]
        ),
        within=sql.SQL(", ").join([sql.SQL("count(*) AS n, {} AS size").format(sql.SQL(" + ").join(row)), *within]),
        table=sql.Identifier(figures.schema, figures.name),
        percent=sql.Literal(share * 100),
        seed=sql.Literal(random.SystemRandom().randrange(1 << 30)),
    )


def size_in_row(column: Column, block_bytes: int) -> sql.Composed:
    """What a value takes in the row: a pointer where it lies in the TOAST table."""
    longest = sql.Literal(estimate.chunk_bytes(block_bytes))
    return sql.SQL("coalesce(CASE WHEN {toastable} AND {size} > {longest} THEN {pointer} ELSE {size} END, 0)").format(
        toastable=sql.Literal(_toastable(column)),
        size=sql.SQL("pg_column_size(t.{})").format(sql.Identifier(column.name)),
        longest=longest,
        pointer=sql.Literal(_POINTER_BYTES),
    )


def _toastable(column: Column) -> bool:
    return column.length == -1 and column.packed


def _sums(row: Sequence[Any]) -> _Sums:
    rows, size, squared, *values = (float(value) for value in row)
    return _Sums(rows, size, squared, tuple(zip(*[iter(values)] * len(_PARTS), strict=True)))


def _sampled(figures: Table, sums: _Sums, share: float, block_bytes: int) -> Sampled:
    columns = tuple(
        replace(
            column,
            null_share=1 - values / sums.rows if sums.rows else 0.0,
            mean_bytes=size / values if values else 0.0,
            constant=shortest == longest,
        )
        for column, (values, size, _, _, _, shortest, longest) in zip(figures.columns, sums.columns, strict=True)
    )
    # Dead rows are not to be seen.
    figures = replace(figures, rows=sums.rows / share, dead_rows=None, changed_rows=0.0, columns=columns)
    heap = reckoning.heap(figures, block_bytes, Method.SAMPLE)
    # Without a row in the sample there may yet be some in the table: so many blocks could have been missed.
    relative = _BOUND * math.sqrt((1 - share) * sums.bytes_squared) / sums.bytes if sums.bytes else 0.0
    bound = int(relative * (heap.after_bytes or 0)) if sums.bytes else int(3 / share * (1 - share)) * block_bytes
    toast = None
    if figures.toast is not None:
        values, chunks, data = (sum(c[part] for c in sums.columns) / share for part in (2, 3, 4))
        toast = reckoning.sampled_toast(figures, values, chunks, data, block_bytes)
        toast = replace(toast, error_bytes=int(relative * (toast.after_bytes or 0)))
    return Sampled(figures, replace(heap, error_bytes=min(bound, figures.bytes)), toast)
