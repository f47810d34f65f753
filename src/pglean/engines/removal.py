"""Removing invalid indexes, each by its OID and only while it is invalid, with nobody kept waiting for it but DDL.

DROP INDEX CONCURRENTLY takes a name, which may have come to mean another index, cannot be part of a transaction, and
waits for its lock as long as somebody builds the very index; which is valid then, and is dropped all the same. So
another session of ours, the guard, has the index locked meanwhile (COMMENT does that, and is rolled back): the name
goes on meaning it. DROP locks the table first, which keeps CREATE INDEX and REINDEX away, and then stands in line for
the index. Now the guard looks: if the index is invalid still, it lets go, if not, or if it cannot tell, it has the DROP
cancelled, and lets go when that has ended.

No lock on an index keeps its schema from being renamed. Where our role may lock rows of pg_namespace (a superuser's),
the guard does that, until the DROP has got its lock. For others there is a moment, between the guard's look and the
DROP's lock, in which one schema must be renamed away and another be put in its place, to have an index of that one
dropped. The same goes, for everybody, for a table moved by SET SCHEMA before the DROP stands in line.

Locks: SHARE UPDATE EXCLUSIVE on index and table, while all transactions are waited for that use the table; until the
DROP has its lock, FOR KEY SHARE on the row of the schema. Killed: the invalid index is there, or is not.
"""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Self

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean.engines.candidate import Candidate, builder
from pglean.errors import LockNotObtained
from pglean.locks import let_index_go, lock_index
from pglean.pausepoint import reach
from pglean.server import Server
from pglean.session import Connection, scalar
from pglean.sql import query

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.25


def remove(
    server: Server,
    conn: Connection,
    index: Candidate,
    wait_timeout_s: float,
    *,
    limit_s: float = 0,
    cancellable: bool = True,
) -> bool:
    """Drop an invalid index; False where it is gone, or valid, by now.

    `wait_timeout_s`: how long somebody is waited for who rebuilds or drops it. `limit_s`: how long each of those may be
    waited for that use the table, or have it locked; 0 for as long as it takes. `cancellable`: as of `Server.connect`.
    Raises `LockNotObtained`, psycopg's LockNotAvailable at the limit (it is invalid still), `Interrupted`.
    """
    with server.connect("reindex guard", cancellable=cancellable) as session:
        if not _lock(server, session, index, wait_timeout_s):
            return False
        conn.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(f"{limit_s:g}s")))
        guard = _Guard(session, conn, index)
        try:
            with guard:
                conn.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(index.schema, index.name)))
        except pg.QueryCanceled:
            if guard.error is not None:
                raise guard.error from None
            if not guard.changed:
                raise
            return False
        finally:
            with contextlib.suppress(psycopg.OperationalError):
                conn.execute("SET lock_timeout = 0")
    return True


def _lock(server: Server, session: Connection, index: Candidate, wait_timeout_s: float) -> bool:
    """Open a transaction that has the index locked; False, without one, where there is nothing to remove."""
    deadline = time.monotonic() + wait_timeout_s
    while True:
        session.execute("BEGIN")
        try:
            lock_index(session, index.schema, index.name, hold_schema=server.capabilities.is_superuser)
            if _is_invalid(session, index):
                return True
            session.execute("ROLLBACK")
            return False
        except (pg.UndefinedTable, pg.InvalidSchemaName, pg.WrongObjectType):
            session.execute("ROLLBACK")
            return False
        except pg.LockNotAvailable:
            session.execute("ROLLBACK")
        if time.monotonic() >= deadline:
            who = builder(session, index.oid, index.table_oid)
            raise LockNotObtained(
                f"could not lock index {index.qualified_name}: another session works on it",
                blockers=() if who is None else (who,),
                detail=None if who is None else f"It is used by {who}.",
                hint="Wait for that session to end, or raise --wait-timeout.",
            )
        server.rest(_LONGEST_PAUSE_S)


def _is_invalid(conn: Connection, index: Candidate) -> bool:
    parameters = {"index": index.oid, "schema": index.schema, "name": index.name}
    return bool(scalar(conn, query("reindex.still_invalid"), parameters))


class _Guard:
    """Waits, as long as the block lasts, for the DROP to stand in line for the index; then decides."""

    def __init__(self, session: Connection, dropping: Connection, index: Candidate) -> None:
        """On entry: `session` has the index locked; on exit of the block it has not, nor a transaction."""
        self._session, self._dropping, self._index = session, dropping, index
        #: Whether the index is another by now, or valid: it is to stay.
        self.changed = False
        #: Why nobody knows whether it is; it is to stay as well.
        self.error: psycopg.Error | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="pglean guard", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _wait(self) -> None:
        try:
            if self._until(in_line=True):
                reach("reindex: drop in line")
                self.changed = not _is_invalid(self._session, self._index)
                if not self.changed:
                    let_index_go(self._session)
        except psycopg.Error as error:
            self.error = error
        if self.changed or self.error is not None:
            # Until it has ended: whatever lets go of the index lets the DROP have it.
            while not self._over.wait(_FIRST_PAUSE_S):
                with contextlib.suppress(psycopg.Error):
                    self._dropping.cancel_safe(timeout=5)
                self._over.wait(_LONGEST_PAUSE_S)
        try:
            self._until(in_line=False)
            self._session.execute("ROLLBACK")
        except psycopg.Error:
            self._session.close()

    def _until(self, *, in_line: bool) -> bool:
        """Wait until the DROP stands in line for the index, or does so no longer; False where it has ended."""
        parameters = {"pid": self._dropping.info.backend_pid, "index": self._index.oid}
        pause_s = _FIRST_PAUSE_S
        while not self._over.wait(pause_s):
            if bool(scalar(self._session, query("reindex.in_line"), parameters)) is in_line:
                return True
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        return False


def is_left(conn: Connection, index: Candidate) -> bool:
    """Whether it is there still."""
    try:
        return bool(scalar(conn, query("reindex.present"), {"index": index.oid}))
    except psycopg.Error:
        return True
