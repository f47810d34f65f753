"""What the steps of one run share: the job, the connections, and the bracket around each transaction on the table."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg

from pglean import pausepoint
from pglean.blockers import Mode
from pglean.capture import ChangeCapture
from pglean.catalog import check_fingerprint
from pglean.errors import IndexesChanged, Paused, PgleanError
from pglean.locks import OverBudget, locked
from pglean.patience import Patience, Policy
from pglean.progress import Reporter
from pglean.rewrite import job as jobs
from pglean.rewrite.courtesy import Courtesy
from pglean.rewrite.job import Job
from pglean.rewrite.phase import Phase
from pglean.server import Server
from pglean.session import Connection, scalar, set_purpose
from pglean.table import Table
from pglean.throttle import Gate

T = TypeVar("T")

_TICK_S = 0.25
_HEARTBEAT_S = 2.0
#: A record in the change table, about; and so many of them a second that the application would notice us.
_RECORD_BYTES, _BUSY_PER_S = 40, 200


class GoBack(Exception):
    """A step cannot be finished now: the run goes on with an earlier phase. Its text says why."""

    def __init__(self, phase: Phase, reason: str) -> None:
        super().__init__(reason)
        self.phase = phase


class GaveWay(Exception):
    """A step was ended so that somebody could have the table who waits for it, and readers behind him."""


class RightOfWay:
    """Ends steps that hold the table while somebody waits for ACCESS EXCLUSIVE on it.

    A comparison or a large refresh may read the table for hours, with a lock that keeps only him away; but whoever
    comes after him queues behind him. A step is a transaction that can be done again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_step: set[Connection] = set()
        self._asked: set[Connection] = set()

    def let_through(self) -> None:
        """Cancel what the sessions in a step are doing. Returns when the server has been told."""
        with self._lock:
            for conn in self._in_step - self._asked:
                # First: the statement may have ended before this call does.
                self._asked.add(conn)
                with contextlib.suppress(psycopg.Error):
                    conn.cancel_safe(timeout=2)

    @contextlib.contextmanager
    def step(self, conn: Connection) -> Iterator[None]:
        """In the block, which is within a transaction, the session can be asked to give way: raises `GaveWay` then.

        No request reaches a statement that comes after the block.
        """
        with self._lock:
            self._in_step.add(conn)
        try:
            yield
        except pg.QueryCanceled as error:
            if conn in self._asked:
                raise GaveWay from error
            raise
        finally:
            # Not before a request that is under way has been delivered.
            with self._lock:
                self._in_step.discard(conn)
                asked = conn in self._asked
                self._asked.discard(conn)
        if asked:
            # It came when everything was done, or between two statements; or it comes now.
            try:
                conn.execute("SELECT")
            except pg.QueryCanceled as error:
                raise GaveWay from error


class Workers:
    """A fixed number of sessions, each used by one thread at a time.

    On entry of each task and on its exit its session has no transaction open.
    """

    def __init__(
        self, server: Server, conns: list[Connection], tick: Callable[[], None], halt: Callable[[], None]
    ) -> None:
        """`tick` is called now and then while others work; `halt` raises where nothing more shall be begun."""
        self._server, self._conns, self._tick, self._halt = server, conns, tick, halt
        # Last in, first out: the session that has just worked has the table's buffers mapped in its memory, and another
        # would spend a good part of its time on getting there.
        self._idle: queue.LifoQueue[tuple[int, Connection]] = queue.LifoQueue()
        for pair in enumerate(conns):
            self._idle.put(pair)
        self._pool = ThreadPoolExecutor(len(conns), thread_name_prefix="pglean")
        self.stopping = threading.Event()

    @property
    def count(self) -> int:
        return len(self._conns)

    def each(self, items: list[T], task: Callable[[Connection, str, T], None]) -> None:
        """Run the task for every item, as many at once as there are sessions; `task` gets the worker's name too.

        The first error stops the others (their statements are cancelled) and is raised when all have stopped.
        Where a pause is asked for, what was begun is finished first: it may be an index that took hours.
        """
        self.stopping.clear()
        postponed: list[PgleanError] = []

        def call(item: T) -> None:
            number, conn = self._idle.get()
            try:
                if self.stopping.is_set():
                    return
                self._server.check()
                try:
                    self._halt()
                except PgleanError as pause:
                    postponed.append(pause)
                    return
                try:
                    task(conn, f"w{number}", item)
                except Paused as pause:
                    # It had begun nothing: it stood at the gate.
                    postponed.append(pause)
            finally:
                self._idle.put((number, conn))

        futures = [self._pool.submit(call, item) for item in items]
        try:
            self._wait(futures)
        except BaseException:
            self.stopping.set()
            pending = set(futures)
            while pending:
                for conn in self._conns:
                    with contextlib.suppress(psycopg.Error):
                        conn.cancel_safe(timeout=2)
                _, pending = wait(pending, timeout=_TICK_S)
            raise
        if postponed:
            raise postponed[0]

    def _wait(self, futures: list[Future[None]]) -> None:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_TICK_S)
            for future in done:
                future.result()
            self._tick()

    def one(self, task: Callable[[Connection, str], None]) -> None:
        """Run the task on one session."""
        self.each([None], lambda conn, worker, _: task(conn, worker))

    def in_turn(self, items: list[T], task: Callable[[Connection, str, T], None]) -> None:
        """Run the task for every item, one after the other."""
        for item in items:
            self.each([item], task)

    def every(self, task: Callable[[Connection, str, int], None]) -> None:
        """Run the task once on each session at the same time."""
        self.each(list(range(self.count)), task)

    def close(self) -> None:
        self._pool.shutdown()


@dataclass(slots=True)
class Run:
    """One run of the rewrite, while it lasts. What must survive it is in the database (`job`)."""

    server: Server
    job: Job
    #: The session that writes the job's row and takes the locks; the claim is held by that of `watch`.
    control: Connection
    workers: Workers
    capture: ChangeCapture
    reporter: Reporter
    #: What `capture.switch_on` returned.
    capture_identity: Any = None
    #: What there is to be copied: blocks of the heap, or what `Job.order` divides it into.
    pieces: int = 0
    #: When the capture was switched on, by the monotonic clock.
    captured_at: float = 0.0
    #: Whether several workers were faster than one; None where that was not found out.
    parallel_pays: bool | None = None
    #: Whether all processors of the server were busy while a single worker copied.
    crowded: bool = False
    #: Of a table without a key: the snapshot under which all of it is copied, while that is going on.
    baseline: str | None = None
    #: Index of the table -> its twin.
    twins: dict[int, int] = field(default_factory=dict)
    #: Whether all of the shadow was visible to everybody when it was last vacuumed.
    frozen: bool = False
    #: Pages of the shadow's heap at that time.
    shadow_pages: int = 0
    #: Milliseconds for which ACCESS EXCLUSIVE was held: the longest of all attempts, and of the slices for writers.
    exclusive_lock_ms: float = 0.0
    #: Records consumed since the change table was last vacuumed.
    unvacuumed: int = 0
    #: Records consumed since the shadow was last vacuumed: about so many dead rows are in it.
    replaced: int = 0
    #: Rows in the table, as counted by the copy or by the verification.
    rows: int = 0
    #: Closed while the throttle wants no more work to begin.
    gate: Gate = field(default_factory=Gate)
    right_of_way: RightOfWay = field(default_factory=RightOfWay)
    courtesy: Courtesy = field(init=False)
    #: Set once `pglean swap` was called.
    swap_asked: threading.Event = field(default_factory=threading.Event)
    #: What ends the run between two pieces of work; they are finished first.
    pause: PgleanError | None = None
    _beat: float = 0.0
    _thread: int = field(default_factory=threading.get_ident)

    def __post_init__(self) -> None:
        self.courtesy = Courtesy(self.server)

    @property
    def table(self) -> Table:
        return self.job.table

    def patience(self) -> Patience:
        """A new allowance of waiting."""
        return Patience(self.server, Policy.of(self.job.options), self.waiting, self.reporter.message)

    def waiting(self, reason: str, *, throttled: bool = False) -> None:
        """The run waits for something, with no lock and no transaction. Raises where a pause was asked for."""
        self.halt()
        self.reporter.waiting(reason, throttled=throttled)
        self.tick()

    def halt(self) -> None:
        """Between two pieces of work: raise `Paused` where that was asked for."""
        if self.pause is not None:
            raise copy(self.pause)

    def pass_gate(self) -> None:
        """Before a piece of work, with no transaction: wait as long as the throttle says so."""
        while reason := self.gate.reason:
            self.waiting(reason, throttled=True)
            self.server.rest(_TICK_S)
        self.halt()

    def again(self, body: Callable[[], T]) -> T:
        """Run the body, and once more from its start where a table of ours was locked by somebody (REINDEX DATABASE).

        Or where it was ended to let somebody have the user's table.
        On entry, and whenever the body raises: no transaction. What it does must bear being done again.
        """
        patience = self.patience()
        while True:
            try:
                with patience.elsewhere():
                    return body()
            except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
                reason = f"{error.diag.message_primary}."
            except GaveWay:
                reason = "Somebody wanted the table."
            except OverBudget as error:
                # What was written is decoded too slowly for a transaction to wait for it.
                reason = str(error)
            patience.pause(self.table, Mode.ACCESS_SHARE, reason, ())

    @contextlib.contextmanager
    def step(
        self, conn: Connection, *, repeatable: bool = False, snapshot: str | None = None, once: bool = False
    ) -> Iterator[None]:
        """A transaction in which the table may be read: ACCESS SHARE, by a name that means it, nothing changed.

        On exit: committed, or rolled back where the block raises; no lock. `once`: see `locked`.
        Raises `TableChanged`, `CaptureGap`, `LockNotObtained`, `Interrupted`.
        """
        with locked(
            self.server,
            conn,
            self.table,
            Mode.ACCESS_SHARE,
            self.patience(),
            repeatable=repeatable,
            snapshot=snapshot,
            once=once,
        ):
            self.check(conn)
            with self.right_of_way.step(conn):
                yield

    @contextlib.contextmanager
    def chunk(self, conn: Connection) -> Iterator[None]:
        """A `step` of the copy: under the baseline, where there is one.

        That is older than the lock: what the table is by now is asked beside, of the control session. What has become
        of its indexes need not be known before the copy is done.
        """
        if self.baseline is None:
            with self.step(conn):
                yield
            return
        with locked(
            self.server,
            conn,
            self.table,
            Mode.ACCESS_SHARE,
            self.patience(),
            snapshot=self.baseline,
            look=self.control,
        ):
            # From here on nobody else goes on with the run. Whether somebody has, the snapshot is too old to show.
            jobs.check_current(conn, self.job)
            jobs.check_current(self.control, self.job)
            with contextlib.suppress(IndexesChanged):
                check_fingerprint(self.control, self.table, self.job.fingerprint)
            self.capture.check(self.control, self.capture_identity)
            with self.right_of_way.step(conn):
                yield

    def settled(self, take: Callable[[], None]) -> None:
        """Call `take` at a moment at which a snapshot sees of the table what is recorded, no more and no less.

        Triggers record in the transaction that writes: with them it is always so. Otherwise a worker keeps writers away
        (SHARE ROW EXCLUSIVE) until all is recorded and `take`, which must be short, has come back.
        On entry: no transaction in which the table is locked. Raises `LockNotObtained`, and what `take` raises.
        """
        if not self.capture.lags:
            take()
            return
        patience = self.patience()

        def keep_writers_away(conn: Connection, _: str) -> None:
            with locked(self.server, conn, self.table, Mode.SHARE_ROW_EXCLUSIVE, patience) as hold:
                assert hold is not None
                self.capture.pull(max(hold.left_ms, 1) / 2)
                hold.limit()
                take()

        while True:
            try:
                self.workers.one(keep_writers_away)
            except OverBudget as error:
                patience.pause(self.table, Mode.SHARE_ROW_EXCLUSIVE, str(error), ())
                continue
            return

    def check(self, conn: Connection) -> None:
        """Raise where the table or our capture is not what it was, or the run not ours any more.

        On entry: the table is locked.
        """
        jobs.check_current(conn, self.job)
        check_fingerprint(conn, self.table, self.job.fingerprint)
        self.capture.check(conn, self.capture_identity)

    def purpose(self, conn: Connection, what: str) -> None:
        """Name the session in pg_stat_activity by what it does."""
        set_purpose(conn, f"{self.job.id} {self.table.name} {what}")

    def tick(self) -> None:
        """Between things: notice Ctrl-C, write the heartbeat.

        The control session may be in a transaction of its own; then the heartbeat waits. It is written by the thread
        that begins these: another's would slip into a transaction that is just being begun.
        """
        self.server.check()
        if threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        idle = self.control.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if idle and now - self._beat >= _HEARTBEAT_S:
            self._beat = now
            jobs.beat(self.control, self.job, asdict(self.reporter.state))

    def workers_to_spare(self, conn: Connection) -> bool:
        """Whether more than one worker may be busy: not where that gains little and takes it from an application.

        Few processors are shared with whoever writes to the table. What it writes is estimated from the size of the
        change table.
        """
        if self.crowded:
            return False
        if self.parallel_pays is not False:
            return True
        size = scalar(conn, "SELECT pg_catalog.pg_relation_size(%s::pg_catalog.regclass)", (self.job.changes_name,))
        elapsed = max(time.monotonic() - self.captured_at, 0.001)
        return bool(size / _RECORD_BYTES / elapsed < _BUSY_PER_S)

    def no_helpers(self, conn: Connection) -> None:
        """In a transaction: no parallel query, where all processors are busy already."""
        if self.crowded:
            conn.execute("SET LOCAL max_parallel_workers_per_gather = 0")

    def give_way(self, conn: Connection) -> None:
        """Between two pieces of work, where all processors are busy already: let a queue of others' commits pass.

        Those that had to wait while we did something that cannot be divided would otherwise wait for the next as well.
        On entry and exit: no transaction.
        """
        if self.crowded:
            self.courtesy.give_way(conn)

    def reach(self, point: str) -> None:
        """A named pause point, and a look at whether somebody wants us to stop."""
        pausepoint.reach(point)
        self.server.check()
