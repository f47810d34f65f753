"""DDL of other sessions in every phase: taken up, or a clear end with exit status 6 and nothing left.

Just before the swap, and in the copy, some of it is tried in `test_cases_before_swap` as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean import pausepoint
from pglean.embedded import EmbeddedServer
from pglean.errors import LockNotObtained, PgleanError, TableChanged
from pglean.result import Result
from pglean.rewrite import indexes, ready
from pglean.rewrite import job as jobs
from tests.servers import Database
from tests.support import oracle
from tests.support.play import Background, Play, at

pytestmark = [pytest.mark.newest, pytest.mark.usefixtures("small_portions")]

#: Where a run stands still, by the phase; when the copy is ready with `--hold` it does not, but goes round and round.
PHASES = {
    "copying": "copy: before a chunk",
    "indexing": "index: before a build",
    "catching-up": "phase: catching up",
    "ready": None,
    "swapping": "swap: before the lock",
}


@pytest.fixture(autouse=True)
def lively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes round more often than once a second."""
    monkeypatch.setattr(ready, "_SYNC_S", 0.05)


def repack_while(play: Play, phase: str, act: Callable[[], None], **options: Any) -> Result:
    """Repack the table while `act` is done once in a phase; raises what the run raises."""
    point = PHASES[phase]
    if point is not None:
        with at(point, act):
            return play.repack(**options)
    done: list[int] = []

    def on_progress(progress: pglean.Progress) -> None:
        if "pglean swap" not in progress.waiting_for:
            return
        done.append(progress.job)
        if len(done) == 1:
            act()
        elif len(done) == 3:
            # It has been round once more since.
            with pglean.connect(play.db.conninfo) as database:
                database.swap(progress.job)

    result = play.repack(hold=True, on_progress=on_progress, **options)
    assert done
    return result


def write(play: Play) -> None:
    play.both(
        "DELETE FROM {t} WHERE id % 50 = 1; UPDATE {t} SET v = v || 'x', grp = grp + 1 WHERE id % 50 = 2;"
        "UPDATE {t} SET id = -id WHERE id % 50 = 3;"
        "INSERT INTO {t} (id, u) SELECT m, m FROM (SELECT max(id) + 1 AS m FROM {t}) AS s"
    )


def execute(play: Play, script: str) -> None:
    for statement in script.split(";"):
        if statement.strip():
            play.db.execute(sql.SQL(statement))


def without_ours(db: Database) -> list[str]:
    """The definition of the database, without triggers of ours, line by line."""
    return [line for line in oracle.definition(db).splitlines() if "pglean" not in line and line.strip(" -")]


def relations(db: Database) -> dict[str, tuple[int, int, int]]:
    """The table and its indexes: OID, file, tablespace."""
    return {
        name: (oid, file, space)
        for name, oid, file, space in db.fetchall(
            "SELECT relname, oid, relfilenode, reltablespace FROM pg_class WHERE oid = 't'::regclass"
            " OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 't'::regclass)"
        )
    }


def assert_taken_up(play: Play, phase: str, script: str, **options: Any) -> None:
    """The run succeeds, and all is as the other session left it, in new files."""
    left: list[Any] = []

    def act() -> None:
        write(play)
        execute(play, script)
        write(play)
        left.extend([without_ours(play.db), relations(play.db)])

    repack_while(play, phase, act, **options)
    definition, before = left
    assert without_ours(play.db) == definition
    after = relations(play.db)
    assert {name: (oid, space) for name, (oid, _, space) in after.items()} == {
        name: (oid, space) for name, (oid, _, space) in before.items()
    }
    assert [name for name, (_, file, _) in after.items() if file == before[name][1]] == []
    oracle.assert_sound(play.db, "t")
    play.check()
    write(play)
    play.check()
    oracle.assert_sound(play.db, "t")


def assert_ends(play: Play, phase: str, script: str) -> TableChanged:
    """The run ends with exit status 6, and leaves the table to whoever changed it."""
    left: list[Any] = []

    def act() -> None:
        execute(play, script)
        left.extend([without_ours(play.db), oracle.rows(play.db, "m")])

    with pytest.raises(TableChanged) as caught:
        repack_while(play, phase, act)
    assert caught.value.exit_status == 6
    assert left == [without_ours(play.db), oracle.rows(play.db, "m")]
    oracle.assert_nothing_left(play.db)
    return caught.value


# ---- what is taken up

HARMLESS = """
    GRANT SELECT ON t TO pg_monitor; GRANT UPDATE (v) ON t TO pg_monitor; COMMENT ON TABLE t IS 'a table';
    COMMENT ON INDEX t_pkey IS 'a key'; ALTER TABLE t ALTER v SET STATISTICS 500; ALTER TABLE t SET (fillfactor = 70);
    CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
    DROP TRIGGER f ON t; CREATE TRIGGER g BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION same();
    VACUUM t; ANALYZE t; VACUUM (FREEZE) t; CREATE STATISTICS s ON grp, v FROM t
"""
SAME = "CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"

MADE = """
    CREATE INDEX made ON t (v); CREATE INDEX CONCURRENTLY beside ON t (grp, u DESC NULLS LAST);
    CREATE UNIQUE INDEX ON t (id, u); CREATE UNIQUE INDEX CONCURRENTLY ON t (u) INCLUDE (v) WHERE u > 10;
    CREATE INDEX ON t (upper(v), (grp + 1)) INCLUDE (u) WITH (fillfactor = 60);
    CREATE INDEX partial ON t (id) WHERE grp IN (1, 2); CREATE INDEX ON t USING brin (u);
    CREATE INDEX CONCURRENTLY ON t USING gin (string_to_array(v, '1')); CREATE INDEX ON t USING hash (v);
    ALTER TABLE t ADD CONSTRAINT both_of_them UNIQUE (u, id) DEFERRABLE INITIALLY DEFERRED;
    ALTER TABLE t ADD EXCLUDE USING btree ((id * 2) WITH =)
"""

CHANGED = """
    DROP INDEX t_lower_idx; DROP INDEX CONCURRENTLY gone; REINDEX INDEX t_pkey; REINDEX INDEX CONCURRENTLY t_u_key;
    ALTER INDEX kept SET (fillfactor = 50); ALTER INDEX kept RENAME TO renamed; ALTER INDEX other RENAME TO swapped;
    ALTER INDEX third RENAME TO other; ALTER TABLE t CLUSTER ON renamed; REINDEX TABLE CONCURRENTLY t
"""


@pytest.mark.parametrize("phase", ["indexing", "catching-up", "ready"])
def test_what_leaves_rows_and_indexes_alone(play: Play, phase: str) -> None:
    play.db.execute(SAME)
    assert_taken_up(play, phase, HARMLESS)


@pytest.mark.parametrize("phase", PHASES)
def test_indexes_made(play: Play, phase: str) -> None:
    assert_taken_up(play, phase, MADE)


@pytest.mark.parametrize("phase", PHASES)
def test_indexes_dropped_and_changed(play: Play, phase: str) -> None:
    play.db.execute(
        "CREATE INDEX gone ON t (grp); CREATE INDEX kept ON t (grp, v); CREATE INDEX other ON t (v);"
        "CREATE INDEX third ON t (v DESC)"
    )
    assert_taken_up(play, phase, CHANGED)


@pytest.fixture
def tablespace(server: EmbeddedServer) -> Iterator[str]:
    """A tablespace of its own."""
    if server.version < 150000:
        pytest.skip("allow_in_place_tablespaces came with PostgreSQL 15")
    with psycopg.connect(server.conninfo(), autocommit=True) as conn:
        conn.execute("SET allow_in_place_tablespaces = on")
        conn.execute("CREATE TABLESPACE of_others LOCATION ''")
        try:
            yield "of_others"
        finally:
            # The table of the test may still be there.
            for (name,) in conn.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test_%'").fetchall():
                with psycopg.connect(server.conninfo(name), autocommit=True) as inside:
                    inside.execute("ALTER INDEX ALL IN TABLESPACE of_others SET TABLESPACE pg_default")
            conn.execute("DROP TABLESPACE of_others")


@pytest.mark.parametrize("phase", ["indexing", "catching-up", "swapping"])
def test_indexes_moved_to_another_tablespace(play: Play, tablespace: str, phase: str) -> None:
    assert_taken_up(
        play,
        phase,
        f"ALTER INDEX t_u_key SET TABLESPACE {tablespace}; REINDEX (TABLESPACE {tablespace}) INDEX t_lower_idx;"
        f"CREATE INDEX ON t (v) TABLESPACE {tablespace}",
    )


def test_index_made_twice_and_dropped_again(play: Play) -> None:
    """In several phases of one run."""
    with (
        at("copy: before a chunk", lambda: execute(play, "CREATE INDEX one ON t (v); CREATE INDEX two ON t (grp)")),
        at("index: after a build", lambda: execute(play, "DROP INDEX one")),
        at("phase: verifying", lambda: execute(play, "CREATE INDEX one ON t (v)")),
    ):
        assert_taken_up(play, "swapping", "DROP INDEX two; CREATE UNIQUE INDEX two ON t (grp, id)")


def test_index_dropped_while_its_twin_is_made(play: Play) -> None:
    """Between being taken up and being built."""
    made: list[int] = []

    def drop() -> None:
        if made:
            execute(play, "DROP INDEX one; CREATE INDEX other ON t (v)")

    def make() -> None:
        execute(play, "CREATE INDEX one ON t (v)")
        made.append(1)

    # The second time that it comes to indexing, it is to build it.
    with at("phase: indexing", drop, nth=2):
        assert_taken_up_after(play, make)


@pytest.mark.parametrize("catalog", ["pg_attribute", "pg_opclass"])
def test_index_dropped_while_its_definition_is_read(play: Play, catalog: str) -> None:
    """The server ends in an internal error then; it is as if the index had not been there, what came before stays."""
    execute(play, "CREATE INDEX one ON t (v); CREATE INDEX two ON t (v)")
    one, two = (play.db.scalar("SELECT %s::regclass::oid", (name,)) for name in ("one", "two"))
    waiting = "SELECT FROM pg_locks WHERE NOT granted AND pid = %s"
    with pglean.connect(play.db.conninfo) as database, database.server.connect("test") as conn:
        pid = conn.info.backend_pid
        conn.execute("BEGIN; CREATE TEMPORARY TABLE before ()")
        # From here on neither session looks anything up that is not about the other index.
        assert indexes._definitions(conn, [one]).keys() == {one}
        assert play.db.fetchall(waiting, (pid,)) == []
        other = play.db.connect(autocommit=False)
        other.execute(sql.SQL("LOCK TABLE pg_catalog.{}").format(sql.Identifier(catalog)))
        reading = Background(lambda: indexes._definitions(conn, [two, one]))
        oracle.until(lambda: reading.done or bool(play.db.fetchall(waiting, (pid,))), "it stands in the middle")
        assert not reading.done
        other.execute("DROP INDEX two")
        other.commit()
        assert reading.result().keys() == {one}
        conn.execute("TABLE before; COMMIT")


def test_table_dropped_while_its_lock_is_waited_for(play: Play) -> None:
    """To read its size."""
    other = play.db.connect(autocommit=False)
    other.execute("DROP TABLE t")
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'pglean %'"
    running = Background(play.repack)
    oracle.until(lambda: running.done or bool(play.db.fetchall(waiting)), "it waits")
    other.commit()
    with pytest.raises(TableChanged, match="no longer exists"):
        running.result()


def test_index_dropped_before_its_twin_is_made(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has not begun to copy: it begins again, with the indexes that are there."""
    create = indexes._create
    execute(play, "CREATE INDEX one ON t (v)")

    def drop_first(*arguments: Any) -> int:
        pausepoint.reach("twin")
        return create(*arguments)

    monkeypatch.setattr(indexes, "_create", drop_first)
    told: list[str] = []
    with at("twin", lambda: execute(play, "DROP INDEX one")):
        play.repack(on_progress=lambda progress: told.append(progress.message))
    assert any("the run begins again" in message for message in told)
    oracle.assert_sound(play.db, "t")
    play.check()


def assert_taken_up_after(play: Play, act: Callable[[], None]) -> None:
    with at("phase: catching up", act):
        play.repack()
    oracle.assert_sound(play.db, "t")
    play.check()


# ---- the key

EQUAL = "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)"


@pytest.mark.parametrize("phase", PHASES)
def test_primary_key_replaced_by_an_equal_one(play: Play, phase: str) -> None:
    assert_taken_up(play, phase, EQUAL)


def test_primary_key_replaced_without_a_gap(play: Play) -> None:
    """As it is done on large tables."""
    assert_taken_up(
        play,
        "swapping",
        "CREATE UNIQUE INDEX CONCURRENTLY fresh ON t (id);"
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD CONSTRAINT t_pkey PRIMARY KEY USING INDEX fresh",
    )


@pytest.mark.parametrize("phase", PHASES)
def test_key_dropped(play: Play, phase: str) -> None:
    """Another unique index is there; but what was recorded is the first."""
    error = assert_ends(play, phase, "ALTER TABLE t DROP CONSTRAINT t_pkey")
    assert "the key of public.t" in str(error)


@pytest.mark.parametrize("columns", ["same", "other", "mark"])
def test_key_changed_while_the_run_is_kept(play: Play, columns: str) -> None:
    """What was recorded are values of the old key, of the same type: as those of the new one they would be others'."""
    if columns == "mark":
        for name in ("t", "m"):
            play.db.execute(
                f"ALTER TABLE {name} DROP CONSTRAINT {name}_pkey; CREATE UNIQUE INDEX {name}_id ON {name} (id);"
                f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX {name}_id"
            )
    play.both("UPDATE {t} SET u = -u")
    play.both("UPDATE {t} SET u = -u + 1")

    def stop() -> None:
        raise LockNotObtained("as if")

    with at("phase: catching up", stop), pytest.raises(LockNotObtained):
        play.repack()
    play.both("UPDATE {t} SET v = 'kept', id = -id WHERE id BETWEEN 100 AND 200; DELETE FROM {t} WHERE id = 300")
    execute(
        play,
        {
            "same": EQUAL,
            "other": "ALTER TABLE t DROP CONSTRAINT t_pkey",
            "mark": "ALTER TABLE t REPLICA IDENTITY USING INDEX t_u_key",
        }[columns],
    )
    play.both("UPDATE {t} SET v = 'later' WHERE id BETWEEN 400 AND 500")
    with pglean.connect(play.db.conninfo) as database:
        (run,) = database.status()
        if columns == "same":
            assert database.resume(run.id) is not None
        else:
            # What was copied is worth nothing: it begins again, or has ended.
            with contextlib.suppress(TableChanged):
                result = database.resume(run.id)
                assert result is not None
                assert result.job != run.id
            assert database.status() == []
    play.check()
    play.repack()
    play.check()


def keyless(play: Play) -> None:
    """Not even NULL is missing for a key, but an index."""
    for name in ("t", "m"):
        play.db.execute(f"ALTER TABLE {name} DROP CONSTRAINT {name}_pkey, DROP CONSTRAINT {name}_u_key")


@pytest.mark.parametrize("phase", PHASES)
def test_key_made_for_a_table_without_one(play: Play, phase: str) -> None:
    """The run goes on with images of rows, as it was begun; the next one has the key."""
    keyless(play)
    assert_taken_up(play, phase, "CREATE UNIQUE INDEX fresh ON t (id); ALTER TABLE t REPLICA IDENTITY FULL")


@pytest.mark.parametrize("how", ["made", "dropped"])
def test_key_made_or_dropped_while_the_run_is_kept(play: Play, how: str) -> None:
    if how == "made":
        keyless(play)

    def stop() -> None:
        raise LockNotObtained("as if")

    with at("phase: catching up", stop), pytest.raises(LockNotObtained):
        play.repack()
    play.both("UPDATE {t} SET v = 'kept', id = -id WHERE id BETWEEN 100 AND 200; DELETE FROM {t} WHERE id = 300")
    if how == "made":
        execute(play, "ALTER TABLE t ADD PRIMARY KEY (id)")
    else:
        execute(play, "ALTER TABLE t DROP CONSTRAINT t_pkey, DROP CONSTRAINT t_u_key")
    play.both("UPDATE {t} SET v = 'later' WHERE id BETWEEN 400 AND 500")
    with pglean.connect(play.db.conninfo) as database:
        (run,) = database.status()
        if how == "made":
            result = database.resume(run.id)
            assert result is not None
            assert result.job == run.id
        else:
            with pytest.raises(TableChanged):
                database.resume(run.id)
        assert database.status() == []
    play.check()
    play.repack()
    play.check()


def test_lost_between_taking_up_and_building(play: Play) -> None:
    """What was taken up is known to whoever goes on with the run, and so is that it is not built."""

    def stop() -> None:
        raise LockNotObtained("as if")

    with (
        at("phase: verifying", lambda: execute(play, "CREATE INDEX late ON t (v); DROP INDEX t_lower_idx")),
        at("phase: indexing", stop, nth=2),
        pytest.raises(LockNotObtained),
    ):
        play.repack()
    write(play)
    # As if it had not come to noting the phase.
    play.db.execute("UPDATE pglean.job SET phase = 50")
    with pglean.connect(play.db.conninfo) as database:
        (run,) = database.status()
        assert database.resume(run.id) is not None
    oracle.assert_sound(play.db, "t")
    play.check()


# ---- what is in progress


def old_snapshot(play: Play) -> psycopg.Connection[Any]:
    """A transaction that keeps CREATE INDEX CONCURRENTLY from coming to an end, and no swap from coming about."""
    conn = play.db.connect()
    conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
    return conn


@pytest.mark.parametrize("phase", ["copying", "indexing", "swapping"])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX CONCURRENTLY slow ON t (v)",
        "CREATE UNIQUE INDEX CONCURRENTLY slow ON t (u, id)",
        "REINDEX INDEX CONCURRENTLY t_u_key",
        "DROP INDEX CONCURRENTLY t_lower_idx",
    ],
    ids=["create", "unique", "reindex", "drop"],
)
def test_still_in_progress_at_the_swap(play: Play, statement: str, phase: str) -> None:
    """The swap waits for its end, says for what, and the index is taken up."""
    blocker = old_snapshot(play) if "DROP" not in statement else play.db.connect()
    running: list[Background] = []
    told: list[str] = []

    def start() -> None:
        if "DROP" in statement:
            # It waits for whoever has a lock on the table.
            blocker.execute("BEGIN; SELECT FROM t WHERE id = 1")
        conn = play.db.connect()
        running.append(Background(lambda: conn.execute(sql.SQL(statement))))
        waits = "SELECT count(*) FROM pg_locks WHERE pid = %s AND NOT granted AND locktype = 'virtualxid'"
        oracle.until(lambda: play.db.scalar(waits, (conn.info.backend_pid,)) == 1, "it waits for the end of another")
        write(play)

    def on_progress(progress: pglean.Progress) -> None:
        if "nvalid" in progress.waiting_for:
            told.append(progress.waiting_for)
            blocker.execute("ROLLBACK")

    with at(str(PHASES[phase]), start):
        play.repack(on_progress=on_progress)
    running[0].result()
    assert told
    assert "is invalid, or being built by another session" in told[0]
    oracle.assert_sound(play.db, "t")
    play.check()
    assert play.db.fetchall("SELECT FROM pg_index WHERE indrelid = 't'::regclass AND NOT indisvalid") == []


@pytest.mark.parametrize("phase", ["copying", "indexing", "swapping"])
def test_invalid_index_is_left_behind(play: Play, phase: str) -> None:
    """Somebody's CREATE INDEX CONCURRENTLY fails: the run cannot know, waits, and is kept with exit status 4."""

    def fail() -> None:
        write(play)
        with pytest.raises(psycopg.errors.UniqueViolation):
            play.db.execute("CREATE UNIQUE INDEX CONCURRENTLY bad ON t (grp)")
        write(play)

    with pytest.raises(LockNotObtained) as caught:
        repack_while(play, phase, fail, wait_timeout_s=1)
    assert caught.value.exit_status == 4
    assert "Index bad is invalid" in str(caught.value)
    assert "is kept" in str(caught.value)
    write(play)
    with pglean.connect(play.db.conninfo) as database:
        (run,) = database.status()
        with pytest.raises(PgleanError) as refused:
            database.resume(run.id)
        assert "bad" in str(refused.value)
        assert [(each.id, each.state) for each in database.status()] == [(run.id, "paused")]
        play.db.execute("DROP INDEX bad")
        assert database.resume(run.id) is not None
    oracle.assert_sound(play.db, "t")
    play.check()


# ---- what ends the run

FATAL = {
    "add-column": "ALTER TABLE t ADD COLUMN seven int NOT NULL DEFAULT 7",
    "alter-type": "ALTER TABLE t ALTER v TYPE varchar(100)",
    "alter-type-of-the-key": "ALTER TABLE t ALTER id TYPE bigint",
    "truncate": "TRUNCATE t",
    "vacuum-full": "VACUUM FULL t",
    "cluster": "CLUSTER t USING t_pkey",
    "rename": "ALTER TABLE t RENAME TO t2",
    "rename-column": "ALTER TABLE t RENAME id TO ident",
    "set-schema": "CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s",
    "owner": "ALTER TABLE t OWNER TO pg_monitor",
    "drop": "DROP TABLE t",
    "index-and-column": "CREATE INDEX ON t (v); ALTER TABLE t ADD COLUMN seven int",
    "whole-row-index": "CREATE FUNCTION h(t) RETURNS int IMMUTABLE LANGUAGE sql RETURN ($1).id;"
    "CREATE INDEX ON t (h(t))",
}


@pytest.mark.parametrize(
    ("case", "phase"),
    [
        (case, phase)
        for number, case in enumerate(FATAL)
        for phase in [("indexing", "catching-up", "ready")[number % 3], *(["copying"] if number % 4 == 2 else [])]
    ],
)
def test_change_that_ends_the_run(play: Play, case: str, phase: str) -> None:
    assert_ends(play, phase, FATAL[case])


@pytest.mark.parametrize("phase", ["indexing", "ready", "swapping"])
def test_triggers_switched_off_for_good(play: Play, phase: str) -> None:
    """Nothing was recorded since: the run begins again, with triggers of its own."""

    def switch_off() -> None:
        play.db.execute("ALTER TABLE t DISABLE TRIGGER ALL")
        write(play)

    repack_while(play, phase, switch_off)
    play.check()


# ---- who waits for whom


@pytest.mark.parametrize("late", [False, True], ids=["twins", "late-index"])
def test_nobody_waits_for_the_run(play: Play, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, in and after each build, also of an index made late, and between all steps: DDL gets its lock at once.

    The run stands still meanwhile. (In a chunk, a refresh and a verification it holds ACCESS SHARE.)
    """
    conn = play.db.connect()
    conn.execute("SET lock_timeout = '1s'")
    count = 0

    def alter() -> None:
        nonlocal count
        count += 1
        conn.execute("ALTER TABLE t ALTER grp SET DEFAULT 0")

    def make() -> None:
        if late:
            execute(play, "CREATE INDEX late ON t (v)")

    record = jobs.record_built

    def record_built(*args: Any) -> None:
        # In the transaction of the build.
        alter()
        record(*args)

    monkeypatch.setattr(jobs, "record_built", record_built)
    with contextlib.ExitStack() as stack:
        for point in ("capture: prepared", "copy: before a chunk", "index: before a build", "index: after a build"):
            stack.enter_context(pausepoint.intercept(point, alter))
        for point in ("refresh: before a round", "phase: catching up", "phase: ready", "swap: before the lock"):
            stack.enter_context(pausepoint.intercept(point, alter))
        stack.enter_context(at("phase: verifying", make))
        play.repack()
    assert count > 10
    play.check()
