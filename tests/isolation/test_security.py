"""G8: code of a table's owner never runs with the rights of the administrator who repacks the table.

Role ``mallory`` owns a table and has put a trap wherever the server lets an ordinary role put a function. Each trap
tells as whom it runs, by sequences, which no rollback resets, and tries to break out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.errors import PgleanError, Refused, TableChanged
from pglean.locks import lock_types
from pglean.rewrite import indexes
from tests.servers import Database
from tests.support import oracle
from tests.support.play import at

pytestmark = pytest.mark.in_turn

#: What a trap tries, whoever it runs as.
_BREAKOUTS = (
    "RESET ROLE",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION DEFAULT",
    "SET SESSION AUTHORIZATION postgres",
    "ALTER ROLE mallory SUPERUSER",
    "GRANT pg_execute_server_program TO mallory",
    "GRANT USAGE ON SCHEMA pglean TO mallory",
    "CREATE TABLE pglean.planted (i int)",
    "INSERT INTO public.later VALUES (1)",
    "DECLARE c CURSOR WITH HOLD FOR SELECT public.trap(7)",
    "CREATE TEMP TABLE pg_class ()",
    "SET search_path = public",
    "SET row_security = on",
)

_TRAPS = """
    CREATE SEQUENCE ran;
    CREATE SEQUENCE ran_as_superuser;
    CREATE TABLE broken_out (statement text, role text);
    CREATE FUNCTION spring() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
    DECLARE statement text;
    BEGIN
        PERFORM nextval('public.ran');
        IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
            PERFORM nextval('public.ran_as_superuser');
        END IF;
        -- The first time only: it takes a while.
        IF currval('public.ran') % 20 <> 1 THEN RETURN; END IF;
        FOREACH statement IN ARRAY {breakouts}::text[] LOOP
            BEGIN
                EXECUTE statement;
                IF current_user <> 'mallory' THEN
                    INSERT INTO public.broken_out VALUES (statement, current_user);
                END IF;
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
        END LOOP;
    END $$;
    -- What is immutable may not write; but it may call.
    CREATE FUNCTION trap(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
        'BEGIN PERFORM public.spring(); RETURN i; END';
    CREATE FUNCTION trap_diff(a int, b int) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS
        'BEGIN PERFORM public.spring(); RETURN a - b; END';
    CREATE FUNCTION trap_trigger() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM public.spring(); RETURN coalesce(NEW, OLD); END';
    CREATE TABLE later (i int);
    CREATE CONSTRAINT TRIGGER later AFTER INSERT ON later DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION trap_trigger();
    CREATE DOMAIN dom AS int CHECK (trap(VALUE) IS NOT NULL);
    CREATE TYPE span AS RANGE (SUBTYPE = int4, SUBTYPE_DIFF = trap_diff);
    CREATE TABLE t (
        id dom PRIMARY KEY, d dom, r span, n int CHECK (trap(n) IS NOT NULL), v text DEFAULT trap(1)::text,
        g int GENERATED ALWAYS AS (trap(n)) STORED, a dom[]);
    CREATE INDEX ON t ((trap(1) + n));
    CREATE INDEX ON t (trap(n));
    CREATE INDEX ON t (n) WHERE trap(2) > 0;
    CREATE INDEX ON t (n) WHERE trap(n) > 0;
    CREATE INDEX ON t USING gist (r);
    CREATE UNIQUE INDEX ON t ((id + trap(0)));
    CREATE STATISTICS s (mcv) ON (trap(3) + n), (trap(n)) FROM t;
    CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION trap_trigger();
    CREATE CONSTRAINT TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON t DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION trap_trigger();
    CREATE TRIGGER c AFTER TRUNCATE ON t EXECUTE FUNCTION trap_trigger();
    CREATE POLICY p ON t USING (trap(n) > 10) WITH CHECK (true);
    INSERT INTO t (id, d, r, n, v, a)
        SELECT g, g, span(g, g + 5), g, repeat(md5(g::text), 100), ARRAY[g] FROM generate_series(1, 40) AS g;
"""


class Mallory:
    """His session, and what his traps have seen."""

    def __init__(self, db: Database, *, keyless: bool = False) -> None:
        self.db = db
        self.conn = db.connect(user="mallory")
        self.conn.execute(sql.SQL(_TRAPS).format(breakouts=sql.Literal(list(_BREAKOUTS))))
        if keyless:
            self.do("ALTER TABLE t DROP CONSTRAINT t_pkey", "ALTER TABLE t ALTER id DROP NOT NULL")
        self.do("ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        # No superuser has touched anything yet.
        self.expect_nothing()

    def do(self, *statements: str) -> None:
        """Run statements in his session."""
        for statement in statements:
            self.conn.execute(sql.SQL(statement))

    @property
    def sprung(self) -> int:
        """How often a trap has run."""
        return int(self.db.scalar("SELECT last_value FROM ran"))

    def write(self) -> None:
        """Work for the next refresh: a row changed, one deleted, one inserted, a key moved."""
        self.do(
            "ALTER TABLE t NO FORCE ROW LEVEL SECURITY",
            "UPDATE t SET n = n + 1 WHERE id % 7 = 3",
            "DELETE FROM t WHERE id = (SELECT min(id) FROM t)",
            "INSERT INTO t (id, d, n, r) SELECT max(id) + 1, 2, 5, span(1, 9) FROM t",
            "UPDATE t SET id = id + 1000 WHERE id = (SELECT min(id) FROM t)",
            "ALTER TABLE t FORCE ROW LEVEL SECURITY",
        )

    def rows(self) -> list[str]:
        """The rows, in order. Read in his session, with row security out of force: SET ROLE would let a trap out."""
        self.do("ALTER TABLE t NO FORCE ROW LEVEL SECURITY")
        found = [row for (row,) in self.conn.execute("SELECT t::text FROM t ORDER BY 1")]
        self.do("ALTER TABLE t FORCE ROW LEVEL SECURITY")
        return found

    def expect_nothing(self) -> None:
        """He has gained nothing."""
        assert self.db.scalar("SELECT is_called FROM ran_as_superuser") is False
        assert self.db.fetchall("SELECT * FROM broken_out") == []
        assert self.db.scalar("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'") is False
        assert self.db.scalar("SELECT count(*) FROM pg_auth_members WHERE member = 'mallory'::regrole") == 0
        assert self.db.scalar("SELECT to_regclass('pglean.planted')") is None

    def check_rows(self, expected: list[str]) -> None:
        """Also the rows that his policy hides from himself are there."""
        assert len(expected) == 40
        assert self.rows() == expected
        oracle.assert_nothing_left(self.db)


@pytest.fixture
def mallory(emptied: Database, request: pytest.FixtureRequest) -> Iterator[Mallory]:
    """His table has a key, unless the test says that it is ``keyless``."""
    db = emptied
    db.execute("CREATE ROLE mallory LOGIN; GRANT CREATE ON SCHEMA public TO mallory")
    try:
        yield Mallory(db, keyless=getattr(request, "param", "") == "keyless")
    finally:
        # Roles outlive the database.
        db.execute("DROP OWNED BY mallory CASCADE")
        db.execute("DROP ROLE mallory")


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize(("mallory", "jobs"), [("keyed", 1), ("keyed", 2), ("keyless", 2)], indirect=["mallory"])
def test_traps_spring_as_their_owner(mallory: Mallory, jobs: int) -> None:
    """Plan, two repacks, with writes between the steps and the last refresh under the lock."""
    sprung = mallory.sprung
    with pglean.connect(mallory.db.conninfo) as database:
        database.plan("t")
        mallory.expect_nothing()
        for verify in ("full", "count"):
            expected: list[str] = []

            def write(expected: list[str] = expected) -> None:
                mallory.write()
                expected[:] = mallory.rows()

            with (
                at("copy: in a chunk", lambda: mallory.do("UPDATE t SET n = n + 1 WHERE id = 30")),
                at("phase: verifying", mallory.write),
                at("swap: before the lock", write),
            ):
                database.repack("t", verify=verify, jobs=jobs)
            mallory.expect_nothing()
            mallory.check_rows(expected)
    assert mallory.sprung > sprung + 100, "the traps were never touched"
    mallory.expect_nothing()


@pytest.mark.parametrize(
    "point", ["copy: in a chunk", "phase: catching up", "swap: before the lock", "swap: before the commit"]
)
def test_interrupted_run_and_cleanup(mallory: Mallory, point: str) -> None:
    """Undone by the run itself, and by `cleanup` after a run that could not."""
    expected = mallory.rows()

    def stop() -> None:
        raise KeyboardInterrupt

    with pglean.connect(mallory.db.conninfo) as database:
        with at(point, stop), pytest.raises(KeyboardInterrupt):
            database.repack("t", jobs=1)
        mallory.check_rows(expected)

        def fail() -> None:
            raise RuntimeError("killed")

        with at(point, stop), at("undo", fail), pytest.raises((RuntimeError, KeyboardInterrupt)):
            database.repack("t", jobs=1)
        # His writes go on, the cleanup comes later.
        mallory.write()
        expected = mallory.rows()
        database.cleanup()
        mallory.check_rows(expected)
    mallory.expect_nothing()


@pytest.mark.parametrize(
    ("mallory", "point"),
    [
        ("keyed", "capture: prepared"),
        ("keyed", "copy: before a chunk"),
        ("keyed", "phase: indexing"),
        ("keyed", "phase: verifying"),
        ("keyed", "swap: before the lock"),
        ("keyed", "swap: after the commit"),
        ("keyed", "phase: cleaning"),
        # The snapshot under which it is copied is older.
        ("keyless", "copy: snapshot taken"),
        ("keyless", "copy: before a chunk"),
        ("keyless", "refresh: before a round"),
    ],
    indirect=["mallory"],
)
def test_view_in_place_of_the_table(mallory: Mallory, point: str) -> None:
    """Renamed away, with a view of the same name and columns in its place, whose reader runs a trap."""

    def exchange() -> None:
        mallory.do(
            "ALTER TABLE t RENAME TO t_real",
            "CREATE VIEW t AS SELECT trap(id) AS id, d, r, n, v, g, a FROM t_real",
            "CREATE RULE ins AS ON INSERT TO t DO INSTEAD SELECT trap(1)",
        )

    with pglean.connect(mallory.db.conninfo) as database, at(point, exchange):
        if point in ("swap: after the commit", "phase: cleaning"):
            with contextlib.suppress(PgleanError):
                database.repack("t", verify="full")
        else:
            with pytest.raises(TableChanged):
                database.repack("t", verify="full")
    mallory.expect_nothing()
    mallory.do("DROP VIEW t", "ALTER TABLE t_real RENAME TO t")
    with pglean.connect(mallory.db.conninfo) as database:
        database.cleanup()
    mallory.check_rows(mallory.rows())
    mallory.expect_nothing()


@pytest.mark.parametrize("point", ["phase: indexing", "swap: before the lock"])
def test_our_schema_is_out_of_his_reach(mallory: Mallory, point: str) -> None:
    """He owns the shadow, and can neither name it nor anything else of ours, nor put anything beside it."""

    def try_everything() -> None:
        db = mallory.db
        job = db.scalar("SELECT max(id) FROM pglean.job")
        assert (
            db.scalar("SELECT relowner::regrole::text FROM pg_class WHERE relname = %s", (f"shadow_{job}",))
            == "mallory"
        )
        for statement in (
            f"SELECT * FROM pglean.shadow_{job}",
            f"INSERT INTO pglean.shadow_{job} (id) VALUES (1)",
            f"DROP TABLE pglean.shadow_{job}",
            f"ALTER TABLE pglean.shadow_{job} ADD CHECK (public.trap(n) > 0)",
            f"CREATE TRIGGER x BEFORE INSERT ON pglean.shadow_{job} FOR EACH ROW EXECUTE FUNCTION trap_trigger()",
            f"CREATE INDEX ON pglean.shadow_{job} ((trap(1)))",
            f"CREATE TABLE child () INHERITS (pglean.shadow_{job})",
            f"ALTER TABLE pglean.shadow_{job} SET SCHEMA public",
            f"DO 'BEGIN LOCK TABLE pglean.shadow_{job}; END'",
            f"SELECT * FROM pglean.changes_{job}",
            f"DELETE FROM pglean.changes_{job}",
            "SELECT * FROM pglean.job",
            "UPDATE pglean.job SET phase = 80",
            f"ALTER FUNCTION pglean.capture_{job}_insert() RENAME TO x",
            f"DROP FUNCTION pglean.capture_{job}_insert()",
            f"CREATE TRIGGER x AFTER INSERT ON later FOR EACH ROW EXECUTE FUNCTION pglean.capture_{job}_insert()",
            "SELECT pglean.conceal_1('t', 1)",
            "CREATE TABLE pglean.planted (i int)",
            "CREATE FUNCTION pglean.planted() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "ALTER TABLE later SET SCHEMA pglean",
            "DROP SCHEMA pglean CASCADE",
            "GRANT USAGE ON SCHEMA pglean TO mallory",
        ):
            try:
                mallory.do(statement)
            except psycopg.errors.InsufficientPrivilege:
                continue
            except psycopg.Error as error:
                raise AssertionError(f"{statement}: {error!r}") from error
            granted = "SELECT has_schema_privilege('mallory', 'pglean', 'USAGE, CREATE')"
            # GRANT by somebody without rights is a warning that nothing was granted.
            assert statement.startswith("GRANT"), f"{statement} was let through"
            assert db.scalar(granted) is False

    expected = mallory.rows()
    with pglean.connect(mallory.db.conninfo) as database, at(point, try_everything):
        database.repack("t", verify="full")
    mallory.check_rows(expected)
    mallory.expect_nothing()


@pytest.mark.parametrize("point", ["copy: before a chunk", "phase: verifying", "swap: before the lock"])
@pytest.mark.parametrize("statement", ["DROP OWNED BY mallory", "REASSIGN OWNED BY mallory TO mallory2"])
def test_his_belongings_are_disposed_of(mallory: Mallory, point: str, statement: str) -> None:
    """The shadow is his as well: the run ends in good order, whatever is left of the table is whole."""
    db = mallory.db
    db.execute("CREATE ROLE mallory2")
    # He may drop what is his; to give it away needs CREATE in our schema, which only a superuser has.
    dispose = db.execute if statement.startswith("REASSIGN") else mallory.do
    try:
        with pglean.connect(db.conninfo) as database, at(point, lambda: dispose(statement)):
            with pytest.raises(PgleanError):
                database.repack("t", verify="full")
            database.cleanup()
        oracle.assert_nothing_left(db)
        if statement.startswith("REASSIGN"):
            assert db.scalar("SELECT relowner::regrole::text FROM pg_class WHERE oid = 't'::regclass") == "mallory2"
            db.execute("REASSIGN OWNED BY mallory2 TO mallory")
    finally:
        db.execute("DROP OWNED BY mallory2; DROP ROLE mallory2")


@pytest.mark.parametrize("key", ["PRIMARY KEY", ""], ids=["keyed", "keyless"])
@pytest.mark.parametrize(
    ("exchange", "column", "values"),
    [
        (
            ("ALTER TABLE k RENAME COLUMN id TO old_id", "ALTER TABLE k ADD COLUMN id comp"),
            "old_id",
            "({0}, 'new', ROW({0})::comp)",
        ),
        (("ALTER TABLE k ALTER id TYPE comp USING ROW(id)::comp",), "(id).a", "(ROW({0})::comp, 'new')"),
    ],
    ids=["another-column", "another-type"],
)
def test_cast_of_his_is_not_run_by_our_trigger(
    mallory: Mallory, exchange: tuple[str, ...], column: str, values: str, key: str
) -> None:
    """A recorded column becomes one of a type that an INSERT would cast, by a function of his, to what is recorded.

    The trigger writes with our rights, so that the cast would run with them.
    """
    mallory.do(
        f"CREATE TABLE k (id int {key}, v text)",
        "INSERT INTO k SELECT g, 'v' FROM generate_series(1, 100) AS g",
        "CREATE TYPE comp AS (a int)",
        "CREATE FUNCTION cast_trap(comp) RETURNS int LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM public.spring(); RETURN 1; END'",
        "CREATE CAST (comp AS int) WITH FUNCTION cast_trap(comp) AS ASSIGNMENT",
    )
    written: list[str] = []

    def act() -> None:
        mallory.do("INSERT INTO k VALUES (101, 'v')", "UPDATE k SET v = 'w' WHERE id = 5", "DELETE FROM k WHERE id = 6")
        mallory.do(*exchange)
        # One session has called our functions already, the other has not.
        for number, session in enumerate((mallory.conn, mallory.db.connect(user="mallory"))):
            for statement in (
                f"INSERT INTO k VALUES {values.format(200 + number)}",
                f"UPDATE k SET id = ROW({300 + number})::comp WHERE {column} = {10 + number}",
                f"DELETE FROM k WHERE {column} = {20 + number}",
            ):
                # That one fails in a session that knows the old type does no harm here.
                with contextlib.suppress(psycopg.errors.DatatypeMismatch):
                    session.execute(sql.SQL(statement))
                    written.append(statement)

    with (
        pglean.connect(mallory.db.conninfo) as database,
        at("copy: before a chunk", act),
        pytest.raises(TableChanged),
    ):
        database.repack("k")
    assert len(written) >= 3, "nothing was written to the exchanged column"
    mallory.expect_nothing()
    oracle.assert_nothing_left(mallory.db)


def test_literal_whose_reading_runs_his_code(mallory: Mallory) -> None:
    """A predicate with an array of a domain as a literal: CREATE INDEX reads it, by the domain's check, as ourselves.

    Literals whose reading runs no code of anybody's are no obstacle.
    """
    mallory.do(
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE TABLE k (id int PRIMARY KEY, v text, m mood)",
        "INSERT INTO k SELECT g, 'v', CASE WHEN g % 2 = 0 THEN 'sad'::mood END FROM generate_series(1, 100) AS g",
        "CREATE INDEX ON k (v) WHERE m = 'sad'",
        "CREATE INDEX ON k (v) WHERE m = ANY ('{sad,glad}'::mood[])",
        "CREATE INDEX ON k (v) WHERE id = ANY ('{1,2}'::int[])",
    )
    with pglean.connect(mallory.db.conninfo) as database:
        database.repack("k", verify="full")
        oracle.assert_sound(mallory.db, "k")
        mallory.do("CREATE INDEX traps ON k (v) WHERE id = ANY ('{1,2}'::dom[])")
        for use in (database.plan, database.repack):
            with pytest.raises(Refused) as caught:
                use("k")
            assert [finding.code for finding in caught.value.findings] == ["index-literal"]
            assert "dom[]" in str(caught.value)
            assert caught.value.exit_status == 3
    mallory.expect_nothing()
    oracle.assert_nothing_left(mallory.db)


def test_literal_of_no_type_yet(mallory: Mallory) -> None:
    """In a row it has none; whoever reads the definition later gives it the one that the function asks for by then."""
    mallory.do(
        "CREATE FUNCTION f(record, int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $2; END'",
        "CREATE TABLE k (id int PRIMARY KEY, x int)",
        "INSERT INTO k SELECT g, g FROM generate_series(1, 100) AS g",
        "CREATE INDEX i ON k (f(ROW('{5}'), x))",
        "ALTER TABLE k CLUSTER ON i",
    )
    with pglean.connect(mallory.db.conninfo) as database:
        for use in (database.plan, database.repack):
            with pytest.raises(Refused) as caught:
                use("k")
            assert [finding.code for finding in caught.value.findings] == ["index-literal"]
            assert "unknown" in caught.value.findings[0].message
    mallory.expect_nothing()


def test_type_exchanged_behind_a_literal(mallory: Mallory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preflight has seen an enum; when the index is made, its name means a domain, whose check is a trap.

    He gets there until the definition is read for the last time, and no more until the index is made.
    """
    mallory.do(
        "CREATE TYPE mood AS ENUM ('1', '2')",
        "CREATE FUNCTION in_mood(mood, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1::text = $2'",
        "CREATE TABLE k (id int PRIMARY KEY, v text)",
        "INSERT INTO k SELECT g, 'v' FROM generate_series(1, 100) AS g",
        "CREATE INDEX i ON k (v) WHERE in_mood('1'::mood, v)",
        "SET lock_timeout = '100ms'",
    )
    create = indexes._create
    refused: list[str] = []

    def lock_too_late(conn: Any) -> None:
        mallory.do("ALTER TYPE mood RENAME TO mood_1", "CREATE DOMAIN mood AS text CHECK (trap(1) IS NOT NULL)")
        lock_types(conn)

    def create_with_him_beside(*arguments: Any) -> int:
        for statement in ("ALTER TYPE mood_1 RENAME TO mood_2", "CREATE DOMAIN mood_3 AS int"):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                mallory.do(statement)
            refused.append(statement)
        return create(*arguments)

    monkeypatch.setattr(indexes, "lock_types", lock_too_late)
    monkeypatch.setattr(indexes, "_create", create_with_him_beside)
    with pglean.connect(mallory.db.conninfo) as database:
        database.repack("k")
    assert len(refused) == 4
    mallory.expect_nothing()
    assert "mood_1" in mallory.db.scalar("SELECT pg_get_indexdef('i'::regclass)")
    oracle.assert_sound(mallory.db, "k")
    oracle.assert_nothing_left(mallory.db)


@pytest.mark.parametrize("owner", ["mallory", "postgres"])
def test_claim_given_away_by_his_code(mallory: Mallory, owner: str) -> None:
    """A function of an index gives up all advisory locks of the session that runs it; the run keeps its table."""
    mallory.do(
        "CREATE FUNCTION loose(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS"
        " 'BEGIN PERFORM pg_advisory_unlock_all(); RETURN $1; END'",
        "CREATE TABLE k (id int PRIMARY KEY, v text)",
        "INSERT INTO k SELECT g, 'v' FROM generate_series(1, 100) AS g",
        "CREATE INDEX ON k (loose(v))",
    )
    mallory.db.execute(f"ALTER TABLE k OWNER TO {owner}")
    seen: list[list[str]] = []

    def look() -> None:
        with pglean.connect(mallory.db.conninfo) as other:
            seen.append([run.state for run in other.status()])
            assert other.cleanup() == []
            with pytest.raises(Refused, match="another run"):
                other.repack("k")
            seen.append([run.state for run in other.status()])

    with (
        pglean.connect(mallory.db.conninfo) as database,
        at("phase: catching up", lambda: mallory.db.execute("UPDATE k SET v = 'w' WHERE id < 50")),
        at("phase: ready", look),
        at("swap: before the lock", look),
    ):
        database.repack("k", verify="full")
    assert seen == [["ready"]] * 2 + [["running"]] * 2
    assert mallory.db.scalar("SELECT count(*) FROM k WHERE v = 'w'") == 49
    oracle.assert_nothing_left(mallory.db)


def test_default_privileges_do_not_open_our_schema(db: Database) -> None:
    """ALTER DEFAULT PRIVILEGES gives every new schema to others; not the one in which the helpers stand."""
    db.execute(
        'CREATE ROLE "a Guest"; ALTER DEFAULT PRIVILEGES GRANT USAGE, CREATE ON SCHEMAS TO "a Guest", PUBLIC;'
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;"
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)"
    )
    granted = "SELECT g.grantee::regrole::text FROM pg_namespace, aclexplode(nspacl) g WHERE nspname = 'pglean'"
    owner = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'pglean'"
    try:
        with pglean.connect(db.conninfo) as database:
            for _ in range(2):
                with at("phase: ready", lambda: expect_closed(db)):
                    database.repack("t")
                expect_closed(db)
        assert {grantee for (grantee,) in db.fetchall(granted)} <= {db.scalar(owner)}
    finally:
        db.execute('DROP OWNED BY "a Guest"; DROP ROLE "a Guest"')


def expect_closed(db: Database) -> None:
    """Nobody but a superuser may use the schema, or look at it."""
    for right in ("USAGE", "CREATE"):
        assert db.scalar("SELECT has_schema_privilege('a Guest', 'pglean', %s)", (right,)) is False
