"""Who runs what: no statement on a user's table, or on its shadow, runs its owner's code with our rights.

An administrator who merely *plans* ``SELECT … FROM t`` runs code of t's owner: the planner folds constant parts of
index expressions, predicates and extended statistics. (Tried: an index on ``(evil(1) + id)`` runs evil as
superuser in the planning of ``SELECT count(*)``.) DML on an indexed table evaluates them for each row. Calling a
SECURITY DEFINER function of the owner instead is not enough: what it leaves behind (a deferred trigger, a cursor WITH
HOLD) is run at COMMIT, by us. And the owner's rights may be too small to read the table: FORCE ROW LEVEL SECURITY.

The server has one place that does exactly what is needed: REFRESH MATERIALIZED VIEW plans and runs a query as the
view's owner *in a security-restricted operation*, in which roles cannot be changed, triggers not be deferred, cursors
not be held, and settings are restored afterwards. So a statement of ours becomes, in the transaction it belongs to,

* a view over the table, owned by us: its *table access* is checked against us (superuser: no row security, no missing
  grant), while everything that is planned and evaluated above it runs as whoever uses the view;
* a function with the statement as its SQL-standard body: its names are resolved when it is created, by us,
  so that the owner needs no USAGE on our schema and could not put anything else in place;
* a materialized view, owned by the table's owner, that calls the function: refreshed, read, dropped.

Nothing of it is ever committed, so nothing depends on the user's table when the transaction ends, and his ALTER TABLE
does not meet a function of ours in the morning. Where the owner is a superuser the statement runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from pglean.catalog import relation
from pglean.session import Connection, scalar
from pglean.table import Table

#: Name under which a guarded statement finds the table's ctid: a view may not have a column of that name.
_TID = "pglean tid"


@dataclass(frozen=True, slots=True)
class Source:
    """How a statement addresses the table: by its name, or through the guard's view."""

    relation: sql.Composable
    tid: sql.Identifier


def execute(
    conn: Connection,
    table: Table,
    worker: str,
    make: Callable[[Source], sql.Composed],
) -> int:
    """Run a statement that reads the table or writes the shadow; returns the rows it wrote, or the bigint it selects.

    `make` composes it from the `Source` it is given: an INSERT, UPDATE or DELETE, or a SELECT of one bigint, which may
    have a WITH before it, that writes.
    On entry: an open transaction that holds ACCESS SHARE (or more) on the table, by a name that was looked at.
    On exit: the same. `worker` tells sessions apart that do this at the same time.
    """
    if table.owner_is_superuser:
        cursor = conn.execute(make(Source(_only(table), sql.Identifier("ctid"))))
        if cursor.description is None:
            return cursor.rowcount
        row = cursor.fetchone()
        return 0 if row is None else int(row[0])
    return _as_owner(conn, table, worker, make)


def _only(table: Table) -> sql.Composable:
    # The children of an inheritance parent are tables of their own.
    return sql.SQL("ONLY {}").format(relation(table))


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _as_owner(
    conn: Connection,
    table: Table,
    worker: str,
    make: Callable[[Source], sql.Composed],
) -> int:
    view, function, result = (
        sql.Identifier("pglean", f"{part}_{table.oid}_{worker}") for part in ("original", "statement", "result")
    )
    owner = sql.Identifier(table.owner)
    # Virtual columns as well: an order may be given by one.
    columns = [sql.Identifier(column.name) for column in table.columns if not column.dropped]
    tid = sql.Identifier(_free_name(_TID, {column.name for column in table.columns}))
    conn.execute(
        sql.SQL("CREATE VIEW {view} AS SELECT {columns} FROM {table}").format(
            view=view,
            columns=sql.SQL(", ").join([*columns, sql.SQL("ctid AS {}").format(tid)]),
            table=_only(table),
        )
    )
    statement = make(Source(view, tid))
    text = statement.as_string(conn)
    body = (
        statement
        if text.startswith(("SELECT", "WITH"))
        else sql.SQL("WITH written AS ({} RETURNING 1) SELECT pg_catalog.count(*) FROM written").format(statement)
    )
    for command in (
        sql.SQL("GRANT SELECT ON {view} TO {owner}"),
        sql.SQL("CREATE FUNCTION {function}() RETURNS bigint LANGUAGE sql VOLATILE BEGIN ATOMIC {body}; END"),
        sql.SQL("GRANT EXECUTE ON FUNCTION {function}() TO {owner}"),
        sql.SQL("CREATE MATERIALIZED VIEW {result} AS SELECT {function}() AS n WITH NO DATA"),
        sql.SQL("ALTER MATERIALIZED VIEW {result} OWNER TO {owner}"),
        sql.SQL("REFRESH MATERIALIZED VIEW {result}"),
    ):
        conn.execute(command.format(view=view, owner=owner, function=function, result=result, body=body))
    count = scalar(conn, sql.SQL("SELECT n FROM {}").format(result))
    conn.execute(sql.SQL("DROP MATERIALIZED VIEW {}").format(result))
    conn.execute(sql.SQL("DROP FUNCTION {}()").format(function))
    conn.execute(sql.SQL("DROP VIEW {}").format(view))
    return int(count)
