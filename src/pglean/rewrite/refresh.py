"""Refresh: for the keys recorded, make the shadow hold what the table holds *now*.

One snapshot S decides everything: which rows are read, and which records are deleted afterwards: those that S sees,
together with what they tell of. Invariant after each `round` by one session: the shadow equals the table as of S.

Deletes come before inserts, all of them: then unique values may wander between rows as they like.

Divided among workers (`_shared`): a coordinator opens a REPEATABLE READ transaction, exports S and stays. First each
worker deletes from the shadow all keys of its share, by hash, that are recorded by now, and commits; only then they
import S, insert the rows of those whose records S sees, and commit; last the coordinator deletes the records and
commits. Invariant: the shadow equals the table as of S, but for keys that still have a record, of which it may have
nothing. (Capture from the WAL records a change that S sees after S was taken: its key must go, or a row that S shows
beside it might have its unique value.) What is compared with the table, or takes its place, comes from a round by one
session. Killed in between: the records are still there and the round is done again; it deletes whatever the shadow
holds of these keys.
What a worker has committed in the first half is not visible under S in the second: nothing there asks for it.

Before any unique index exists (`before_indexes`), shares need no common snapshot: each share is refreshed in a
transaction and a snapshot of its own, so that after a long copy no snapshot is held for long. A unique value may
have moved from a row of a late share to one of an early share; the last, whole `round` puts that right before
indexes are built.

A table without a key has no keys to be taken: there `images` does what is to be done, always in one transaction.

Locks: ACCESS SHARE on the table during a round, none in between.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial

import psycopg
from psycopg import sql

from pglean import guard
from pglean.locks import Hold
from pglean.rewrite import images
from pglean.rewrite.run import Run
from pglean.rewrite.shadow import columns
from pglean.session import Connection, scalar
from pglean.sql import fragment
from pglean.table import Key

#: Below so many records one session is done before several have agreed on a snapshot.
_SHARED_FROM = 2_000
#: Records of one share of the first refresh: a few seconds' work.
_SHARE_RECORDS = 100_000
#: The change table is vacuumed once so many dead records would be read again by each round.
_VACUUM_FROM = 50_000
#: Share of the shadow's rows that may be dead, as autovacuum has it.
_BLOAT = 0.2


@dataclass(frozen=True, slots=True)
class Round:
    """What one refresh did."""

    #: Records taken; a key may have several.
    records: int
    #: Of the refresh itself, from its snapshot to its commit.
    seconds: float


@dataclass(frozen=True, slots=True)
class Share:
    """One of `of` parts of the keys, by hash."""

    number: int
    of: int


def waiting(conn: Connection, run: Run) -> int:
    """Records that this statement's snapshot sees."""
    return int(scalar(conn, sql.SQL("SELECT pg_catalog.count(*) FROM {}").format(run.job.changes)))


def before_indexes(run: Run) -> None:
    """Take over what was recorded during the copy. On exit duplicates of the copy are gone.

    In shares, unless an index is built already (the run was resumed, or somebody has made an index meanwhile).
    """
    records = waiting(run.control, run)
    shares = max(1, min(records // _SHARE_RECORDS, 1024)) if _divisible(run) and not run.twins else 1
    if shares > 1:
        run.reporter.total(shares, "shares")
        take = run.workers.in_turn if run.crowded else run.workers.each
        take([Share(number, shares) for number in range(shares)], partial(_refresh_share, run))
        vacuum_changes(run)
    round_(run, alone=run.crowded)


def _refresh_share(run: Run, conn: Connection, worker: str, share: Share) -> None:
    run.purpose(conn, f"refresh {share.number + 1}/{share.of}")

    def refresh() -> int:
        with run.step(conn, repeatable=True):
            _delete(run, conn, worker, share)
            _insert(run, conn, worker, share)
            return _consume(run, conn, share)

    records = run.again(refresh)
    run.reporter.advance(1)
    run.reporter.applied(records, 0)


def round_(run: Run, *, then: partial[None] | None = None, alone: bool = False) -> Round:
    """One refresh. On entry and exit: no transaction.

    `then` is called in the snapshot of the refresh, before its commit: there shadow and table are equal.
    `alone`: not divided among workers, which get more done and leave less to the application.
    """
    run.pass_gate()
    if alone or then is not None:
        # Not while it is behind, and writers are paused for it.
        run.give_way(run.control)
    run.reach("refresh: before a round")
    run.purpose(run.control, "refresh")
    done = run.again(partial(_round, run, then, alone))
    run.unvacuumed += done.records
    run.replaced += done.records
    run.reporter.applied(done.records, 0)
    return done


def _round(run: Run, then: partial[None] | None, alone: bool) -> Round:
    conn = run.control
    # What there is to do is known only then, and it needs no snapshot.
    run.capture.pull(waiting=run.waiting)
    with contextlib.ExitStack() as step:
        if then is not None and run.table.key is None:
            # What is recorded later cannot be taken in by a transaction that has its snapshot already (`images`).
            run.settled(lambda: step.enter_context(run.step(conn, repeatable=True, once=True)))
        else:
            step.enter_context(run.step(conn, repeatable=True))
        started = time.monotonic()
        # This is S, if `step` has not taken it already: all statements of this transaction see the same.
        records = waiting(conn, run)
        divided = not alone and then is None and run.workers.count > 1 and _divisible(run)
        if divided and records >= _SHARED_FROM:
            _shared(run)
            consumed = _consume(run, conn)
        else:
            run.capture.complete(conn, _longest_wait_ms(run))
            consumed = within(run, conn, waiting(conn, run))
        if then is not None:
            then()
        run.reach("refresh: before the commit")
    return Round(consumed, time.monotonic() - started)


def within(run: Run, conn: Connection, records: int, hold: Hold | None = None) -> int:
    """Refresh in the open transaction, by this session alone; returns the records taken.

    On entry: the transaction is REPEATABLE READ, or holds a lock that keeps writers away, within the limit of `hold`.
    """
    if records == 0:
        return 0
    acts = (images.take_over,) if run.table.key is None else (_delete, _insert)
    for act in acts:
        if hold is not None:
            hold.limit()
        act(run, conn, "c")
    if hold is not None:
        hold.limit()
    return _consume(run, conn)


def _shared(run: Run) -> None:
    snapshot = scalar(run.control, "SELECT pg_catalog.pg_export_snapshot()")
    # Now the change table has all keys in which S differs from the shadow, whether S sees them there or not.
    run.capture.pull(_longest_wait_ms(run))
    shares = [Share(number, run.workers.count) for number in range(run.workers.count)]

    def delete(conn: Connection, worker: str, share: Share) -> None:
        with run.step(conn, once=True):
            _delete(run, conn, worker, share)

    def insert(conn: Connection, worker: str, share: Share) -> None:
        with run.step(conn, snapshot=snapshot):
            _insert(run, conn, worker, share)

    try:
        run.workers.each(shares, delete)
        run.reach("refresh: between the halves")
        run.workers.each(shares, insert)
    except psycopg.Error:
        # A worker that does not find the snapshot any more is not the cause: this session has been lost, which it
        # notices as soon as it is used.
        run.control.execute("SELECT")
        raise


def vacuum_changes(run: Run) -> None:
    """Make the space of consumed records usable again. Without truncation, which would lock writers out."""
    run.control.execute(sql.SQL("VACUUM (TRUNCATE false) {}").format(run.job.changes))
    run.unvacuumed = 0


def bloats(run: Run) -> bool:
    """Whether so many rows of the shadow were replaced that it would come out of the run as the table went in."""
    return run.replaced >= max(_VACUUM_FROM, _BLOAT * (run.table.estimated_rows or 0))


def vacuum_pays(run: Run) -> bool:
    """Whether so many records were consumed that a VACUUM of the change table is worth it."""
    return run.unvacuumed >= _VACUUM_FROM


# ---- statements


def _longest_wait_ms(run: Run) -> float:
    """How long a transaction that has the table locked may wait for what was written to be recorded.

    Whoever wants the table waits as long, and readers behind him.
    """
    return max(run.job.options.lock_timeout_ms, 100)


def _divisible(run: Run) -> bool:
    """Whether workers can share a refresh, as they share the keys by their hash."""
    return run.table.key is not None and run.table.key.hashable


def _key(run: Run) -> Key:
    assert run.table.key is not None
    return run.table.key


def _recorded(run: Run, alias: str, share: Share | None) -> sql.Composed:
    """EXISTS: the row `alias` has a recorded key. A semi-join, so that a key recorded twice finds its row once."""
    conditions = [
        sql.SQL("{}.{} {} {}{}").format(
            sql.Identifier(alias),
            sql.Identifier(column.name),
            fragment(column.equality_sql),
            sql.Identifier("c", f"k{position}"),
            fragment(f" COLLATE {column.collation_sql}" if column.collation_sql else ""),
        )
        for position, column in enumerate(_key(run).columns, 1)
    ]
    if share is not None:
        conditions.append(_in_share(run, share))
    return sql.SQL("EXISTS (SELECT FROM {} AS c WHERE {})").format(run.job.changes, sql.SQL(" AND ").join(conditions))


def _in_share(run: Run, share: Share) -> sql.Composed:
    keys = sql.SQL(", ").join(sql.Identifier("c", f"k{position}") for position in range(1, len(_key(run).columns) + 1))
    return sql.SQL("(pg_catalog.hash_record_extended(ROW({keys}), 0) & 9223372036854775807) % {of} = {number}").format(
        keys=keys, of=sql.Literal(share.of), number=sql.Literal(share.number)
    )


def _sort_keys(conn: Connection) -> None:
    """In a transaction: recorded keys are brought into their order, and each looked up in turn.

    Of a change table without statistics the planner expects 200 keys, which it would tell apart by hash, and look up in
    that random order, whatever there are. In their own order they lie side by side, in the table and in the indexes
    into which they go: 0.4 of the time (`bench/levers.py`, *sorting*). Statistics gained less, and would be wrong, the
    other way, for the few keys of the next round.
    """
    conn.execute("SET LOCAL enable_hashagg = off")


def _delete(run: Run, conn: Connection, worker: str, share: Share | None = None) -> None:
    _sort_keys(conn)
    guard.execute(
        conn,
        run.table,
        worker,
        lambda _: sql.SQL("DELETE FROM {} AS s WHERE {}").format(run.job.shadow, _recorded(run, "s", share)),
    )


def _insert(run: Run, conn: Connection, worker: str, share: Share | None = None) -> None:
    names, _ = columns(run.table)
    values = run.job.layout.values()
    _sort_keys(conn)
    guard.execute(
        conn,
        run.table,
        worker,
        lambda source: sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} AS t WHERE {}").format(
            run.job.shadow, names, values, source.relation, _recorded(run, "t", share)
        ),
    )


def _consume(run: Run, conn: Connection, share: Share | None = None) -> int:
    """Delete the records that the transaction's snapshot sees with what they tell of, and no others."""
    statement = sql.SQL("DELETE FROM {} AS c WHERE {}").format(run.job.changes, run.capture.consumable)
    if share is not None:
        statement += sql.SQL(" AND {}").format(_in_share(run, share))
    return conn.execute(statement).rowcount
