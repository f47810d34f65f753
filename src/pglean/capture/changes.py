"""The change table of a run: a row for each key that was recorded, in columns ``k1``, ``k2``, … of the key's types.

Of a table without a key, a row for each image of a row instead (`images`).
Capture by triggers and from the WAL fill it, `rewrite.refresh` empties it.
"""

from __future__ import annotations

from psycopg import sql

from pglean.capture import images
from pglean.errors import TableChanged
from pglean.session import Connection
from pglean.sql import fragment, query
from pglean.table import Table

SCHEMA = "pglean"


def name(job_id: int) -> sql.Identifier:
    """The change table of a run."""
    return sql.Identifier(SCHEMA, f"changes_{job_id}")


def create(conn: Connection, table: Table, job_id: int, *more: sql.SQL) -> None:
    """Make it, with `more` columns behind what is recorded. On entry: an open transaction. No lock on the user's table.

    Raises `TableChanged` where the name of a column's type has come to mean another type.
    """
    changes = name(job_id)
    image = () if table.key else table.stored_columns
    # Its rows live for seconds: autovacuum would come too late or too often; refresh vacuums it when it pays.
    conn.execute(
        sql.SQL("CREATE TABLE {} ({}) WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)").format(
            changes, sql.SQL(", ").join([*(images.definitions(image) if image else _keys(table)), *more])
        )
    )
    for action in images.external(image):
        conn.execute(sql.SQL("ALTER TABLE {} {}").format(changes, action))
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
    _check_types(conn, table, job_id)


def _keys(table: Table) -> list[sql.Composed]:
    assert table.key is not None
    return [
        sql.SQL("{} {}").format(
            sql.Identifier(f"k{position}"),
            sql.SQL(" COLLATE ").join(fragment(part) for part in (column.type_sql, column.collation_sql) if part),
        )
        for position, column in enumerate(table.key.columns, 1)
    ]


def _check_types(conn: Connection, table: Table, job_id: int) -> None:
    """The change table was made from type *names*; they may have come to mean others since they were read."""
    found = [row[0] for row in conn.execute(query("capture.types"), {"changes": f"{SCHEMA}.changes_{job_id}"})]
    expected = (
        [images.NUMBER_OID, *(column.type_oid for column in table.stored_columns)]
        if table.key is None
        else [column.base_oid for column in table.key.columns]
    )
    if found[: len(expected)] != expected:
        raise TableChanged(f"a type of a column of {table.qualified_name} was exchanged")
