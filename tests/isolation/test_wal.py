"""Changes captured from the WAL: what the application does to the table while it is repacked, and what others have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.capture.wal import WalCapture
from pglean.embedded import EmbeddedServer
from pglean.errors import CaptureGap, LockNotObtained, Paused, PgleanError, Refused, TableChanged
from pglean.locks import OverBudget
from pglean.result import Result
from pglean.rewrite import refresh
from tests.servers import Database, create_database
from tests.support import oracle
from tests.support.play import Background, Play, at, fails
from tests.support.stage import Stage

pytestmark = pytest.mark.in_turn


@pytest.fixture
def play(db: Database) -> Play:
    return Play(db)


def repack(play: Play, **options: object) -> Result:
    return play.repack(**{"capture": "wal", **options})


#: What is written in one transaction at each of `POINTS`; ids are those of no other statement.
STATEMENTS = {
    "keys move": "UPDATE {t} SET id = id + 10000 WHERE id % 4 = {n};"
    " UPDATE {t} SET id = {n} - 10 WHERE id = 10100 + {n}",
    "keys are exchanged": "UPDATE {t} SET id = -1 WHERE id = 11; UPDATE {t} SET id = 11 WHERE id = 12;"
    " UPDATE {t} SET id = 12 WHERE id = -1",
    "unique values are exchanged": "UPDATE {t} SET u = -u WHERE u < 50; UPDATE {t} SET u = 50 + u WHERE u < 0",
    "upserts": "INSERT INTO {t} SELECT g, g, 0, 'upserted' FROM generate_series(1490, 1510) AS g"
    " ON CONFLICT (id) DO UPDATE SET v = {t}.v || '+'",
    "subtransactions": "SAVEPOINT a; UPDATE {t} SET v = 'undone' WHERE id < 100; ROLLBACK TO a;"
    " SAVEPOINT b; DELETE FROM {t} WHERE id = 100 + {n}; RELEASE b; UPDATE {t} SET grp = grp + 1 WHERE id = 200 + {n}",
    "long values": "UPDATE {t} SET v = 'beside' WHERE id % 50 = 0; UPDATE {t} SET id = -id WHERE id % 100 = {n} * 0",
    "asynchronous": "SET LOCAL synchronous_commit = off; UPDATE {t} SET v = v || '?' WHERE id % 5 = {n}",
    "all rows": "SET LOCAL logical_decoding_work_mem = '64kB'; UPDATE {t} SET v = v || '.'",
}
POINTS = ("copy: before a chunk", "phase: indexing", "refresh: between the halves", "swap: before the lock")


@pytest.mark.parametrize("what", STATEMENTS)
def test_changes(play: Play, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "_SHARED_FROM", 1)
    with contextlib.ExitStack() as stack:
        for number, point in enumerate(POINTS):
            stack.enter_context(at(point, partial(play.both, STATEMENTS[what], n=number)))
        result = repack(play)
    assert result.changes_applied > 0
    play.check()


def test_exchange_that_waits_for_snapshots(play: Play) -> None:
    with at("swap: before the lock", lambda: play.both(STATEMENTS["upserts"])):
        repack(play, mvcc_safe=True)
    play.check()


def test_indexes_of_others(play: Play) -> None:
    """Made and rebuilt meanwhile, also that of the key: taken up."""
    with (
        at("phase: indexing", lambda: play.db.connect().execute("CREATE INDEX CONCURRENTLY more ON t (v)")),
        at("phase: verifying", lambda: play.db.connect().execute("REINDEX INDEX CONCURRENTLY t_pkey")),
        at("swap: before the lock", lambda: play.both("UPDATE {t} SET id = -id WHERE id > 1480")),
    ):
        repack(play)
    play.check()


def test_two_phase_commit(play: Play) -> None:
    """Prepared before the slot is there it keeps it from being made; prepared later it counts when it is committed."""
    session = play.db.connect()

    def prepare() -> None:
        session.execute("BEGIN; UPDATE t SET v = 'prepared' WHERE id = 5; UPDATE m SET v = 'prepared' WHERE id = 5")
        session.execute("PREPARE TRANSACTION 'two'")

    with (
        at("copy: before a chunk", prepare),
        at("phase: verifying", lambda: session.execute("COMMIT PREPARED 'two'")),
    ):
        repack(play)
    play.check()


@pytest.mark.newest
def test_commit_that_is_not_visible_yet(play: Play) -> None:
    """In the WAL, decoded, and not to be seen before a standby has it: its records must wait for it."""
    system = psycopg.connect(play.db.conninfo, autocommit=True)
    waiting: list[Background] = []

    def synchronous(name: str) -> None:
        system.execute(sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(name)))
        system.execute("SELECT pg_reload_conf()")
        oracle.until(
            lambda: play.db.connect().execute("SHOW synchronous_standby_names").fetchone() == (name,), "the setting"
        )

    def write() -> None:
        def commit() -> None:
            with play.db.connect(autocommit=False) as session:
                for table in ("t", "m"):
                    session.execute(
                        sql.SQL("UPDATE {} SET v = 'late', id = -id WHERE id BETWEEN 3 AND 9").format(
                            sql.Identifier(table)
                        )
                    )

        waiting.append(Background(commit))
        oracle.until(
            lambda: (
                system.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").fetchone() == (1,)
            ),
            "the commit waits for a standby",
        )

    def hold_and_write() -> None:
        synchronous("nobody")
        write()

    counted: list[int] = []

    def count() -> None:
        counted.append(play.db.scalar("SELECT count(*) FROM pglean.changes_1"))

    def release() -> None:
        # Rounds have passed: what they could not see is there still.
        count()
        synchronous("")
        waiting[0].result()

    try:
        with (
            at("copy: before a chunk", hold_and_write),
            at("phase: ready", release),
        ):
            repack(play)
    finally:
        synchronous("")
        system.close()
    assert counted == [14]
    play.check()


def test_truncate_ends_the_run(play: Play) -> None:
    with at("copy: before a chunk", lambda: play.both("TRUNCATE {t}")):
        fails(play, TableChanged, capture="wal")
    play.check()


@dataclass(frozen=True)
class Kind:
    """A key, and values of it: a third each stays, is rewritten, and comes in."""

    definition: str
    value: str
    before: str = ""


KINDS = {
    "uuid": Kind("k uuid", "md5({i}::text)::uuid"),
    "text": Kind("k text", "E'a\\\\b\\tc\\nd\\r\\\\N ' || {i}"),
    "enum": Kind("k label", "('l' || {i})::label", "CREATE TYPE label AS ENUM ({labels})"),
    "timestamptz": Kind("k timestamptz", "'2000-01-01'::timestamptz + {i} * interval '1.000001 hours'"),
    "float": Kind("k float8", "sqrt({i}) * power(10::float8, {i} % 30)"),
    "numeric": Kind("k numeric", "{i} / 7::numeric"),
    "bytea": Kind("k bytea", "decode(md5({i}::text), 'hex')"),
    "domain": Kind("k positive", "{i}", "CREATE DOMAIN positive AS int CHECK (VALUE >= 0)"),
    "char": Kind("k char(20)", "'c' || {i}"),
    "interval": Kind("k interval", "{i} * interval '-1 day 3.000007 s'"),
    "array": Kind("k int[]", "ARRAY[{i}, NULL, 3]"),
    "composite": Kind('"b B" int, a text, k date', "{i} % 7, {i}::text, '2000-01-01'::date + {i}"),
    "long": Kind("k text", "repeat(md5({i}::text), 60)"),
}


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL", "USING INDEX"])
@pytest.mark.parametrize("kind", KINDS)
def test_keys(db: Database, kind: str, identity: str) -> None:
    what = KINDS[kind]
    if identity != "DEFAULT" and kind not in ("text", "composite", "long"):
        pytest.skip("one kind is like another")
    labels = ", ".join(f"'l{i}'" for i in range(1300))
    if what.before:
        db.execute(what.before.format(labels=labels))
    columns = ", ".join(f"{part.rsplit(' ', 1)[0]}" for part in what.definition.split(", "))
    db.execute(f"CREATE TABLE t (v text, {what.definition.replace(',', ' NOT NULL,')} NOT NULL, w text, gone int)")
    db.execute("ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    if kind == "long":
        db.execute("ALTER TABLE t ALTER k SET STORAGE EXTERNAL")
    if identity == "USING INDEX":
        db.execute(f"CREATE UNIQUE INDEX t_key ON t ({columns}); ALTER TABLE t REPLICA IDENTITY USING INDEX t_key")
    else:
        db.execute(f"ALTER TABLE t ADD PRIMARY KEY ({columns}), REPLICA IDENTITY {identity}")

    def insert(first: int, last: int) -> str:
        value = what.value.format(i="i")
        return (
            f"INSERT INTO t (v, {columns}, w) SELECT repeat(md5(i::text), i % 3 * 100), {value}, 'w' || i"
            f" FROM generate_series({first}, {last}) AS i"
        )

    db.execute(insert(0, 899))
    oracle.repack(
        db,
        "t",
        during=(
            "UPDATE t SET w = w || '!' WHERE right(w, 1) < '3'; DELETE FROM t WHERE right(w, 1) = '4'",
            insert(900, 999) + "; UPDATE t SET w = w || '?' WHERE right(w, 1) = '9'",
            "DELETE FROM t WHERE right(w, 2) = '15'",
        ),
        capture="wal",
    )


@contextlib.contextmanager
def encoded(server: EmbeddedServer, encoding: str) -> Iterator[Database]:
    with create_database(server) as main:
        name = f"{main.name}_{encoding.lower()}"
        main.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
        other = Database(server, name)
        try:
            yield other
        finally:
            other.close()
            main.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_encodings(server: EmbeddedServer, encoding: str) -> None:
    """Names and values that are not ASCII, in the database's own bytes."""
    # The names of the catalog are read as UTF-8, whatever SQL_ASCII means by them.
    name = "k" if encoding == "SQL_ASCII" else "k \u00e9" if encoding == "LATIN1" else "k \u3042"
    raw = {"LATIN1": b"caf\xe9", "SQL_ASCII": b"\xff\xe9x", "EUC_JP": b"\xa4\xa2"}[encoding]
    with encoded(server, encoding) as db:
        db.execute(sql.SQL("CREATE TABLE t ({} text PRIMARY KEY, v text)").format(sql.Identifier(name)))
        session = db.connect()
        session.execute("SET client_encoding = 'SQL_ASCII'")
        cursor = session.cursor()
        cursor.execute(b"INSERT INTO t SELECT '" + raw + b"' || g FROM generate_series(1, 500) g")
        db.execute(
            sql.SQL(
                "CREATE FUNCTION move(text) RETURNS void LANGUAGE sql AS"
                " $$ UPDATE t SET v = $1, {0} = 'moved' || {0} $$"
            ).format(sql.Identifier(name))
        )

        def write() -> None:
            cursor.execute(b"SELECT move('" + raw + b"')")

        with at("phase: indexing", write), pglean.connect(db.conninfo) as database:
            database.repack("t", capture="wal", verify="full")
        assert cursor.execute(b"SELECT count(*) FROM t WHERE v = '" + raw + b"'").fetchone() == (500,)
        oracle.assert_nothing_left(db)
        session.close()


def test_beside_other_publications_slots_and_runs(play: Play) -> None:
    db = play.db
    db.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    db.execute("CREATE PUBLICATION mine FOR TABLE t")
    slot = f"other_{db.name}"
    db.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')")
    before = db.fetchall("SELECT pubname, oid FROM pg_publication ORDER BY 1")
    with (
        at("copy: before a chunk", lambda: play.both("UPDATE {t} SET id = -id WHERE id < 20")),
        at("swap: before the lock", lambda: db.execute("SELECT pg_logical_emit_message(true, 'pglean', 'foreign')")),
    ):
        repack(play)
    assert db.fetchall("SELECT pubname, oid FROM pg_publication ORDER BY 1") == before
    changes = db.fetchall(f"SELECT data FROM pg_logical_slot_peek_changes('{slot}', NULL, NULL)")
    told = {row[0].split(":")[0] for row in changes if row[0].startswith("table")}
    assert told == {"table public.t", "table public.m"}
    play.check()


# ---- what others do to the capture


TAMPERING = {
    "publication of less": "ALTER PUBLICATION pglean_1 SET (publish = 'insert')",
    "publication changed back": "ALTER PUBLICATION pglean_1 SET (publish = 'insert');"
    " ALTER PUBLICATION pglean_1 SET (publish = 'insert, update, delete')",
    "publication dropped": "DROP PUBLICATION pglean_1",
    "key renamed and back": "ALTER TABLE t RENAME id TO x; UPDATE t SET x = -5 WHERE x = 5;"
    " ALTER TABLE t RENAME x TO id",
}


@pytest.mark.parametrize("what", TAMPERING)
@pytest.mark.parametrize("point", ["phase: indexing", "swap: before the lock"])
def test_run_begins_again(play: Play, what: str, point: str) -> None:
    db = play.db
    if "UPDATE" in TAMPERING[what]:
        db.execute("UPDATE m SET id = -5 WHERE id = 5")
    told: list[str] = []
    with at(point, lambda: db.connect().execute(sql.SQL(TAMPERING[what]))), pglean.connect(db.conninfo) as database:
        database.repack(
            "t", capture="wal", verify="full", on_progress=lambda p: told.append(p.message) if p.message else None
        )
    # Where another column list covers the identity of the moment, the server refuses the write itself.
    assert any("begins again" in text for text in told), told
    play.check()


def test_identity_that_is_dropped_makes_no_write_fail_for_long(play: Play) -> None:
    """Dropping the key of a published table makes updates fail, until the publication is gone."""
    db = play.db

    def drop() -> None:
        db.execute("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE m DROP CONSTRAINT m_pkey")

        def writable() -> bool:
            with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
                play.both("UPDATE {t} SET v = 'no key' WHERE id = 7")
                return True
            return False

        oracle.until(writable, "the table can be written to", 5)

    with at("phase: indexing", drop):
        error = fails(play, PgleanError, capture="wal")
    assert error.exit_status in (3, 6), error
    play.check()


def test_identity_that_was_changed_before_it_is_published(play: Play) -> None:
    """Updates would fail: it is looked at under a lock."""

    def change() -> None:
        play.db.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")

    with at("phase: capturing", change):
        error = fails(play, TableChanged, capture="wal")
    assert "the replica identity of public.t was changed" in str(error)
    play.both("UPDATE {t} SET v = 'goes on' WHERE id = 7")
    play.check()


@pytest.mark.parametrize(
    ("ddl", "message"),
    [
        ("ALTER TABLE t REPLICA IDENTITY NOTHING", "the replica identity of public.t is not its key"),
        ("ALTER TABLE t REPLICA IDENTITY USING INDEX t_u_key", "the replica identity of public.t is not its key"),
        (
            "ALTER TABLE t ADD r regclass DEFAULT 't' NOT NULL, DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, r)",
            "regclass",
        ),
    ],
)
def test_refusals(play: Play, ddl: str, message: str) -> None:
    play.db.execute(ddl)
    error = fails(play, Refused, capture="wal")
    assert message in str(error)
    assert isinstance(error, Refused)
    assert {finding.code for finding in error.findings} == {"capture"}
    with pglean.connect(play.db.conninfo) as database:
        plan = database.plan("t", capture="auto")
        assert plan.options.capture is pglean.Capture.TRIGGER
        assert message in plan.steps[0]
        database.repack("t", capture="auto")
    oracle.assert_nothing_left(play.db)


def test_types_of_others(play: Play) -> None:
    db = play.db
    db.execute("DO $$ BEGIN CREATE ROLE mallory; EXCEPTION WHEN duplicate_object THEN END $$")
    db.execute(
        "CREATE TYPE pair AS (a int, b text); CREATE TABLE p (k pair PRIMARY KEY); ALTER TABLE p OWNER TO mallory"
    )
    with pglean.connect(db.conninfo) as database:
        with pytest.raises(Refused, match="which cannot be captured from the WAL"):
            database.repack("p", capture="wal")
        db.execute("ALTER TABLE p OWNER TO CURRENT_USER; INSERT INTO p VALUES ((1, 'x,y'))")
        with at("phase: indexing", lambda: db.execute("INSERT INTO p VALUES ((2, '\"'))")):
            database.repack("p", capture="wal", verify="full")


def test_label_that_is_renamed(db: Database) -> None:
    """What was written under the old label cannot be read: the run begins again, and loses nothing."""
    db.execute("CREATE TYPE e AS ENUM ('a', 'b', 'c'); CREATE TABLE t (k e PRIMARY KEY, v int)")
    db.execute("INSERT INTO t VALUES ('a', 1), ('b', 1)")
    session = db.connect(autocommit=False)

    def rename() -> None:
        session.execute("INSERT INTO t VALUES ('c', 1); UPDATE t SET v = 2")
        session.execute("ALTER TYPE e RENAME VALUE 'c' TO 'd'")
        session.commit()

    with at("phase: indexing", rename), pglean.connect(db.conninfo) as database:
        database.repack("t", capture="wal", verify="full")
    assert db.fetchall("SELECT k::text, v FROM t ORDER BY 1") == [("a", 2), ("b", 2), ("d", 2)]
    oracle.assert_nothing_left(db)


@pytest.mark.newest
def test_labels_that_are_exchanged(db: Database) -> None:
    """What was written under the old ones can be read, as other keys: noticed, also by a run that was kept."""
    db.execute("CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (k e, n int, v text, PRIMARY KEY (k, n))")
    db.execute("INSERT INTO t SELECT 'a', g, 'old' FROM generate_series(1, 50) AS g")

    def pause() -> None:
        raise Paused("paused")

    with pglean.connect(db.conninfo) as database:
        with pausing("phase: indexing", pause), pytest.raises(Paused):
            database.repack("t", capture="wal", max_slot_wal_bytes=1 << 30)
        db.execute("UPDATE t SET v = 'new' WHERE n < 10; DELETE FROM t WHERE n = 20")
        db.execute("ALTER TYPE e RENAME VALUE 'a' TO 'x'; ALTER TYPE e RENAME VALUE 'b' TO 'a'")
        (run,) = database.status()
        database.resume(run.id)
    assert db.fetchall("SELECT k::text, v, count(*) FROM t GROUP BY 1, 2 ORDER BY 2") == [
        ("x", "new", 9),
        ("x", "old", 40),
    ]
    oracle.assert_nothing_left(db)


@pytest.mark.newest
def test_identity_that_is_dropped_while_a_slot_is_waited_for(play: Play) -> None:
    """The table is published by then: the run ends before its time is over, and updates go on."""
    session = play.db.connect(autocommit=False)
    session.execute("CREATE TABLE old ()")
    background = Background(lambda: fails(play, Refused, capture="wal", wait_timeout_s=60))
    oracle.until(lambda: bool(play.db.scalar("SELECT count(*) FROM pg_publication")), "it is published")
    play.db.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")
    oracle.until(lambda: not play.db.scalar("SELECT count(*) FROM pg_publication"), "it is not any more")
    play.both("UPDATE {t} SET v = 'goes on' WHERE id = 7")
    background.result()
    session.rollback()
    play.check()


def test_decoding_that_is_behind(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock is asked for that would be held in vain; the run ends without having cancelled anybody."""
    late: list[str] = []
    pull = WalCapture.pull

    def slow(capture: WalCapture, within_ms: float | None = None, waiting: Callable[[str], None] = late.append) -> None:
        pull(capture, within_ms, waiting)
        if within_ms is not None:
            late.append("under a lock")
            raise OverBudget("The last changes were not decoded in time.")

    with at("phase: swapping", lambda: monkeypatch.setattr(WalCapture, "pull", slow)):
        error = fails(play, LockNotObtained, capture="wal", wait_timeout_s=1)
    assert "decoded" in str(error)
    assert "under a lock" in late
    play.check()


def test_gap_is_an_error_at_last(db: Database) -> None:
    stage = Stage(db)
    name = stage.table.as_string(None)

    def tamper() -> None:
        for (publication,) in db.fetchall("SELECT pubname FROM pg_publication"):
            db.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(publication)))

    with pausing("phase: verifying", tamper), pglean.connect(db.conninfo) as database, pytest.raises(CaptureGap):
        database.repack(name, capture="wal")
    stage.check()


@contextlib.contextmanager
def pausing(point: str, action: Callable[[], None]) -> Iterator[None]:
    """Each time that a run comes to the point."""
    with pglean.pausepoint.intercept(point, action):
        yield
