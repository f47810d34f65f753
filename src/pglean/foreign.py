"""Text that others have written in the encoding of their database: what sessions run, and names that all share.

The server neither notes that encoding nor converts such text. To a client it is sent as if it were of this database's
encoding: what comes may be no UTF-8, or the server refuses to convert it.
"""

from __future__ import annotations

from typing import Any

from psycopg import errors as pg
from psycopg.abc import Buffer, QueryNoTemplate
from psycopg.adapt import Loader
from psycopg.rows import TupleRow

from pglean.session import Connection


class _Lenient(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "replace")


def rows(conn: Connection, statement: QueryNoTemplate, parameters: Any = None) -> list[TupleRow]:
    """All rows of a query; a character of theirs that cannot be told becomes U+FFFD. Takes no lock of its own."""
    try:
        with conn.transaction():
            return _rows(conn, statement, parameters)
    except (pg.CharacterNotInRepertoire, pg.UntranslatableCharacter):
        # Unconverted; whatever is not ASCII is replaced then.
        with conn.transaction(force_rollback=True):
            conn.execute("SELECT pg_catalog.set_config('client_encoding', 'SQL_ASCII', true)")
            return _rows(conn, statement, parameters)


def _rows(conn: Connection, statement: QueryNoTemplate, parameters: Any) -> list[TupleRow]:
    cursor = conn.cursor()
    for kind in ("text", "name", "varchar"):
        cursor.adapters.register_loader(kind, _Lenient)
    return cursor.execute(statement, parameters).fetchall()
