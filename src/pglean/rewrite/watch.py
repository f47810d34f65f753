"""The watch: notices DDL on the table while nothing else of the run looks at it, e.g. during hours of index builds.

Our triggers name columns of the table. Once somebody renames such a column, every write of the application would fail
in them until the run comes to its next step. So a thread of its own compares the fingerprint twice a second, with no
lock on the table; on a change it first empties the trigger functions (which needs none either), then ends the run.

Its session also holds the claim on the table. It runs no code of anybody else's, who could give the claim away
(pg_advisory_unlock_all in a function of an index).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psycopg

from pglean import catalog
from pglean.errors import PgleanError, TableChanged
from pglean.rewrite.run import Run
from pglean.server import Connection, translate

_INTERVAL_S = 0.5


@contextlib.contextmanager
def watching(run: Run, conn: Connection) -> Iterator[None]:
    """Watch as long as the block lasts; not beyond the swap, which changes the fingerprint itself.

    A change makes every step of the run raise `TableChanged`; so does this block at its end.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(run, conn, stop), name="pglean watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    run.server.check()


def _watch(run: Run, conn: Connection, stop: threading.Event) -> None:
    while not stop.wait(_INTERVAL_S):
        try:
            catalog.check_fingerprint(conn, run.table, run.job.fingerprint)
        except TableChanged as change:
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
