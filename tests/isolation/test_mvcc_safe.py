"""`--mvcc-safe`: no transaction that began before the swap sees rows missing, doubled or stale.

Table and model are written in the same transactions, and nobody ever repacks the model: so what a snapshot shows of the
one must at any time be what it shows of the other.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.errors import ConnectionLost, LockNotObtained
from pglean.locks import OverBudget
from pglean.rewrite import snapshots, swap
from pglean.rewrite.run import Run
from tests.servers import Database, create_database
from tests.support import oracle
from tests.support.play import Background, Play, at, fails
from tests.support.points import SAFE
from tests.support.stage import Stage

pytestmark = [pytest.mark.newest, pytest.mark.usefixtures("small_portions")]

#: Rows in which table and model differ.
DIFFERENCE = """
    SELECT count(*) FROM ((SELECT t::text FROM t EXCEPT ALL SELECT m::text FROM m)
                          UNION ALL (SELECT m::text FROM m EXCEPT ALL SELECT t::text FROM t)) AS d
"""
BEFORE_LOCK = "swap: before the lock"
COMMITTED = "swap: after the commit"


@pytest.fixture
def play(play: Play) -> Play:
    """With another table to take snapshots by, children, and functions that look at both tables."""
    play.db.execute(
        "CREATE TABLE o (id int PRIMARY KEY, v int); INSERT INTO o SELECT g, 0 FROM generate_series(1, 10) AS g;"
        "CREATE TABLE child (t_id int REFERENCES t);"
        "CREATE FUNCTION difference() RETURNS bigint STABLE LANGUAGE plpgsql AS"
        f" $$ BEGIN RETURN ({DIFFERENCE}); END $$"
    )
    return play


def write(play: Play) -> None:
    """Rows come, go, move and change."""
    play.both(
        "DELETE FROM {t} WHERE id % 10 = 1; UPDATE {t} SET v = v || 'x' WHERE id % 10 = 2;"
        "UPDATE {t} SET id = -id WHERE id % 10 = 3;"
        "INSERT INTO {t} (id, u) SELECT m, m FROM (SELECT max(id) + 1 AS m FROM {t}) AS s"
    )


class Reader:
    """A transaction that has its snapshot from reading another table, and reads the table when it must."""

    def __init__(self, play: Play, isolation: str = "REPEATABLE READ") -> None:
        self._play = play
        self.conn = play.db.connect()
        self.pid = self.conn.info.backend_pid
        self._isolation = isolation
        self.told: list[str] = []
        self.found: list[Any] = []
        self._open = False

    def begin(self) -> None:
        self.conn.execute(sql.SQL(f"BEGIN ISOLATION LEVEL {self._isolation}; SELECT count(*) FROM o"))
        self._open = True

    def finish(self) -> None:
        """Look at the table, change it and refer to it; what it changes it also changes in the model."""
        if not self._open:
            return
        self._open = False
        conn = self.conn
        self.found.append(conn.execute(DIFFERENCE).fetchone())
        try:
            # Nobody else writes these rows: only a table that is not what it was makes this fail.
            conn.execute("INSERT INTO child VALUES (105)")
            for name in ("t", "m"):
                changed = [
                    conn.execute(sql.SQL(f"UPDATE {name} SET v = 'old' WHERE id BETWEEN 204 AND 209")).rowcount,
                    conn.execute(sql.SQL(f"DELETE FROM {name} WHERE id BETWEEN 304 AND 309")).rowcount,
                ]
                self.found.append(changed)
            conn.execute("COMMIT")
        except psycopg.Error as error:
            self.found.append(error)
            conn.execute("ROLLBACK")

    def on_progress(self, progress: pglean.Progress) -> None:
        """Goes on as soon as the run says that it waits for him."""
        if f"pid {self.pid} " in progress.waiting_for:
            self.told.append(progress.waiting_for)
            self.finish()


#: What a reader finds whose snapshot shows table and model alike.
RIGHT = [(0,), [6, 6], [6, 6]]

#: Before the run, between the copy and the last refresh, with writes after it that only the last refresh takes over.
MOMENTS = ("capture: prepared", "copy: in a chunk", "phase: indexing", "phase: verifying", BEFORE_LOCK)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_older_snapshot_is_waited_for(play: Play, moment: str, isolation: str) -> None:
    reader = Reader(play, isolation)

    def begin() -> None:
        reader.begin()
        write(play)

    with contextlib.ExitStack() as stack:
        stack.enter_context(at(moment, begin))
        if moment != BEFORE_LOCK:
            stack.enter_context(at(BEFORE_LOCK, reader.finish))
        stack.enter_context(at(COMMITTED, reader.finish))
        play.repack(mvcc_safe=True, on_progress=reader.on_progress)
    assert reader.told
    assert reader.found == RIGHT
    play.check()


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_snapshot_of_while_the_swap_waits(play: Play, isolation: str) -> None:
    """From after the last refresh: nobody waits for it, and after the swap it shows what it should."""
    reader = Reader(play, isolation)
    with at(BEFORE_LOCK, lambda: write(play)), at(SAFE, reader.begin), at(COMMITTED, reader.finish):
        play.repack(mvcc_safe=True, on_progress=reader.on_progress)
    assert not reader.told
    # Only that it writes may wait: it comes after the swap.
    assert reader.found == RIGHT
    play.check()


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_without_it_such_a_reader_sees_the_copy(play: Play, isolation: str) -> None:
    """As of the last freeze that its snapshot let happen: where it is older than the copy, of none."""
    reader = Reader(play, isolation)

    def begin() -> None:
        reader.begin()
        write(play)

    with at("copy: in a chunk", begin), at(COMMITTED, reader.finish):
        play.repack(on_progress=reader.on_progress)
    assert not reader.told
    # Older than the copy, which it kept from being frozen: no row at all, and a foreign key that is violated.
    assert reader.found[0] == (1500,)
    assert isinstance(reader.found[1], psycopg.errors.ForeignKeyViolation)
    oracle.assert_sound(play.db, "t")


# ---- statements that began before


@contextlib.contextmanager
def latch(play: Play) -> Iterator[Callable[[], None]]:
    """Statements wait for advisory lock 1 until what this gives is called."""
    conn = play.db.connect()
    conn.execute("SELECT pg_advisory_lock(1)")
    done = threading.Event()

    def release() -> None:
        if not done.is_set():
            done.set()
            conn.execute("SELECT pg_advisory_unlock(1)")

    try:
        yield release
    finally:
        release()


def standing(play: Play, statement: str) -> Background:
    """A statement that stands at the advisory lock."""
    conn = play.db.connect()
    background = Background(lambda: conn.execute(sql.SQL(statement)).fetchall())
    waits = "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'advisory' AND NOT granted"
    oracle.until(lambda: play.db.scalar(waits, (conn.info.backend_pid,)) == 1, "the statement stands")
    return background


@pytest.mark.parametrize("safe", [True, False], ids=["safe", "contrast"])
def test_stable_function_in_a_statement_that_began_before(play: Play, safe: bool) -> None:
    """READ COMMITTED: the function sees by the snapshot of the statement that calls it."""
    running: list[Background] = []
    with latch(play) as release:

        def begin() -> None:
            running.append(standing(play, "SELECT pg_advisory_lock_shared(1), difference()"))
            write(play)

        def finish() -> None:
            release()
            running[0].result()

        def on_progress(progress: pglean.Progress) -> None:
            if progress.waiting_for and "difference()" in progress.waiting_for:
                finish()

        with at(BEFORE_LOCK if safe else "copy: in a chunk", begin), at(COMMITTED, finish):
            play.repack(mvcc_safe=safe, on_progress=on_progress)
    ((_, difference),) = running[0].result()
    assert (difference == 0) == safe
    play.check()


@pytest.mark.parametrize("hold", ["", "WITH HOLD"])
def test_cursor(play: Play, hold: str) -> None:
    """A READ COMMITTED transaction holds the snapshots of its open cursors."""
    conn = play.db.connect()
    pid = conn.info.backend_pid
    told: list[str] = []
    found: list[Any] = []

    def begin() -> None:
        conn.execute("BEGIN")
        conn.execute(sql.SQL(f"DECLARE c CURSOR {hold} FOR SELECT difference() FROM o"))
        conn.execute("FETCH 1 FROM c" if hold else "SELECT 1")
        write(play)

    def finish() -> None:
        if not found:
            found.extend(conn.execute("FETCH ALL FROM c").fetchall())
            conn.execute("COMMIT")

    def on_progress(progress: pglean.Progress) -> None:
        if f"pid {pid} " in progress.waiting_for:
            told.append(progress.waiting_for)
            finish()

    with at(BEFORE_LOCK, begin), at(COMMITTED, finish):
        play.repack(mvcc_safe=True, on_progress=on_progress)
    assert told
    assert set(found) == {(0,)}
    play.check()


def test_idle_transactions_without_a_snapshot_are_not_waited_for(play: Play) -> None:
    """READ COMMITTED between two statements, also with something written elsewhere; a prepared transaction."""
    writer, prepared = play.db.connect(), play.db.connect()
    writer.execute("BEGIN; UPDATE o SET v = 1 WHERE id = 1; SAVEPOINT s; UPDATE o SET v = 2 WHERE id = 2")
    prepared.execute("BEGIN; UPDATE o SET v = 1 WHERE id = 3")
    prepared.execute(sql.SQL(f"PREPARE TRANSACTION 'safe {play.db.name}'"))
    told: list[str] = []
    with at(BEFORE_LOCK, lambda: write(play)):
        play.repack(mvcc_safe=True, on_progress=lambda progress: told.append(progress.waiting_for))
    assert not [text for text in told if text]
    assert writer.execute(DIFFERENCE).fetchone() == (0,)
    writer.execute("COMMIT")
    play.db.execute(sql.SQL(f"COMMIT PREPARED 'safe {play.db.name}'"))
    play.check()


def test_vacuum_elsewhere_is_not_waited_for(play: Play) -> None:
    play.db.execute(
        "CREATE TABLE big AS SELECT g, repeat('x', 500) FROM generate_series(1, 5000) AS g; DELETE FROM big"
    )
    conn = play.db.connect()
    conn.execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")
    vacuum = Background(lambda: conn.execute("VACUUM big"))
    oracle.until(
        lambda: bool(play.db.fetchall("SELECT FROM pg_stat_progress_vacuum WHERE relid = 'big'::regclass")), "it runs"
    )
    with at(BEFORE_LOCK, lambda: write(play)):
        play.repack(mvcc_safe=True)
    assert not vacuum.done
    conn.cancel()
    with pytest.raises(psycopg.errors.QueryCanceled):
        vacuum.result()
    play.check()


# ---- those who come while it waits


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_writer_with_an_older_snapshot_is_let_through_at_once(play: Play, isolation: str) -> None:
    """He waits for our lock, we would wait for his snapshot."""
    conn = play.db.connect()
    pid = conn.info.backend_pid
    took: list[float] = []
    running: list[Background] = []

    def begin() -> None:
        conn.execute(sql.SQL(f"BEGIN ISOLATION LEVEL {isolation}"))
        # A cursor: else READ COMMITTED has none.
        conn.execute("DECLARE c CURSOR FOR SELECT v FROM o")
        conn.execute("FETCH 1 FROM c")
        write(play)

    def change() -> None:
        began = time.monotonic()
        conn.execute("UPDATE t SET v = 'late' WHERE id = 7")
        took.append(time.monotonic() - began)
        conn.execute("UPDATE m SET v = 'late' WHERE id = 7; COMMIT")

    def come() -> None:
        running.append(Background(change))
        waits = "SELECT count(*) FROM pg_locks WHERE pid = %s AND relation = 't'::regclass AND NOT granted"
        oracle.until(lambda: play.db.scalar(waits, (pid,)) == 1, "he waits")

    with at(BEFORE_LOCK, begin), at(SAFE, come):
        play.repack(mvcc_safe=True, max_lock_ms=8000)
    running[0].result()
    assert took[0] < 2
    play.check()


def test_reader_who_then_writes_is_no_victim(play: Play) -> None:
    """He has read the table, waits to write to it, and looks for deadlocks: the stronger lock is not asked for."""
    conn = play.db.connect()
    pid = conn.info.backend_pid
    # A moment at which the stronger lock would be waited for.
    conn.execute("SET deadlock_timeout = '200ms'")
    running: list[Background] = []

    def begin() -> None:
        conn.execute("BEGIN")
        conn.execute("SELECT count(*) FROM t")

    def change() -> None:
        for name in ("t", "m"):
            conn.execute(sql.SQL(f"UPDATE {name} SET v = 'late' WHERE id = 7"))
        conn.execute("COMMIT")

    def come() -> None:
        running.append(Background(change))
        waits = "SELECT count(*) FROM pg_locks WHERE pid = %s AND relation = 't'::regclass AND NOT granted"
        oracle.until(lambda: play.db.scalar(waits, (pid,)) == 1, "he waits")

    with at(BEFORE_LOCK, begin), at(SAFE, come):
        play.repack(mvcc_safe=True, lock_timeout_ms=1500, max_lock_ms=8000)
    running[0].result()
    play.check()


def test_reader_who_writes_while_the_lock_is_raised_is_no_victim(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server finds this deadlock as soon as he asks; so it must not come about."""
    conn = play.db.connect()
    running: list[Background] = []

    def change() -> None:
        for name in ("t", "m"):
            conn.execute(sql.SQL(f"UPDATE {name} SET v = 'late' WHERE id = 7"))
        conn.execute("COMMIT")

    def come_soon() -> None:
        waits = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted"
        with contextlib.suppress(AssertionError):
            oracle.until(lambda: play.db.scalar(waits) == 1, "the stronger lock is asked for", timeout_s=0.3)
        change()

    with (
        at(BEFORE_LOCK, partial(conn.execute, "BEGIN; SELECT count(*) FROM t")),
        at(SAFE, lambda: running.append(Background(come_soon))),
    ):
        play.repack(mvcc_safe=True, lock_timeout_ms=600, max_lock_ms=5000)
    running[0].result()
    play.check()


def test_readers_without_a_pause(play: Play) -> None:
    """Single statements, some of them always under way: the lock's queue is what makes them wait."""
    stop = threading.Event()

    def read() -> None:
        conn = play.db.connect()
        while not stop.is_set():
            conn.execute("SELECT count(*), pg_sleep(0.02) FROM t")

    threads = [Background(read) for _ in range(4)]
    try:
        play.repack(mvcc_safe=True)
    finally:
        stop.set()
        for thread in threads:
            thread.result()
    play.check()


def test_whoever_reads_the_table_is_named(play: Play) -> None:
    """A READ COMMITTED transaction has no snapshot in between; that it has read the table is in the way of the lock."""
    conn = play.db.connect()
    told: list[str] = []

    def begin() -> None:
        conn.execute("BEGIN; SELECT count(*) FROM t")

    def on_progress(progress: pglean.Progress) -> None:
        if progress.waiting_for:
            told.append(progress.waiting_for)
            conn.execute("ROLLBACK")

    with at(BEFORE_LOCK, begin):
        play.repack(mvcc_safe=True, lock_timeout_ms=50, on_progress=on_progress)
    assert f"pid {conn.info.backend_pid} (postgres" in told[0]
    play.check()


@pytest.mark.parametrize("when", ["refresh", "snapshots"])
def test_ddl_that_comes_under_the_lock_is_let_through(play: Play, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for us, and readers behind it: also the refresh of another session of ours."""
    running: list[Background] = []
    took: list[float] = []
    reader = Reader(play)

    def come() -> None:
        if running:
            return
        conn = play.db.connect()
        running.append(Background(lambda: conn.execute("ALTER TABLE t ALTER v SET DEFAULT 'x'")))
        waits = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted"
        oracle.until(lambda: play.db.scalar(waits) == 1, "it waits")
        other = play.db.connect()

        def read() -> None:
            began = time.monotonic()
            other.execute("SELECT count(*) FROM t")
            took.append(time.monotonic() - began)

        running.append(Background(read))

    if when == "refresh":
        beside = swap._refresh_beside

        def come_before(*args: Any) -> int:
            come()
            return beside(*args)

        monkeypatch.setattr(swap, "_refresh_beside", come_before)

    def begin() -> None:
        reader.begin()
        write(play)

    with contextlib.ExitStack() as stack:
        stack.enter_context(at(BEFORE_LOCK, begin))
        if when == "snapshots":
            stack.enter_context(at(SAFE, come))
        play.repack(mvcc_safe=True, max_lock_ms=5000, on_progress=reader.on_progress)
    for each in running:
        each.result()
    assert took[0] < 1.0
    assert reader.found == RIGHT
    play.check()


def test_reader_that_does_not_end(play: Play) -> None:
    """Bounded waiting, exit status 4 that names him, the run kept; nobody cancelled, writers hardly delayed."""
    reader = Reader(play)
    longest = 0.0
    stop = threading.Event()
    conn = play.db.connect()

    def rewrite() -> None:
        nonlocal longest
        while not stop.is_set():
            began = time.monotonic()
            conn.execute("UPDATE t SET v = v WHERE id = 7")
            longest = max(longest, time.monotonic() - began)
            stop.wait(0.02)

    def begin() -> None:
        reader.begin()
        write(play)

    with at(BEFORE_LOCK, begin):
        writer = Background(rewrite)
        try:
            error = fails(play, LockNotObtained, mvcc_safe=True, wait_timeout_s=1.5, max_lock_ms=300)
        finally:
            stop.set()
            writer.result()
    assert error.exit_status == 4
    assert f"pid {reader.pid} (postgres" in str(error)
    assert "is kept" in str(error)
    assert longest < 1.0
    with pglean.connect(play.db.conninfo) as database:
        (run,) = database.status()
        assert run.state == "paused"
        reader.finish()
        assert reader.found == RIGHT
        assert database.resume(run.id) is not None
    play.check()


# ---- the end of a session or of the client at the worst moment


@pytest.mark.parametrize("how", ["resume", "abort"])
@pytest.mark.parametrize("which", ["control", "worker", "all", "error"])
def test_lost_while_older_snapshots_are_waited_for(db: Database, which: str, how: str) -> None:
    stage = Stage(db)

    def lose() -> None:
        if which == "error":
            raise LockNotObtained("as if")
        sessions = stage.sessions()
        for pid in {"control": sessions[1:2], "worker": sessions[2:3], "all": sessions}[which]:
            db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    file = stage.file
    with at(BEFORE_LOCK, stage.write), at(SAFE, lose), pglean.connect(db.conninfo) as database:
        if which == "worker":
            # All it had to do is committed, or it is missed: then the run is kept.
            with contextlib.suppress(ConnectionLost):
                database.repack("items", mvcc_safe=True)
        else:
            with pytest.raises((ConnectionLost, LockNotObtained)) as caught:
                database.repack("items", mvcc_safe=True)
            assert "is kept" in str(caught.value)
            assert stage.file == file
    stage.write()
    stage.settle(how)
    stage.check()


# ---- many at once


def test_trickle_of_writers(play: Play) -> None:
    """Fifty writes a second by two sessions: there is a moment."""
    stop = threading.Event()
    counts = [0, 0]

    def trickle(number: int) -> None:
        conn = play.db.connect()
        while not stop.is_set():
            key = 500 * number + counts[number] % 400 + 1
            with conn.transaction():
                for name in ("t", "m"):
                    conn.execute(sql.SQL(f"UPDATE {name} SET grp = grp + 1, v = v || '.' WHERE id = {key}"))
            counts[number] += 1
            stop.wait(0.04)

    threads = [Background(partial(trickle, number)) for number in range(2)]
    try:
        play.repack(mvcc_safe=True, wait_timeout_s=30)
    finally:
        stop.set()
        for thread in threads:
            thread.result()
    assert min(counts) > 3
    play.check()


@pytest.mark.parametrize("round_", range(3))
def test_invariant_within_every_snapshot(play: Play, seed: int, round_: int) -> None:
    """Writers move values between rows, rows away and back; readers look twice in one snapshot, in between a while."""
    stop = threading.Event()
    wrong: list[Any] = []
    looks = [0]

    def move(number: int) -> None:
        conn = play.db.connect()
        rng = random.Random(f"{seed} {round_} {number}")
        while not stop.is_set():
            one, other = rng.sample(range(1 + 300 * number, 300 + 300 * number), 2)
            statements = rng.choice(
                [
                    ["UPDATE {t} SET grp = grp + 5 WHERE id = {a}", "UPDATE {t} SET grp = grp - 5 WHERE id = {b}"],
                    ["UPDATE {t} SET id = 100000 + id WHERE id = {a}"],
                    ["UPDATE {t} SET id = id - 100000 WHERE id = {a} + 100000"],
                    ["UPDATE {t} SET v = v || '.' WHERE id BETWEEN {a} AND {a} + 3"],
                ]
            )
            with conn.transaction():
                for statement in statements:
                    for name in ("t", "m"):
                        conn.execute(sql.SQL(statement.format(t=name, a=one, b=other)))
            stop.wait(rng.random() * 0.1)

    def read(number: int) -> None:
        conn = play.db.connect()
        rng = random.Random(f"{seed} {round_} reader {number}")
        level = sql.SQL(("REPEATABLE READ", "SERIALIZABLE")[number % 2])
        while not stop.is_set():
            with contextlib.suppress(psycopg.errors.SerializationFailure), conn.transaction():
                conn.execute(sql.SQL("SET TRANSACTION ISOLATION LEVEL {}").format(level))
                conn.execute("SELECT count(*) FROM o")
                stop.wait(rng.random() * 0.2)
                found = conn.execute(f"SELECT ({DIFFERENCE}), count(*) FROM t").fetchone()
                looks[0] += 1
                if found != (0, 1500):
                    wrong.append(found)
            stop.wait(rng.random() * 0.3)

    threads = [Background(partial(move, number)) for number in range(3)]
    threads += [Background(partial(read, number)) for number in range(3)]
    try:
        for _ in range(2):
            with contextlib.suppress(LockNotObtained):
                play.repack(mvcc_safe=True, wait_timeout_s=20, verify="count")
    finally:
        stop.set()
        for thread in threads:
            thread.result()
    assert wrong == []
    assert looks[0] > 5
    with pglean.connect(play.db.conninfo) as database:
        database.cleanup()
    play.check()


# ---- what is seen of snapshots


@pytest.fixture
def eye(play: Play) -> Iterator[Callable[[], snapshots.Older]]:
    """Looks as a run does: within a transaction that has begun before."""
    with play.db.connect() as conn:
        run = cast(Run, SimpleNamespace(server=SimpleNamespace(connections=[conn])))
        conn.execute("BEGIN")
        yield lambda: snapshots.Older(run, cast(Any, conn))


def pids(older: snapshots.Older) -> set[int]:
    return {holder.pid for holder in older.left()}


def begin(db: Database, *, level: str = "REPEATABLE READ") -> psycopg.Connection[Any]:
    """A session that has taken its snapshot."""
    conn = db.connect()
    conn.execute(sql.SQL(f"BEGIN ISOLATION LEVEL {level}"))
    conn.execute("SELECT 1")
    return conn


def commit_something(play: Play) -> None:
    play.db.execute("UPDATE o SET v = v + 1 WHERE id = 9")


def test_looks_are_not_those_of_the_transactions_first(play: Play, eye: Callable[[], snapshots.Older]) -> None:
    """A statement ends, its transaction goes on: it is not waited for any more."""
    conn = begin(play.db, level="READ COMMITTED")
    conn.execute("DECLARE c CURSOR FOR SELECT * FROM o")
    commit_something(play)
    older = eye()
    assert pids(older) == {conn.info.backend_pid}
    conn.execute("CLOSE c")
    assert pids(older) == set()


def test_snapshots_that_see_all_are_of_no_matter(play: Play, eye: Callable[[], snapshots.Older]) -> None:
    older = eye()
    begin(play.db)
    assert pids(older) == set()


def test_later_ones_are_of_no_matter_even_beside_a_long_writer(play: Play, eye: Callable[[], snapshots.Older]) -> None:
    """Their xmin is as old as that of those who are waited for."""
    with create_database(play.db.server) as elsewhere:
        writer = elsewhere.connect()
        writer.execute("BEGIN; CREATE TABLE w (i int)")
        before = begin(play.db)
        commit_something(play)
        older = eye()
        assert pids(older) == {before.info.backend_pid}
        begin(play.db)
        assert pids(older) == {before.info.backend_pid}
        before.execute("COMMIT")
        assert pids(older) == set()
        writer.execute("ROLLBACK")


@pytest.mark.parametrize("beside_a_writer", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_snapshot_that_is_given_away(
    play: Play, eye: Callable[[], snapshots.Older], beside_a_writer: bool, known: bool
) -> None:
    """pg_dump -j: the one who has it now was not there when those were looked up who are waited for."""
    writer = play.db.connect()
    if beside_a_writer:
        writer.execute("BEGIN; UPDATE o SET v = 7 WHERE id = 1")
    giver = begin(play.db)
    ((name,),) = giver.execute("SELECT pg_export_snapshot()").fetchall()
    commit_something(play)
    older = eye()
    if known:
        assert pids(older) == {giver.info.backend_pid}
    taker = play.db.connect()
    taker.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    taker.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(name)))
    giver.execute("COMMIT")
    assert pids(older) == {taker.info.backend_pid}
    taker.execute("COMMIT")
    assert pids(older) == set()


def test_other_databases_are_of_no_matter(play: Play, eye: Callable[[], snapshots.Older]) -> None:
    with create_database(play.db.server) as elsewhere:
        begin(elsewhere)
        commit_something(play)
        assert pids(eye()) == set()


def test_sessions_that_tell_nothing_are_seen(play: Play, eye: Callable[[], snapshots.Older]) -> None:
    """track_activities hides what a session does, not its snapshot."""
    conn = play.db.connect()
    conn.execute("SET track_activities = off")
    conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    conn.execute("SAVEPOINT s")
    conn.execute("SELECT 1")
    conn.execute("ROLLBACK TO s")
    commit_something(play)
    assert pids(eye()) == {conn.info.backend_pid}


def test_snapshot_of_a_subscription_in_the_making(play: Play, eye: Callable[[], snapshots.Older]) -> None:
    """A walsender exports a snapshot of a moment that may have passed: while its slot is made, it is waited for."""
    writer = play.db.connect()
    writer.execute("BEGIN; UPDATE o SET v = 7 WHERE id = 1")
    sender = play.db.connect(replication="database")
    slot = f"safe_{play.db.name}"
    making = Background(
        lambda: sender.execute(
            sql.SQL(f'CREATE_REPLICATION_SLOT "{slot}" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT')
        ).fetchall()
    )
    in_the_making = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND confirmed_flush_lsn IS NULL"
    oracle.until(lambda: play.db.scalar(in_the_making, (slot,)) == 1, "the slot is being made")
    commit_something(play)
    older = eye()
    assert pids(older) == {sender.info.backend_pid}
    writer.execute("COMMIT")
    making.result()
    # This one is from after that moment.
    assert pids(older) == set()
    sender.close()


def test_parallel_workers_are_seen(play: Play, eye: Callable[[], snapshots.Older]) -> None:
    """They share their leader's snapshot, and read in its name."""
    play.db.execute(
        "CREATE FUNCTION slow(int) RETURNS int PARALLEL SAFE LANGUAGE plpgsql AS 'BEGIN LOOP END LOOP; END'"
    )
    conn = play.db.connect()
    conn.execute(
        "SET debug_parallel_query = on" if play.db.server.version >= 160000 else "SET force_parallel_mode = on"
    )
    running = Background(lambda: conn.execute("SELECT slow(id) FROM o"))
    workers = "SELECT pid FROM pg_stat_activity WHERE leader_pid = %s"
    oracle.until(lambda: bool(play.db.fetchall(workers, (conn.info.backend_pid,))), "its helper runs")
    helpers = {pid for (pid,) in play.db.fetchall(workers, (conn.info.backend_pid,))}
    commit_something(play)
    assert pids(eye()) == {conn.info.backend_pid} | helpers
    conn.cancel()
    with pytest.raises(psycopg.errors.QueryCanceled):
        running.result()


def test_nothing_is_swapped_in_vain(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends one attempt is told, and the next one succeeds."""
    settle, ended = swap._settle, [False]

    def settle_later(*args: Any) -> int:
        if not ended[0]:
            ended[0] = True
            raise OverBudget("as if")
        return settle(*args)

    monkeypatch.setattr(swap, "_settle", settle_later)
    told: list[str] = []
    play.repack(mvcc_safe=True, on_progress=lambda progress: told.append(progress.waiting_for))
    assert [text for text in told if "as if" in text]
    play.check()
