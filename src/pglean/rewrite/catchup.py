"""Catching up: refresh again and again until the rest can be taken over inside the lock's budget.

Each round's work is what was written during the one before. While rounds shrink, go on; when they shrink no more and
what is left fits the budget, that is the moment. When they do not shrink and do not fit, writers are faster than we
are: then they are paused in slices (SHARE ROW EXCLUSIVE, readers go on), each shorter than the budget, with as
much time in between, and from round to round a larger share of the time, so that every run ends. The display says so.

Locks: ACCESS SHARE per round; SHARE ROW EXCLUSIVE for a slice, only where it has come to that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import psycopg

from pglean.blockers import Mode
from pglean.errors import ConnectionLost, PgleanError
from pglean.locks import OverBudget, locked
from pglean.patience import Patience, Policy
from pglean.rewrite import refresh
from pglean.rewrite.run import Run
from pglean.rewrite.shadow import freeze
from pglean.session import Connection

#: A rest that takes so little under the lock is not worth another round.
_CALM_MS = 3.0
#: A round that has at least so much of the work of the one before does not shrink.
_SHRINKS = 0.8
#: Share of the budget that the last refresh may be expected to take.
_SAFE = 0.4
#: Rounds that do not shrink before writers are paused.
_ROUNDS_BEFORE_BRAKE = 3
#: A page that is written again within so many seconds is not worth being frozen.
_FRESH_S = 5.0


class Flow:
    """What is known of how fast changes come in and are taken over."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self.last = 0
        #: Records per second that come in.
        self.inflow = 0.0
        self.stuck = 0
        #: Milliseconds that the rest will take under the lock.
        self.expected_ms = float("inf")

    def learn(self, done: refresh.Round) -> None:
        now = time.monotonic()
        self.inflow = done.records / max(now - self._at, 0.001)
        self._at = now
        per_record_s = done.seconds / done.records if done.records else 0.0
        # What came in while this round ran is what is left now.
        self.expected_ms = 1000 * self.inflow * done.seconds * per_record_s
        shrinks = done.records < _SHRINKS * self.last or self.last == 0
        self.stuck = 0 if shrinks else self.stuck + 1
        self.last = done.records

    def calm(self) -> bool:
        """The rest is next to nothing."""
        return self.expected_ms <= _CALM_MS

    def fits(self, budget_ms: float) -> bool:
        """The rest will not get smaller, and it fits the lock's budget."""
        return self.stuck > 0 and self.expected_ms <= _SAFE * budget_ms


def run(run: Run) -> None:
    """Refresh until the rest fits; then freeze once more what the refreshes have touched."""
    flow = drain(run)
    # Pages touched by refreshes are not all visible any more; VACUUM reads only those. Where writers touch every page
    # again within seconds, it would give nothing and let the changes pile up.
    touched = run.reporter.state.changes_applied > 0 or not run.frozen
    if touched and flow.inflow * _FRESH_S < max(run.shadow_pages, 1):
        freeze(run)
        drain(run)


def once(run: Run) -> None:
    """One round, to keep up while something is waited for, perhaps for days."""
    refresh.round_(run)
    if refresh.vacuum_pays(run):
        refresh.vacuum_changes(run)
    if refresh.bloats(run):
        freeze(run)


def drain(run: Run) -> Flow:
    """Refresh until what is left fits the budget of the lock; returns what was learnt."""
    flow = Flow()
    budget_ms = run.job.options.max_lock_ms
    with contextlib.ExitStack() as stack:
        brake: Brake | None = None
        while True:
            # Where all processors are busy, one session does it, unless it does not get ahead of the writers.
            done = refresh.round_(run, alone=run.crowded and flow.stuck == 0 and brake is None)
            flow.learn(done)
            if flow.calm() or flow.fits(budget_ms):
                return flow
            if refresh.vacuum_pays(run):
                refresh.vacuum_changes(run)
            if flow.stuck >= _ROUNDS_BEFORE_BRAKE:
                if brake is None:
                    brake = stack.enter_context(_braking(run))
                brake.harder()
                flow.stuck = 0


class Brake:
    """Pauses writers in slices of the lock's budget, in a session and a thread of its own."""

    def __init__(self, run: Run, conn: Connection) -> None:
        self._run, self._conn = run, conn
        self._stop = threading.Event()
        self._share = 0.25
        self._thread = threading.Thread(target=self._work, name="pglean brake", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def harder(self) -> None:
        """Pause them for a larger share of the time, at most nine tenths."""
        self._share = min(self._share + 0.15, 0.9)
        self._run.reporter.message(
            f"changes come in faster than they can be taken over: writers are paused for {self._share:.0%} of the time,"
            f" at most {self._run.job.options.max_lock_ms} ms at once"
        )

    def _work(self) -> None:
        run = self._run
        slice_s = run.job.options.max_lock_ms / 1000 / 4
        policy = replace(Policy.of(run.job.options), wait_timeout_s=0, kill_backend=False)
        while not self._stop.is_set():
            if run.gate.reason:
                # Nothing is taken over meanwhile: writers would be paused for nothing.
                self._stop.wait(slice_s)
                continue
            with contextlib.suppress(OverBudget, PgleanError, psycopg.Error):
                patience = Patience(run.server, policy, lambda _: None)
                with locked(run.server, self._conn, run.table, Mode.SHARE_ROW_EXCLUSIVE, patience):
                    self._stop.wait(slice_s)
            if self._conn.closed:
                # Without it the run might never end.
                run.server.abort(ConnectionLost("connection to the server was lost", detail="It paused writers."))
                return
            self._stop.wait(slice_s * (1 - self._share) / self._share)


@contextlib.contextmanager
def _braking(run: Run) -> Iterator[Brake]:
    with run.server.connect(f"{run.job.id} {run.table.name} brake") as conn:
        brake = Brake(run, conn)
        brake.start()
        try:
            yield brake
        finally:
            brake.stop()
