"""Invalid indexes that are rebuilt or dropped before a rewrite, which is killed or cut off in the middle of that.

What is valid stays, whatever it was; the next run finishes what this one has begun, and leaves nothing.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import psycopg
import pytest

import pglean
from pglean import pausepoint
from pglean.errors import ConnectionLost
from tests.servers import Database
from tests.support import rebuild
from tests.support.client import Client
from tests.support.fault import Fault
from tests.support.oracle import assert_nothing_left, assert_sound, rows, until
from tests.support.rebuild import Rebuild, held, waiting

pytestmark = pytest.mark.in_turn

_OURS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pglean %'"
#: A DROP INDEX CONCURRENTLY that waits for whoever uses the table.
_DROPPING = (
    "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND locktype = 'virtualxid'"
    " AND datname = current_database() AND query LIKE 'DROP INDEX CONCURRENTLY%'"
)
#: Points on the way to the rewrite, as far as it comes with each of the two.
_POINTS = {
    "rebuild": ("reindex: drop in line", "reindex: before an index", "reindex: after an index", "capture: prepared"),
    "drop": ("reindex: drop in line", "capture: prepared"),
}
AT = [(how, point) for how, points in _POINTS.items() for point in points]


@pytest.fixture
def db(arena: Database) -> Database:
    """A table with two valid indexes, one that nobody could build, and what a failed rebuild has left of another."""
    arena.execute(f"SELECT pg_terminate_backend(pid, 5000) {_OURS}")
    arena.execute(
        """
        DROP SCHEMA IF EXISTS pglean CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public;
        CREATE EXTENSION amcheck;
        CREATE TABLE t (id int PRIMARY KEY, n int, v text);
        INSERT INTO t SELECT g, g % 10, 'v' || g FROM generate_series(1, 1000) g;
        CREATE INDEX tn ON t (n);
        UPDATE t SET v = 'twice' WHERE id IN (1, 2);
        """
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        arena.execute("CREATE UNIQUE INDEX CONCURRENTLY tv ON t (v)")
    arena.execute("UPDATE t SET v = 'once' WHERE id = 1")
    rebuild.leave(arena, "tn")
    return arena


@contextlib.contextmanager
def client(db: Database, how: str, *points: str) -> Iterator[Client]:
    """The command line, repacking the table."""
    with Client(["repack", "-t", "t", "--invalid-indexes", how, db.conninfo], points) as process:
        yield process


@contextlib.contextmanager
def nothing_lost(db: Database, how: str) -> Iterator[None]:
    """What was valid is there after the block, and valid; another run then does all that was asked for."""
    before, content = rebuild.indexes(db, "t"), rows(db, "t")
    yield
    until(lambda: db.scalar(f"SELECT count(*) {_OURS}") == 0, "the sessions of the run have ended")
    after, invalid = rebuild.indexes(db, "t"), rebuild.invalid(db)
    for index in ("t_pkey", "tn"):
        assert after[index] == before[index]
        assert index not in invalid
        db.execute("SELECT bt_index_parent_check(%s::regclass, true, true)", (index,))
    assert "tv" in after or how == "drop"
    assert rows(db, "t") == content
    with pglean.connect(db.conninfo) as database:
        database.repack("t", invalid_indexes=how)
        assert database.status() == []
    assert rebuild.invalid(db) == set()
    assert set(rebuild.indexes(db, "t")) == ({"t_pkey", "tn", "tv"} if how == "rebuild" else {"t_pkey", "tn"})
    assert rows(db, "t") == content
    assert_sound(db, "t")
    assert_nothing_left(db)


@pytest.mark.parametrize(("how", "point"), AT)
def test_killed_client(db: Database, how: str, point: str) -> None:
    with nothing_lost(db, how), client(db, how, point) as process:
        process.await_line(point)
        process.kill()


@pytest.mark.parametrize("phase", rebuild.HOLDS)
def test_killed_client_while_it_rebuilds(db: Database, phase: str) -> None:
    """The rebuild leaves an index of its own, beside the one that was to be rebuilt."""
    # A leftover is dropped first, for which the same session would be waited for.
    db.execute("DROP INDEX tn_ccnew")
    with nothing_lost(db, "rebuild"):
        with held(db, phase), client(db, "rebuild") as process:
            waiting(db, phase)
            process.kill()
            until(lambda: db.scalar(f"SELECT count(*) {_OURS}") == 0, "the server has noticed")
        assert rebuild.invalid(db) == ({"tv_ccold"} if phase == rebuild.READERS else {"tv", "tv_ccnew"})


@pytest.mark.parametrize("how", ["rebuild", "drop"])
def test_killed_client_while_it_drops(db: Database, how: str) -> None:
    """The index is marked so that nobody uses it any more, and is there still."""
    with nothing_lost(db, how):
        with held(db, rebuild.READERS), client(db, how) as process:
            until(lambda: db.scalar(_DROPPING) == 1, "the DROP waits for the reader")
            process.kill()
            until(lambda: db.scalar(f"SELECT count(*) {_OURS}") == 0, "the server has noticed")
        assert len(rebuild.invalid(db)) == 2


def test_killed_client_while_it_undoes(db: Database) -> None:
    db.execute("DROP INDEX tn_ccnew")
    with nothing_lost(db, "rebuild"):
        with held(db, rebuild.SNAPSHOTS), client(db, "rebuild", "reindex: undo") as process:
            waiting(db, rebuild.SNAPSHOTS)
            process.signal(signal.SIGINT)
            process.await_line("reindex: undo")
            process.kill()
        assert rebuild.invalid(db) == {"tv", "tv_ccnew"}


@pytest.mark.parametrize(("how", "point"), AT)
def test_terminated_sessions(db: Database, how: str, point: str) -> None:
    def terminate() -> None:
        with db.connect() as other:
            other.execute(f"SELECT pg_terminate_backend(pid, 5000) {_OURS}")

    fault = Fault(point, terminate)
    with nothing_lost(db, how), pausepoint.intercept(point, fault), pglean.connect(db.conninfo) as database:
        with pytest.raises(ConnectionLost):
            database.repack("t", invalid_indexes=how)
        assert fault.struck


@pytest.mark.parametrize("phase", [*rebuild.HOLDS, "drop"])
def test_terminated_session_at_work(db: Database, phase: str) -> None:
    """What it was making is removed at once, by a session that is opened for that."""
    how = "drop" if phase == "drop" else "rebuild"
    db.execute("DROP INDEX tn_ccnew")
    with nothing_lost(db, how):
        with held(db, rebuild.READERS if phase == "drop" else phase) as holder:
            run = Rebuild(db, "t", act="repack", invalid_indexes=how)
            if phase == "drop":
                until(lambda: db.scalar(_DROPPING) == 1, "the DROP waits for the reader")
            else:
                waiting(db, phase)
            db.execute(f"SELECT pg_terminate_backend(pid, 5000) {_OURS} AND query ~ '^(REINDEX|DROP INDEX) '")
            holder.rollback()
        outcome = run.outcome()
        assert isinstance(outcome, ConnectionLost), outcome
        left = rebuild.invalid(db)
        assert left == (set() if phase == rebuild.READERS else {"tv"})
