"""The claim on a table: the advisory lock that makes a run the only one on it. It keeps nobody else away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg

from pglean.session import Connection, scalar
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


@contextlib.contextmanager
def held(conn: Connection, oid: int) -> Iterator[bool]:
    """Whether the claim could be taken; in the block the session has it then.

    Given back at the end, and not left to the end of the session, which the server takes its time to notice: whoever
    comes next, and be it the same process, would be refused.
    """
    taken = claim(conn, oid)
    try:
        yield taken
    finally:
        if taken:
            with contextlib.suppress(psycopg.Error):
                release(conn, oid)


def claimed(conn: Connection, oid: int) -> bool:
    """Whether some session, in this database, has the claim on the table."""
    return bool(scalar(conn, query("locks.claimed"), {"namespace": _NAMESPACE, "oid": oid}))
