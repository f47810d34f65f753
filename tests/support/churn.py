"""Writes that any table can bear: rows deleted, rewritten, and put back.

A third of the rows is deleted before the first refresh and put back later, another third is updated in place,
    so that every
row's fate is met: untouched, deleted and there again, rewritten. Whoever needs more passes statements of his own.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from tests.servers import Database
from tests.support.oracle import Change, name

_THIRD = "(ctid::text::point)[1]::int % 3 = "


def churn(table: str) -> Sequence[Change]:
    """The changes of a run on `table`, for `oracle.repack(during=…)`."""

    def remove(db: Database) -> None:
        db.execute(
            sql.SQL("CREATE TEMP TABLE churned AS SELECT {} FROM ONLY {} WHERE {}").format(
                _columns(db, table), name(table), name(_THIRD + "0")
            )
        )
        db.execute(sql.SQL("DELETE FROM ONLY {} WHERE {}").format(name(table), name(_THIRD + "0")))
        _touch(db, table, "1")

    def put_back(db: Database) -> None:
        names = _columns(db, table)
        db.execute(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM churned").format(
                name(table), names, names
            )
        )
        db.execute("DROP TABLE churned")

    return (remove, lambda db: _touch(db, table, "2"), put_back)


def write(db: Database, table: str) -> None:
    """Delete, update and insert, at once and without a run."""
    for change in churn(table):
        assert callable(change)
        change(db)


def _touch(db: Database, table: str, third: str) -> None:
    column = db.scalar(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' AND attidentity <> 'a' ORDER BY attnum LIMIT 1",
        (table,),
    )
    db.execute(
        sql.SQL("UPDATE ONLY {table} SET {column} = {column} WHERE {third}").format(
            table=name(table), column=sql.Identifier(column), third=name(_THIRD + third)
        )
    )


def _columns(db: Database, table: str) -> sql.Composed:
    """The columns that can be written to."""
    names = db.fetchall(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' ORDER BY attnum",
        (table,),
    )
    return sql.SQL(", ").join(sql.Identifier(column) for (column,) in names)
