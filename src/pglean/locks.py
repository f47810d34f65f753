"""Bounded lock acquisition: the only module that takes locks on a user's table.

Every request waits at most `lock_timeout_ms` (so long may others queue behind it), then everything is let go, the
transaction ends (an open one while waiting would hold the horizon, and savepoints instead of transactions once slowed
a whole cluster), and the next attempt comes when `patience` says so.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import LiteralString, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean.blockers import Mode, find_blockers
from pglean.catalog import relation
from pglean.errors import TableChanged
from pglean.patience import Patience
from pglean.server import Server
from pglean.session import Connection, scalar
from pglean.sql import query
from pglean.table import Table

T = TypeVar("T")


_STATEMENT: dict[Mode, LiteralString] = {
    Mode.ACCESS_SHARE: "LOCK TABLE ONLY {} IN ACCESS SHARE MODE",
    Mode.SHARE_UPDATE_EXCLUSIVE: "LOCK TABLE ONLY {} IN SHARE UPDATE EXCLUSIVE MODE",
    Mode.SHARE_ROW_EXCLUSIVE: "LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE",
    Mode.ACCESS_EXCLUSIVE: "LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE",
}

steps_log = logging.getLogger("pglean.locks")


@dataclass(frozen=True, slots=True)
class _Unread:
    """A table of which nothing has been read yet."""

    oid: int
    qualified_name: str


class OverBudget(Exception):
    """The lock would have to be held for too long: it was released, nothing was changed. Its text says why."""


class Hold:
    """A lock that is held, and what is left of the time for which it may be.

    The limit is kept by the server, not by our good will: a statement that takes longer is cancelled there, and a
    client that hangs between two is thrown out.
    """

    def __init__(self, conn: Connection, limit_ms: int) -> None:
        self._conn, self._limit_ms = conn, limit_ms
        self._started = time.monotonic()
        conn.execute(sql.SQL("SET LOCAL idle_in_transaction_session_timeout = {}").format(sql.Literal(limit_ms)))
        self.limit()

    @property
    def spent_ms(self) -> float:
        return (time.monotonic() - self._started) * 1000

    @property
    def left_ms(self) -> float:
        return self._limit_ms - self.spent_ms

    def limit(self) -> None:
        """Bound the next statement by what is left; raises `OverBudget` where nothing is."""
        left = int(self.left_ms)
        if left <= 0:
            raise OverBudget(f"What was to be done did not fit into {self._limit_ms} ms.")
        self._conn.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(left)))


def lock_here(
    conn: Connection, table: Table, mode: Mode, lock_timeout_ms: int, *, look: Connection | None = None
) -> None:
    """Lock the table *by its name* in the open transaction, and see that the name still means it.

    `look`: another session, which sees that where the transaction's snapshot is older than the lock and shows what the
    name meant then. While the lock is held the name cannot come to mean anything else.
    On exit: `mode` on the table until the end of the transaction, lock_timeout of the transaction set.
    Raises psycopg's LockNotAvailable after `lock_timeout_ms`, `TableChanged` where the name means something else:
    a table renamed away with a view in its place must never be read with our rights.
    """
    # SET, not set_config(): a SELECT would take the snapshot of a REPEATABLE READ transaction before the lock is
    # there, and what is then read of the catalog could be older than the file that is then read of the table.
    conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{lock_timeout_ms}ms")))
    try:
        conn.execute(sql.SQL(_STATEMENT[mode]).format(relation(table)))
    except (pg.UndefinedTable, pg.InvalidSchemaName, pg.WrongObjectType) as error:
        raise _renamed(table) from error
    found = (look or conn).execute(query("locks.named"), {"schema": table.schema, "name": table.name}).fetchone()
    if found is None or found != (table.oid, "r"):
        raise _renamed(table)


def raise_lock(conn: Connection, table: Table, hold: Hold, lock_timeout_ms: int) -> None:
    """From SHARE ROW EXCLUSIVE to ACCESS EXCLUSIVE, in the transaction of `hold`.

    A reader who asks to write while this request waits for him is the victim of a deadlock, at once: the caller sees to
    it that there is none who might.
    Raises psycopg's LockNotAvailable, `OverBudget`.
    """
    hold.limit()
    lock_here(conn, table, Mode.ACCESS_EXCLUSIVE, lock_timeout_ms)


def lock_shadow(conn: Connection, shadow: sql.Identifier) -> None:
    """ACCESS EXCLUSIVE on the shadow, until the end of the open transaction; nobody but a VACUUM can be in the way.

    Without it a VACUUM of the shadow and one of the table could work on the same file after the exchange.
    """
    conn.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(shadow))


def lock_types(conn: Connection) -> None:
    """Keep types from being made, renamed or dropped until the end of the open transaction, which must be a short one.

    For reading type names that somebody else could exchange. Raises psycopg's LockNotAvailable after 200 ms.
    """
    conn.execute("SET LOCAL lock_timeout = '200ms'")
    conn.execute("LOCK TABLE pg_catalog.pg_type IN SHARE MODE")


def lock_index(conn: Connection, schema: str, name: str, *, hold_schema: bool) -> None:
    """SHARE UPDATE EXCLUSIVE on an index, until `let_index_go`, by a COMMENT that is never committed.

    `hold_schema`, for superusers: its schema keeps its name until the end of the open transaction.
    Raises psycopg's LockNotAvailable after 200 ms, and what it raises where the name means no index.
    """
    conn.execute("SET LOCAL lock_timeout = '200ms'")
    if hold_schema:
        conn.execute(query("locks.hold_schema"), {"schema": schema})
    conn.execute("SAVEPOINT pglean_index")
    conn.execute(sql.SQL("COMMENT ON INDEX {} IS NULL").format(sql.Identifier(schema, name)))


def let_index_go(conn: Connection) -> None:
    """Undo `lock_index`, but for the schema. On exit: the transaction is still open."""
    conn.execute("ROLLBACK TO SAVEPOINT pglean_index")


def _renamed(table: Table) -> TableChanged:
    return TableChanged(
        f"table {table.qualified_name} was renamed, dropped or replaced by another session",
        detail=f"Its name no longer means the ordinary table with OID {table.oid}.",
    )


def _begin(
    conn: Connection,
    table: Table,
    mode: Mode,
    lock_timeout_ms: int,
    *,
    repeatable: bool,
    snapshot: str | None,
    look: Connection | None,
) -> None:
    """Begin a transaction and lock the table in it; where that raises, there is no transaction."""
    began = time.monotonic()
    conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ" if repeatable or snapshot else "BEGIN")
    try:
        if snapshot is not None:
            conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        lock_here(conn, table, mode, lock_timeout_ms, look=look)
    except BaseException:
        steps_log.debug("%s: no %s lock within %d ms", table.qualified_name, mode, _since_ms(began))
        with contextlib.suppress(psycopg.Error):
            conn.execute("ROLLBACK")
        raise
    steps_log.debug("%s: %s lock after %d ms", table.qualified_name, mode, _since_ms(began))


@contextlib.contextmanager
def locked(
    server: Server,
    conn: Connection,
    table: Table,
    mode: Mode,
    patience: Patience,
    *,
    repeatable: bool = False,
    snapshot: str | None = None,
    once: bool = False,
    look: Connection | None = None,
    between: Callable[[], None] | None = None,
) -> Iterator[Hold | None]:
    """A transaction that holds `mode` on the table, committed at the end of the block, rolled back where it raises.

    On entry: no transaction. On exit: none, no lock.
    In a REPEATABLE READ transaction the snapshot is taken *after* the lock, by the first statement of the block:
    LOCK TABLE itself takes none, and what precedes it here reads nothing.
    `between` is called after a pause, with no transaction open, before the next attempt.
    Yields the `Hold` of a lock that keeps writers away, None for ACCESS SHARE.
    With an imported snapshot, or `once`, there is one attempt only (psycopg's LockNotAvailable): whoever exported it
    holds a lock on the table himself, and an ALTER TABLE that waits for that one would keep this one waiting, and all
    readers with it. Where he holds none, the snapshot may be older than the lock: then `look` is a session that sees
    what the table's name means now, and there are as many attempts as ever.
    Raises `LockNotObtained`, `OverBudget`, `TableChanged`, `Interrupted`.
    """
    while True:
        server.check()
        try:
            _begin(
                conn,
                table,
                mode,
                patience.policy.lock_timeout_ms,
                repeatable=repeatable,
                snapshot=snapshot,
                look=look,
            )
        except (pg.LockNotAvailable, pg.DeadlockDetected):
            if once or (snapshot is not None and look is None):
                raise
            blockers = find_blockers(conn, table.oid, mode)
            patience.escalate(conn, table, mode)
            patience.pause(table, mode, "The lock was not to be had.", blockers)
            if between is not None:
                with patience.elsewhere():
                    between()
            continue
        break
    taken = time.monotonic()
    try:
        hold = None if mode is Mode.ACCESS_SHARE else Hold(conn, patience.policy.max_lock_ms)
        yield hold
        if hold is not None:
            hold.limit()
    except BaseException as error:
        with contextlib.suppress(psycopg.Error):
            conn.execute("ROLLBACK")
        if isinstance(error, pg.QueryCanceled) and mode is not Mode.ACCESS_SHARE:
            server.check()
            raise OverBudget(f"What was to be done did not fit into {patience.policy.max_lock_ms} ms.") from error
        raise
    else:
        conn.execute("COMMIT")
    finally:
        steps_log.debug("%s: %s lock released after %d ms", table.qualified_name, mode, _since_ms(taken))


def patiently(server: Server, conn: Connection, oid: int, patience: Patience, read: Callable[[], T]) -> T:
    """Read of a relation what the server reads under ACCESS SHARE, such as its size.

    Whoever has it locked (a VACUUM FULL, say) is waited for as `locked` does: in short attempts, no longer than the
    patience lasts. On entry and exit: no transaction. `read` must bear being done again.
    Raises `LockNotObtained`, `Interrupted`, and what `read` raises.
    """
    while True:
        server.check()
        conn.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(patience.policy.lock_timeout_ms)))
        try:
            return read()
        except pg.LockNotAvailable:
            pass
        finally:
            with contextlib.suppress(psycopg.Error):
                conn.execute("SET lock_timeout = 0")
        # Printing a name takes no lock.
        table = _Unread(oid, str(scalar(conn, "SELECT %s::pg_catalog.regclass::pg_catalog.text", (oid,))))
        patience.escalate(conn, table, Mode.ACCESS_SHARE)
        patience.pause(
            table, Mode.ACCESS_SHARE, "The lock was not to be had.", find_blockers(conn, oid, Mode.ACCESS_SHARE)
        )


def _since_ms(moment: float) -> float:
    return (time.monotonic() - moment) * 1000


def wanted(server: Server, conn: Connection, oid: int, waited_ms: int) -> bool:
    """Whether somebody else has been waiting for so long for a lock on the relation that keeps everybody away."""
    ours = [each.info.backend_pid for each in server.connections]
    return bool(scalar(conn, query("locks.wanted"), {"oid": oid, "ours": ours, "ms": waited_ms}))
