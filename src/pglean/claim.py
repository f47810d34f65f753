"""The claim on a table: the advisory lock that makes a run the only one on it. It keeps nobody else away."""

from __future__ import annotations

from pglean.server import Connection, scalar
from pglean.sql import query

#: High half of the advisory lock's key ("pgle"), so that it collides with nobody's by accident.
_NAMESPACE = 0x70676C65


def claim(conn: Connection, oid: int) -> bool:
    """Take the advisory lock that makes a run the only one on its table; False where another one has it.

    Held by the session until it ends: a killed client's claim ends with its connection.
    """
    return bool(scalar(conn, "SELECT pg_catalog.pg_try_advisory_lock(%s)", (_NAMESPACE << 32 | oid,)))


def release(conn: Connection, oid: int) -> None:
    """Give the claim back."""
    conn.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (_NAMESPACE << 32 | oid,))


def claimed(conn: Connection, oid: int) -> bool:
    """Whether some session, in this database, has the claim on the table."""
    return bool(scalar(conn, query("locks.claimed"), {"namespace": _NAMESPACE, "oid": oid}))
