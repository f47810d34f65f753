"""G4, G5, G6: short snapshots, locks that are neither waited for nor held for long, nobody cancelled unasked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.capture.trigger import TriggerCapture
from pglean.errors import ConnectionLost, LockNotObtained, TableChanged
from pglean.rewrite import cleanup, ending, refresh
from tests.servers import Database, create_database
from tests.support import oracle
from tests.support.play import Background, Holder, Play, at, fails

pytestmark = pytest.mark.in_turn

#: Of what each session of ours sets, what would otherwise come from the role, with what it must be.
SETTINGS = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "session_replication_role": "origin",
    "row_security": "off",
    "enable_tidscan": "on",
    "zero_damaged_pages": "off",
    "ignore_checksum_failure": "off",
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An undo that cannot have its locks gives up soon."""
    monkeypatch.setattr(ending, "_UNDO_WAIT_S", 0.2)
    monkeypatch.setattr(cleanup, "_DROP_WAIT_S", 0.2)


@contextlib.contextmanager
def repeating(db: Database, statement: str) -> Iterator[list[tuple[float, Any]]]:
    """Run a statement again and again in a session of its own; collects seconds and rows of each."""
    seen: list[tuple[float, Any]] = []
    stop = threading.Event()
    conn = db.connect()

    def work() -> None:
        while not stop.is_set():
            began = time.monotonic()
            rows = conn.execute(sql.SQL(statement)).fetchall()
            seen.append((time.monotonic() - began, rows))
            stop.wait(0.002)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def longest(seen: list[tuple[float, Any]]) -> float:
    """Seconds of the slowest."""
    return max(seconds for seconds, _ in seen)


# ---- the horizon


def test_no_snapshot_is_held_for_long(db: Database) -> None:
    """G4: while it copies, each session's snapshot lasts for a chunk; none is held by the run as a whole."""
    db.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text);"
        "INSERT INTO t SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 40000) AS g"
    )
    watch = """
        SELECT pid, application_name, xact_start, extract(epoch FROM clock_timestamp() - xact_start)::float8
          FROM pg_stat_activity
         WHERE datname = current_database() AND application_name LIKE 'pglean %'
           AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
    """
    with repeating(db, watch) as seen, pglean.connect(db.conninfo) as database:
        database.repack("t", chunk_ms=20, jobs=2)
    ages: dict[tuple[int, Any], float] = defaultdict(float)
    for _, rows in seen:
        for pid, name, begun, age in rows:
            if " copy " in name:
                ages[pid, begun] = max(ages[pid, begun], age)
    assert len(ages) >= 5, "too few transactions were seen for this to tell anything"
    # The first chunk's size is a guess; and these servers share two processors with whatever else is running.
    assert max(ages.values()) < 1.0


def test_no_transaction_is_open_between_the_steps(play: Play) -> None:
    """G4, G5: neither a snapshot nor a lock outlives a step."""
    found: list[Any] = []

    def look() -> None:
        found.extend(
            play.db.fetchall(
                "SELECT a.application_name, a.state, a.backend_xmin, l.mode FROM pg_stat_activity a"
                " LEFT JOIN pg_locks l ON l.pid = a.pid AND l.relation = 't'::regclass"
                " WHERE a.datname = current_database() AND a.application_name LIKE 'pglean %'"
                " AND (a.xact_start IS NOT NULL OR l.pid IS NOT NULL)"
            )
        )

    with contextlib.ExitStack() as stack:
        for phase in ("copying", "indexing", "catching up", "verifying", "ready", "swapping", "cleaning"):
            stack.enter_context(at(f"phase: {phase}", look))
        stack.enter_context(at("swap: before the lock", look))
        play.repack()
    assert found == []


# ---- waiting


@pytest.mark.parametrize("how", ["resume", "abort"])
def test_reader_that_does_not_end(play: Play, how: str) -> None:
    """G5, G6: others wait for us no longer than a lock timeout; then the run is kept, names him, leaves him alone."""
    reader = Holder(play.db, "SELECT count(*) FROM t")
    with repeating(play.db, "SELECT id FROM t LIMIT 1") as others:
        with at("swap: before the lock", reader.hold):
            error = fails(play, LockNotObtained, wait_timeout_s=1.5, lock_timeout_ms=50)
        # One of them is asked for each time that the lock is tried for.
        assert longest(others) < 0.6
    assert error.exit_status == 4
    assert isinstance(error, LockNotObtained)
    assert [blocker for blocker in error.blockers if f"pid {reader.pid} (postgres" in blocker]
    assert "idle in transaction" in str(error)
    # He is alive, in the same transaction.
    reader.conn.execute("SELECT count(*) FROM t")
    with pglean.connect(play.db.conninfo) as database:
        (run,) = database.status()
        assert run.state == "paused"
        play.both("UPDATE {t} SET v = 'recorded', id = id + 5000 WHERE id < 10")
        if how == "resume":
            reader.conn.commit()
            assert database.resume(run.id) is not None
        else:
            # The triggers cannot be dropped before he ends; they do nothing, and writers are in the way of nobody.
            state, remains = database.abort(run.id, wait_s=0.3)
            assert state == "remains"
            assert f"pid {reader.pid}" in remains[0]
            play.both("UPDATE {t} SET v = 'after', id = id + 5000 WHERE id BETWEEN 10 AND 20")
            reader.conn.commit()
            ((_, remains),) = database.cleanup()
            assert remains == []
        assert database.status() == []
    play.check()
    play.repack()
    play.check()


@pytest.mark.parametrize("point", ["start", "copy: before a chunk"])
def test_lock_that_is_in_the_way_earlier(play: Play, point: str) -> None:
    """G5: a writer at the start, somebody's ACCESS EXCLUSIVE within the copy: waited for and told of."""
    mode = "ROW EXCLUSIVE" if point == "start" else "ACCESS EXCLUSIVE"
    holder = Holder(play.db, f"LOCK TABLE t IN {mode} MODE")
    with contextlib.ExitStack() as stack:
        if point == "start":
            holder.hold()
        else:
            stack.enter_context(at(point, holder.hold))
        play.repack(on_progress=holder.on_progress, lock_timeout_ms=20)
    assert f"pid {holder.pid}" in holder.told[0]
    play.check()


@pytest.mark.parametrize("active", [False, True], ids=["idle-in-transaction", "running"])
def test_kill_backend(play: Play, active: bool) -> None:
    """Asked to, it cancels, then terminates, who holds a conflicting lock; in this database alone."""
    holder = Holder(play.db, "LOCK TABLE t IN ACCESS SHARE MODE")
    running: list[threading.Thread] = []
    ended: list[BaseException] = []

    def sleep() -> None:
        try:
            holder.conn.execute("SELECT pg_sleep(600) FROM t")
        except psycopg.Error as error:
            ended.append(error)
            # So that its transaction ends.
            holder.conn.close()

    def hold() -> None:
        holder.hold()
        if active:
            running.append(threading.Thread(target=sleep, daemon=True))
            running[0].start()
            oracle.until(
                lambda: play.db.scalar("SELECT state FROM pg_stat_activity WHERE pid = %s", (holder.pid,)) == "active",
                "its query is running",
            )

    with create_database(play.db.server) as elsewhere:
        # The same OIDs are likely there; nobody must look at relations alone.
        elsewhere.execute("CREATE TABLE t (id int PRIMARY KEY)")
        innocent = Holder(elsewhere, "LOCK TABLE t IN ACCESS SHARE MODE")
        innocent.hold()
        bystander = play.db.connect(autocommit=False)
        bystander.execute("SELECT count(*) FROM m")
        with at("swap: before the lock", hold):
            play.repack(wait_timeout_s=0.3, lock_timeout_ms=20, kill_backend=True)
        innocent.conn.execute("SELECT 1")
        bystander.execute("SELECT 1")
    if active:
        running[0].join(20)
        assert isinstance(ended[0], psycopg.errors.QueryCanceled)
    else:
        with pytest.raises(psycopg.OperationalError):
            holder.conn.execute("SELECT 1")
    play.check()


# ---- holding


def test_client_that_hangs_under_the_lock(play: Play) -> None:
    """G5: the server throws it out when the budget is used up; the table is intact and free."""

    def hang() -> None:
        oracle.until(
            lambda: (
                not play.db.fetchall(
                    "SELECT FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessExclusiveLock' AND granted"
                )
            ),
            "the lock is let go",
        )

    play.both("UPDATE {t} SET v = 'x' WHERE id < 50")
    with repeating(play.db, "SELECT id FROM t LIMIT 1") as others:
        with at("swap: before the exchange", hang):
            error = fails(play, ConnectionLost, max_lock_ms=200)
        assert longest(others) < 1.2
    assert error.exit_status == 5
    with pglean.connect(play.db.conninfo) as database:
        (run,) = database.status()
        assert run.state == "paused"
        play.both("UPDATE {t} SET v = 'y' WHERE id < 50")
        assert database.resume(run.id) is not None
    play.check()
    play.repack()
    play.check()


@pytest.mark.parametrize("moment", ["capture: before the commit", "cleanup"])
def test_client_that_hangs_where_triggers_come_and_go(play: Play, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """G5: writers wait for it no longer than for the swap, when capture is switched on, and when it is cleaned up."""
    mode = "ShareRowExclusiveLock" if moment.startswith("capture") else "AccessExclusiveLock"
    held = f"SELECT FROM pg_locks WHERE relation = 't'::regclass AND mode = '{mode}' AND granted"
    found: list[int] = []

    def hang() -> None:
        found.append(len(play.db.fetchall(held)))
        oracle.until(lambda: not play.db.fetchall(held), "the lock is let go", timeout_s=5)

    with pglean.connect(play.db.conninfo) as database:
        if moment == "cleanup":
            leave(play)
            switch_off = TriggerCapture.switch_off

            def switch_off_and_hang(capture: TriggerCapture, conn: Any) -> None:
                switch_off(capture, conn)
                hang()

            monkeypatch.setattr(TriggerCapture, "switch_off", switch_off_and_hang)
            with repeating(play.db, WRITE) as others, pytest.raises(ConnectionLost):
                database.cleanup(pglean.Options(max_lock_ms=200))
            monkeypatch.setattr(TriggerCapture, "switch_off", switch_off)
            assert [run.state for run in database.status()] == ["interrupted"]
            ((_, remains),) = database.cleanup()
            assert remains == []
        else:
            with repeating(play.db, WRITE) as others, at(moment, hang):
                error = fails(play, ConnectionLost, max_lock_ms=200)
            assert error.exit_status == 5
    assert longest(others) < 1.2
    assert found == [1]
    play.check()
    play.repack()
    play.check()


#: A write that changes nothing, so that table and model stay the same.
WRITE = "UPDATE t SET v = v WHERE id = 7 RETURNING 1"


def leave(play: Play) -> None:
    """Leave what a killed run leaves."""

    def fail() -> None:
        raise RuntimeError("killed")

    with at("phase: ready", fail), at("undo", fail), pytest.raises(RuntimeError):
        play.repack()


def test_each_statement_under_the_lock_has_what_is_left(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """G5: none of them takes as long as the budget, together they do; so the lock is let go, and tried again."""
    slow: set[str] = set()
    for name in ("_delete", "_insert"):
        act = getattr(refresh, name)

        def slowly(run: Any, conn: Any, *rest: Any, name: str = name, act: Any = act) -> None:
            if name in slow:
                slow.discard(name)
                conn.execute("SELECT pg_sleep(0.9)")
            act(run, conn, *rest)

        monkeypatch.setattr(refresh, name, slowly)

    def write() -> None:
        play.both("UPDATE {t} SET v = 'late', id = -id WHERE id < 50")
        slow.update(("_delete", "_insert"))

    told: list[str] = []
    with at("swap: before the lock", write), repeating(play.db, "SELECT id FROM t LIMIT 1") as others:
        result = play.repack(max_lock_ms=1000, on_progress=lambda progress: told.append(progress.waiting_for))
    assert [text for text in told if "did not fit into 1000 ms" in text]
    # 1,800 ms of sleep alone, had the second not been stopped.
    assert result.exclusive_lock_ms < 1500
    assert longest(others) < 1.7
    play.check()


def test_last_changes_do_not_fit_the_budget(play: Play) -> None:
    """G5, G7: the lock is released, the changes are taken over without it, and it is tried again."""
    told: list[str] = []
    with (
        at(
            "swap: before the lock",
            lambda: play.both("INSERT INTO {t} (id, u, v) SELECT g, g, 'many' FROM generate_series(2000, 30000) AS g"),
        ),
        repeating(play.db, "SELECT id FROM t LIMIT 1") as others,
    ):
        result = play.repack(max_lock_ms=60, on_progress=lambda progress: told.append(progress.waiting_for))
    assert [text for text in told if "did not fit into 60 ms" in text]
    assert longest(others) < 1.0
    assert result.exclusive_lock_ms < 500
    play.check()


@pytest.mark.parametrize("point", ["copy: before a chunk", "phase: catching up", "swap: before the lock"])
def test_copy_is_locked_by_somebody(play: Play, point: str) -> None:
    """REINDEX DATABASE and the like take the copy for a table of theirs; it is waited for, and nothing is lost."""
    # The first run of an empty database.
    holder = Holder(play.db, "LOCK TABLE pglean.shadow_1 IN SHARE MODE")

    def hold() -> None:
        play.both("UPDATE {t} SET v = 'x', id = id + 5000 WHERE id < 50")
        holder.hold()

    with at(point, hold), repeating(play.db, "SELECT id FROM t LIMIT 1") as others:
        play.repack(on_progress=holder.on_progress, lock_timeout_ms=50)
        assert longest(others) < 1.0
    assert holder.told
    play.check()


def test_open_grant(play: Play) -> None:
    """Somebody's GRANT has updated the row of pg_class that the swap is about to update; it is not waited for long."""
    holder = Holder(play.db, "GRANT SELECT ON t TO pg_monitor")
    with at("swap: before the lock", holder.hold), repeating(play.db, "SELECT id FROM t LIMIT 1") as others:
        play.repack(on_progress=holder.on_progress, lock_timeout_ms=50)
    assert holder.told
    assert longest(others) < 1.0
    assert play.db.scalar("SELECT has_table_privilege('pg_monitor', 't', 'SELECT')")
    play.check()


def test_deadlock_costs_one_attempt(play: Play) -> None:
    """30: an open GRANT, whose session now waits for the table. The server ends our statement; the work is not lost."""
    holder = Holder(play.db, "SET deadlock_timeout = '60s'", "GRANT SELECT ON t TO pg_monitor")
    holder.hold()
    held = play.db.fetchall("SELECT FROM pg_locks WHERE pid = %s AND relation = 't'::regclass", (holder.pid,))
    holder.conn.rollback()
    if held:
        pytest.skip("this server's GRANT locks the table as well: nobody gets that far")
    reading: list[Background] = []

    def cross() -> None:
        reading.append(Background(lambda: holder.conn.execute("SELECT count(*) FROM t").fetchone()))
        oracle.until(
            lambda: bool(play.db.fetchall("SELECT FROM pg_locks WHERE pid = %s AND NOT granted", (holder.pid,))),
            "the other session waits for the table",
        )

    def commit(progress: pglean.Progress) -> None:
        if progress.waiting_for and reading:
            assert reading[0].result() == (1500,)
            holder.on_progress(progress)

    with at("swap: before the lock", holder.hold), at("swap: before the exchange", cross):
        play.repack(on_progress=commit, lock_timeout_ms=10_000, max_lock_ms=20_000)
    assert holder.told
    play.check()


# ---- settings of role and database


def test_settings_of_the_role_do_not_reach_us(db: Database) -> None:
    """25: time limits, isolation, read only, a search path that leads astray."""
    db.execute("CREATE ROLE admin2 SUPERUSER LOGIN")
    try:
        db.execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE);"
            "INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 3000) AS g;"
            "CREATE SCHEMA trap;"
            "CREATE TABLE trap.pg_class (oid oid); CREATE TABLE trap.pg_trigger (i int);"
            "CREATE TABLE trap.pg_locks (i int);"
            "CREATE FUNCTION trap.count(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1/0::bigint';"
            "CREATE FUNCTION trap.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT 1/0';"
            "CREATE FUNCTION trap.wrong(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT 1/0 = 1';"
            "CREATE OPERATOR trap.= (LEFTARG = int, RIGHTARG = int, FUNCTION = trap.wrong);"
            "CREATE OPERATOR trap.<> (LEFTARG = int, RIGHTARG = int, FUNCTION = trap.wrong)"
        )
        for setting, value in {
            "statement_timeout": "'50ms'",
            "lock_timeout": "'1ms'",
            "idle_in_transaction_session_timeout": "'50ms'",
            "idle_session_timeout": "'50ms'",
            "search_path": "trap, pg_catalog, public",
            "default_transaction_read_only": "on",
            "default_transaction_isolation": "serializable",
            "default_transaction_deferrable": "on",
            "session_replication_role": "replica",
            "row_security": "on",
            "quote_all_identifiers": "on",
            # From 19 on it is never off.
            **({"standard_conforming_strings": "off"} if db.server.version < 190000 else {}),
            "DateStyle": "'German'",
            "check_function_bodies": "off",
            "enable_tidscan": "off",
            "zero_damaged_pages": "on",
            "ignore_checksum_failure": "on",
            "work_mem": "'64kB'",
        }.items():
            db.execute(
                sql.SQL("ALTER ROLE admin2 IN DATABASE {} SET {} = {}").format(
                    sql.Identifier(db.name),
                    sql.Identifier(setting),
                    sql.SQL(value),
                )
            )

        def dawdle() -> None:
            # Longer than any of these limits, in a transaction and out of it.
            db.execute("SELECT pg_sleep(0.2)")

        with (
            at("copy: in a chunk", dawdle),
            at("phase: catching up", dawdle),
            at("swap: before the exchange", dawdle),
            pglean.connect(db.server.conninfo(db.name, user="admin2")) as database,
        ):
            database.repack("t", verify="full")
            with database.server.connect("test") as conn:
                for setting, value in SETTINGS.items():
                    query = "SELECT setting FROM pg_settings WHERE name = %s AND source = 'session'"
                    assert conn.execute(query, (setting,)).fetchall() == [(value,)], setting
        assert db.scalar("SELECT count(*) FROM t") == 3000
        oracle.assert_sound(db, "t")
        oracle.assert_nothing_left(db)
    finally:
        db.execute("DROP OWNED BY admin2 CASCADE; DROP ROLE admin2")


# ---- what others have prepared


def test_views_plans_and_prepared_statements_go_on_working(play: Play) -> None:
    """G2: the table has its OID, its indexes have theirs; nobody has to reconnect."""
    db = play.db
    db.execute(
        "CREATE VIEW w AS SELECT id, upper(v) AS v FROM t WHERE u > 0;"
        "CREATE MATERIALIZED VIEW mw AS SELECT grp, count(*) FROM t GROUP BY grp;"
        "CREATE FUNCTION f(i int) RETURNS text LANGUAGE plpgsql STABLE AS"
        " 'BEGIN RETURN (SELECT v FROM t WHERE id = i); END'"
    )
    session = db.connect()
    session.execute("SET plan_cache_mode = force_generic_plan")
    session.execute("PREPARE one (int) AS SELECT v FROM t WHERE id = $1")
    session.execute("PREPARE many AS SELECT count(*) FROM w")
    session.execute("PREPARE change (int) AS UPDATE t SET v = 'changed' WHERE id = $1")
    oids = (
        "SELECT oid, relname FROM pg_class WHERE oid = 't'::regclass"
        " OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 't'::regclass) ORDER BY 1"
    )
    before = db.fetchall(oids)

    def use(expected: str) -> None:
        assert session.execute("EXECUTE one(77)").fetchall() == [(expected,)]
        assert session.execute("SELECT f(77)").fetchall() == [(expected,)]
        assert session.execute("EXECUTE many").fetchall() == [(1500,)]
        assert session.execute("SELECT v FROM w WHERE id = 77").fetchall() == [(expected.upper(),)]

    def change() -> None:
        session.execute("EXECUTE change(78)")
        play.db.execute("UPDATE m SET v = 'changed' WHERE id = 78")

    use("v77!")
    with at("swap: before the lock", change):
        play.repack()
    use("v77!")
    session.execute("EXECUTE change(77)")
    play.db.execute("UPDATE m SET v = 'changed' WHERE id = 77")
    use("changed")
    db.execute("REFRESH MATERIALIZED VIEW mw")
    assert db.fetchall(oids) == before
    play.check()


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize(
    ("statement", "harmless"),
    [
        ("ALTER TABLE {t} ADD COLUMN more int", False),
        ("TRUNCATE {t}", False),
        ("ALTER TABLE {t} ALTER v SET DEFAULT 'x'", True),
    ],
    ids=["add-column", "truncate", "set-default"],
)
def test_ddl_that_waits_for_a_shared_refresh(play: Play, statement: str, harmless: bool) -> None:
    """G5: it waits for the coordinator's lock, the workers would wait for it, and every reader behind all of them.

    So the workers give up, the refresh with them, and the statement gets through.
    """
    waiting: list[Background] = []

    def ask() -> None:
        waiting.append(Background(lambda: play.both(statement)))
        oracle.until(
            lambda: bool(play.db.fetchall("SELECT FROM pg_locks WHERE relation = 't'::regclass AND NOT granted")),
            "it waits for its lock",
        )

    with (
        at("copy: before a chunk", lambda: play.both("UPDATE {t} SET v = 'x' WHERE id < 900")),
        repeating(play.db, "SELECT count(*) FROM t WHERE id = 7") as others,
        at("refresh: between the halves", ask),
    ):
        if harmless:
            play.repack(wait_timeout_s=6)
        else:
            assert fails(play, TableChanged, wait_timeout_s=6).exit_status == 6
        waiting[0].result(1)
    assert longest(others) < 1.2
    play.check()


@pytest.mark.parametrize(
    "statement",
    ["ALTER TABLE {t} RENAME COLUMN id TO ident", "ALTER TABLE {t} ALTER id TYPE text"],
    ids=["rename", "retype"],
)
def test_writes_while_an_index_is_built_of_a_table_that_was_changed(play: Play, statement: str) -> None:
    """G5: our triggers name the key's columns. The change is noticed before the hours of an index build are over."""
    column = "ident" if "RENAME" in statement else "id"
    failed: list[str] = []
    took: list[float] = []

    def works() -> bool:
        try:
            play.both(
                f"UPDATE {{t}} SET v = 'after' WHERE {column}::text = '5';"
                f"INSERT INTO {{t}} ({column}, u) VALUES ('9001', 9001);"
                f"DELETE FROM {{t}} WHERE {column}::text = '6'"
            )
        except psycopg.Error as error:
            failed.append(str(error))
            return False
        return True

    def change() -> None:
        play.both(statement)
        began = time.monotonic()
        oracle.until(works, "the application writes again", timeout_s=5)
        took.append(time.monotonic() - began)

    with at("index: before a build", change):
        error = fails(play, TableChanged)
    assert error.exit_status == 6
    assert took[0] < 2.5
    play.check()


def test_alter_table_is_not_kept_waiting(play: Play) -> None:
    """20: between two chunks there is no lock; DDL of others gets its own at once, and the run gives way."""
    took: list[float] = []

    def alter() -> None:
        began = time.monotonic()
        play.both("ALTER TABLE {t} ADD COLUMN more int")
        took.append(time.monotonic() - began)

    with at("phase: indexing", alter):
        fails(play, TableChanged)
    assert took[0] < 1.0
    play.check()
