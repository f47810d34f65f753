"""The baseline: the one snapshot under which a table without a key is copied.

Rows that nothing tells apart cannot be replaced by what they are now; they can only be counted on from a moment (see
`images`). So all chunks read the table as of one snapshot C, which a session of its own holds until the last of them
has committed. Then it deletes the records that C sees, which are in the copy already, and commits: from there on the
copy is the table as of C, and the change table what has happened since.

C is taken after the capture was switched on under a lock that waited for all writers: whoever wrote before is seen by
C, and whom C does not see has all his changes in the change table. What is captured from the WAL is recorded later than
it is seen; there C is taken while writers are kept away for a moment more (`Run.settled`).

The session has no lock on the table. So what the catalog says in C may be older than what the table is by now, and each
chunk looks at that from another session, while it has its own lock (`Run.chunk`).

Killed, or paused, before that commit: C is gone, and with it the worth of what was copied. Whoever goes on makes a new
shadow, and copies again as of a new C. (Not by TRUNCATE: logical decoding would pass that on to subscribers.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
from psycopg import sql

from pglean import catalog
from pglean.locks import patiently
from pglean.rewrite import indexes, shadow
from pglean.rewrite import job as jobs
from pglean.rewrite.run import Run
from pglean.session import scalar, transaction


@contextlib.contextmanager
def held(run: Run) -> Iterator[None]:
    """In the block `run.baseline` is the snapshot to copy under, and `run.pieces` what there is to be copied.

    On exit: the records that it sees are gone, or, where the block raises, all that was copied is worth nothing.
    On entry and exit: no transaction of the control session. No lock on the table.
    Raises `ConnectionLost` where the session that holds the snapshot was lost, `TakenOver` where another session has
    gone on with the run; in the block, none can.
    """
    if jobs.chunks(run.control, run.job.id):
        run.reporter.message(
            f"the copy of {run.table.qualified_name} begins again:"
            " without a key, rows can only be copied under one snapshot, and that is gone"
        )
        run.again(lambda: _begin_again(run))
    with run.server.connect(f"{run.job.id} {run.table.name} snapshot") as conn, transaction(conn, repeatable=True):

        def take() -> None:
            run.baseline = scalar(conn, "SELECT pg_catalog.pg_export_snapshot()")

        run.settled(take)
        # What C sees of the run stays as it was, whoever goes on with it. So nobody may, as long as C lives: a chunk of
        # ours that comes late would go into his copy. Whether somebody has, up to then, another session knows.
        jobs.check_current(conn, run.job)
        jobs.check_current(run.control, run.job)
        run.reach("copy: snapshot taken")
        if run.job.order is None:
            # Only now: of what was added since the capture is on, the snapshot sees what was committed by then.
            oid = run.table.oid
            run.pieces = patiently(
                run.server, run.control, oid, run.patience(), lambda: catalog.blocks(run.control, oid)
            )
        try:
            yield
        except psycopg.Error:
            # Who does not find the snapshot any more is not the cause: this session has been lost, which it notices
            # as soon as it is used.
            conn.execute("SELECT")
            raise
        finally:
            run.baseline = None
        run.reach("copy: before the snapshot is let go")
        conn.execute(sql.SQL("DELETE FROM {}").format(run.job.changes))


def _begin_again(run: Run) -> None:
    """A new, empty shadow with new twins. Raises psycopg's LockNotAvailable where somebody has the old one locked."""
    conn = run.control
    with transaction(conn):
        jobs.lock_ours(conn, run.job)
        conn.execute("SET LOCAL lock_timeout = '1s'")
        conn.execute(sql.SQL("DROP TABLE {}").format(run.job.shadow))
        jobs.forget_copy(conn, run.job.id)
        shadow.create(conn, run.job)
        indexes.create(conn, run.job)
