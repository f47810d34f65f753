"""What other sessions may do at the worst moments: in the copy, within a refresh, just before the swap.

Each case is either taken up, so that table and model hold the same rows afterwards, or ends the run with the documented
error and leaves the table as that session left it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest

import pglean
from pglean.embedded import EmbeddedServer, find_binaries
from pglean.errors import TableChanged
from tests.servers import Database, create_database
from tests.support import oracle
from tests.support.play import Background, Holder, Play, at, fails

pytestmark = pytest.mark.in_turn

#: In the copy, between the halves of a shared refresh, and when only the refresh under the lock is to come.
MOMENTS = ("copy: in a chunk", "refresh: between the halves", "swap: before the lock")

#: What one session does in one transaction; {a} and {b} are rows, {x} and {y} are not there yet.
WRITES = {
    "non-key-update": "UPDATE {t} SET v = 'new' WHERE id = {a}",
    "toasted-value": "UPDATE {t} SET big = repeat(md5(v), 300) WHERE id IN ({a}, {b})",
    "key-update": "UPDATE {t} SET id = {x} WHERE id = {a}",
    "same-row-twice": "UPDATE {t} SET v = 'one' WHERE id = {a}; UPDATE {t} SET v = 'two' WHERE id = {a}",
    "key-twice": "UPDATE {t} SET id = {x} WHERE id = {a}; UPDATE {t} SET id = {y} WHERE id = {x}",
    "there-and-back": "UPDATE {t} SET id = {x} WHERE id = {a}; UPDATE {t} SET id = {a} WHERE id = {x}",
    "delete": "DELETE FROM {t} WHERE id IN ({a}, {b})",
    "insert": "INSERT INTO {t} (id, u, v) VALUES ({x}, {x}, 'new')",
    "insert-update": "INSERT INTO {t} (id, u) VALUES ({x}, {x}); UPDATE {t} SET v = 'upd' WHERE id = {x}",
    "insert-delete": "INSERT INTO {t} (id, u) VALUES ({x}, {x}); DELETE FROM {t} WHERE id = {x}",
    "delete-insert": "DELETE FROM {t} WHERE id = {a}; INSERT INTO {t} (id, u, v) VALUES ({a}, {x}, 'again')",
    "savepoint-rolled-back": """
        SAVEPOINT one; UPDATE {t} SET v = 'lost', id = {x} WHERE id = {a}; ROLLBACK TO one;
        UPDATE {t} SET v = 'kept' WHERE id = {b}""",
    "savepoints-nested": """
        SAVEPOINT one; DELETE FROM {t} WHERE id = {a}; SAVEPOINT two; INSERT INTO {t} (id, u) VALUES ({x}, {x});
        RELEASE two; SAVEPOINT three; DELETE FROM {t} WHERE id = {b}; ROLLBACK TO three; RELEASE one""",
    "moved-away-and-another-moved-onto-it": """
        UPDATE {t} SET id = {x} WHERE id = {a}; UPDATE {t} SET id = {a} WHERE id = {b}""",
    "keys-exchanged": """
        UPDATE {t} SET id = {x} WHERE id = {a}; UPDATE {t} SET id = {a} WHERE id = {b};
        UPDATE {t} SET id = {b} WHERE id = {x}""",
    "unique-values-exchanged": """
        UPDATE {t} SET u = -1 WHERE id = {a}; UPDATE {t} SET u = {a} WHERE id = {b};
        UPDATE {t} SET u = {b} WHERE id = {a}""",
    "unique-value-inherited": "DELETE FROM {t} WHERE id = {a}; INSERT INTO {t} (id, u) VALUES ({x}, {a})",
    "upsert": """
        INSERT INTO {t} (id, u) VALUES ({x}, {x}), ({a}, {y}) ON CONFLICT (id) DO UPDATE SET v = 'upserted';
        INSERT INTO {t} (id, u) VALUES ({x}, {x}), ({b}, {b}) ON CONFLICT DO NOTHING""",
    "merge": """
        MERGE INTO {t} USING (VALUES ({x}), ({y}), ({a}), ({b})) AS s (id) ON {t}.id = s.id
        WHEN MATCHED AND s.id = {a} THEN DELETE WHEN MATCHED THEN UPDATE SET v = 'merged'
        WHEN NOT MATCHED THEN INSERT (id, u) VALUES (s.id, s.id)""",
    "many-rows": "UPDATE {t} SET v = v || '?' WHERE grp = {a} / 100",
    "as-replication-does": """
        SET LOCAL session_replication_role = replica; UPDATE {t} SET v = 'replicated', id = {x} WHERE id = {a};
        DELETE FROM {t} WHERE id = {b}""",
}


@pytest.mark.parametrize("case", WRITES)
@pytest.mark.usefixtures("small_portions")
def test_write_is_taken_up(play: Play, case: str) -> None:
    if case == "merge" and play.db.server.version < 150000:
        pytest.skip("MERGE came with PostgreSQL 15")
    with contextlib.ExitStack() as stack:
        for number, moment in enumerate(MOMENTS):
            first = 250 * number + 101
            rows = {"a": first, "b": first + 30, "x": first + 5000, "y": first + 6000}
            stack.enter_context(at(moment, partial(play.both, WRITES[case], **rows)))
        play.repack()
    play.check()


@pytest.mark.usefixtures("small_portions")
def test_all_writes_at_once_before_the_lock(play: Play) -> None:
    def act() -> None:
        for number, (case, script) in enumerate(WRITES.items()):
            if case != "merge" or play.db.server.version >= 150000:
                first = 60 * number + 10
                play.both(script, a=first, b=first + 15, x=first + 5000, y=first + 7000)

    with at("swap: before the lock", act):
        play.repack()
    play.check()


def test_copy_from(play: Play) -> None:
    def act() -> None:
        for name in ("t", "m"):
            with play.db.connect().cursor().copy(f"COPY {name} (id, u, v) FROM STDIN") as copy:
                for number in range(9000, 9500):
                    copy.write_row((number, number, f"copied {number}"))

    with at("swap: before the lock", act):
        play.repack()
    play.check()


def test_rollback(play: Play) -> None:
    def act() -> None:
        with play.db.connect(autocommit=False) as conn:
            conn.execute("UPDATE t SET id = id + 100000")
            conn.execute("DELETE FROM t WHERE u % 2 = 0")
            conn.rollback()

    with at("copy: in a chunk", act), at("swap: before the lock", act):
        play.repack()
    play.check()


@pytest.mark.parametrize("method", ["range", "hash"])
@pytest.mark.usefixtures("small_portions")
def test_rows_moved_between_partitions(play: Play, method: str) -> None:
    """Into the partition that is repacked, out of it, and through it."""
    values = {
        "range": ("RANGE (grp)", "FROM (0) TO (7)", "FROM (7) TO (1000)"),
        "hash": ("HASH (grp)", "WITH (MODULUS 2, REMAINDER 0)", "WITH (MODULUS 2, REMAINDER 1)"),
    }[method]
    for name in ("t", "m"):
        play.db.execute(f"ALTER TABLE {name} RENAME TO {name}_old")
        play.db.execute(
            f"CREATE TABLE {name}_all (id int, grp int, v text, PRIMARY KEY (id, grp)) PARTITION BY {values[0]};"
            f"CREATE TABLE {name} PARTITION OF {name}_all FOR VALUES {values[1]};"
            f"CREATE TABLE {name}_other PARTITION OF {name}_all FOR VALUES {values[2]};"
            f"INSERT INTO {name}_all SELECT id, grp, v FROM {name}_old"
        )

    def act(low: int) -> None:
        play.both(
            "UPDATE {t}_all SET grp = (grp + 7) % 14, v = 'moved' WHERE id BETWEEN {low} AND {low} + 400", low=low
        )
        play.both("UPDATE {t}_all SET grp = grp + 1 WHERE id % 7 = 1")
        play.both("INSERT INTO {t}_all SELECT 9000 + {low} + g, g, 'new' FROM generate_series(0, 13) AS g", low=low)

    with contextlib.ExitStack() as stack:
        for number, moment in enumerate(MOMENTS):
            stack.enter_context(at(moment, partial(act, 400 * number)))
        play.repack()
    play.check()
    assert oracle.rows(play.db, "t_other") == oracle.rows(play.db, "m_other")


@pytest.mark.usefixtures("small_portions")
def test_foreign_keys_cascade_in_both_directions(play: Play) -> None:
    """Rows of the table go because their parents go; children go, or follow, because the table's rows do."""
    play.db.execute(
        "CREATE TABLE parent (id int PRIMARY KEY);"
        "INSERT INTO parent SELECT DISTINCT grp FROM t;"
        "ALTER TABLE t ADD FOREIGN KEY (grp) REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE;"
        "CREATE TABLE child AS SELECT id AS t_id FROM t WHERE id % 3 = 0;"
        "ALTER TABLE child ADD FOREIGN KEY (t_id) REFERENCES t ON DELETE CASCADE ON UPDATE CASCADE"
    )

    def act(grp: int) -> None:
        play.each(f"DELETE FROM parent WHERE id = {grp}", f"DELETE FROM m WHERE grp = {grp}")
        play.each(
            f"UPDATE parent SET id = id + 100 WHERE id = {grp + 1}",
            f"UPDATE m SET grp = grp + 100 WHERE grp = {grp + 1}",
        )
        play.both("DELETE FROM {t} WHERE grp = {grp} AND id % 2 = 0", grp=grp + 2)
        play.both("UPDATE {t} SET id = id + 10000 WHERE grp = {grp}", grp=grp + 3)

    with contextlib.ExitStack() as stack:
        for number, moment in enumerate(MOMENTS):
            stack.enter_context(at(moment, partial(act, 5 * number)))
        play.repack()
    play.check()
    assert play.db.scalar("SELECT count(*) FROM child") > 100
    assert play.db.scalar("SELECT count(*) FROM child WHERE t_id NOT IN (SELECT id FROM t)") == 0
    assert play.db.scalar("SELECT count(*) FROM child") == play.db.scalar("SELECT count(*) FROM m WHERE u % 3 = 0")
    # They go on working.
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        play.db.execute("INSERT INTO child VALUES (-1)")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        play.db.execute("UPDATE t SET grp = -1 WHERE id = (SELECT min(id) FROM t)")


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param(["SELECT * FROM t WHERE id = 5 FOR UPDATE"], id="for-update"),
        pytest.param(["SELECT * FROM t WHERE id = 5 FOR KEY SHARE"], id="for-key-share"),
        pytest.param(["DECLARE c CURSOR FOR SELECT * FROM t", "FETCH 10 FROM c"], id="cursor"),
        pytest.param(["LOCK TABLE t IN ACCESS SHARE MODE"], id="reader"),
        pytest.param(["UPDATE t SET v = 'held' WHERE id = 5", "UPDATE m SET v = 'held' WHERE id = 5"], id="writer"),
        pytest.param(["SAVEPOINT s", "DELETE FROM t WHERE id = 5", "DELETE FROM m WHERE id = 5"], id="savepoint"),
        pytest.param(["LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE"], id="vacuum-like"),
    ],
)
def test_lock_held_by_another_session(play: Play, statements: list[str]) -> None:
    """The swap waits, tells for whom, and goes on when he is done."""
    holder = Holder(play.db, *statements)
    with at("swap: before the lock", holder.hold):
        play.repack(on_progress=holder.on_progress, lock_timeout_ms=20)
    assert f"pid {holder.pid}" in holder.told[0]
    play.check()


def test_cursor_with_hold_goes_on(play: Play) -> None:
    """It was materialized when its transaction ended: it still shows what it showed."""
    conn = play.db.connect()
    before = play.db.scalar("SELECT count(*) FROM t")

    def declare() -> None:
        with conn.transaction():
            conn.execute("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM t")

    with at("swap: before the lock", declare):
        play.repack()
    assert len(conn.execute("FETCH ALL FROM c").fetchall()) == before
    play.check()


#: What changes nothing that the new files depend on.
HARMLESS = (
    "VACUUM t",
    "VACUUM (FREEZE) t",
    "VACUUM",
    "ANALYZE t",
    "GRANT SELECT ON t TO pg_monitor",
    "GRANT UPDATE (v) ON t TO pg_monitor",
    "COMMENT ON COLUMN t.v IS 'of some value'",
    "ALTER TABLE t SET (fillfactor = 80, toast.autovacuum_enabled = off)",
    "ALTER TABLE t ALTER v SET STATISTICS 500",
    "ALTER TABLE t ALTER v SET DEFAULT 'x'",
    "ALTER TABLE t ADD CHECK (u > -100)",
    "ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "CREATE POLICY p ON t USING (grp = 1)",
    "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
    "CREATE TABLE child (id int REFERENCES t)",
    "CREATE PUBLICATION p FOR TABLE t",
    "CREATE STATISTICS s ON grp, v FROM t",
    "CREATE RULE r AS ON DELETE TO t WHERE old.id < 0 DO INSTEAD NOTHING",
    "ALTER INDEX t_u_key RENAME TO t_u_unique",
    "ALTER TABLE t RENAME CONSTRAINT t_pkey TO t_key",
    "CREATE TABLE t_child () INHERITS (t)",
    "CREATE VIEW w AS SELECT * FROM t",
)


@pytest.mark.parametrize("moment", ["copy: before a chunk", "swap: before the lock"])
def test_change_that_is_taken_up(play: Play, moment: str) -> None:
    definition: list[str] = []

    def act() -> None:
        for statement in HARMLESS:
            play.db.execute(statement)
        play.both("UPDATE {t} SET v = 'after' WHERE id < 50")
        definition.extend(without_ours(play.db))

    with at(moment, act):
        play.repack()
    assert without_ours(play.db) == definition
    play.check()


def without_ours(db: Database) -> list[str]:
    """The definition of the database, without triggers of ours, line by line."""
    return [line for line in oracle.definition(db).splitlines() if "pglean" not in line and line.strip(" -")]


#: What is done to the indexes alone.
OF_INDEXES = {
    "reindex": "REINDEX TABLE t",
    "reindex-concurrently": "REINDEX TABLE CONCURRENTLY t",
    "create-index": "CREATE INDEX ON t (v)",
    "create-index-concurrently": "CREATE INDEX CONCURRENTLY ON t (v)",
    "drop-index": "DROP INDEX t_lower_idx",
    "unique-constraint": "ALTER TABLE t ADD UNIQUE (id, u)",
}


@pytest.mark.parametrize("moment", ["copy: before a chunk", "swap: before the lock"])
@pytest.mark.parametrize("case", OF_INDEXES)
def test_change_to_the_indexes_is_taken_up(play: Play, case: str, moment: str) -> None:
    definition: list[str] = []
    files = "SELECT oid, relfilenode FROM pg_class WHERE relname = 't' OR starts_with(relname, 't_') ORDER BY 1"
    before: list[Any] = []

    def act() -> None:
        play.db.execute(OF_INDEXES[case])
        play.both("UPDATE {t} SET v = 'after' WHERE id < 50")
        definition.extend(without_ours(play.db))
        before.extend(play.db.fetchall(files))

    with at(moment, act):
        play.repack()
    assert without_ours(play.db) == definition
    after = play.db.fetchall(files)
    assert [oid for oid, _ in after] == [oid for oid, _ in before]
    assert not {file for _, file in after} & {file for _, file in before}
    assert play.db.fetchall("SELECT FROM pg_index WHERE indrelid = 't'::regclass AND NOT indisvalid") == []
    play.check()


#: What the copy knows nothing of: the run must end.
FATAL = {
    "truncate": "TRUNCATE t",
    "truncate-and-insert": "TRUNCATE t; INSERT INTO t (id, u) VALUES (1, 1)",
    "delete-and-vacuum-full": "DELETE FROM t WHERE id < 100; VACUUM FULL t",
    "vacuum-full": "VACUUM FULL t",
    "cluster": "CLUSTER t USING t_pkey",
    "add-column": "ALTER TABLE t ADD COLUMN seven int NOT NULL DEFAULT 7",
    "drop-column": "ALTER TABLE t DROP COLUMN v",
    "drop-and-add-column": "ALTER TABLE t DROP COLUMN v, ADD COLUMN v text DEFAULT 'x'",
    "alter-type": "ALTER TABLE t ALTER v TYPE varchar",
    "alter-type-of-the-key": "ALTER TABLE t ALTER id TYPE bigint",
    "set-storage": "ALTER TABLE t ALTER v SET STORAGE PLAIN",
    "set-not-null": "UPDATE t SET v = '' WHERE v IS NULL; ALTER TABLE t ALTER v SET NOT NULL",
    "rename": "ALTER TABLE t RENAME TO t2; CREATE VIEW t AS SELECT * FROM t2",
    "rename-column": "ALTER TABLE t RENAME v TO w",
    "set-schema": "CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s",
    "owner": "ALTER TABLE t OWNER TO pg_monitor",
    "unlogged": "ALTER TABLE t SET UNLOGGED",
    "drop": "DROP TABLE t",
    "drop-and-create": "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY)",
}


@pytest.mark.parametrize("case", FATAL)
def test_change_that_ends_the_run(play: Play, case: str) -> None:
    end_by(play, case, "swap: before the lock")


@pytest.mark.parametrize("case", ["truncate-and-insert", "vacuum-full", "add-column", "rename", "drop-and-create"])
def test_change_that_ends_the_run_while_it_copies(play: Play, case: str) -> None:
    end_by(play, case, "copy: before a chunk")


def end_by(play: Play, case: str, moment: str) -> None:
    """The run ends, and what the other session has made is as that session left it."""
    left: list[Any] = []

    def act() -> None:
        for statement in FATAL[case].split("; "):
            play.db.execute(statement)
        left.append(look(play.db))

    with at(moment, act):
        error = fails(play, TableChanged)
    assert error.exit_status == 6
    assert [look(play.db)] == left
    oracle.assert_nothing_left(play.db)


def look(db: Database) -> list[Any]:
    """What a session has made of the table: files, columns, constraints, and the rows of what bears its name."""
    names = "c.relname IN ('t', 't2') OR starts_with(c.relname::text, 't_')"
    seen: list[Any] = [
        db.fetchall(f"SELECT oid, relname, relfilenode, relowner, relkind FROM pg_class c WHERE {names} ORDER BY 1"),
        db.fetchall(
            "SELECT a.attrelid, a.attname, a.atttypid, a.attisdropped, a.attstorage, a.attmissingval::text"
            f" FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE ({names}) AND attnum > 0 ORDER BY 1, 2"
        ),
        db.fetchall(f"SELECT k.* FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE {names} ORDER BY 1"),
        db.fetchall(
            f"SELECT t.oid, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
            f" WHERE ({names}) AND tgname NOT LIKE 'pglean%' ORDER BY 1"
        ),
    ]
    for (name,) in db.fetchall(
        "SELECT oid::regclass::text FROM pg_class WHERE relname IN ('t', 't2') AND relkind = 'r' ORDER BY 1"
    ):
        seen.append(oracle.rows(db, name))
    return seen


def test_change_between_the_first_two_looks(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column added after the table was loaded and before its fingerprint was taken would be NULL everywhere."""
    from pglean import catalog

    load, looks = catalog.load, 0

    def slow_load(conn: Any, oid: int) -> Any:
        nonlocal looks
        looks += 1
        table = load(conn, oid)
        if looks == 1:
            play.both("ALTER TABLE {t} ADD COLUMN seven int NOT NULL DEFAULT 7")
        return table

    monkeypatch.setattr(catalog, "load", slow_load)
    fails(play, TableChanged)
    monkeypatch.undo()
    play.check()
    play.repack()
    play.check()


# ---- other programs


def test_pg_dump_that_is_running(play: Play) -> None:
    """It locked all tables before it read the first; the swap waits for its end, and what it wrote is complete."""
    # More than a pipe and the buffers of both sides can hold, so that it stands still in the middle.
    play.db.execute("CREATE TABLE a AS SELECT g, repeat(md5(g::text), 100) FROM generate_series(1, 5000) AS g")
    program = play.db.server.bindir / "pg_dump"
    if not program.is_file():
        program = find_binaries() / "pg_dump"
    dumps: list[subprocess.Popen[str]] = []
    output: list[str] = []

    def start() -> None:
        environment = {**os.environ, "PGHOST": str(play.db.server.socket_dir), "PGPORT": str(play.db.server.port)}
        dumps.append(
            subprocess.Popen(
                [str(program), "--username=postgres", play.db.name], env=environment, stdout=subprocess.PIPE, text=True
            )
        )
        oracle.until(
            lambda: (
                play.db.scalar(
                    "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                    " WHERE l.relation = 't'::regclass AND a.application_name = 'pg_dump'"
                )
                == 1
            ),
            "pg_dump has locked the table",
        )
        play.both("DELETE FROM {t} WHERE id <= 500")

    def finish(progress: pglean.Progress) -> None:
        if progress.waiting_for and not output:
            output.append(dumps[0].communicate(timeout=60)[0])

    with at("swap: before the lock", start):
        play.repack(on_progress=finish, lock_timeout_ms=50)
    assert dumps[0].returncode == 0
    copied = output[0].partition("COPY public.t (")[2].partition("\\.\n")[0]
    assert len(copied.splitlines()) - 1 in (1000, 1500)
    play.check()


@contextlib.contextmanager
def subscribed(publisher: Database, subscriber: Database, tables: str) -> Iterator[None]:
    """Replicate from one database to another of the same server, as long as the block lasts."""
    publisher.execute(f"CREATE PUBLICATION p FOR {tables}")
    slot = f"slot_{publisher.name}"
    # How long the launcher lets pass between two starts of workers.
    subscriber.execute("ALTER SYSTEM SET wal_retrieve_retry_interval = '10ms'")
    subscriber.execute("SELECT pg_reload_conf()")
    # Within one server CREATE SUBSCRIPTION cannot make the slot: it would wait for itself.
    publisher.fetchall("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    subscriber.execute(
        f"CREATE SUBSCRIPTION s CONNECTION '{publisher.conninfo}' PUBLICATION p"
        f" WITH (create_slot = false, slot_name = '{slot}', copy_data = false)"
    )
    try:
        yield
    finally:
        subscriber.execute("ALTER SYSTEM RESET wal_retrieve_retry_interval")
        subscriber.execute("ALTER SUBSCRIPTION s DISABLE")
        subscriber.execute("ALTER SUBSCRIPTION s SET (slot_name = NONE)")
        subscriber.execute("DROP SUBSCRIPTION s")


@pytest.fixture
def other(server: EmbeddedServer) -> Iterator[Database]:
    """Another database of the same server."""
    with create_database(server) as database:
        yield database


def replicated(play: Play, other: Database) -> bool:
    """Whether the other database has the same rows."""
    return oracle.rows(other, "t") == oracle.rows(play.db, "t")


def trouble(db: Database) -> int:
    """Errors of the subscription's workers, where the server counts them."""
    if db.server.version < 150000:
        return 0
    return int(
        # The columns are not called the same in all versions.
        db.scalar(
            "SELECT coalesce(sum(value::bigint), 0) FROM pg_stat_subscription_stats AS s, jsonb_each_text(to_jsonb(s))"
            " WHERE key LIKE '%error_count'"
        )
    )


@pytest.mark.parametrize(
    ("tables", "first_run"),
    [
        pytest.param("ALL TABLES", True, id="all-tables-first-run"),
        pytest.param("ALL TABLES", False, id="all-tables"),
        pytest.param("TABLES IN SCHEMA public, pglean", False, id="schema", marks=pytest.mark.min_version(15)),
    ],
)
@pytest.mark.usefixtures("small_portions")
def test_publisher(play: Play, other: Database, tables: str, first_run: bool) -> None:
    """Subscribers get what was written before, during and after, and never hear of our tables."""
    Play(other)
    if not first_run:
        # Both have the schema pglean, so that whatever were published of it would even find its table.
        for db in (play.db, other):
            with pglean.connect(db.conninfo) as database:
                database.repack("t")
    with subscribed(play.db, other, tables):
        with contextlib.ExitStack() as stack:
            for number, moment in enumerate((*MOMENTS, "swap: after the commit")):
                stack.enter_context(
                    at(
                        moment,
                        partial(
                            play.both,
                            "UPDATE {t} SET v = 'during', big = repeat(md5(v), 300) WHERE grp = {grp};"
                            "INSERT INTO {t} (id, u) VALUES ({x}, {x}); DELETE FROM {t} WHERE id = 100 * {grp} + 1",
                            grp=number,
                            x=5000 + number,
                        ),
                    )
                )
            play.repack()
        play.both("UPDATE {t} SET v = 'after', id = id + 20000 WHERE id % 10 = 3")
        oracle.until(lambda: replicated(play, other), "the subscriber has all rows")
        assert trouble(other) == 0
        if not first_run:
            assert other.scalar("SELECT count(*) FROM pglean.job") == 1
    play.check()


@pytest.mark.usefixtures("small_portions")
def test_subscriber(play: Play, other: Database) -> None:
    """The apply worker is the writer of the table that is repacked."""
    Play(other)
    with subscribed(other, play.db, "TABLE t, m"):

        def act(number: int) -> None:
            for name in ("t", "m"):
                other.execute(
                    f"UPDATE {name} SET v = 'upstream', id = id + 10000 WHERE grp = {number};"
                    f"DELETE FROM {name} WHERE grp = {number + 5};"
                    f"INSERT INTO {name} (id, u) VALUES ({7000 + number}, -5 - {number})"
                )
            oracle.until(lambda: replicated(play, other), "the changes are applied")

        with contextlib.ExitStack() as stack:
            for number, moment in enumerate(MOMENTS):
                stack.enter_context(at(moment, partial(act, number)))
            play.repack()
        other.execute("UPDATE t SET v = 'later'; UPDATE m SET v = 'later'")
        oracle.until(lambda: replicated(play, other), "the changes are applied")
        oracle.until(lambda: oracle.rows(other, "m") == oracle.rows(play.db, "m"), "the changes are applied")
        assert trouble(play.db) == 0
    play.check()


def test_truncate_by_replication(play: Play, other: Database) -> None:
    """TRUNCATE that comes from upstream is TRUNCATE."""
    Play(other)
    with subscribed(other, play.db, "TABLE t"):

        def act() -> None:
            other.execute("TRUNCATE t")
            oracle.until(lambda: replicated(play, other), "the table is truncated")

        with at("swap: before the lock", act):
            fails(play, TableChanged)
        other.execute("INSERT INTO t (id, u) VALUES (1, 1)")
        oracle.until(lambda: replicated(play, other), "the row is there")
    assert len(oracle.rows(play.db, "t")) == 1
    oracle.assert_nothing_left(play.db)


def test_slot_that_is_read_after_the_swap(play: Play) -> None:
    """Changes made before, during and after, decoded only when the old files are long gone: each once, none of ours."""
    play.db.execute("CREATE PUBLICATION p FOR ALL TABLES")
    slots = {"text": "test_decoding", "binary": "pgoutput"}
    names = {kind: f"{kind}_{play.db.name}" for kind in slots}
    for kind, plugin in slots.items():
        play.db.fetchall("SELECT pg_create_logical_replication_slot(%s, %s)", (names[kind], plugin))
    change = "UPDATE {t} SET v = 'seen', big = repeat(md5(v), 300) WHERE grp = {grp}"
    play.both(change, grp=1)
    with at("swap: before the lock", lambda: play.both(change, grp=2)):
        play.repack()
    play.both(change, grp=3)
    text = [
        row[0]
        for row in play.db.fetchall("SELECT data FROM pg_logical_slot_get_changes(%s, NULL, NULL)", (names["text"],))
    ]
    assert len([line for line in text if line.startswith("table public.t: UPDATE:")]) == 300
    assert not [line for line in text if line.startswith("table ") and not line.startswith("table public.")]
    assert not [line for line in text if line.startswith("table public.t:") and "UPDATE" not in line]
    binary = [
        bytes(row[0])
        for row in play.db.fetchall(
            "SELECT data FROM"
            " pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1', 'publication_names', 'p')",
            (names["binary"],),
        )
    ]
    assert len([message for message in binary if message[:1] == b"U"]) == 600
    assert not [message for message in binary if message[:1] == b"R" and b"pglean" in message]
    play.check()


def test_standby(play: Play) -> None:
    """It follows; promoted in the middle of a run it has what `cleanup` needs to undo what the run has made."""
    play.db.execute("CREATE EXTENSION amcheck")
    primary = play.db.server
    standby = primary.standby()
    try:
        standby.start()
        copy = Database(standby, play.db.name)

        def caught_up() -> bool:
            position = play.db.scalar("SELECT pg_current_wal_insert_lsn()")
            return bool(copy.scalar("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)))

        def follow() -> None:
            play.both("UPDATE {t} SET v = 'standby', id = id + 30000 WHERE grp = 4")
            # Ours commits asynchronously: a later commit brings the WAL along.
            oracle.until(caught_up, "the standby has replayed the WAL")
            assert oracle.rows(copy, "t") == oracle.rows(copy, "m")

        with at("copy: before a chunk", follow), at("swap: after the commit", follow):
            play.repack()
        follow()
        assert copy.fetchall("SELECT relfilenode FROM pg_class WHERE oid = 't'::regclass") == play.db.fetchall(
            "SELECT relfilenode FROM pg_class WHERE oid = 't'::regclass"
        )

        def promote() -> None:
            follow()
            copy.fetchall("SELECT pg_promote()")
            assert len(oracle.rows(copy, "t")) == 1500

        with at("swap: before the lock", promote):
            play.repack()
        play.check()
        with pglean.connect(copy.conninfo) as database:
            ((status, remains),) = database.cleanup()
            assert (status.state, remains) == ("interrupted", [])
            assert oracle.rows(copy, "t") == oracle.rows(copy, "m")
            database.repack("t", verify="full")
        assert oracle.rows(copy, "t") == oracle.rows(copy, "m")
        oracle.assert_sound(copy, "t")
        oracle.assert_nothing_left(copy)
        copy.close()
    finally:
        standby.close(mode="immediate")


def test_ddl_that_waits_for_a_refresh(play: Play) -> None:
    """Asked for within a round, it gets its lock when the round is over, and the run ends; nobody waits for the run."""
    waiting: list[Background] = []

    def ask() -> None:
        conn = play.db.connect()
        waiting.append(Background(lambda: conn.execute("TRUNCATE t")))
        oracle.until(
            lambda: bool(play.db.fetchall("SELECT FROM pg_locks WHERE relation = 't'::regclass AND NOT granted")),
            "TRUNCATE waits for its lock",
        )

    with at("refresh: before the commit", ask, nth=3):
        fails(play, TableChanged)
    waiting[0].result()
    assert oracle.rows(play.db, "t") == []
    oracle.assert_nothing_left(play.db)
