"""Undoing and finishing: whatever a run has made is found by its number and removed. Repeatable at any point.

Order matters. First the triggers stop, then what they write to goes: a change table dropped under a living trigger
would fail every write of the application. Dropping a trigger needs ACCESS EXCLUSIVE; where a long reader keeps that
away, the trigger functions are emptied instead (no lock), all else is dropped, and the job stays listed as `remains`
until `pglean cleanup` has dropped the triggers, which then do nothing but be called. The same holds for a table of ours
that somebody else has locked.

Large indexes go before their table, each by itself. The server truncates all files that a transaction has dropped as it
commits; on a disk that is told which blocks are free (ext4 mounted with `discard`) hardly anybody else's commit gets
through meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import LiteralString

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean import catalog
from pglean.blockers import Mode, blockers_of
from pglean.capture import wal
from pglean.capture.trigger import TriggerCapture, silence
from pglean.claim import claim, release
from pglean.errors import LockNotObtained, TableChanged
from pglean.locks import OverBudget, locked, patiently
from pglean.patience import Patience
from pglean.rewrite import job as jobs
from pglean.rewrite.job import SCHEMA
from pglean.rewrite.phase import ENDS_AS
from pglean.rewrite.status import Status, unfinished
from pglean.server import Server
from pglean.session import Connection, scalar, transaction
from pglean.sql import query

#: How long a table of ours is tried to be dropped, and how long each attempt may wait, in seconds.
_DROP_WAIT_S, _DROP_LOCK_S = 10.0, 1.0
#: Indexes from this size on are dropped by themselves.
_LARGE_BYTES = 32 << 20
#: What a row tells of a run whose end nobody has noted; and how it goes on after why a run has ended.
_GONE, _REMAINS = "its process was gone; cleaned up", "still there: "


def remove(
    server: Server,
    conn: Connection,
    job_id: int,
    patience: Patience,
    deadline: float | None = None,
    between: Callable[[], None] = lambda: None,
) -> list[str]:
    """Remove all that run `job_id` has made; returns what could not be removed, as phrases (empty: nothing is left).

    After `deadline` (of time.monotonic) nothing is waited for any more. `between` is called before each of our
    tables and their large indexes is dropped.

    On entry: no transaction, no session of the run is at work. Locks: ACCESS EXCLUSIVE on the table for a moment while
    triggers of ours are on it; none on it afterwards.
    """
    functions = {"pattern": f"^capture_{job_id}_"}
    latest = time.monotonic() + _DROP_WAIT_S
    remains = wal.remove(server, conn, job_id, patience, latest if deadline is None else min(deadline, latest))
    # Found by what they call: in a restored dump the table has another OID, a table that was dropped has none.
    for (oid,) in conn.execute(query("job.triggers"), functions).fetchall():
        remains += _switch_off(server, conn, job_id, oid, patience)
    still_called = bool(remains)
    remains += _drop_table(server, conn, f"shadow_{job_id}", deadline, between)
    if not still_called:
        with transaction(conn):
            for (name,) in conn.execute(query("job.functions"), functions).fetchall():
                conn.execute(sql.SQL("DROP FUNCTION {}()").format(sql.Identifier(SCHEMA, name)))
    remains += _drop_table(server, conn, f"changes_{job_id}", deadline, between)
    return remains


def _switch_off(server: Server, conn: Connection, job_id: int, oid: int, patience: Patience) -> list[str]:
    """Drop the triggers, or empty them where that cannot be; returns what is told of the latter."""
    try:
        table = patiently(server, conn, oid, patience, lambda: catalog.load(conn, oid))
    except TableChanged:
        return []
    except LockNotObtained as error:
        silence(conn, job_id)
        name = scalar(conn, "SELECT %s::pg_catalog.regclass::pg_catalog.text", (oid,))
        return [_silenced(name, error)]
    capture = TriggerCapture(table, job_id)
    try:
        with locked(server, conn, table, Mode.ACCESS_EXCLUSIVE, patience):
            capture.switch_off(conn)
    except LockNotObtained as error:
        capture.silence(conn)
        return [_silenced(table.qualified_name, error)]
    except (TableChanged, OverBudget) as error:
        capture.silence(conn)
        return [f"three triggers without effect on {table.qualified_name}: {error}"]
    return []


def _silenced(table: str, error: LockNotObtained) -> str:
    return f"three triggers without effect on {table} (in use by {', '.join(error.blockers) or 'other sessions'})"


def _drop_table(
    server: Server, conn: Connection, name: str, deadline: float | None, between: Callable[[], None]
) -> list[str]:
    """Drop a table of ours; returns what is told where it could not be had.

    A session of ours that was cut off may still be at work on it for seconds. A pg_dump has it locked for as long as it
    takes, and whoever recorded a key there until his transaction ends.
    """
    _drop_large_indexes(server, conn, name, deadline, between)
    between()
    latest = time.monotonic() + _DROP_WAIT_S
    deadline = latest if deadline is None else min(deadline, latest)
    while True:
        try:
            _drop(conn, "TABLE", name, deadline)
        except (pg.LockNotAvailable, pg.DeadlockDetected):
            if time.monotonic() < deadline:
                continue
            oid = scalar(conn, "SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid", (f"{SCHEMA}.{name}",))
            blockers = ", ".join(blockers_of(conn, oid, Mode.ACCESS_EXCLUSIVE)) or "other sessions"
            return [f"table {SCHEMA}.{name} (in use by {blockers})"]
        return []


def _drop_large_indexes(
    server: Server, conn: Connection, name: str, deadline: float | None, between: Callable[[], None]
) -> None:
    """Drop each by itself. Where one cannot be had, or an event trigger forbids that, they go with their table."""
    parameters = {"name": f"{SCHEMA}.{name}", "bytes": _LARGE_BYTES}
    for (index,) in conn.execute(query("job.large_indexes"), parameters).fetchall():
        between()
        try:
            _drop(conn, "INDEX", index, deadline)
        except psycopg.Error:
            server.check()
            if conn.closed:
                raise
            return


def _drop(conn: Connection, kind: LiteralString, name: str, deadline: float | None) -> None:
    left_s = _DROP_LOCK_S if deadline is None else min(deadline - time.monotonic(), _DROP_LOCK_S)
    with transaction(conn):
        limit_ms = int(max(left_s, 0.1) * 1000)
        conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(limit_ms)))
        conn.execute(sql.SQL("DROP {} IF EXISTS {}").format(sql.SQL(kind), sql.Identifier(SCHEMA, name)))


def sweep(
    server: Server,
    conn: Connection,
    patience: Patience,
    which: Callable[[Status], bool],
    deadline: float | None = None,
) -> list[tuple[Status, list[str]]]:
    """Finish or undo the runs that no living session claims; returns what is left of each.

    `which` chooses among those that are not over.
    """
    swept: list[tuple[Status, list[str]]] = []
    for status in unfinished(conn):
        if not which(status) or not claim(conn, status.relation):
            continue
        try:
            # It may have come to its end between being listed and being claimed.
            state = jobs.state_of(conn, status.id)
            if state in ("running", "paused", "remains"):
                reason = _GONE if state == "running" else _cause(status.error)
                swept.append((status, end(server, conn, status.id, patience, reason, deadline)))
        finally:
            release(conn, status.relation)
    return swept


def _cause(error: str | None) -> str | None:
    """Why a run has ended, without what was there still when that was noted."""
    return (error or "").partition(_REMAINS)[0].removesuffix("; ") or None


def end(
    server: Server, conn: Connection, job_id: int, patience: Patience, error: str | None, deadline: float | None = None
) -> list[str]:
    """Finish a run that had committed its swap, undo any other; returns what is left of it.

    On entry: the claim on its table, no transaction. `error` is what its row will tell, with what is left.
    After `deadline` (of time.monotonic) nothing is waited for any more.
    """
    try:
        remains = remove(server, conn, job_id, patience, deadline)
    except psycopg.Error as failure:
        # An event trigger that forbids DROP, for one; other runs must not have to wait for that.
        if conn.closed:
            raise
        remains = [str(failure).strip().splitlines()[0]]
    # Asked only now: a COMMIT whose connection was lost may have been under way, and its locks were waited for.
    phase = jobs.phase_of(conn, job_id)
    final = "undone" if phase is None else ENDS_AS[phase].label
    left = f"{_REMAINS}{'; '.join(remains)}" if remains else None
    jobs.finish(conn, job_id, "remains" if remains else final, error="; ".join(filter(None, (error, left))) or None)
    return remains
