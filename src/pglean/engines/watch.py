"""A second pair of eyes for statements that wait for others without bound: REINDEX and DROP INDEX CONCURRENTLY.

They first need SHARE UPDATE EXCLUSIVE on the table, then wait until every transaction that could write the table
has ended, then every one with an older snapshot, then every one that could still read by the old index. lock_timeout
bounds each of these waits, and cannot be changed in between: an hour's work would be lost to a transaction of a
second. So it stays 0, and this looks from outside: who is waited for is told, and a statement that does not get its
*first* locks, on table and index, before which it has done nothing, is cancelled and tried again later; never one that
has had them, whatever it waits for then.

A statement that stands in line for that lock holds a snapshot. Whoever builds an index of the same table will wait for
that snapshot to go, and it is he, after hours of work, whom the server then makes the victim of the deadlock. So nobody
stands in line while an index of the table is being built; and behind others (VACUUM, say) only as long as it takes the
server to cancel an autovacuum that is in the way: that takes deadlock_timeout, and no right to cancel it ourselves.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import psycopg
from psycopg import errors as pg

from pglean.blockers import Blocker, Mode, blockers_of
from pglean.engines.candidate import builder
from pglean.errors import ConnectionLost
from pglean.patience import Patience, Policy
from pglean.progress import Reporter
from pglean.server import Server
from pglean.session import Connection, scalar
from pglean.sql import query

T = TypeVar("T")

_INTERVAL_S = 0.2
#: So long after deadlock_timeout an autovacuum has got out of the way.
_AUTOVACUUM_S = 0.3
#: How often work is begun again that was lost to a deadlock.
_DEADLOCKS = 3
#: Stands for no index.
_NONE = 0


@dataclass(frozen=True, slots=True)
class Place:
    """The table that has to be locked, and by which name it is told of."""

    oid: int
    qualified_name: str


class _Late(Exception):
    """The statement did not get its first lock, and was cancelled."""


class _Watched:
    """One statement, by its session."""

    def __init__(self, conn: Connection, place: Place, reporter: Reporter, limit_s: float) -> None:
        self._conn, self._place, self.reporter, self._limit_s = conn, place, reporter, limit_s
        self._since: float | None = None
        self.late = False
        self._kept_waiting: set[int] = set()

    def waits(self, table: int | None, begun: bool, blockers: str | None) -> None:
        """It waits for a lock: on this table or an index of it, or, None, for something else."""
        if blockers:
            self.reporter.waiting(blockers)
        if begun or table != self._place.oid:
            # Work would be lost, or it is not the table that is waited for (what a function of an index reads, say).
            self._since, self.late = None, False
            return
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since >= self._limit_s:
            self.late = True
            # At each look again, as long as it waits: a request that is lost must not make it wait for ever.
            with contextlib.suppress(psycopg.Error):
                self._conn.cancel_safe(timeout=2)

    def works(self) -> None:
        """It does not wait."""
        self._since, self.late = None, False
        if self.reporter.state.waiting_for:
            self.reporter.waiting("")

    def in_the_way(self, pid: int, who: str) -> None:
        """Somebody wants a lock that keeps everybody away, and waits for this statement."""
        if pid not in self._kept_waiting:
            self._kept_waiting.add(pid)
            self.reporter.message(
                f"{who} wants {self._place.qualified_name} for itself and waits for this to end, as does whoever comes"
                " to the table after it: Ctrl-C lets it through"
            )


class Watch:
    """Looks at all watched statements several times a second, from a session of its own, as long as the block lasts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._stop = threading.Event()
        self._sessions = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Raises `ConnectionLost` where there is no session to be had: nothing is begun whose waits nobody bounds."""
        conn = self._sessions.enter_context(self._server.connect("reindex watch"))
        self._thread = threading.Thread(target=self._run, args=(conn,), name="pglean watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._sessions.close()

    def in_line(self, conn: Connection, place: Place, reporter: Reporter, policy: Policy, act: Callable[[], T]) -> T:
        """Do what first needs SHARE UPDATE EXCLUSIVE on the table, in as many attempts as it takes to get that.

        `act` sends one such statement by `conn`, and must bear being done again: it may have been cancelled a moment
        after it got the lock. Raises `LockNotObtained` at the end of the patience, and whatever `act` raises.
        """
        deadlock_ms = int(scalar(conn, query("snapshots.deadlock_timeout")))
        limit_s = min(deadlock_ms / 1000 + _AUTOVACUUM_S, max(policy.wait_timeout_s, policy.lock_timeout_ms / 1000))
        patience, deadlocks = Patience(self._server, policy, reporter.waiting), 0
        while True:
            self._server.check()
            if builder(conn, _NONE, place.oid) is None:
                try:
                    with self._over(conn, place, reporter, limit_s):
                        return act()
                except _Late:
                    pass
                except pg.DeadlockDetected:
                    # Somebody stood in line for the table's lock, as we do not.
                    deadlocks += 1
                    if deadlocks > _DEADLOCKS:
                        raise
                    patience = Patience(self._server, policy, reporter.waiting)
            phrases = blockers_of(conn, place.oid, Mode.SHARE_UPDATE_EXCLUSIVE)
            blockers = tuple(Blocker(phrase) for phrase in phrases)
            patience.pause(place, Mode.SHARE_UPDATE_EXCLUSIVE, "The lock was not to be had.", blockers)

    @contextlib.contextmanager
    def _over(self, conn: Connection, place: Place, reporter: Reporter, limit_s: float) -> Iterator[None]:
        """What the session does in the block is watched. Raises `_Late` where it was cancelled for that."""
        watched = _Watched(conn, place, reporter, limit_s)
        with self._lock:
            self._watched[conn.info.backend_pid] = watched
        try:
            yield
        except pg.QueryCanceled as error:
            self._server.check()
            if watched.late:
                raise _Late from error
            raise
        finally:
            with self._lock:
                self._watched = {pid: one for pid, one in self._watched.items() if one is not watched}

    def _run(self, conn: Connection) -> None:
        told = False
        while not self._stop.wait(_INTERVAL_S):
            try:
                if conn.closed:
                    # A session that is lost is replaced, for the bound hangs on it.
                    self._sessions.close()
                    conn = self._sessions.enter_context(self._server.connect("reindex watch"))
                self._look(conn)
                told = False
            except Exception as error:
                if conn.closed and not told and isinstance(error, ConnectionLost):
                    told = True
                    self._tell_blind(error)

    def _tell_blind(self, error: ConnectionLost) -> None:
        with self._lock:
            watched = list(self._watched.values())
        for one in watched:
            one.reporter.message(
                f"warning: waits are not bounded, for there is no session to look at them: {error.message}"
            )

    def _look(self, conn: Connection) -> None:
        with self._lock:
            watched = dict(self._watched)
        if not watched:
            return
        parameters = {"pids": list(watched)}
        waiting = {pid: found for pid, *found in conn.execute(query("reindex.waits"), parameters)}
        for pid, one in watched.items():
            # Its statement must not have ended meanwhile: a cancellation would meet the next one.
            with self._lock:
                if self._watched.get(pid) is not one:
                    continue
                if pid in waiting:
                    one.waits(*waiting[pid])
                else:
                    one.works()
        for pid, done, total in conn.execute(query("reindex.work"), parameters):
            watched[pid].reporter.update(done=done, total=total, unit="blocks")
        for pid, other, who in conn.execute(query("reindex.kept_waiting"), parameters):
            watched[pid].in_the_way(other, who)
