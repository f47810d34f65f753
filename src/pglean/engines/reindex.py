"""Indexes rebuilt one by one by REINDEX INDEX CONCURRENTLY, with what the server leaves to the user.

It says beforehand what the server will refuse (`plan`); it says who is waited for (`watch`); and it removes what a
rebuild that failed or was cancelled leaves behind, an invalid index ``…_ccnew`` or ``…_ccold``: its own at once, that
of earlier ones with the next run (`removal`).

Two rebuilds on one table exclude each other (SHARE UPDATE EXCLUSIVE, held by the session from the first to the last
step), so those of a table are done one after the other, the largest first, and `jobs` tables at the same time.
Neither superuser nor the schema pglean is needed, but the rights of the tables' owner: the server itself runs index
expressions as that role.

Locks: SHARE UPDATE EXCLUSIVE on each table while an index of it is rebuilt, which keeps nobody waiting but DDL, VACUUM
and the like. Killed: an invalid index, as above.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import psycopg
from psycopg import sql

from pglean.claim import held
from pglean.engines import candidate
from pglean.engines.candidate import Candidate, Relation
from pglean.engines.plan import ReindexPlan, Work
from pglean.engines.removal import is_left, remove
from pglean.engines.watch import Place, Watch
from pglean.errors import ConnectionLost, Interrupted, LockNotObtained, PgleanError, Refused
from pglean.locks import patiently
from pglean.patience import Patience, Policy
from pglean.pausepoint import reach
from pglean.progress import Callback, Reporter
from pglean.result import RebuiltIndex, ReindexResult
from pglean.server import Server
from pglean.session import Connection, scalar
from pglean.sql import query

#: How long each of those may be waited for who are in the way of undoing, and a server that is restarting.
_UNDO_WAIT_S, _RECONNECT_S = 10.0, 30.0


def run(server: Server, plan: ReindexPlan, on_progress: Callback | None = None) -> ReindexResult:
    """Remove and rebuild what was planned; what fails is in the result, and nothing of it is left, or it is told.

    Locks: SHARE UPDATE EXCLUSIVE on each table in turn, its first request for at most `wait_timeout_s`; then all
    transactions are waited for that use it, as long as they last.
    """
    return _Run(server, plan, on_progress).all()


@dataclass(slots=True)
class _Attempt:
    """A rebuild that has been begun, and may have left something: what was invalid before it is none of that."""

    index: Candidate
    relation: Relation
    reporter: Reporter
    before: frozenset[int]
    #: Of the session that rebuilds.
    pid: int
    #: The index that had the name when the last attempt began.
    oid: int
    #: What it has ended with; None where it is done.
    error: PgleanError | None = None

    def tell(self, text: str) -> None:
        """What is left of it."""
        if self.error is None:
            self.reporter.message(f"warning: {text}")
        else:
            _add_hint(self.error, text)


@dataclass(slots=True)
class _Outcome:
    """What has become of the work so far, by all threads."""

    rebuilt: list[RebuiltIndex] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failures: dict[str, PgleanError] = field(default_factory=dict)
    unclean: list[_Attempt] = field(default_factory=list)
    ended_by: PgleanError | None = None


class _Run:
    """One run: a thread per table, as many at a time as there are jobs."""

    def __init__(self, server: Server, plan: ReindexPlan, on_progress: Callback | None) -> None:
        self._server, self._plan, self._on_progress = server, plan, on_progress
        self._policy = Policy.of(plan.options)
        self._watch = Watch(server)
        self._lock = threading.Lock()
        self._out = _Outcome(failures=dict(plan.failures))

    def all(self) -> ReindexResult:
        started = time.monotonic()
        with self._watch:
            try:
                with ThreadPoolExecutor(self._plan.options.jobs, thread_name_prefix="pglean reindex") as pool:
                    try:
                        list(pool.map(self._tables, _by_run(self._plan.works)))
                    except BaseException:
                        # Python's own Ctrl-C: the threads must not go on.
                        self._server.abort(Interrupted("interrupted"))
                        raise
            finally:
                self._clean()
        return ReindexResult(
            indexes=tuple(self._out.rebuilt),
            removed=tuple(self._out.removed),
            failures=self._out.failures,
            ended_by=self._out.ended_by,
            elapsed_s=round(time.monotonic() - started, 3),
            skipped=self._plan.skipped,
        )

    def _tables(self, works: list[Work]) -> None:
        """Those for which the same claim is needed."""
        for work in works:
            self._table(work)

    def _table(self, work: Work) -> None:
        relation = work.relation
        reporter = Reporter(0, relation.qualified_name, self._on_progress)
        todo = [*work.removals, *work.rebuilds]
        names = {index.qualified_name for index in todo}
        try:
            with self._claimed(relation) as conn:
                while todo and self._out.ended_by is None:
                    index = todo[0]
                    act = self._remove if index in work.removals else self._rebuild
                    try:
                        act(conn, index, relation, reporter)
                    except LockNotObtained:
                        # It is the table's: for its other indexes it would be waited for as long again.
                        raise
                    except Exception as error:
                        self._failed(index, error)
                    todo.pop(0)
        except Exception as error:
            for index in todo:
                self._failed(index, error)
            return
        for index in todo:
            self._failed(index, PgleanError("not begun: the run was ended before"))
        if self._out.ended_by is None and names.isdisjoint(self._out.failures):
            reporter.phase("done")

    @contextlib.contextmanager
    def _claimed(self, relation: Relation) -> Iterator[Connection]:
        """A session that has the claim on the table: no other run of pglean works on it meanwhile."""
        oid = relation.main_oid
        with self._server.connect(f"reindex {relation.name}") as conn, held(conn, oid) as ours:
            if not ours:
                name = relation.qualified_name
                raise Refused(name, list(candidate.of_relation(relation, busy=True)), "reindexed")
            yield conn

    def _failed(self, index: Candidate, error: Exception) -> None:
        told = self._server.translate(error)
        with self._lock:
            self._out.failures[index.qualified_name] = told
            if told.ends_batch and self._out.ended_by is None:
                self._out.ended_by = told

    # ---- one index

    def _remove(self, conn: Connection, index: Candidate, relation: Relation, reporter: Reporter) -> None:
        reporter.phase(f"removing index {index.name}")
        try:
            removed = self._watch.in_line(
                conn,
                Place(index.table_oid, relation.qualified_name),
                reporter,
                self._policy,
                lambda: remove(self._server, conn, index, self._policy.wait_timeout_s),
            )
        except (PgleanError, psycopg.Error) as error:
            told = self._server.translate(error)
            _add_hint(told, f"Index {index.qualified_name} is still there; the next run removes it.")
            raise told from error
        if not removed:
            reporter.message(f"index {index.qualified_name} is gone, or valid, by now: left alone")
            return
        with self._lock:
            self._out.removed.append(index.qualified_name)
        reporter.message(f"removed invalid index {index.qualified_name}. {index.story}")

    def _rebuild(self, conn: Connection, index: Candidate, relation: Relation, reporter: Reporter) -> None:
        # Its own, once it has been exchanged for another, is ours.
        before = candidate.invalid_oids(conn, index.table_oid) - {index.oid}
        attempt = _Attempt(index, relation, reporter, before, conn.info.backend_pid, index.oid)
        reporter.phase(f"index {index.name}")
        reach("reindex: before an index")
        started = time.monotonic()

        def act() -> None:
            # Whoever had the table locked may have rebuilt it.
            found = self._named(conn, index)
            attempt.oid = index.oid if found is None else found[0]
            conn.execute(self._statement(index))

        try:
            place = Place(index.table_oid, relation.qualified_name)
            self._watch.in_line(conn, place, reporter, self._policy, act)
        except Exception as error:
            attempt.error = _told(index, self._server.translate(error), error)
            if not self._undone_at_once(attempt):
                raise attempt.error from error
        else:
            reach("reindex: after an index")
            # Of an attempt before that was cancelled a moment after it had got its lock.
            self._undone_at_once(attempt)
        self._done(conn, index, relation, time.monotonic() - started)

    def _statement(self, index: Candidate) -> sql.Composed:
        name = sql.Identifier(index.schema, index.name)
        if (tablespace := self._plan.options.tablespace) is None:
            return sql.SQL("REINDEX INDEX CONCURRENTLY {}").format(name)
        return sql.SQL("REINDEX (CONCURRENTLY, TABLESPACE {}) INDEX {}").format(sql.Identifier(tablespace), name)

    def _named(self, conn: Connection, index: Candidate) -> tuple[int, str] | None:
        """The valid index that has the name now, and its tablespace."""
        found = conn.execute(query("reindex.named"), {"schema": index.schema, "name": index.name}).fetchone()
        return None if found is None else (int(found[0]), str(found[1]))

    def _done(self, conn: Connection, index: Candidate, relation: Relation, elapsed_s: float) -> None:
        found = self._named(conn, index)
        done = RebuiltIndex(
            index=index.qualified_name,
            table=relation.qualified_name,
            bytes_before=index.bytes,
            # Renamed or dropped by another session since.
            bytes_after=0 if found is None else self._size(conn, found[0]),
            elapsed_s=round(elapsed_s, 3),
        )
        with self._lock:
            self._out.rebuilt.append(done)

    def _size(self, conn: Connection, oid: int) -> int:
        """Of whoever has it locked nobody waits for the end, for a number."""
        conn.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(self._policy.lock_timeout_ms)))
        try:
            found = scalar(conn, query("reindex.size"), {"index": oid})
        except psycopg.errors.LockNotAvailable:
            found = scalar(conn, query("reindex.size_recorded"), {"index": oid})
        finally:
            with contextlib.suppress(psycopg.Error):
                conn.execute("SET lock_timeout = 0")
        return int(found or 0)

    # ---- undoing

    def _undone_at_once(self, attempt: _Attempt) -> bool:
        """`_undo`, if it can be done now; else when all threads have ended."""
        if attempt.error is None or not attempt.error.ends_batch:
            try:
                with self._server.connect("reindex undo", cancellable=False) as conn:
                    return self._undo(conn, attempt)
            except (PgleanError, psycopg.Error) as error:
                if isinstance(error, Interrupted):
                    with self._lock:
                        self._out.ended_by = self._out.ended_by or error
        with self._lock:
            self._out.unclean.append(attempt)
        return False

    def _clean(self) -> None:
        """Remove what rebuilds have left that were interrupted. On entry: all threads have ended."""
        if not self._out.unclean:
            return
        with self._server.shielded():
            reach("reindex: undo")
            for attempt in self._out.unclean:
                try:
                    with self._reach_again() as conn:
                        if self._undo(conn, attempt) and attempt.error is not None:
                            self._out.failures.pop(attempt.index.qualified_name, None)
                            self._done(conn, attempt.index, attempt.relation, 0)
                except (PgleanError, psycopg.Error):
                    attempt.tell(
                        "What the rebuild may have left, an invalid index named ..._ccnew or so, the next one removes."
                    )

    def _undo(self, conn: Connection, attempt: _Attempt) -> bool:
        """Remove what it has left; returns whether the index was rebuilt in spite of it all.

        What has to stay for now (somebody uses the table all the time) is told. Raises `Interrupted`, with nothing
        told, and `LockNotObtained` where it is not even to be seen what is left.
        """
        index, table = attempt.index, attempt.index.table_oid
        self._await_end(conn, attempt)
        new = candidate.invalid_oids(conn, table) - attempt.before
        rebuilt = self._exchanged(conn, attempt, new)
        if not new - ({index.oid, attempt.oid} if not rebuilt else set()):
            # Nothing is looked at that somebody may have locked.
            return rebuilt
        policy = replace(self._policy, wait_timeout_s=_UNDO_WAIT_S, kill_backend=False)
        patience = Patience(self._server, policy, attempt.reporter.waiting)
        for one in patiently(self._server, conn, table, patience, lambda: candidate.candidates(conn, table)):
            named = (one.oid, one.name) == (index.oid, index.name)
            if one.oid in new and one.builder is None and one.leftover and not named:
                self._drop(conn, one, attempt, policy)
        return rebuilt

    def _await_end(self, conn: Connection, attempt: _Attempt) -> None:
        """The server takes its time to notice that a client is gone; what it holds is no sign of work."""
        deadline = time.monotonic() + _UNDO_WAIT_S
        parameters = {"pid": attempt.pid, "table": attempt.index.table_oid}
        while scalar(conn, query("reindex.at_work"), parameters) and time.monotonic() < deadline:
            self._server.rest(0.1)

    def _exchanged(self, conn: Connection, attempt: _Attempt, new: frozenset[int]) -> bool:
        """Whether it was rebuilt by this run, and not by another session, nor only found in another place.

        What was exchanged for the new one is there still: its removal is all that can have failed.
        """
        if isinstance(attempt.error, LockNotObtained) or attempt.oid not in new:
            return False
        found = self._named(conn, attempt.index)
        return found is not None and found[0] != attempt.oid and self._plan.options.tablespace in (None, found[1])

    def _drop(self, conn: Connection, left: Candidate, attempt: _Attempt, policy: Policy) -> None:
        name = left.qualified_name
        if not attempt.relation.owned:
            attempt.tell(
                f"The invalid index {name} is still there, for your role does not own its table."
                f" As its owner: DROP INDEX CONCURRENTLY {name};"
            )
            return
        place = Place(left.table_oid, attempt.relation.qualified_name)
        drop = partial(remove, self._server, conn, left, _UNDO_WAIT_S, limit_s=_UNDO_WAIT_S, cancellable=False)
        try:
            self._watch.in_line(conn, place, attempt.reporter, policy, drop)
        except (PgleanError, psycopg.Error) as error:
            self._server.check()
            if not is_left(conn, left):
                return
            in_use = isinstance(error, LockNotObtained | psycopg.errors.LockNotAvailable)
            why = "its table is in use" if in_use else self._server.translate(error).message
            attempt.tell(
                f"The invalid index {name} is still there, for {why};"
                " the next rebuild of an index of that table removes it."
            )

    @contextlib.contextmanager
    def _reach_again(self) -> Iterator[Connection]:
        """A session for undoing; a server that is restarting is waited for."""
        deadline = time.monotonic() + _RECONNECT_S
        with contextlib.ExitStack() as stack:
            conn: Connection | None = None
            while conn is None:
                try:
                    conn = stack.enter_context(self._server.connect("reindex undo", cancellable=False))
                except ConnectionLost:
                    if time.monotonic() > deadline:
                        raise
                    self._server.rest(0.5)
            yield conn


def _by_run(works: Iterable[Work]) -> list[list[Work]]:
    """Together those of a table and of its TOAST table, which have one claim."""
    groups: dict[int, list[Work]] = {}
    for work in works:
        groups.setdefault(work.relation.main_oid, []).append(work)
    return list(groups.values())


def _told(index: Candidate, told: PgleanError, error: Exception) -> PgleanError:
    """What an error of the rebuild means."""
    name = index.qualified_name
    if isinstance(error, psycopg.errors.UniqueViolation):
        return PgleanError(
            f"could not rebuild unique index {name}: a key occurs more than once",
            detail=told.detail,
            hint=(
                "It is valid, so the table, or the index, is damaged: perhaps text is sorted otherwise since an upgrade"
                " of the operating system. Find the rows with enable_indexscan and enable_bitmapscan off."
                if index.valid
                else f"Delete the duplicates, or drop the index: DROP INDEX CONCURRENTLY {name};"
            ),
        )
    if type(told) is PgleanError:
        return PgleanError(f"could not rebuild index {name}: {told.message}", detail=told.detail, hint=told.hint)
    return told


def _add_hint(error: PgleanError, text: str) -> None:
    error.hint = f"{error.hint} {text}" if error.hint else text
