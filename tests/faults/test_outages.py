"""Where tools of this kind have stopped a site: the list's lines 19 to 31. (1 to 18a: isolation/test_hazards.)

line  what                           tried in
----  -----------------------------  ------------------------------------------------------------------------------
19    lock requests without an end   here; test_blocked (all); isolation/test_locks_and_horizon:
                                     reader_that_does_not_end, lock_that_is_in_the_way_earlier, open_grant,
                                     copy_is_locked_by_somebody, ddl_that_waits_for_a_shared_refresh
20    a weak lock for the whole run  isolation/test_locks_and_horizon: no_transaction_is_open_between_the_steps,
                                     alter_table_is_not_kept_waiting; isolation/test_cases_before_swap:
                                     ddl_that_waits_for_a_refresh
21    waiting for the uninvolved     here
22    others cancelled               here; isolation/test_locks_and_horizon: kill_backend, reader_that_does_not_end;
                                     isolation/test_hazards: 14_prepared_transaction; unit/test_patience
23    subtransactions in the retry   here
24    trigger and log, one without   here; test_blocked: writer_in_the_way_of_undoing; isolation/test_hazards:
      the other                      24_writes_of_longer_values; isolation/test_locks_and_horizon:
                                     writes_while_an_index_is_built_of_a_table_that_was_changed; a trigger left
                                     behind: every `assert_nothing_left`
25    a run that dies after hours    test_limits: timeouts_of_others_do_not_end_a_run; test_client and test_resume
                                     (signals); test_network and test_points (lost connections);
                                     isolation/test_locks_and_horizon: settings_of_the_role_do_not_reach_us
26    never catching up              here; isolation/test_brake; unit/test_flow
27    disk full, WAL flood           test_limits: 27_disk_full, 27_throttle_before_the_disk_is_full,
                                     crash_at_a_boundary; integration/test_throttle: rate_of_wal, lag_in_bytes, ...
28    anti-wraparound vacuum         here
29    cleanup that lies              here; test_blocked; test_cleanup: one_that_fails_does_not_keep_the_others;
                                     test_client: running_one_is_left_alone_by_cleanup;
                                     acceptance/test_cli: some_of_several_refused
30    deadlock at the lock upgrade   test_limits: 30_deadlock_at_the_lock_upgrade, 30_deadlock_on_the_copy;
                                     isolation/test_locks_and_horizon: deadlock_costs_one_attempt
31    others' code with our rights   here (names of tablespaces); isolation/test_security and isolation/test_names
                                     (all); integration/test_attachments: odd_names;
                                     acceptance/test_cli: ordinary_roles_are_told_what_is_missing
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean import cli
from pglean.embedded import EmbeddedServer
from pglean.errors import LockNotObtained, Refused
from pglean.options import Options
from pglean.result import Result
from pglean.rewrite import cleanup, ending, ready, refresh
from tests.servers import Database, create_database
from tests.support import oracle
from tests.support.fault import Fault, repack
from tests.support.play import Background, Holder, Play, at, fails
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


@pytest.fixture
def play(db: Database) -> Play:
    """A table ``t`` with its model ``m``."""
    return Play(db)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An undo that cannot have its locks gives up soon."""
    monkeypatch.setattr(ending, "_UNDO_WAIT_S", 0.2)
    monkeypatch.setattr(cleanup, "_DROP_WAIT_S", 0.2)


@pytest.fixture(autouse=True)
def nobody_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sessions that a failed test has left with their locks would keep the next one waiting."""
    stage: Stage | None = request.getfixturevalue("stage") if "stage" in request.fixturenames else None
    yield
    if stage is not None:
        stage.db.close()


class Readers:
    """A session that reads one row of the table again and again, and the longest time that it took."""

    def __init__(self, db: Database, statement: str = "SELECT id FROM t LIMIT 1") -> None:
        self._conn = db.connect(application_name="readers")
        self._statement = statement
        self._stop = threading.Event()
        self.longest_s = 0.0
        self.read = 0
        self._work = Background(self._read)

    def _read(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            self._conn.execute(self._statement)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.read += 1
            self._stop.wait(0.002)

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # Raises where it was cancelled or terminated.
        self._work.result()


# ---- 19


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", ["plan", "repack"])
def test_19_table_locked_before_the_run(play: Play, what: str) -> None:
    """19: "A lock request without a timeout … Also in … reading index definitions." Sizes are read under a lock.

    And 21: "`--wait-timeout` ignored, the message naming neither query nor age".
    """
    holder = Holder(play.db, "LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
    holder.hold()
    with pglean.connect(play.db.conninfo) as database:
        asked = Background(lambda: getattr(database, what)("t", Options(wait_timeout_s=0.5, lock_timeout_ms=50)))
        with pytest.raises(LockNotObtained) as caught:
            asked.result(10)
    assert f"pid {holder.pid} (postgres" in str(caught.value)
    assert "transaction open for 00:00:0" in str(caught.value)
    assert "query begun 00:00:0" in str(caught.value)
    assert "LOCK TABLE t IN ACCESS EXCLUSIVE MODE" in str(caught.value)
    holder.conn.commit()
    play.repack()
    play.check()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["cleanup", "abort", "undo"])
def test_19_table_locked_during_cleanup(stage: Stage, how: str) -> None:
    """19: "… Also in cleanup, in DROP". It comes to an end, says who is in the way, and the application can write."""
    holder = Holder(stage.db, "LOCK TABLE items IN ACCESS EXCLUSIVE MODE")

    def fail() -> None:
        raise RuntimeError("killed")

    def hold_and_fail() -> None:
        holder.hold()
        fail()

    with pglean.connect(stage.db.conninfo) as database:
        if how == "undo":
            error = repack(stage, Fault("phase: ready", hold_and_fail))
            assert f"in use by pid {holder.pid}" in str(error)
        else:
            with oracle.once("phase: ready", fail), oracle.once("undo", fail), pytest.raises(RuntimeError):
                database.repack(stage.name)
            holder.hold()
            if how == "cleanup":
                ((_, remains),) = Background(lambda: database.cleanup(Options(wait_timeout_s=0.3))).result(15)
                assert f"three triggers without effect on public.items (in use by pid {holder.pid}" in remains[0]
            else:
                (run,) = stage.status()
                aborting = Background(lambda: database.abort(run.id))
                # An abort is asked for by somebody who is there: he waits as for a lock of the run itself.
                oracle.until(lambda: stage.sessions() != [], "it is at work")
                holder.conn.rollback()
                assert aborting.result(20) == ("undone", [])
        holder.conn.rollback()
        stage.write()
        database.cleanup()
    stage.check()


# ---- 21


def test_21_old_transactions_elsewhere_are_not_waited_for(play: Play) -> None:
    """21: "Waiting without end for transactions that have nothing to do with the table (days)"."""
    play.db.execute("CREATE TABLE elsewhere (id int)")
    with create_database(play.db.server) as other:
        other.execute("CREATE TABLE elsewhere (id int)")
        for db in (play.db, other):
            old = db.connect(autocommit=False)
            old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            old.execute("INSERT INTO elsewhere VALUES (1)")
        play.db.execute("BEGIN; INSERT INTO elsewhere VALUES (2); PREPARE TRANSACTION 'old'")
        began = time.monotonic()
        told: list[str] = []
        play.repack(on_progress=lambda progress: told.append(progress.waiting_for))
        assert time.monotonic() - began < 15
        assert not any(told), told
        play.db.execute("ROLLBACK PREPARED 'old'")
    play.check()


@pytest.mark.usefixtures("impatient")
def test_21_snapshot_that_has_to_be_waited_for_is_named(play: Play) -> None:
    """21: "`--wait-timeout` ignored, the message naming neither query nor age", where the user wants to wait."""
    old = play.db.connect(autocommit=False, application_name="nightly report")
    old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    old.execute("SELECT count(*) FROM m")
    began = time.monotonic()
    error = fails(play, LockNotObtained, mvcc_safe=True, wait_timeout_s=1)
    assert time.monotonic() - began < 15
    for part in (f"pid {old.info.backend_pid}", "nightly report", "open for 00:00:0", "SELECT count(*) FROM m"):
        assert part in str(error)
    old.commit()
    with pglean.connect(play.db.conninfo) as database:
        (run,) = database.status()
        assert run.state == "paused"
        assert isinstance(database.resume(run.id), Result)
    play.check()


# ---- 22


@pytest.mark.usefixtures("impatient")
def test_22_prepared_transaction_costs_no_reader_his_statement_twice(play: Play) -> None:
    """22: "a prepared transaction as the blocker: endless cancel loop that kills every reader".

    Even asked to kill: in two steps, whoever has the lock then. Who comes later is left alone.
    """
    name = f"two phases of {play.db.name}"
    play.db.execute(f"BEGIN; UPDATE t SET v = v WHERE id = 1; PREPARE TRANSACTION '{name}'")
    messages: list[str] = []
    late = play.db.connect(autocommit=False)

    def on_progress(progress: pglean.Progress) -> None:
        if progress.message:
            messages.append(progress.message)

    error = fails(
        play, LockNotObtained, wait_timeout_s=0.3, lock_timeout_ms=20, kill_backend=True, on_progress=on_progress
    )
    late.execute("SELECT count(*) FROM t")
    assert name in str(error)
    assert len([text for text in messages if "cancelled" in text or "terminated" in text]) <= 2
    play.db.execute(f"ROLLBACK PREPARED '{name}'")
    late.commit()
    play.repack()
    play.check()


@pytest.mark.parametrize("option", [[], ["--no-kill-backend"]])
def test_22_nobody_is_cancelled_by_default(stage: Stage, option: list[str]) -> None:
    """22: "Sessions cancelled and terminated by default, readers and autovacuum included"."""
    with stage.db.connect(autocommit=False) as reader:
        reader.execute("SELECT count(*) FROM items")
        arguments = ["repack", "-q", "-T", "0.5", *option, "-t", stage.name, stage.db.conninfo]
        assert cli.run(arguments) == LockNotObtained.exit_status
        reader.execute("SELECT count(*) FROM items")
    stage.settle("resume")
    stage.check()


# ---- 23


def test_23_no_transaction_while_waiting(play: Play) -> None:
    """23: "Thousands of savepoints in the retry loop: subtransaction overflow …" """
    holder = Holder(play.db, "LOCK TABLE t IN ACCESS SHARE MODE")
    seen: list[int] = []
    open_ = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'pglean %' AND (xact_start IS NOT NULL OR backend_xid IS NOT NULL)"
    )

    def on_progress(progress: pglean.Progress) -> None:
        if progress.waiting_for:
            seen.append(play.db.scalar(open_))
            if len(seen) >= 4:
                holder.on_progress(progress)

    with at("swap: before the lock", holder.hold):
        play.repack(on_progress=on_progress, lock_timeout_ms=20)
    assert len(seen) >= 4
    assert not any(seen)
    play.check()


# ---- 24


def test_24_change_table_outlives_its_triggers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """24: "The log table dropped while its trigger lives: every write of the application fails." At no moment."""
    looks = 0
    drop = cleanup._drop_table

    def looked_at(*arguments: Any) -> list[str]:
        nonlocal looks
        remains = drop(*arguments)
        stage.write()
        looks += 1
        return remains

    def fail() -> None:
        raise RuntimeError("enough")

    monkeypatch.setattr(cleanup, "_drop_table", looked_at)
    repack(stage, Fault("phase: ready", fail))
    assert looks == 2
    stage.check()


def test_24_types_of_key_columns_can_be_altered(db: Database) -> None:
    """24: "The log's row type blocks ALTER TYPE on the user's table." Of the key's types, too."""
    db.execute(
        "CREATE TYPE state AS ENUM ('new', 'done'); CREATE DOMAIN number AS int;"
        "CREATE TABLE t (s state, n number, v text, PRIMARY KEY (s, n));"
        "INSERT INTO t SELECT 'new', g, 'v' FROM generate_series(1, 500) AS g"
    )

    def alter() -> None:
        db.execute("ALTER TYPE state ADD VALUE 'gone'; ALTER TYPE state RENAME VALUE 'done' TO 'finished'")
        db.execute("ALTER DOMAIN number ADD CHECK (value > 0)")
        db.execute("ALTER TABLE t ALTER v SET STATISTICS 5")
        db.execute("UPDATE t SET s = 'gone' WHERE n < 10; DELETE FROM t WHERE n = 20")

    with at("phase: catching up", alter), pglean.connect(db.conninfo) as database:
        database.repack("t", verify="full")
    assert db.fetchall("SELECT s::text, count(*) FROM t GROUP BY 1 ORDER BY 1") == [("gone", 9), ("new", 490)]
    oracle.assert_sound(db, "t")
    oracle.assert_nothing_left(db)


# ---- 26


def test_26_consumed_records_make_room_for_others(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """26: "dead log rows pile up with autovacuum off": not in a copy, either, that waits for its hour for days."""
    monkeypatch.setattr(refresh, "_VACUUM_FROM", 500)
    monkeypatch.setattr(ready, "_SYNC_S", 0.01)
    waiting = threading.Event()

    def told(progress: pglean.Progress) -> None:
        if "pglean swap" in progress.waiting_for:
            waiting.set()

    running = Background(lambda: play.repack(hold=True, on_progress=told))
    assert waiting.wait(30)
    sizes: list[int] = []
    copies: list[int] = []
    for number in range(30):
        play.both(f"UPDATE {{t}} SET v = 'round {number}' WHERE id <= 1000")
        oracle.until(lambda: play.db.scalar("SELECT count(*) FROM pglean.changes_1") == 0, "it is taken over")
        sizes.append(play.db.scalar("SELECT pg_relation_size('pglean.changes_1')"))
        copies.append(play.db.scalar("SELECT pg_relation_size('pglean.shadow_1')"))
    with pglean.connect(play.db.conninfo) as database:
        database.swap(1)
    running.result()
    assert max(sizes) <= 4 * sizes[0], sizes
    # Nor do the rows that were replaced, in the copy: it would come out as bloated as the table went in.
    assert max(copies) <= 3 * copies[0], copies
    play.check()


# ---- 28


def test_28_anti_wraparound_vacuum(server: EmbeddedServer) -> None:
    """28: "Anti-wraparound vacuum on the target turns the exclusive lock into an outage."

    It is not cancelled, nor are readers kept waiting; the run is kept, says who it was, and goes on afterwards.
    """
    with create_database(server) as db:
        stage = Stage(db)
        # As little as it may be; and slow enough to be met.
        settings = (
            "autovacuum_freeze_max_age = 100000, autovacuum_freeze_min_age = 0, autovacuum_freeze_table_age = 0,"
            " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1"
        )
        db.execute(f"ALTER TABLE items SET ({settings})")
        db.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        db.execute("SELECT pg_reload_conf()")
        worker = (
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"
            " AND query LIKE '%public.items (to prevent wraparound)%'"
        )
        try:
            _burn(db, 101_000)
            oracle.until(lambda: bool(db.fetchall(worker)), "the table is vacuumed", timeout_s=60)
            ((pid,),) = db.fetchall(worker)
            with Readers(db, "SELECT id FROM items LIMIT 1") as readers:
                error = repack(stage, wait_timeout_s=2.5)
            assert isinstance(error, LockNotObtained)
            assert f"pid {pid} (autovacuum worker" in str(error)
            assert "to prevent wraparound" in str(error)
            assert db.fetchall(worker) == [(pid,)]
            assert readers.longest_s < 1.0
            assert readers.read > 100
        finally:
            db.execute("ALTER SYSTEM RESET autovacuum_naptime")
            db.execute("ALTER TABLE items RESET (autovacuum_vacuum_cost_delay, autovacuum_vacuum_cost_limit)")
            db.execute("SELECT pg_reload_conf()")
        db.fetchall(f"SELECT pg_terminate_backend(pid) FROM ({worker}) AS w")
        stage.settle("resume")
        stage.check()


def _burn(db: Database, number: int) -> None:
    """Use up so many transaction ids."""
    db.execute("CREATE TEMP TABLE burnt (i int)")
    db.execute(
        sql.SQL(
            "DO $$ BEGIN FOR i IN 1..{} LOOP"
            " BEGIN INSERT INTO burnt VALUES (1); RAISE division_by_zero;"
            " EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$"
        ).format(sql.Literal(number))
    )


# ---- 29


def test_29_second_run_beside_the_first_does_not_succeed(stage: Stage) -> None:
    """29: "A second run that "succeeds" without doing anything", and a cleanup beside a run that is at work."""
    outcome: list[object] = []

    def again() -> None:
        with pglean.connect(stage.db.conninfo) as database:
            with pytest.raises(Refused, match="another run"):
                database.repack(stage.name)
            outcome.extend(database.cleanup())

    assert isinstance(repack(stage, Fault("phase: verifying", again)), Result)
    assert outcome == []
    stage.check()


def test_29_cleanup_ends_where_something_is_always_in_the_way(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """29: "Cleanup that recurses, blocks, or ends with the leftovers still there and exit status 0"."""

    def fail() -> None:
        raise RuntimeError("killed")

    with (
        oracle.once("phase: ready", fail),
        oracle.once("undo", fail),
        pglean.connect(stage.db.conninfo) as database,
        pytest.raises(RuntimeError),
    ):
        database.repack(stage.name)
    with stage.db.connect(autocommit=False) as reader:
        reader.execute("SELECT count(*) FROM items")
        for _ in range(3):
            assert cli.run(["cleanup", "-T", "0.2", stage.db.conninfo]) == LockNotObtained.exit_status
            assert f"pid {reader.info.backend_pid}" in capsys.readouterr().err
            assert [run.state for run in stage.status()] == ["remains"]
    assert cli.run(["cleanup", stage.db.conninfo]) == 0
    stage.check()


# ---- 31


@pytest.fixture
def odd_tablespace(server: EmbeddedServer) -> Iterator[tuple[Database, sql.Identifier]]:
    """A tablespace whose name would end a statement, if it were put into one as it is."""
    name = sql.Identifier('it\'s; DROP TABLE items; -- "odd" {} %s')
    directory = server.socket_dir / "odd"
    directory.mkdir()
    owner = server.datadir.stat()
    os.chown(directory, owner.st_uid, owner.st_gid)
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(name, sql.Literal(str(directory))))
        try:
            with create_database(server) as db:
                yield db, name
        finally:
            session.execute(sql.SQL("DROP TABLESPACE {}").format(name))
            for left in directory.iterdir():
                left.rmdir()
            directory.rmdir()


def test_31_name_of_a_tablespace(odd_tablespace: tuple[Database, sql.Identifier]) -> None:
    """31: "SQL injection through names, trigger arguments, tablespaces"."""
    db, name = odd_tablespace
    stage = Stage(db)
    db.execute(sql.SQL("ALTER TABLE items SET TABLESPACE {}").format(name))
    db.execute(sql.SQL("ALTER INDEX items_amount_idx SET TABLESPACE {}").format(name))
    places = "SELECT relname, reltablespace FROM pg_class WHERE relname LIKE 'items%' ORDER BY 1"
    before = db.fetchall(places)
    assert len({place for _, place in before}) == 2
    assert isinstance(repack(stage), Result)
    assert db.fetchall(places) == before
    stage.check()
