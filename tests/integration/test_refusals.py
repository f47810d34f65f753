"""What pglean will not touch: it says so, says all of it at once, and touches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.embedded import EmbeddedServer
from pglean.errors import Refused, UsageError
from pglean.table import quote_name
from tests.servers import SETTINGS, Database
from tests.support.oracle import name, until


@dataclass(frozen=True, slots=True)
class Case:
    """A relation that is refused."""

    #: Statements that make it; each line is one where the case needs them apart.
    ddl: str
    codes: tuple[str, ...]
    table: str = "t"


def refusal(db: Database, table: str = "t", *, conninfo: str | None = None) -> Refused:
    """The refusal of a run on the table; asserts that nothing was touched."""
    oid = db.scalar("SELECT %s::regclass::oid", (table,))
    query = (
        "SELECT c.relfilenode, c.xmin::text, (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid) FROM "
        "pg_class c WHERE oid = %s"
    )
    schemas = "SELECT nspname, nspowner, nspacl FROM pg_namespace ORDER BY 1"
    before = db.fetchall(query, (oid,)), db.fetchall(schemas)
    with pglean.connect(conninfo or db.conninfo) as database:
        with pytest.raises(Refused) as planned:
            database.plan(table)
        with pytest.raises(Refused) as caught:
            database.repack(table)
    assert (db.fetchall(query, (oid,)), db.fetchall(schemas)) == before
    error = caught.value
    assert planned.value.findings == error.findings
    assert error.exit_status == 3
    assert not error.retryable
    for finding in error.findings:
        assert finding.fatal
        assert finding.message
        assert not finding.message.endswith(".")
        assert finding.detail is None or finding.detail.endswith(".")
        assert finding.message in str(error)
        assert finding.hint is None or finding.hint in str(error)
    return error


def codes(error: Refused) -> tuple[str, ...]:
    return tuple(finding.code for finding in error.findings)


NO_KEY = {
    "no index": "CREATE TABLE t (id int NOT NULL)",
    "no unique index": "CREATE TABLE t (id int NOT NULL); CREATE INDEX ON t (id)",
    "partial": "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX ON t (id) WHERE id > 0",
    "nullable": "CREATE TABLE t (id int UNIQUE)",
    "nullable in part": "CREATE TABLE t (id int NOT NULL, n int, UNIQUE (id, n))",
    "nulls not distinct": "CREATE TABLE t (id int UNIQUE NULLS NOT DISTINCT)",
    "checked to be not null": "CREATE TABLE t (id int UNIQUE CHECK (id IS NOT NULL))",
    "not null by domain": "CREATE DOMAIN d AS int NOT NULL; CREATE TABLE t (id d UNIQUE)",
    "expression": "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX ON t ((id + 0))",
    "expression in part": "CREATE TABLE t (id int NOT NULL, v text NOT NULL); CREATE UNIQUE INDEX ON t (id, lower(v))",
    "exclusion": "CREATE EXTENSION btree_gist; CREATE TABLE t (id int NOT NULL, EXCLUDE USING gist (id WITH =))",
    "not null not valid": "CREATE TABLE t (id int); INSERT INTO t VALUES (NULL);"
    "ALTER TABLE t ADD CONSTRAINT n NOT NULL id NOT VALID; CREATE UNIQUE INDEX ON t (id)",
}
SINCE = {"nulls not distinct": 15, "not null not valid": 18}


@pytest.mark.parametrize(
    "ddl",
    [
        pytest.param(ddl, id=what, marks=[pytest.mark.min_version(SINCE[what])] if what in SINCE else [])
        for what, ddl in NO_KEY.items()
    ],
)
def test_no_key(db: Database, ddl: str) -> None:
    """It is repacked, and what that costs is told."""
    db.execute(ddl)
    with pglean.connect(db.conninfo) as database:
        plan = database.plan("t")
    assert plan.table.key is None
    (warning,) = plan.warnings
    assert (warning.code, warning.message) == ("no-key", "public.t has no primary key")
    assert warning.detail
    assert "one snapshot" in warning.detail
    assert warning.hint
    assert "CREATE UNIQUE INDEX CONCURRENTLY" in warning.hint


def test_no_column(db: Database) -> None:
    db.execute("CREATE TABLE t (n int); ALTER TABLE t DROP n")
    error = refusal(db)
    assert codes(error) == ("no-column",)
    assert error.message == "public.t has no column"


@pytest.mark.newest
def test_too_many_columns(db: Database) -> None:
    """Beside the row stands its number."""
    columns = [f"c{number} bool" for number in range(1600)]
    db.execute(sql.SQL("CREATE TABLE t ({})").format(name(", ".join(columns))))
    assert codes(refusal(db)) == ("columns",)
    db.execute("ALTER TABLE t DROP c7")
    with pglean.connect(db.conninfo) as database:
        assert [finding.code for finding in database.plan("t").warnings] == ["no-key", "wide-rows"]
        database.repack("t")


def test_values_that_may_fill_their_page(db: Database) -> None:
    """Of a type whose values are never moved out of it, however long they are."""
    db.execute("CREATE TABLE t (n int, q tsquery); CREATE TABLE u (n int, q text)")
    with pglean.connect(db.conninfo) as database:
        assert [finding.code for finding in database.plan("t").warnings] == ["no-key", "wide-rows"]
        assert [finding.code for finding in database.plan("u").warnings] == ["no-key"]


KINDS = {
    "unlogged": Case("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", ("unlogged",)),
    "view": Case("CREATE VIEW t AS SELECT 1 AS id", ("kind",)),
    "materialized view": Case("CREATE MATERIALIZED VIEW t AS SELECT 1 AS id; CREATE UNIQUE INDEX ON t (id)", ("kind",)),
    "partitioned table": Case("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)", ("kind",)),
    "foreign table": Case(
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; "
        "CREATE FOREIGN TABLE t (id int NOT NULL) SERVER s",
        ("kind",),
    ),
    "index": Case("CREATE TABLE u (id int CONSTRAINT t PRIMARY KEY)", ("kind",)),
    "partitioned index": Case("CREATE TABLE u (id int CONSTRAINT t PRIMARY KEY) PARTITION BY RANGE (id)", ("kind",)),
    "sequence": Case("CREATE SEQUENCE t", ("kind",)),
    "composite type": Case("CREATE TYPE t AS (id int)", ("kind",)),
    "system catalog": Case("", ("system",), "pg_class"),
    "system catalog without a key": Case("", ("system",), "information_schema.sql_features"),
    "shared system catalog": Case("", ("system",), "pg_database"),
    "system view": Case("", ("system", "kind"), "pg_tables"),
    "whole-row expression": Case(
        "CREATE TABLE t (id int PRIMARY KEY); "
        "CREATE FUNCTION f(t) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1.id';"
        "CREATE INDEX ON t (f(t.*))",
        ("whole-row-index",),
    ),
    "whole-row predicate": Case(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE INDEX ON t (id) WHERE t IS NOT NULL", ("whole-row-index",)
    ),
}


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS.keys())
def test_kind(db: Database, case: Case) -> None:
    if case.ddl:
        db.execute(case.ddl)
    error = refusal(db, case.table)
    assert codes(error) == case.codes
    assert error.message
    assert error.hint or error.detail


def test_toast_table(db: Database) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    toast = db.scalar("SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 't'::regclass")
    error = refusal(db, toast)
    assert codes(error) == ("kind",)
    assert error.message == f"{toast} is a TOAST table, not an ordinary table"


def test_temporary_table_of_another_session(db: Database) -> None:
    db.execute("CREATE TEMP TABLE t (id int PRIMARY KEY)")
    schema = db.scalar("SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 't'::regclass")
    error = refusal(db, f"{schema}.t")
    assert codes(error) == ("temporary",)
    assert error.detail == "Only the session that made it can read it."


def test_other_access_method(db: Database) -> None:
    db.execute(
        """
        CREATE FUNCTION handler(internal) RETURNS table_am_handler LANGUAGE internal AS 'heap_tableam_handler';
        CREATE ACCESS METHOD other TYPE TABLE HANDLER handler;
        CREATE TABLE t (id int PRIMARY KEY) USING other;
        """
    )
    error = refusal(db)
    assert codes(error) == ("access-method",)
    assert "access method other" in error.message


def test_invalid_index(db: Database) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute('CREATE UNIQUE INDEX CONCURRENTLY "Bad index" ON t (v)')
    error = refusal(db)
    assert codes(error) == ("invalid-index",)
    assert error.message == 'index public."Bad index" is invalid'
    assert error.hint
    # The hint is a statement that can be pasted.
    statement = error.hint.rpartition(" or ")[2]
    assert statement == 'REINDEX INDEX CONCURRENTLY public."Bad index";'
    db.execute("UPDATE t SET v = id")
    db.execute(name(statement))
    with pglean.connect(db.conninfo) as database:
        database.repack("t")


def test_invalid_index_is_no_key(db: Database) -> None:
    db.execute("CREATE TABLE t (id int NOT NULL); INSERT INTO t VALUES (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute("CREATE UNIQUE INDEX CONCURRENTLY i ON t (id)")
    assert codes(refusal(db)) == ("invalid-index",)


def test_standby(bindir: Path) -> None:
    with EmbeddedServer(bindir, settings=SETTINGS) as primary:
        with psycopg.connect(primary.conninfo(), autocommit=True) as session:
            session.execute("CREATE TABLE t (id int PRIMARY KEY)")
        with primary.standby() as standby, pglean.connect(standby.conninfo()) as database:

            def there() -> bool:
                with psycopg.connect(standby.conninfo(), autocommit=True) as session:
                    return session.execute("SELECT to_regclass('t')").fetchone() != (None,)

            until(there, "the table arrives at the standby")
            for act in (lambda: database.repack("t"), lambda: database.reindex(["t"])):
                with pytest.raises(Refused) as caught:
                    act()
                assert codes(caught.value) == ("standby",)
                assert caught.value.hint == "Run pglean on the primary; the standby follows by itself."


def test_role_without_superuser(db: Database, plain_role: str) -> None:
    db.execute(f'CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO "{plain_role}"')
    error = refusal(db, conninfo=db.server.conninfo(db.name, plain_role))
    assert codes(error) == ("rights",)
    assert error.message == 'role "plain role" is not a superuser'
    assert error.hint
    assert "-U" in error.hint


def test_schema_of_somebody_else(db: Database, plain_role: str) -> None:
    db.execute(f'CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA pglean AUTHORIZATION "{plain_role}"')
    error = refusal(db)
    assert codes(error) == ("schema",)
    assert plain_role in error.message
    assert db.scalar("SELECT count(*) FROM pg_class WHERE relnamespace = 'pglean'::regnamespace") == 0


def test_schema_of_a_superuser_that_is_not_ours(db: Database) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA pglean")
    assert codes(refusal(db)) == ("schema",)


def test_schema_with_a_version_table_of_somebody_else(db: Database, plain_role: str) -> None:
    db.execute(
        f"CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA pglean; CREATE TABLE pglean.version (version int);"
        f' ALTER TABLE pglean.version OWNER TO "{plain_role}"'
    )
    assert codes(refusal(db)) == ("schema",)


def test_schema_that_others_may_use(db: Database, plain_role: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with pglean.connect(db.conninfo) as database:
        database.repack("t")
        db.execute(f'GRANT USAGE ON SCHEMA pglean TO "{plain_role}"')
        assert codes(refusal(db)) == ("schema",)
        db.execute(f'REVOKE ALL ON SCHEMA pglean FROM "{plain_role}"')
        database.repack("t")


def test_missing_plpgsql(db: Database) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY); DROP EXTENSION plpgsql")
    error = refusal(db)
    assert codes(error) == ("plpgsql",)
    assert error.hint == "CREATE EXTENSION plpgsql;"


def test_all_findings_are_reported_together(db: Database, plain_role: str) -> None:
    db.execute(
        f"""
        CREATE UNLOGGED TABLE "Bad" (id int, v int);
        INSERT INTO "Bad" VALUES (1, 1), (2, 1);
        CREATE INDEX whole ON "Bad" (id) WHERE "Bad" IS NOT NULL;
        CREATE SCHEMA pglean AUTHORIZATION "{plain_role}";
        ALTER TABLE "Bad" OWNER TO "{plain_role}";
        """
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute('CREATE UNIQUE INDEX CONCURRENTLY invalid ON "Bad" (v)')
    error = refusal(db, '"Bad"', conninfo=db.server.conninfo(db.name, plain_role))
    expected = ("rights", "schema", "unlogged", "whole-row-index", "invalid-index")
    assert sorted(codes(error)) == sorted(expected)
    assert error.message == f"public.{quote_name('Bad')} cannot be repacked for 5 reasons"
    assert error.detail
    for finding in error.findings:
        assert str(finding) in error.detail


@pytest.mark.parametrize("table", ["nowhere", "no.where", '"unfinished', "a.b.c.d", "", "pg_temp_99.t"])
def test_table_that_is_not_there(db: Database, table: str) -> None:
    with pglean.connect(db.conninfo) as database, pytest.raises(UsageError) as caught:
        database.repack(table)
    assert caught.value.exit_status == 2
    assert db.scalar("SELECT to_regnamespace('pglean')") is None
