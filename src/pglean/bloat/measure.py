"""Figures from pgstattuple: the extension's functions read a relation page by page, and plan nothing on it.

So no code of the table's owner runs. They are called by the schema that the extension lies in, and only where it
belongs to a superuser; looked at anew in each transaction. A relation that is locked is skipped, which is said.

Locks: ACCESS SHARE on the relation while it is read; waited for at most 200 ms.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean.bloat.finding import Method
from pglean.bloat.reckoning import Content
from pglean.server import Server
from pglean.session import Connection, scalar, transaction
from pglean.sql import query

_LOCK_TIMEOUT_MS = 200
_BTREE_PAGE_BYTES = 40

#: What was measured, or why it was not.
Outcome = Content | str


def available(conn: Connection) -> str | None:
    """None where pgstattuple can be used; else why not. Locks nothing but catalogs."""
    functions = _functions(conn)
    if len(functions) == 3:
        return None
    if not scalar(conn, query("bloat.has_extension")):
        return "the extension pgstattuple is not installed"
    return "the role may not call the functions of pgstattuple, or they do not belong to a superuser"


def _functions(conn: Connection) -> dict[str, str]:
    """The schema of each function that the role may call."""
    return {name: schema for schema, name in conn.execute(query("bloat.extension"))}


def heap(server: Server, conn: Connection, oid: int, method: Method, pages: float) -> Outcome:
    """A table or a TOAST table: by reading all of it, or what the visibility map does not vouch for.

    Locks: ACCESS SHARE on it until it is read; waited for at most 200 ms, else the outcome says so.
    """
    if method is Method.EXACT:
        row = _call(server, conn, "pgstattuple", oid, ("tuple_count", "tuple_len", "dead_tuple_len"))
        return row if isinstance(row, str) else Content(method, float(row[0]), float(row[1]), int(row[2]))
    columns = ("approx_tuple_count", "approx_tuple_len", "dead_tuple_len", "scanned_percent")
    row = _call(server, conn, "pgstattuple_approx", oid, columns)
    if isinstance(row, str):
        return row
    unread = pages * (100 - float(row[3])) / 100
    return Content(method, float(row[0]), float(row[1]), int(row[2]), unread_pages=unread)


def btree(server: Server, conn: Connection, oid: int, method: Method, block_bytes: int) -> Outcome:
    """A B-tree: its items one by one, or how full its leaves are. Both read all of it.

    Locks: ACCESS SHARE on the index until it is read; waited for at most 200 ms, else the outcome says so.
    """
    if method is Method.EXACT:
        row = _call(server, conn, "pgstattuple", oid, ("tuple_count", "tuple_len", "dead_tuple_len"))
        return row if isinstance(row, str) else Content(method, float(row[0]), float(row[1]), int(row[2]))
    row = _call(server, conn, "pgstatindex", oid, ("leaf_pages", "avg_leaf_density"))
    if isinstance(row, str):
        return row
    # A tree without leaves has no density either: NaN.
    leaves = float(row[0])
    filled = leaves * (block_bytes - _BTREE_PAGE_BYTES) * float(row[1]) / 100 if leaves else 0.0
    return Content(method, None, filled, None)


def _call(server: Server, conn: Connection, function: str, oid: int, columns: Sequence[str]) -> Sequence[float] | str:
    server.check()
    try:
        with transaction(conn):
            conn.execute("SELECT set_config('lock_timeout', %s, true)", (f"{_LOCK_TIMEOUT_MS}ms",))
            if (schema := _functions(conn).get(function)) is None:
                return f"{function} is no longer there"
            row = conn.execute(
                sql.SQL("SELECT {columns} FROM {function}({oid}::pg_catalog.oid::pg_catalog.regclass)").format(
                    oid=sql.Literal(oid),
                    columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
                    function=sql.Identifier(schema, function),
                )
            ).fetchone()
            return "nothing was returned" if row is None else row
    except pg.LockNotAvailable:
        return "somebody has it locked"
    except (psycopg.errors.OperationalError, psycopg.errors.InternalError, psycopg.ProgrammingError) as error:
        if conn.broken:
            raise
        server.check()
        return error.diag.message_primary or str(error).strip()
