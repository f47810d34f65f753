"""Rebuilds of indexes among other sessions: who waits for whom, what is told of it, what is left alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

import pglean
from pglean import pausepoint
from pglean.claim import claim
from pglean.engines import candidate, plan, removal
from pglean.errors import LockNotObtained, Refused
from tests.servers import Database
from tests.support import rebuild
from tests.support.model import Spec
from tests.support.oracle import assert_sound, name, until
from tests.support.rebuild import Rebuild, held, told, waiting
from tests.support.writers import Writers

pytestmark = pytest.mark.in_turn

TABLE = """
    CREATE TABLE {0} (id int PRIMARY KEY, n int);
    INSERT INTO {0} SELECT g, g % 10 FROM generate_series(1, 1000) g;
    CREATE INDEX {0}n ON {0} (n);
"""


@pytest.fixture
def db(emptied: Database) -> Database:
    emptied.execute(TABLE.format("t"))
    return emptied


@contextlib.contextmanager
def building(db: Database, statement: str, phase: str = rebuild.WRITERS) -> Iterator[None]:
    """Somebody else's statement, which waits in the block, and has come to its end after it."""
    with db.connect(application_name="somebody") as session:
        thread = threading.Thread(target=lambda: session.execute(name(statement)))
        with held(db, phase):
            thread.start()
            waiting(db, phase)
            yield
        thread.join()


@pytest.mark.parametrize("phase", rebuild.HOLDS)
def test_who_is_waited_for_is_told(db: Database, phase: str) -> None:
    with held(db, phase) as holder:
        run = Rebuild(db, indexes=["tn"])
        expected = f"pid {holder.info.backend_pid} (postgres, holder, idle in transaction, transaction open since "
        until(told(run, expected), f"it says that it waits for {expected}")
        assert not run.ended
    assert run.result().error is None
    assert "" in run.waited_for
    assert rebuild.invalid(db) == set()


def test_prepared_transactions_are_named(db: Database) -> None:
    with db.connect(autocommit=False) as session:
        session.execute("INSERT INTO t VALUES (-1)")
        session.execute("PREPARE TRANSACTION 'the \"prepared\" one'")
    run = Rebuild(db, indexes=["tn"])
    try:
        until(told(run, "prepared transaction 'the \"prepared\" one'"), "it names the prepared transaction")
    finally:
        db.execute("ROLLBACK PREPARED 'the \"prepared\" one'")
    assert run.result().error is None


def test_first_lock_is_waited_for_no_longer_than_it_may(db: Database) -> None:
    before = rebuild.indexes(db, "t")
    with db.connect(autocommit=False, application_name="holder") as session:
        session.execute("LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
        with pglean.connect(db.conninfo) as database:
            result = database.reindex(["t"], wait_timeout_s=0.3)
        error = result.failures["public.tn"]
        assert isinstance(error, LockNotObtained)
        assert error.message.startswith("could not lock table public.t within ")
        assert "holder" in error.blockers[0]
        # For the table's other index it is not waited again.
        assert result.failures["public.t_pkey"] is error
        assert rebuild.indexes(db, "t") == before
    assert rebuild.invalid(db) == set()


def test_the_first_lock_is_got_when_it_is_free(db: Database) -> None:
    with db.connect(autocommit=False, application_name="holder") as session:
        session.execute("LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
        run = Rebuild(db, indexes=["tn"])
        until(told(run, "holder"), "it says who has the table locked")
        # Meanwhile nobody waits behind it, nor is the horizon held for long.
        db.execute("SET lock_timeout = '1s'; SELECT count(*) FROM t; UPDATE t SET n = n WHERE id = 1")
    assert run.result().error is None
    assert rebuild.invalid(db) == set()


@pytest.mark.parametrize("what", ["rebuild", "removal"])
def test_whoever_builds_an_index_is_not_made_the_victim_of_a_deadlock(db: Database, what: str) -> None:
    """He waits for older snapshots, and a statement that stands in line for the table's lock holds one."""
    if what == "removal":
        rebuild.leave(db, "t_pkey")
    # First in the phase in which nobody's snapshot matters yet: what stands in line now would be older than his.
    with building(db, "CREATE INDEX CONCURRENTLY fresh ON t (n, id)"):
        run = Rebuild(db, indexes=["tn"])
        until(told(run, "somebody"), "it says who builds an index")
        (snapshots,) = db.fetchall(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name LIKE 'pglean reindex%' AND state = 'active' AND query ~ '^(REINDEX|DROP)'"
        )
        assert snapshots == (0,)
    assert run.result().error is None
    assert rebuild.invalid(db) == set()
    assert set(rebuild.indexes(db, "t")) == {"t_pkey", "tn", "fresh"}


def test_a_rebuild_that_is_the_victim_of_a_deadlock_is_begun_again(db: Database) -> None:
    before = rebuild.indexes(db, "t")
    with held(db, rebuild.WRITERS):
        run = Rebuild(db, indexes=["tn"])
        waiting(db, rebuild.WRITERS)
        # In line, with a snapshot for which the rebuild will wait.
        other = threading.Thread(target=lambda: db.connect().execute("CREATE INDEX CONCURRENTLY fresh ON t (id, n)"))
        other.start()
        # Whoever comes to wait last finds the deadlock.
        in_line = (
            "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted"
            " AND clock_timestamp() - waitstart > 1.2 * current_setting('deadlock_timeout')::interval"
        )
        until(lambda: db.scalar(in_line) == 1, "the other has looked for a deadlock")
    assert run.result().error is None
    other.join()
    after = rebuild.indexes(db, "t")
    assert after.keys() == {"t_pkey", "tn", "fresh"}
    assert after["tn"] != before["tn"]
    assert rebuild.invalid(db) == set()


def test_whoever_it_keeps_waiting_is_told(db: Database) -> None:
    with held(db, rebuild.READERS) as holder:
        run = Rebuild(db, indexes=["tn"])
        waiting(db, rebuild.READERS)
        with db.connect(application_name="ddl") as session:
            thread = threading.Thread(target=lambda: session.execute("ALTER TABLE t ADD COLUMN more int"))
            thread.start()
            until(lambda: any("ddl, ALTER TABLE t ADD" in text for text in run.messages), "it tells of the DDL")
            holder.rollback()
            thread.join()
    assert run.result().error is None
    (message,) = [text for text in run.messages if "wants public.t for itself" in text]
    assert "Ctrl-C" in message


def test_work_is_not_given_up_for_what_a_function_of_the_index_waits_for(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE lookup (n int);
        CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
            'BEGIN RETURN coalesce((SELECT max(n) FROM public.lookup), $1); END';
        CREATE INDEX tf ON t (f(n));
        """
    )
    with db.connect(autocommit=False, application_name="locker") as locker:
        with held(db, rebuild.WRITERS):
            run = Rebuild(db, indexes=["tf"], wait_timeout_s=0.2)
            waiting(db, rebuild.WRITERS)
            locker.execute("LOCK TABLE lookup")
        until(told(run, "locker"), "it says who is waited for")
        (left,) = rebuild.invalid(db)
        waited = (
            "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'lookup'::regclass AND NOT granted"
            " AND clock_timestamp() - waitstart > interval '1.7 s')"
        )
        until(lambda: db.scalar(waited), "it waits for longer than for its first lock")
        assert rebuild.invalid(db) == {left} == {"tf_ccnew"}
        locker.rollback()
    assert run.result().error is None
    assert rebuild.invalid(db) == set()


def test_what_another_session_has_rebuilt_is_not_claimed(db: Database) -> None:
    before = rebuild.indexes(db, "t")["tn"]
    with db.connect(autocommit=False) as reader, db.connect(application_name="somebody") as session:
        thread = threading.Thread(target=lambda: session.execute("REINDEX INDEX CONCURRENTLY tn"))
        with held(db, rebuild.WRITERS):
            thread.start()
            waiting(db, rebuild.WRITERS)
            run = Rebuild(db, indexes=["tn"], wait_timeout_s=0.8)
            until(told(run, "somebody"), "it waits for the other")
            reader.execute("SELECT FROM t")
        result = run.result()
        # By then the other has exchanged it, and waits for the reader.
        assert rebuild.indexes(db, "t")["tn"] != before
        reader.rollback()
        thread.join()
    assert isinstance(result.failures["public.tn"], LockNotObtained)
    assert result.indexes == ()
    assert rebuild.invalid(db) == set()


def test_no_lock_of_another_is_waited_for_after_the_end_of_the_patience(db: Database) -> None:
    with db.connect(autocommit=False, application_name="holder") as session:
        session.execute("LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
        run = Rebuild(db, indexes=["tn"], wait_timeout_s=0.5)
        until(told(run, "holder"), "it waits")
        # The index with ACCESS EXCLUSIVE, and it gets another file.
        session.execute("REINDEX INDEX tn")
        until(lambda: run.ended, "its patience ends, whoever has the index locked")
        assert isinstance(run.result().failures["public.tn"], LockNotObtained)
    assert rebuild.invalid(db) == set()


# ---- several at once


def test_different_tables_at_once_and_one_table_in_turn(db: Database) -> None:
    for table in ("u", "v"):
        db.execute(TABLE.format(table))
    with held(db, rebuild.WRITERS, "t"), held(db, rebuild.WRITERS, "u"), held(db, rebuild.WRITERS, "v"):
        run = Rebuild(db, "t", "u", "v", jobs=2)
        waiting(db, rebuild.WRITERS, 2)
        working = (
            "SELECT count(DISTINCT relation) FROM pg_locks"
            " WHERE mode = 'ShareUpdateExclusiveLock' AND relation = ANY (%s::regclass[])"
        )
        assert db.scalar(working, (["t", "u", "v"],)) == 2
        assert db.scalar(working, (["t_pkey", "tn", "u_pkey", "un", "v_pkey", "vn"],)) == 2
    result = run.result()
    assert result.error is None
    assert len(result.indexes) == 6


def test_two_runs_on_one_table_exclude_each_other(db: Database) -> None:
    with held(db, rebuild.WRITERS):
        run = Rebuild(db, "t")
        waiting(db, rebuild.WRITERS)
        with pglean.connect(db.conninfo) as database:
            for attempt in (lambda: database.reindex(["t"]), lambda: database.repack("t")):
                with pytest.raises(Refused) as caught:
                    attempt()
                # The rewrite sees what is being built as well.
                assert {finding.code for finding in caught.value.findings} - {"invalid-index"} == {"busy"}
    assert run.result().error is None


def test_begun_while_another_begins(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were let through by preflight."""
    monkeypatch.setattr(plan, "claimed", lambda conn, oid: False)
    with pglean.connect(db.conninfo) as database, database.server.connect("other") as other:
        assert claim(other, db.scalar("SELECT 't'::regclass::oid"))
        result = database.reindex(["t"])
    assert {type(error) for error in result.failures.values()} == {Refused}
    assert rebuild.invalid(db) == set()


def test_a_rewrite_is_not_disturbed(db: Database) -> None:
    def attempt() -> None:
        with pytest.raises(Refused) as caught, pglean.connect(db.conninfo) as database:
            database.reindex(["t"])
        assert [finding.code for finding in caught.value.findings] == ["busy"]

    with pausepoint.intercept("phase: verifying", attempt), pglean.connect(db.conninfo) as database:
        database.repack("t")


# ---- what others build


def test_what_another_session_builds_is_left_alone(db: Database) -> None:
    with building(db, "CREATE INDEX CONCURRENTLY fresh ON t (n, id)"), pglean.connect(db.conninfo) as database:
        refused = database.plan_reindex(["t"]).failures["public.fresh"]
        (code,) = [finding.code for finding in getattr(refused, "findings", ())]
        assert code == "under-construction"
        assert "somebody" in str(refused)
        for handling in ("rebuild", "drop"):
            with pytest.raises(Refused) as caught:
                database.repack("t", invalid_indexes=handling)
            assert [finding.code for finding in caught.value.findings] == ["invalid-index"]
            assert "somebody" in (caught.value.findings[0].detail or "")
    assert rebuild.invalid(db) == set()
    assert "fresh" in rebuild.indexes(db, "t")


def test_what_another_session_builds_cannot_be_named(db: Database) -> None:
    with building(db, "REINDEX INDEX CONCURRENTLY tn"), pglean.connect(db.conninfo) as database:
        with pytest.raises(Refused) as caught:
            database.reindex(indexes=["tn_ccnew"])
        assert [finding.code for finding in caught.value.findings] == ["under-construction"]
    assert rebuild.invalid(db) == set()


@pytest.mark.parametrize("phase", rebuild.HOLDS)
def test_another_sessions_rebuild_is_left_alone(db: Database, phase: str) -> None:
    with building(db, "REINDEX INDEX CONCURRENTLY tn", phase), pglean.connect(db.conninfo) as database:
        (work,) = database.plan_reindex(["t"]).works
        assert work.removals == ()
        assert {index.name for index in work.rebuilds} == {"t_pkey", "tn"}
    assert rebuild.invalid(db) == set()
    assert set(rebuild.indexes(db, "t")) == {"t_pkey", "tn"}


def test_an_index_that_becomes_valid_is_not_dropped(db: Database) -> None:
    """Its builder was not seen, and the DROP waits for him."""
    dropped: list[bool] = []
    with pglean.connect(db.conninfo) as database, database.server.connect("test") as conn:

        def drop(index: candidate.Candidate) -> None:
            dropped.append(removal.remove(database.server, conn, index, 10))

        # In the last phase, in which he waits for no snapshot any more.
        with building(db, "REINDEX INDEX CONCURRENTLY tn", rebuild.READERS):
            db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 't_pkey'::regclass")
            oid = db.scalar("SELECT 't'::regclass::oid")
            (index,) = [one for one in candidate.candidates(conn, oid) if one.name == "t_pkey"]
            assert not index.valid
            thread = threading.Thread(target=drop, args=(index,))
            thread.start()
            in_line = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 't'::regclass AND pid = %s AND NOT granted)"
            until(lambda: db.scalar(in_line, (conn.info.backend_pid,)), "the DROP waits for the builder")
            db.execute("UPDATE pg_index SET indisvalid = true WHERE indexrelid = 't_pkey'::regclass")
        thread.join()
    assert dropped == [False]
    assert rebuild.invalid(db) == set()
    assert "t_pkey" in rebuild.indexes(db, "t")


def test_a_name_that_means_another_index_is_not_dropped(db: Database) -> None:
    rebuild.leave(db, "tn")
    with pglean.connect(db.conninfo) as database, database.server.connect("test") as conn:
        (index,) = [one for one in candidate.candidates(conn, db.scalar("SELECT 't'::regclass::oid")) if one.leftover]
        db.execute("ALTER INDEX tn_ccnew RENAME TO away; CREATE INDEX tn_ccnew ON t (n)")
        assert removal.remove(database.server, conn, index, 1) is False
        db.execute("DROP INDEX tn_ccnew; CREATE TABLE tn_ccnew ()")
        assert removal.remove(database.server, conn, index, 1) is False
        db.execute("DROP TABLE tn_ccnew; ALTER INDEX away RENAME TO tn_ccnew")
        # While the DROP stands in line, and the guard looks, the name is held.
        renamed: list[psycopg.Error] = []

        def rename() -> None:
            with db.connect() as session, contextlib.suppress(psycopg.Error):
                session.execute("SET lock_timeout = '50ms'")
                try:
                    session.execute("ALTER INDEX tn_ccnew RENAME TO away")
                except psycopg.Error as error:
                    renamed.append(error)

        with pausepoint.intercept("reindex: drop in line", rename):
            assert removal.remove(database.server, conn, index, 1) is True
    assert isinstance(renamed[0], psycopg.errors.LockNotAvailable)
    assert rebuild.invalid(db) == set()


def broken(conn: psycopg.Connection[Any], db: Database, index: str) -> candidate.Candidate:
    """An index, found to be invalid."""
    db.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass")
    table = db.scalar(f"SELECT indrelid FROM pg_index WHERE indexrelid = '{index}'::regclass")
    (found,) = [one for one in candidate.candidates(conn, table) if not one.valid]
    return found


def test_an_index_that_has_become_valid_stays_though_a_cancellation_is_lost(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pglean.connect(db.conninfo) as database, database.server.connect("test") as conn:
        index = broken(conn, db, "tn")
        lost: list[float] = []

        def cancel(*, timeout: float) -> None:
            lost.append(timeout)
            if len(lost) == 1:
                raise psycopg.errors.CancellationTimeout("lost")
            psycopg.Connection.cancel_safe(conn, timeout=timeout)

        monkeypatch.setattr(conn, "cancel_safe", cancel)

        def validate() -> None:
            db.execute("UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'tn'::regclass")

        with pausepoint.intercept("reindex: drop in line", validate):
            assert removal.remove(database.server, conn, index, 1) is False
    assert len(lost) >= 2
    assert "tn" in rebuild.indexes(db, "t")
    assert rebuild.invalid(db) == set()


def test_nothing_is_dropped_by_whose_guard_nothing_is_seen(db: Database) -> None:
    """Its statement is cancelled; had it let go first, the DROP would have the index."""
    with pglean.connect(db.conninfo) as database, database.server.connect("test") as conn:
        index = broken(conn, db, "tn")

        def cancelled() -> None:
            raise psycopg.errors.QueryCanceled("of the guard")

        with (
            pausepoint.intercept("reindex: drop in line", cancelled),
            pytest.raises(psycopg.errors.QueryCanceled, match="of the guard"),
        ):
            removal.remove(database.server, conn, index, 1)
    assert rebuild.invalid(db) == {"tn"}


def test_an_index_of_another_schema_is_not_dropped(db: Database) -> None:
    for schema in ("blue", "green"):
        db.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.s (n int); CREATE INDEX x ON {schema}.s (n)")
    switch = "ALTER SCHEMA blue RENAME TO old; ALTER SCHEMA green RENAME TO blue"
    green = db.scalar("SELECT 'green.x'::regclass::oid")
    refused: list[psycopg.Error] = []

    def attempt() -> None:
        with db.connect() as session:
            session.execute("SET lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
                session.execute(switch)
            refused.append(caught.value)

    with pglean.connect(db.conninfo) as database, database.server.connect("test") as conn:
        index = broken(conn, db, "blue.x")
        # While it stands in line, the schema keeps its name.
        with pausepoint.intercept("reindex: drop in line", attempt):
            assert removal.remove(database.server, conn, index, 1) is True
        assert refused
        db.execute("CREATE INDEX x ON blue.s (n)")
        index = broken(conn, db, "blue.x")
        db.execute(switch)
        assert removal.remove(database.server, conn, index, 1) is False
        db.execute("ALTER SCHEMA blue RENAME TO away")
        assert removal.remove(database.server, conn, index, 1) is False
        assert db.scalar("SELECT indisvalid FROM pg_index WHERE indexrelid = %s", (green,)) is True
    db.execute("DROP SCHEMA old, away CASCADE")


def test_one_schema_in_place_of_another_while_the_drop_stands_in_line(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not lock the schema's row looks at its name."""
    for schema in ("blue", "green"):
        db.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.s (n int); CREATE INDEX x ON {schema}.s (n)")
    green = db.scalar("SELECT 'green.x'::regclass::oid")
    with pglean.connect(db.conninfo) as database, database.server.connect("test") as conn:
        monkeypatch.setattr(database.server, "capabilities", replace(database.server.capabilities, is_superuser=False))
        index = broken(conn, db, "blue.x")

        def switch() -> None:
            db.execute("ALTER SCHEMA blue RENAME TO old; ALTER SCHEMA green RENAME TO blue")

        with pausepoint.intercept("reindex: drop in line", switch):
            assert removal.remove(database.server, conn, index, 1) is False
    assert db.scalar("SELECT indisvalid FROM pg_index WHERE indexrelid = %s", (green,)) is True
    db.execute("DROP SCHEMA old, blue CASCADE")


def test_index_that_is_dropped_while_its_size_is_read(db: Database) -> None:
    with db.connect(autocommit=False) as session:
        session.execute("DROP INDEX tn")
        run = Rebuild(db, "t", act="reindex")
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = %s AND mode = 'AccessShareLock' AND NOT granted)"
        tn = db.scalar("SELECT oid FROM pg_class WHERE relname = 'tn'")
        until(lambda: db.scalar(waits, (tn,)), "its size is waited for")
        session.commit()
    result = run.result()
    assert (result.error, [index.index for index in result.indexes]) == (None, ["public.t_pkey"])


def test_index_that_is_dropped_meanwhile(db: Database) -> None:
    def drop() -> None:
        db.execute("DROP INDEX IF EXISTS tn")

    with pausepoint.intercept("reindex: before an index", drop), pglean.connect(db.conninfo) as database:
        result = database.reindex(["t"])
    assert [index.index for index in result.indexes] == ["public.t_pkey"]
    assert result.failures["public.tn"].message.startswith("could not rebuild index public.tn: ")


# ---- under load


@pytest.mark.parametrize("owner", [None, "keeper"])
def test_writers_go_on(db: Database, owner: str | None, seed: int) -> None:
    spec = Spec(table="w", owner=owner) if owner else Spec(table="w")
    spec.create(db.connect())
    with Writers(db.conninfo, spec, seed, 4) as writers, pglean.connect(db.conninfo) as database:
        writers.wait_for(10)
        result = database.reindex([spec.table])
        assert result.error is None
        assert len(result.indexes) == db.scalar(
            "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass AND NOT indisexclusion", (spec.table,)
        )
        writers.wait_for(10)
    writers.compare()
    assert_sound(db, spec.table)
    assert rebuild.invalid(db) == set()
