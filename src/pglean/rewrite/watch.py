"""The watch: looks at the table, at what we are asked for, and at the load, while the run is busy with other things.

* DDL on the table. Our triggers name columns of it: once somebody renames such a column, every write of the application
  would fail in them until the run comes to its next step, perhaps after hours of an index build. So the fingerprint
  is compared twice a second, with no lock on the table; on a change the trigger functions are emptied (which needs
  none either), then the run is ended. Indexes that come and go wait for the next step, which takes them up.
* DDL that waits for the table. A comparison, or a large refresh, reads the table in one transaction; readers queue
  behind whoever waits for that. It is ended, and done again.
* What others ask of the run: to pause, to swap, to abort it (`pglean.job`).
* The throttle: whether more work may be begun.

Its session also holds the claim on the table. It runs no code of anybody else's, who could give the claim away
(pg_advisory_unlock_all in a function of an index).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psycopg

from pglean import catalog
from pglean.errors import Aborted, IndexesChanged, Paused, PgleanError, TableChanged
from pglean.locks import wanted
from pglean.rewrite import job as jobs
from pglean.rewrite.run import Run
from pglean.server import translate
from pglean.session import Connection
from pglean.throttle import Throttle

_INTERVAL_S = 0.5


@contextlib.contextmanager
def watching(run: Run, conn: Connection, throttle: Throttle) -> Iterator[None]:
    """Watch as long as the block lasts.

    A change makes every step of the run raise `TableChanged`; so does this block at its end.
    """
    # A limit holds from the first chunk on.
    _measure(run, conn, throttle)
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(run, conn, throttle, stop), name="pglean watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    run.server.check()


def _watch(run: Run, conn: Connection, throttle: Throttle, stop: threading.Event) -> None:
    while not stop.wait(_INTERVAL_S):
        try:
            _look(run, conn, throttle)
        except TableChanged as change:
            if _swapped(run, conn):
                # It was us.
                return
            with contextlib.suppress(psycopg.Error):
                run.capture.silence(conn)
            run.server.abort(change)
            return
        except psycopg.Error as error:
            # With this session the claim is lost.
            run.server.abort(translate(error))
            return
        except PgleanError as error:
            run.server.abort(error)
            return


def _look(run: Run, conn: Connection, throttle: Throttle) -> None:
    with contextlib.suppress(IndexesChanged):
        catalog.check_fingerprint(conn, run.table, run.job.fingerprint)
    run.capture.look(conn, run.capture_identity)
    if wanted(run.server, conn, run.table.oid, run.job.options.lock_timeout_ms):
        run.right_of_way.let_through()
    match jobs.command(conn, run.job.id):
        case "pause":
            run.pause = run.pause or Paused(f"run {run.job.id} was paused")
        case "swap":
            run.swap_asked.set()
        case "abort":
            raise Aborted(f"run {run.job.id} was aborted")
    _measure(run, conn, throttle)


def _measure(run: Run, conn: Connection, throttle: Throttle) -> None:
    if not throttle.wanted:
        return
    if reason := throttle.measure(conn):
        run.gate.close(reason)
    else:
        run.gate.open()


def _swapped(run: Run, conn: Connection) -> bool:
    """The exchange of the files and the phase that tells of it were committed at once."""
    with contextlib.suppress(psycopg.Error):
        phase = jobs.phase_of(conn, run.job.id)
        return phase is not None and phase.swapped
    return False
