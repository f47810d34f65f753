"""The swap: the last refresh, then table and shadow exchange their files. The only writer of catalogs.

One READ COMMITTED transaction:

1. ACCESS EXCLUSIVE on the table (by name, short timeout), then on the shadow. The clock of `Hold` starts.
2. The table and the capture are what they were: final, nobody can write or alter any more.
3. The records that are left are taken over. The shadow now equals the table.
4. pg_class: table and shadow, and each index and its twin, exchange what says where the rows are (file, tablespace)
   and what is true of these files (pages, tuples, visible and frozen pages, relfrozenxid, relminmxid, TOAST table).
   The executor sends the invalidations for the rows it updates, as it does for any other.
5. pg_depend: each TOAST table belongs to the table that now points to it. Their names follow; and their storage
   parameters, which belong to the table by right, change places back.
   Where another fillfactor, compression or access method was asked for, the table says so from now on.
6. The shadow's mark that hides it from logical decoding goes. The triggers go. The job's row says `cleaning`.

With `--mvcc-safe` steps 1 to 3 are others (`_settle`): writers are kept away first, the records are taken over and
committed by another session, older snapshots are waited for, and then the lock is raised.

Invariant: before COMMIT everything is as it was for everybody else; after it, the table has all committed rows in the
new files, and what is left to do is to drop the shadow with the old ones. A lost connection leaves one or the other;
the job's row, written in the same transaction, says which.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from psycopg import errors as pg

from pglean.blockers import Mode, blockers_of
from pglean.errors import LockNotObtained, PgleanError
from pglean.locks import Hold, OverBudget, lock_shadow, locked, raise_lock
from pglean.patience import Patience, Policy
from pglean.rewrite import job as jobs
from pglean.rewrite import refresh, snapshots
from pglean.rewrite.job import SCHEMA
from pglean.rewrite.layout import compressible
from pglean.rewrite.phase import Phase
from pglean.rewrite.run import Run
from pglean.session import Connection, scalar
from pglean.sql import query

#: How often older snapshots are looked for, in seconds.
_LOOK_S = 0.005
#: Of the lock's budget, what may be spent before it is raised.
_SHARE = 0.8
#: Of what is left of it, what may be waited for the last changes to be recorded; and of all of it, what they may take
#: without any lock for one to be asked for.
_PULL_SHARE, _PROMPT = 0.6, 0.25


def attempt(run: Run, patience: Patience, between: Callable[[], None]) -> None:
    """Lock and exchange, or raise with nothing changed.

    On exit: exchanged and committed, no lock. `between` is called after each failed request for the lock, to keep up.
    Raises `OverBudget`, `LockNotObtained`, `TableChanged`, `CaptureGap`, `Interrupted`. Where the connection is lost at
    COMMIT, whoever undoes the run finds in the job's row whether there is anything to undo.
    """
    conn = run.control
    run.purpose(conn, "swap")
    run.reach("swap: before the lock")
    _pull_before(run)
    started: float | None = None
    consumed = 0
    safe = run.job.options.mvcc_safe
    mode = Mode.SHARE_ROW_EXCLUSIVE if safe else Mode.ACCESS_EXCLUSIVE
    try:
        with locked(run.server, conn, run.table, mode, patience, between=between) as hold:
            started = time.monotonic()
            assert hold is not None
            if safe:
                consumed = _settle(run, conn, hold)
            consumed += _exchange(run, conn, hold)
    except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
        # Not the table's lock (`locked` deals with that one) but a catalog row that an open GRANT has updated, by
        # somebody who may be waiting for the table; or the shadow, of which somebody thinks it is a table of his.
        raise OverBudget("A catalog row or the copy was locked by another session.") from error
    finally:
        if started is not None:
            held = (time.monotonic() - started) * 1000
            run.exclusive_lock_ms = max(run.exclusive_lock_ms, held)
    run.reporter.applied(consumed, 0)
    run.reach("swap: after the commit")


def _settle(run: Run, conn: Connection, hold: Hold) -> int:
    """Make sure that nobody is left who could see the shadow as it was before its last refresh (`snapshots`).

    On entry: SHARE ROW EXCLUSIVE. On exit: ACCESS EXCLUSIVE. Returns the records taken over.
    Raises `OverBudget` where older snapshots are not gone in time.
    """
    consumed = 0

    def refresh_elsewhere(worker: Connection, _: str) -> None:
        nonlocal consumed
        consumed = _refresh_beside(run, worker, hold)

    # Who had written to the table has let it go, hence is visible to all: nothing is recorded after this.
    _pull(run, hold)
    run.workers.one(refresh_elsewhere)
    older = snapshots.Older(run, conn)
    run.reach("swap: before the older snapshots are gone")
    while left := older.left():
        hold.limit()
        if snapshots.pressing(run, conn, left):
            raise OverBudget("Somebody came for the table while older snapshots were waited for.")
        run.server.rest(_LOOK_S)
        if hold.left_ms < (1 - _SHARE) * run.job.options.max_lock_ms:
            raise OverBudget(f"Older snapshots are held by {', '.join(left.values())}.")
    _raise(run, conn, hold)
    return consumed


def _refresh_beside(run: Run, worker: Connection, hold: Hold) -> int:
    """Take over the rest of the records and commit, while `hold` keeps writers away; returns how many.

    One attempt: where somebody's request for the table keeps `worker` waiting, it waits for `hold`, and readers for it.
    """
    policy = replace(Policy.of(run.job.options), wait_timeout_s=0, kill_backend=False)
    impatient = Patience(run.server, policy, lambda _: None)
    try:
        with locked(run.server, worker, run.table, Mode.ACCESS_SHARE, impatient, repeatable=True):
            run.check(worker)
            # The session that holds the lock is idle meanwhile, which must end before the server ends that.
            limit = Hold(worker, max(int(_SHARE * hold.left_ms), 1))
            return refresh.within(run, worker, refresh.waiting(worker, run), limit)
    except LockNotObtained as error:
        raise OverBudget("Somebody came for the table while the last changes were taken over.") from error


def _raise(run: Run, conn: Connection, hold: Hold) -> None:
    """To ACCESS EXCLUSIVE. Raises `OverBudget` where somebody still reads the table, and says who.

    Whoever has read the table and asks to write to it while this session, which keeps writers away, waits for him, is
    told of a deadlock at once, whatever deadlock_timeout says. So nobody is waited for in the lock's queue who has more
    than one statement to his transaction: of him it is waited for beside it that he ends.
    """
    until_ms = hold.left_ms - run.job.options.lock_timeout_ms
    while snapshots.undecided(run, conn):
        hold.limit()
        # He may wait for us already, if not for the table itself.
        if hold.left_ms < max(until_ms, 1) or snapshots.circle(run, conn):
            who = ", ".join(blockers_of(conn, run.table.oid, Mode.ACCESS_EXCLUSIVE))
            raise OverBudget(f"The table was locked by {who or 'another session'}.")
        run.server.rest(_LOOK_S)
    hold.limit()
    # Whoever comes to wait for us from now on does not look for a deadlock before that time.
    limit_ms = int(_SHARE * int(scalar(conn, query("snapshots.deadlock_timeout"))))
    try:
        raise_lock(conn, run.table, hold, max(min(run.job.options.lock_timeout_ms, limit_ms), 1))
    except pg.LockNotAvailable as error:
        # The lock is gone with the transaction, but that can ask nothing any more.
        phrases: list[str] = []
        run.workers.one(
            lambda worker, _: phrases.extend(blockers_of(worker, run.table.oid, Mode.ACCESS_EXCLUSIVE)),
        )
        raise OverBudget(f"The table was locked by {', '.join(phrases) or 'another session'}.") from error


def _exchange(run: Run, conn: Connection, hold: Hold) -> int:
    """All that is done under the lock, up to the commit; returns the records taken over."""
    lock_shadow(conn, run.job.shadow)
    run.check(conn)
    _check_predicate_locks(run, conn)
    hold.limit()
    _pull(run, hold)
    consumed = refresh.within(run, conn, refresh.waiting(conn, run), hold)
    if consumed and run.job.options.mvcc_safe:
        raise PgleanError("something was written under the lock: this is a bug of pglean")
    run.reach("swap: before the exchange")
    shadow = int(scalar(conn, "SELECT %s::pg_catalog.regclass::pg_catalog.oid", (f"{SCHEMA}.{run.job.shadow_name}",)))
    indexes = {index.oid for index in run.table.indexes}
    if indexes != set(run.twins):
        raise PgleanError("an index has no twin: this is a bug of pglean")
    hold.limit()
    suffix = "_18" if run.server.capabilities.version >= 180000 else ""
    parameters = {
        "table": run.table.oid,
        "shadow": shadow,
        "mine": [run.table.oid, shadow, *run.twins.keys(), *run.twins.values()],
        "theirs": [shadow, run.table.oid, *run.twins.values(), *run.twins.keys()],
    }
    updated = conn.execute(query(f"swap.files{suffix}"), parameters).rowcount
    if updated != 2 + 2 * len(run.twins):
        raise PgleanError(f"the exchange met {updated} relations instead of {2 + 2 * len(run.twins)}")
    if run.job.options.access_method is not None:
        conn.execute(query("swap.methods"), parameters)
    hold.limit()
    _exchange_toast(conn, parameters)
    hold.limit()
    _tell_table(run, conn)
    hold.limit()
    run.capture.switch_off(conn)
    jobs.enter(conn, run.job, Phase.CLEANING)
    run.reach("swap: before the commit")
    return consumed


def _pull_before(run: Run) -> None:
    """Raise `OverBudget`, before there is any lock, where what was written is recorded too slowly for one."""
    began = time.monotonic()
    run.capture.pull(waiting=run.waiting)
    took_ms = (time.monotonic() - began) * 1000
    if took_ms > _PROMPT * run.job.options.max_lock_ms:
        raise OverBudget(f"The WAL is decoded too slowly: it took {took_ms:.0f} ms to come to its end.")


def _pull(run: Run, hold: Hold) -> None:
    """Have everything recorded, in the time that the lock may be held, as it was meant. Raises `OverBudget`."""
    # With a reserve: once its time is over, the server ends the session that has the lock.
    run.capture.pull(_PULL_SHARE * max(hold.left_ms, 1))
    hold.limit()
    run.capture.look(run.control, run.capture_identity)


def _check_predicate_locks(run: Run, conn: Connection) -> None:
    """Raise `OverBudget` where SERIALIZABLE transactions have read single rows or pages of the old files.

    Such a lock names a place in a file, outlives its transaction as long as one beside it is open, and would not be
    found by whoever writes that row at its new place: a conflict would be missed. (CLUSTER raises them to locks on the
    relation; SQL cannot.) They go away with the transactions beside them; the next attempt is soon.
    """
    relations = [run.table.oid, *run.twins.keys()]
    if scalar(conn, query("swap.predicate_locks"), {"relations": relations}):
        raise OverBudget("Serializable transactions that have read the table are still open, or others beside them.")


def _tell_table(run: Run, conn: Connection) -> None:
    """What was asked for holds for what is written later, too.

    Written to the catalog as ALTER TABLE would do it, which however locks the TOAST table and the indexes as well: an
    autovacuum of these would be waited for, and all others with it.
    """
    options = run.job.options
    if options.fillfactor is not None:
        conn.execute(query("swap.fillfactor"), {"table": run.table.oid, "value": f"fillfactor={options.fillfactor}"})
    if options.compression is not None:
        columns = [column.number for column in run.table.columns if compressible(column)]
        method = options.compression.value[0]
        conn.execute(query("swap.compression"), {"table": run.table.oid, "columns": columns, "method": method})


def _exchange_toast(conn: Connection, parameters: dict[str, object]) -> None:
    """Ownership, parameters and names of the TOAST tables, after reltoastrelid was exchanged. Either may be absent."""
    conn.execute(query("swap.toast_marks"), parameters)
    conn.execute(query("swap.toast_owners"), parameters)
    conn.execute(query("swap.toast_options"), parameters)
    # Through names that nothing bears: two rows cannot exchange unique values in one statement.
    for name in ("swap.toast_names_away", "swap.toast_names"):
        conn.execute(query(name), parameters)
