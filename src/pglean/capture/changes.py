"""The change table of a run: one row for each key that was recorded, in columns ``k1``, ``k2``, … of the key's types.

Capture by triggers and from the WAL fill it, `rewrite.refresh` empties it.
"""

from __future__ import annotations

from psycopg import sql

from pglean.errors import TableChanged
from pglean.server import Connection
from pglean.sql import fragment, query
from pglean.table import KeyColumn, Table

SCHEMA = "pglean"


def name(job_id: int) -> sql.Identifier:
    """The change table of a run."""
    return sql.Identifier(SCHEMA, f"changes_{job_id}")


def create(conn: Connection, table: Table, key: tuple[KeyColumn, ...], job_id: int, *more: sql.SQL) -> None:
    """Make it, with `more` columns behind those of the key. On entry: an open transaction. No lock on the user's table.

    Raises `TableChanged` where the name of a key column's type has come to mean another type.
    """
    columns = [
        sql.SQL("{} {}").format(
            sql.Identifier(f"k{position}"),
            sql.SQL(" COLLATE ").join(fragment(part) for part in (column.type_sql, column.collation_sql) if part),
        )
        for position, column in enumerate(key, 1)
    ]
    changes = name(job_id)
    # Its rows live for seconds: autovacuum would come too late or too often; refresh vacuums it when it pays.
    conn.execute(
        sql.SQL("CREATE TABLE {} ({}) WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)").format(
            changes, sql.SQL(", ").join([*columns, *more])
        )
    )
    conn.execute(sql.SQL("REVOKE ALL ON {} FROM PUBLIC").format(changes))
    # Reading is done as the table's owner (guard); he has no USAGE on the schema, so he cannot name it elsewhere.
    conn.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(changes, sql.Identifier(table.owner)))
    # Under a publication FOR ALL TABLES the server refuses DELETE on a table without any replica identity.
    conn.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(changes))
    conn.execute(
        sql.SQL(
            "SELECT pglean.conceal_1({name}::pg_catalog.regclass, {name}::pg_catalog.regclass::pg_catalog.oid)"
        ).format(name=sql.Literal(f"{SCHEMA}.changes_{job_id}"))
    )
    _check_types(conn, table, key, job_id)


def _check_types(conn: Connection, table: Table, key: tuple[KeyColumn, ...], job_id: int) -> None:
    """The change table was made from type *names*; they may have come to mean others since they were read."""
    found = conn.execute(query("capture.types"), {"changes": f"{SCHEMA}.changes_{job_id}"}).fetchall()
    if [row[0] for row in found[: len(key)]] != [column.base_oid for column in key]:
        raise TableChanged(f"a type of a key column of {table.qualified_name} was exchanged")
