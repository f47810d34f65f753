"""Where tools of this kind have lost data: the list's lines 1 to 18a as far as they touch capture, copy and refresh.

Tried elsewhere: writers in any order and mixture in `test_random_writers`; DDL of others and replication (6, 10, 18) in
`test_cases_before_swap`; tables and indexes of every kind (12, 13, 15, 17) in the integration tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean import pausepoint
from pglean.errors import CaptureGap, LockNotObtained
from pglean.rewrite import cleanup, ending
from tests.servers import Database
from tests.support import oracle
from tests.support.play import Background, Holder, Play, at, fails

pytestmark = pytest.mark.in_turn


def test_01_slower_transaction_commits_later(play: Play) -> None:
    """1: it wrote before others whose changes have long been taken over, and commits after them."""
    slow = play.db.connect(autocommit=False)

    def begin() -> None:
        for name in ("t", "m"):
            slow.execute(f"UPDATE {name} SET v = 'slow' WHERE id = 10")
            slow.execute(f"UPDATE {name} SET id = -id WHERE id = 11")
        play.both("UPDATE {t} SET v = 'fast' WHERE id BETWEEN 12 AND 400")

    with at("copy: before a chunk", begin), at("swap: before the lock", slow.commit):
        play.repack()
    play.check()


def test_02_asynchronous_commit(play: Play) -> None:
    """2: what is committed and not yet on disk is visible, and that is what counts."""

    def act() -> None:
        play.both("SET LOCAL synchronous_commit = off; UPDATE {t} SET v = 'async' WHERE id % 3 = 0")

    with at("copy: in a chunk", act), at("swap: before the lock", act):
        play.repack()
    play.check()


def test_03_included_columns_are_no_key(play: Play) -> None:
    """3: a NULL in an INCLUDE column of the primary key: rows are updated and deleted all the same."""
    for name in ("t", "m"):
        play.db.execute(
            f"ALTER TABLE {name} DROP CONSTRAINT {name}_pkey; ALTER TABLE {name} ADD PRIMARY KEY (id) INCLUDE (grp, v);"
            f"UPDATE {name} SET v = NULL WHERE id % 2 = 0"
        )

    def act() -> None:
        play.both("UPDATE {t} SET grp = grp + 1 WHERE id % 4 = 0; DELETE FROM {t} WHERE id % 6 = 0")

    with at("copy: in a chunk", act), at("swap: before the lock", act):
        play.repack()
    play.check()


def test_04_only_a_whole_and_valid_unique_index_over_columns_that_are_never_null_is_a_key(play: Play) -> None:
    """4: older unique indexes that are partial, over an expression or over a nullable column are passed over."""
    for name in ("t", "m"):
        play.db.execute(
            f"ALTER TABLE {name} DROP CONSTRAINT {name}_pkey, DROP CONSTRAINT {name}_u_key, ADD nullable int UNIQUE;"
            f"CREATE UNIQUE INDEX ON {name} (u) WHERE u > 0; CREATE UNIQUE INDEX ON {name} ((u + 0));"
            f"CREATE UNIQUE INDEX {name}_late ON {name} (u) INCLUDE (v)"
        )

    def act() -> None:
        play.both("UPDATE {t} SET u = -u, id = 1 WHERE u < 30; DELETE FROM {t} WHERE u BETWEEN 40 AND 50")

    with pglean.connect(play.db.conninfo) as database:
        key = database.plan("t").table.key
    assert key is not None
    assert (key.index_name, [column.name for column in key.columns]) == ("t_late", ["u"])
    with at("copy: in a chunk", act), at("swap: before the lock", act):
        play.repack()
    play.check()


@pytest.mark.parametrize("again", ["UPDATE {t} SET v = 'again', id = id + 5000", "DELETE FROM {t}"])
def test_05_earlier_trigger_writes_the_row_again(play: Play, again: str) -> None:
    """5: an AFTER trigger whose name comes before ours changes or deletes the row: its change is recorded first."""
    for name in ("t", "m"):
        statement = again.format(t=name)
        play.db.execute(
            f"CREATE FUNCTION again_{name}() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN IF pg_trigger_depth() = 1 THEN {statement} WHERE id = NEW.id; END IF; RETURN NULL; END $$;"
            f"CREATE TRIGGER a AFTER INSERT OR UPDATE ON {name} FOR EACH ROW EXECUTE FUNCTION again_{name}()"
        )

    def act(low: int) -> None:
        play.both(
            "UPDATE {t} SET v = 'first' WHERE id BETWEEN {low} AND {low} + 5;"
            "UPDATE {t} SET id = id + 2000 WHERE id = {low} + 7;"
            "INSERT INTO {t} (id, u) VALUES ({low} + 3000, {low} + 3000)",
            low=low,
        )

    with at("copy: in a chunk", lambda: act(10)), at("swap: before the lock", lambda: act(100)):
        play.repack()
    play.check()


def test_06_values_that_stand_in_the_catalog_only(play: Play) -> None:
    """6, 12: a column added with a default before the run: rows have its value, whether copied or refreshed."""
    for name in ("t", "m"):
        play.db.execute(
            f"ALTER TABLE {name} ADD seven int NOT NULL DEFAULT 7, ADD eight text DEFAULT repeat('8', 3000)"
        )
        play.db.execute(f"ALTER TABLE {name} ALTER seven SET DEFAULT 8, DROP grp")
    with at("swap: before the lock", lambda: play.both("UPDATE {t} SET v = 'new' WHERE id < 100")):
        play.repack()
    assert play.db.scalar("SELECT count(*) FROM t WHERE seven = 7 AND length(eight) = 3000") == 1500
    play.check()


def test_07_row_security_hides_no_row_from_the_copy(play: Play) -> None:
    """7: the owner sees nothing of his own table (FORCE ROW LEVEL SECURITY); all of it is there afterwards."""
    play.db.execute("CREATE ROLE hidden")
    try:
        play.db.execute(
            "ALTER TABLE t OWNER TO hidden; ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
            "CREATE POLICY nothing ON t USING (false)"
        )
        with at("swap: before the lock", lambda: play.both("UPDATE {t} SET v = 'new', id = id + 3000 WHERE id < 100")):
            play.repack()
        play.check()
    finally:
        play.db.execute("DROP OWNED BY hidden CASCADE; DROP ROLE hidden")


def test_08_rows_that_are_not_inserted_after_all(play: Play) -> None:
    """8: BEFORE triggers fire for what ON CONFLICT then drops, and may themselves drop or change a row."""
    for name in ("t", "m"):
        play.db.execute(
            f"CREATE FUNCTION before_{name}() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN IF NEW.u % 5 = 0 THEN RETURN NULL; END IF;"
            f" NEW.v := 'before'; NEW.id := NEW.id + 1; RETURN NEW; END $$;"
            f"CREATE TRIGGER b BEFORE INSERT ON {name} FOR EACH ROW EXECUTE FUNCTION before_{name}()"
        )

    def act() -> None:
        play.both("INSERT INTO {t} (id, u) SELECT g, g FROM generate_series(1400, 1600) AS g ON CONFLICT DO NOTHING")
        play.both("SET LOCAL session_replication_role = replica; UPDATE {t} SET id = id + 7000 WHERE id % 100 = 7")

    with at("copy: in a chunk", act), at("swap: before the lock", act):
        play.repack()
    play.check()


def test_09_vacuum_of_table_and_shadow_wait_for_the_swap(play: Play) -> None:
    """9: neither works on a file that the other's relation is about to get."""
    vacuums: list[Background] = []

    def start() -> None:
        shadow = play.db.scalar("SELECT oid::regclass::text FROM pg_class WHERE relname ~ '^shadow_[0-9]+$'")
        for name in ("t", shadow):
            conn = play.db.connect()
            vacuums.append(Background(partial(conn.execute, f"VACUUM (FREEZE) {name}")))
        oracle.until(
            lambda: play.db.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL") == 2,
            "both VACUUMs wait for their locks",
        )

    play.both("DELETE FROM {t} WHERE id % 3 = 1")
    with at("swap: before the exchange", start):
        play.repack(max_lock_ms=20_000)
    vacuums[0].result()
    # The shadow may be gone when its turn comes.
    with contextlib.suppress(psycopg.errors.UndefinedTable):
        vacuums[1].result()
    play.check()
    oracle.assert_sound(play.db, "t")


@pytest.mark.usefixtures("small_portions")
def test_11_summarizing_and_multidimensional_indexes_are_maintained(play: Play) -> None:
    """11: what an index scan finds after refreshes is what a sequential scan finds."""
    for name in ("t", "m"):
        play.db.execute(
            f"ALTER TABLE {name} ADD r int4range; UPDATE {name} SET r = int4range(id, id + 10);"
            f"CREATE INDEX ON {name} USING brin (grp) WITH (pages_per_range = 1, autosummarize = on);"
            f"CREATE INDEX ON {name} USING gist (r); CREATE INDEX ON {name} USING spgist (r);"
            f"CREATE INDEX ON {name} USING gin (string_to_array(v, '1')); CREATE INDEX ON {name} USING hash (v)"
        )

    def act() -> None:
        play.both("UPDATE {t} SET grp = 77, r = int4range(5000, 5001), v = 'x1y' WHERE id % 10 = 0")
        play.both("DELETE FROM {t} WHERE id % 10 = 1")

    with at("copy: in a chunk", act), at("refresh: between the halves", act), at("swap: before the lock", act):
        play.repack()
    play.check()
    for condition in ("grp = 77", "r && int4range(5000, 5010)", "string_to_array(v, '1') @> '{x}'", "v = 'x1y'"):
        counts = []
        for scan in ("seqscan", "bitmapscan"):
            with play.db.connect() as conn:
                for other in {"seqscan", "bitmapscan", "indexscan", "indexonlyscan"} - {scan}:
                    conn.execute(f"SET enable_{other} = off")
                counts.append(conn.execute(f"SELECT count(*) FROM t WHERE {condition}").fetchone())
        assert counts == [(150,), (150,)], condition


@pytest.mark.min_version(18)
def test_11_temporal_key(play: Play) -> None:
    """11: a key WITHOUT OVERLAPS finds the very row, not one whose range overlaps."""
    play.db.execute("CREATE EXTENSION btree_gist")
    for name in ("t", "m"):
        play.db.execute(
            f"DROP TABLE {name};"
            f"CREATE TABLE {name} (id int, at int4range, v text, PRIMARY KEY (id, at WITHOUT OVERLAPS));"
            f"INSERT INTO {name} SELECT g % 50, int4range(g / 50 * 10, g / 50 * 10 + 10), 'v'"
            f" FROM generate_series(0, 999) AS g"
        )

    def act() -> None:
        play.both("UPDATE {t} SET at = int4range(lower(at) + 1, upper(at)), v = 'shorter' WHERE id % 5 = 1")
        play.both("DELETE FROM {t} WHERE id % 5 = 2 AND lower(at) = 50")
        play.both("UPDATE {t} SET v = 'same' WHERE id % 5 = 3")
        play.both(
            "INSERT INTO {t} VALUES (60, int4range(1, 5), 'new'), (60, int4range(5, 7), 'new') ON CONFLICT DO NOTHING"
        )

    with at("copy: in a chunk", act), at("swap: before the lock", act):
        play.repack()
    play.check()


@pytest.mark.parametrize("rows", [40_000, pytest.param(400_000, marks=pytest.mark.slow)])
def test_14_giant_transaction_commits_just_before_the_swap(play: Play, rows: int) -> None:
    """14: what does not fit into the lock's budget is taken over before the lock is tried again."""

    def act() -> None:
        play.both("INSERT INTO {t} (id, u, v) SELECT g, g, 'giant' FROM generate_series(2000, {rows}) AS g", rows=rows)

    with at("swap: before the lock", act):
        result = play.repack(max_lock_ms=300)
    assert result.changes_applied >= rows - 2000
    assert result.exclusive_lock_ms < 2000
    play.check()


def test_14_hundreds_of_subtransactions(play: Play) -> None:
    """14: far more than a snapshot holds itself, some rolled back, open while refreshes pass."""
    slow = play.db.connect(autocommit=False)

    def begin() -> None:
        for number in range(1, 301):
            for name in ("t", "m"):
                slow.execute("SAVEPOINT s")
                slow.execute(f"UPDATE {name} SET v = 'sub', id = -id WHERE id = {number}")
                slow.execute("ROLLBACK TO s" if number % 3 == 0 else "RELEASE s")

    with at("copy: before a chunk", begin), at("swap: before the lock", slow.commit):
        play.repack()
    play.check()
    assert play.db.scalar("SELECT count(*) FROM t WHERE id < 0") == 200


@pytest.fixture
def prepared(play: Play) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A session whose transaction, with a row changed, is ready to be prepared."""
    conn = play.db.connect(autocommit=False)
    yield conn
    conn.close()


def prepare(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """Leave a prepared transaction that has written to table and model."""
    for name in ("t", "m"):
        conn.execute(f"UPDATE {name} SET v = 'prepared', id = -7 WHERE id = 7")
    conn.execute(f"PREPARE TRANSACTION 'two phases of {conn.info.dbname}'")
    conn.rollback()


@pytest.mark.parametrize("point", ["start", "swap: before the lock"])
def test_14_prepared_transaction(
    play: Play,
    prepared: psycopg.Connection[tuple[object, ...]],
    point: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """14, 22: it cannot be cancelled, so nobody is; the error names it. Once it has ended, the run succeeds."""
    monkeypatch.setattr(ending, "_UNDO_WAIT_S", 0.2)
    monkeypatch.setattr(cleanup, "_DROP_WAIT_S", 0.2)
    name = f"two phases of {play.db.name}"
    reader = play.db.connect(autocommit=False)
    with contextlib.ExitStack() as stack:
        if point == "start":
            prepare(prepared)
        else:
            stack.enter_context(at(point, lambda: prepare(prepared)))
        reader.execute("SELECT 1")
        error = fails(play, LockNotObtained, wait_timeout_s=0.3, lock_timeout_ms=20, kill_backend=True)
    assert error.exit_status == 4
    assert f"prepared transaction '{name}'" in str(error)
    reader.execute("SELECT count(*) FROM t")
    reader.commit()
    play.db.execute(f"COMMIT PREPARED '{name}'")
    with pglean.connect(play.db.conninfo) as database:
        # At the start there was nothing to keep; before the swap all but that had been done.
        kept = database.status()
        assert [run.state for run in kept] == ([] if point == "start" else ["paused"])
        for run in kept:
            assert database.resume(run.id) is not None
    play.check()
    play.repack()
    play.check()


def test_15_objects_that_bear_our_names(play: Play) -> None:
    """15: a trigger called pglean_1_insert, tables called shadow_1 and changes_1: they are the user's, and stay."""
    play.db.execute(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := ''own''; RETURN NEW; END';"
        "CREATE TRIGGER pglean_1_insert BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();"
        "CREATE TRIGGER pglean_1_update BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();"
        "CREATE TRIGGER pglean_1_update_ BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();"
        "CREATE TABLE shadow_1 (a int); CREATE TABLE changes_1 (a int); CREATE TABLE job (a int);"
        "CREATE FUNCTION capture_1_insert() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    )
    before = oracle.definition(play.db)
    with at("swap: before the lock", lambda: play.both("INSERT INTO {t} (id, u, v) VALUES (5000, 5000, 'own')")):
        play.repack()
    assert oracle.definition(play.db) == before
    play.check()


def test_16_snapshot_taken_after_the_copy_was_frozen(play: Play) -> None:
    """16: a REPEATABLE READ transaction that is older than the swap, but not than the copy, reads what it should."""
    old = play.db.connect(autocommit=False)
    old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    expected: list[str] = []

    def look() -> None:
        old.execute("SELECT 1 FROM pg_class")
        expected.extend(oracle.rows(play.db, "t"))

    with (
        at("phase: catching up", look),
        at(
            "swap: before the lock",
            lambda: play.both("DELETE FROM {t} WHERE id < 50; UPDATE {t} SET v = 'x' WHERE id < 99"),
        ),
    ):
        play.repack()
    assert sorted(row for (row,) in old.execute("SELECT t::text FROM t")) == expected
    old.rollback()
    play.check()


def test_16_pages_that_nobody_came_to_use_do_not_count(play: Play) -> None:
    """16: sessions that fill a table side by side leave some at its end, which VACUUM does not take for all-visible."""

    def leave_pages() -> None:
        # COPY extends a table by ever more pages at once (PostgreSQL 16), whether it comes to fill them or not.
        with play.db.connect(autocommit=False) as conn:
            (shadow,) = conn.execute("SELECT 'pglean.shadow_' || max(id) FROM pglean.job").fetchone() or ("",)
            for _ in range(2):
                with conn.cursor().copy(sql.SQL("COPY {} (id, u, grp) FROM STDIN").format(sql.SQL(shadow))) as copy:
                    for number in range(20_000):
                        copy.write_row((-number, -number, 0))
            conn.rollback()

    with at("phase: indexing", leave_pages):
        result = play.repack(analyze=False)
    pages, visible = play.db.fetchall("SELECT relpages, relallvisible FROM pg_class WHERE oid = 't'::regclass")[0]
    assert visible < pages
    assert result.frozen
    play.check()


def test_16_snapshot_older_than_the_copy_is_told_of(play: Play) -> None:
    """16: nothing can be frozen before it has ended; the run says who holds it, and reports that it could not."""
    old = Holder(play.db, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT 1 FROM pg_class")
    old.hold()
    oracle.until(
        lambda: bool(
            play.db.fetchall(
                "SELECT FROM pg_stat_activity WHERE pid = %s AND xact_start < clock_timestamp() - interval '1.1 s'",
                (old.pid,),
            )
        ),
        "the snapshot is more than a second old",
    )
    told: list[str] = []
    result = play.repack(on_progress=lambda progress: told.append(progress.message))
    assert not result.frozen
    assert [message for message in told if f"pid {old.pid}" in message]
    old.conn.rollback()
    play.check()


@pytest.mark.parametrize("point", ["copy: before a chunk", "phase: verifying", "swap: before the lock"])
def test_18a_triggers_switched_off_and_on_again(play: Play, point: str) -> None:
    """18a: as bulk loads do. What was written meanwhile was not recorded, so the copy begins again: nothing is lost."""

    def act() -> None:
        play.each(
            "ALTER TABLE t DISABLE TRIGGER ALL; UPDATE t SET v = 'gap' WHERE id % 2 = 0;"
            "DELETE FROM t WHERE id % 9 = 0; ALTER TABLE t ENABLE TRIGGER ALL",
            "UPDATE m SET v = 'gap' WHERE id % 2 = 0; DELETE FROM m WHERE id % 9 = 0",
        )

    with at(point, act):
        play.repack()
    play.check()


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t DISABLE TRIGGER USER; ALTER TABLE t ENABLE ALWAYS TRIGGER pglean_{job}_update",
        "ALTER TABLE t ENABLE REPLICA TRIGGER pglean_{job}_update",
        "DROP TRIGGER pglean_{job}_update ON t",
        "ALTER TRIGGER pglean_{job}_update ON t RENAME TO zzz",
    ],
)
def test_18a_gap_each_time(play: Play, statement: str) -> None:
    """18a: whoever meddles with our triggers in every attempt gets an error, and a table without them."""

    def act() -> None:
        job = play.db.scalar("SELECT max(id) FROM pglean.job")
        play.each(
            statement.format(job=job) + "; UPDATE t SET v = 'gap' WHERE id = 5", "UPDATE m SET v = 'gap' WHERE id = 5"
        )

    with pausepoint.intercept("phase: verifying", act):
        error = fails(play, CaptureGap)
    assert error.exit_status == 6
    play.check()
    assert play.db.fetchall("SELECT tgname FROM pg_trigger WHERE tgrelid = 't'::regclass AND NOT tgisinternal") == []


def test_24_writes_of_longer_values_after_a_change_of_type(db: Database) -> None:
    """24: a key column that has become wider meanwhile takes wider values at once; our trigger is not in the way."""
    db.execute(
        "CREATE TABLE t (id varchar(5) PRIMARY KEY, n int); INSERT INTO t SELECT g FROM generate_series(1, 99) AS g"
    )

    def act() -> None:
        db.execute("ALTER TABLE t ALTER id TYPE varchar(50)")
        db.execute("INSERT INTO t VALUES (repeat('x', 50))")

    with (
        at("phase: verifying", act),
        pglean.connect(db.conninfo) as database,
        pytest.raises(pglean.errors.TableChanged),
    ):
        database.repack("t")
    assert db.scalar("SELECT count(*) FROM t") == 100
    oracle.assert_nothing_left(db)
