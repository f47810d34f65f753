"""Indexes rebuilt alone: which, by whom, where to, and what the server would refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.embedded import EmbeddedServer
from pglean.errors import Incomplete, PgleanError, Refused, UsageError
from pglean.result import ReindexResult
from tests.servers import Database
from tests.support import rebuild
from tests.support.oracle import assert_sound, definition, name, rows

pytestmark = pytest.mark.in_turn

TABLE = """
    CREATE TABLE t (id int PRIMARY KEY, n int, v text);
    INSERT INTO t SELECT g, g % 10, md5(g::text) FROM generate_series(1, 6000) g;
    CREATE INDEX tn ON t (n) INCLUDE (v);
    CREATE UNIQUE INDEX tv ON t (lower(v)) WHERE n < 9;
    DELETE FROM t WHERE id > 600;
"""


def reindex(db: Database, *tables: str, conninfo: str | None = None, **options: Any) -> ReindexResult:
    with pglean.connect(conninfo or db.conninfo) as database:
        result = database.reindex(tables, **options)
    # Neither the schema nor a helper is needed for it.
    assert db.scalar("SELECT to_regnamespace('pglean')") is None
    return result


def refusal(db: Database, *tables: str, conninfo: str | None = None, **options: object) -> Refused:
    before = db.fetchall("SELECT oid, relname, relfilenode FROM pg_class ORDER BY oid")
    with pytest.raises(Refused) as caught:
        reindex(db, *tables, conninfo=conninfo, **options)
    assert db.fetchall("SELECT oid, relname, relfilenode FROM pg_class ORDER BY oid") == before
    assert caught.value.exit_status == 3
    for finding in caught.value.findings:
        assert finding.fatal
        assert finding.detail or finding.hint
    return caught.value


def codes(error: PgleanError) -> list[str]:
    assert isinstance(error, Refused)
    return [finding.code for finding in error.findings]


def done(result: ReindexResult) -> list[str]:
    return [index.index for index in result.indexes]


def test_all_of_a_table(db: Database, owner: str) -> None:
    db.execute(f'{TABLE}; ALTER TABLE t OWNER TO "{owner}"')
    before, content, text = rebuild.indexes(db, "t"), rows(db, "t"), definition(db)
    result = reindex(db, "t")
    assert result.error is None
    # The largest first.
    assert done(result) == ["public.tn", "public.tv", "public.t_pkey"]
    after = rebuild.indexes(db, "t")
    assert after.keys() == before.keys()
    assert not {file for _, file in after.values()} & {file for _, file in before.values()}
    assert (rows(db, "t"), definition(db)) == (content, text)
    assert_sound(db, "t")
    for index in result.indexes:
        assert index.bytes_after < index.bytes_before
        assert index.bytes_after == db.scalar("SELECT pg_relation_size(%s)", (index.index,))
        assert index.table == "public.t"
    assert result.bytes_after == sum(index.bytes_after for index in result.indexes)
    assert rebuild.invalid(db) == set()


def test_single_indexes(db: Database) -> None:
    db.execute(TABLE)
    before = rebuild.indexes(db, "t")
    assert done(reindex(db, indexes=["tn", "public.tn", "t_pkey"])) == ["public.tn", "public.t_pkey"]
    after = rebuild.indexes(db, "t")
    assert [index for index in before if before[index] == after[index]] == ["tv"]


def test_names_are_those_of_the_roles_search_path(db: Database) -> None:
    db.execute(
        """
        CREATE SCHEMA "My Schema"; CREATE TABLE "My Schema"."T" (id int CONSTRAINT "The Key" PRIMARY KEY);
        CREATE TABLE "a,b" (id int CONSTRAINT "[red]x[/red]" PRIMARY KEY, n int CONSTRAINT "100%" UNIQUE);
        """
    )
    db.execute(f'ALTER DATABASE {db.name} SET search_path = "My Schema", public')
    assert done(reindex(db, '"T"')) == ['"My Schema"."The Key"']
    assert done(reindex(db, indexes=['"The Key"'])) == ['"My Schema"."The Key"']
    assert sorted(done(reindex(db, '"a,b"'))) == ['public."100%"', 'public."[red]x[/red]"']


@pytest.mark.parametrize("tables", [(), ("t",)], ids=["indexes", "table"])
def test_tablespace_and_back(server: EmbeddedServer, tables: tuple[str, ...], db: Database) -> None:
    space = f'"Space, too" {db.name}'
    quoted = sql.Identifier(space).as_string(None)
    db.execute("SET allow_in_place_tablespaces = on")
    db.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(sql.Identifier(space)))
    db.execute('CREATE TABLE t (id int, "N N" int, v text); CREATE INDEX "I I" ON t ("N N"); CREATE INDEX j ON t (v)')
    db.execute(f"CREATE INDEX stays ON t (id) TABLESPACE {quoted}")
    where = (
        "SELECT c.relname, coalesce(t.spcname, '') FROM pg_class c LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace"
        " WHERE c.relname IN ('t', 'I I', 'j') ORDER BY 1"
    )
    try:
        indexes = () if tables else ('"I I"', "j")
        reindex(db, *tables, indexes=indexes, tablespace=space)
        assert db.fetchall(where) == [("I I", space), ("j", space), ("t", "")]
        # Where nothing is said they stay where they are.
        reindex(db, *tables, indexes=indexes)
        assert db.fetchall(where) == [("I I", space), ("j", space), ("t", "")]
        reindex(db, *tables, indexes=indexes, tablespace="pg_default")
        assert db.fetchall(where) == [("I I", ""), ("j", ""), ("t", "")]
        assert_sound(db, "t")
    finally:
        db.execute("DROP TABLE t")
        db.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(space)))


def test_tablespaces_that_cannot_be(db: Database, tablespace: str, plain_role: str) -> None:
    db.execute(f'{TABLE}; ALTER TABLE t OWNER TO "{plain_role}"')
    with pytest.raises(UsageError, match='tablespace "nowhere" does not exist'):
        reindex(db, "t", tablespace="nowhere")
    assert codes(refusal(db, "t", tablespace="pg_global")) == ["tablespace"]
    conninfo = db.server.conninfo(db.name, plain_role)
    error = refusal(db, "t", tablespace=tablespace, conninfo=conninfo)
    assert codes(error) == ["tablespace"]
    assert error.hint == f"GRANT CREATE ON TABLESPACE {tablespace} TO your role;"
    db.execute(f'GRANT CREATE ON TABLESPACE {tablespace} TO "{plain_role}"')
    reindex(db, "t", tablespace=tablespace, conninfo=conninfo)
    reindex(db, "t", tablespace="pg_default", conninfo=conninfo)
    db.execute(f'REVOKE CREATE ON TABLESPACE {tablespace} FROM "{plain_role}"')


def test_partitions_and_inheritors(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE p (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
        CREATE TABLE p1a PARTITION OF p1 FOR VALUES FROM (0) TO (50);
        CREATE TABLE p2 PARTITION OF p DEFAULT;
        CREATE INDEX pn ON p (n);
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
        CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS (child);
        """
    )
    attached = "SELECT inhrelid::regclass::text, inhparent::regclass::text FROM pg_inherits ORDER BY 1"
    before = db.fetchall(attached)
    leaves = {"public.p1a_pkey", "public.p1a_n_idx", "public.p2_pkey", "public.p2_n_idx"}
    assert set(done(reindex(db, parents=["p"], jobs=2))) == leaves
    assert set(done(reindex(db, "p2", parents=["p1"]))) == leaves
    assert db.fetchall(attached) == before
    assert done(reindex(db, "parent")) == ["public.parent_pkey"]
    family = {"public.parent_pkey", "public.child_pkey", "public.grandchild_pkey"}
    assert set(done(reindex(db, parents=["parent"]))) == family
    error = refusal(db, "p")
    assert codes(error) == ["partitioned"]
    assert "-I public.p" in (error.hint or "")
    assert codes(refusal(db, indexes=["pn"])) == ["partitioned"]
    assert codes(refusal(db, parents=["pn"])) == ["kind"]


@dataclass(frozen=True, slots=True)
class Case:
    """What is refused."""

    ddl: str
    code: str
    tables: tuple[str, ...] = ("t",)
    indexes: tuple[str, ...] = ()


REFUSED = {
    "view": Case("CREATE VIEW t AS SELECT 1", "kind"),
    "sequence": Case("CREATE SEQUENCE t", "kind"),
    "index as a table": Case("CREATE TABLE u (id int CONSTRAINT t PRIMARY KEY)", "kind"),
    "system catalog": Case("", "system", ("pg_class",)),
    "index of a system catalog": Case("", "system", (), ("pg_class_oid_index",)),
    "index of an exclusion constraint": Case(
        "CREATE TABLE t (r int4range, CONSTRAINT x EXCLUDE USING gist (r WITH &&))", "exclusion", (), ("x",)
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_refused(db: Database, case: Case) -> None:
    db.execute(case.ddl)
    error = refusal(db, *case.tables, indexes=case.indexes)
    assert codes(error) == [case.code]


@pytest.mark.min_version(18)
def test_temporal_key(db: Database) -> None:
    db.execute(
        "CREATE EXTENSION btree_gist;"
        " CREATE TABLE t (id int, at tstzrange, n int UNIQUE, PRIMARY KEY (id, at WITHOUT OVERLAPS))"
    )
    result = reindex(db, "t")
    assert done(result) == ["public.t_n_key"]
    assert result.error is None
    assert codes(result.skipped["public.t_pkey"]) == ["exclusion"]


def test_temporary_table(db: Database) -> None:
    db.execute("CREATE TEMP TABLE t (id int PRIMARY KEY)")
    schema = db.scalar("SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 't'::regclass")
    assert codes(refusal(db, f"{schema}.t")) == ["temporary"]


def test_all_that_is_refused_is_told_at_once(db: Database) -> None:
    db.execute("CREATE VIEW v AS SELECT 1; CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    error = refusal(db, "v", "p", indexes=["pg_class_oid_index"])
    assert sorted(codes(error)) == ["kind", "partitioned", "system"]
    assert error.message == "what was named cannot be reindexed for 3 reasons"


def test_the_others_are_done(db: Database) -> None:
    db.execute(f"{TABLE}; CREATE VIEW w AS SELECT 1; ALTER TABLE t ADD CONSTRAINT x EXCLUDE USING btree (id WITH =)")
    with pglean.connect(db.conninfo) as database:
        plan = database.plan_reindex(["t", "w", "absent"])
        assert plan.failures.keys() == {"absent", "public.w"}
        assert plan.skipped.keys() == {"public.x"}
        result = database.reindex(["t", "w", "absent"])
    assert result.failures.keys() == plan.failures.keys()
    assert len(result.indexes) == 3
    assert isinstance(result.failures["absent"], UsageError)
    assert isinstance(result.error, Incomplete)
    assert result.error.exit_status == 9
    assert result.error.message == "2 of 5 indexes were not rebuilt"
    assert result.as_json()["status"] == "failed"


def test_what_cannot_be_rebuilt_by_its_nature_is_no_failure_unless_it_is_named(db: Database) -> None:
    db.execute("CREATE TABLE t (r int4range, CONSTRAINT x EXCLUDE USING gist (r WITH &&))")
    told: list[str] = []
    for tables, parents in ((["t"], []), ([], ["t"])):
        with pglean.connect(db.conninfo) as database:
            result = database.reindex(
                tables, parents=parents, on_progress=lambda progress: told.append(progress.message)
            )
        assert (result.error, result.indexes) == (None, ())
        assert codes(result.skipped["public.x"]) == ["exclusion"]
        (skipped,) = result.as_json()["skipped"]
        assert (skipped["name"], skipped["codes"]) == ("public.x", ["exclusion"])
    assert told[0].startswith("warning: skipped: index public.x backs exclusion constraint x")
    assert codes(refusal(db, "t", indexes=["x"])) == ["exclusion"]


def test_table_and_its_toast_table_at_once(db: Database) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    toast = db.scalar("SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 't'::regclass")
    result = reindex(db, "t", toast, jobs=2)
    assert result.error is None
    assert set(done(result)) == {"public.t_pkey", f"{toast}_index"}


def test_invalid_index_of_a_toast_table(db: Database) -> None:
    """Not one that a failed rebuild has left: the table's only one, which the server has no way to mend."""
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    db.execute("INSERT INTO t SELECT 1, string_agg(md5(g::text), '') FROM generate_series(1, 1000) AS g")
    toast = db.scalar("SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 't'::regclass")
    db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (f"{toast}_index",))
    for statement in ("REINDEX INDEX", "REINDEX INDEX CONCURRENTLY"):
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            db.execute(name(f"{statement} {toast}_index"))
    assert codes(refusal(db, toast)) == ["invalid-toast-index"]
    error = refusal(db, indexes=[f"{toast}_index"])
    assert codes(error) == ["invalid-toast-index"]
    assert error.message == f"index {toast}_index of a TOAST table is invalid"
    # The table's own index does not suffer from it.
    assert done(reindex(db, "t")) == ["public.t_pkey"]
    # What the hint says can be pasted, and helps.
    assert error.hint
    db.execute(name(error.hint.removeprefix("As a superuser: ")))
    assert db.scalar("SELECT length(v || '') FROM t") == 32000
    assert done(reindex(db, toast)) == [f"{toast}_index"]
    assert_sound(db, "t")


def test_table_without_indexes(db: Database) -> None:
    db.execute("CREATE TABLE t (v text); CREATE TABLE u (id int PRIMARY KEY)")
    with pglean.connect(db.conninfo) as database:
        (warning,) = database.plan_reindex(["t"]).warnings
        assert (warning.code, warning.fatal, str(warning)) == ("no-index", False, "public.t has no indexes")
        # Where single indexes were asked for there is nothing to be told.
        assert database.plan_reindex([], indexes=["u_pkey"]).warnings == ()
    told: list[str] = []
    result = reindex(db, "t", "u", on_progress=lambda progress: told.append(progress.message))
    assert (result.error, done(result)) == (None, ["public.u_pkey"])
    assert "warning: public.t has no indexes" in told


def test_index_of_a_toast_table_stays_in_its_tablespace(db: Database) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    toast = db.scalar("SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 't'::regclass")
    assert codes(refusal(db, toast, tablespace="pg_default")) == ["toast-tablespace"]
    with pytest.raises(psycopg.errors.Error):
        db.execute(f"REINDEX (CONCURRENTLY, TABLESPACE pg_default) INDEX {toast}_index")


def test_foreign_partitions_are_left_out(db: Database) -> None:
    db.execute(
        """
        CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing;
        CREATE TABLE p (id int, n int) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9);
        CREATE INDEX ON p1 (n);
        CREATE FOREIGN TABLE p2 PARTITION OF p FOR VALUES FROM (9) TO (99) SERVER elsewhere;
        """
    )
    result = reindex(db, parents=["p"])
    assert (result.error, done(result)) == (None, ["public.p1_n_idx"])
    assert codes(refusal(db, "p2")) == ["kind"]


def test_names_that_mean_nothing(db: Database) -> None:
    db.execute(TABLE)
    given: list[dict[str, Any]] = [{"indexes": ["absent"]}, {"indexes": ["t"]}, {"parents": ["absent"]}]
    for options in (*given, {"tables": ["absent"]}):
        with pglean.connect(db.conninfo) as database, pytest.raises(UsageError):
            database.reindex(**options)


def test_nothing_to_do_is_said(db: Database) -> None:
    db.execute("CREATE TABLE t (id int)")
    told: list[str] = []
    with pglean.connect(db.conninfo) as database:
        result = database.reindex(["t"], on_progress=lambda progress: told.append(progress.message))
    assert (result.indexes, result.error) == ((), None)
    assert told == ["warning: public.t has no indexes"]


def test_other_kinds_of_tables_and_indexes(db: Database) -> None:
    db.execute(
        """
        CREATE UNLOGGED TABLE u (id int PRIMARY KEY, v tsvector, p point);
        INSERT INTO u SELECT g, to_tsvector('simple', 'w' || g), point(g, g) FROM generate_series(1, 500) g;
        CREATE INDEX ON u USING gin (v); CREATE INDEX ON u USING gist (p); CREATE INDEX ON u USING hash (id);
        CREATE INDEX ON u USING brin (id); CREATE INDEX ON u USING spgist (p);
        CREATE MATERIALIZED VIEW m AS SELECT * FROM u; CREATE INDEX ON m (id);
        CREATE TABLE "with toast" (v text);
        """
    )
    assert len(reindex(db, "u", "m").indexes) == 7
    assert_sound(db, "u")
    toast = db.scalar("SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'with toast'")
    assert done(reindex(db, indexes=[f"{toast}_index"])) == [f"{toast}_index"]


# ---- by whom


def test_owner_without_superuser(db: Database, plain_role: str) -> None:
    db.execute(
        f"""
        {TABLE}
        CREATE FUNCTION checked(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
            $$BEGIN IF current_user <> '{plain_role}' THEN RAISE 'runs as %', current_user; END IF; RETURN $1; END$$;
        CREATE TABLE empty (n int); ALTER TABLE empty OWNER TO "{plain_role}"; CREATE INDEX e ON empty (checked(n));
        INSERT INTO t VALUES (-1, -1, 'x'); ALTER TABLE t OWNER TO "{plain_role}"; CREATE INDEX c ON t (checked(n));
        """
    )
    conninfo = db.server.conninfo(db.name, plain_role)
    assert len(reindex(db, "t", "empty", conninfo=conninfo).indexes) == 5
    # An administrator runs nothing of the owner's.
    assert len(reindex(db, "t", "empty").indexes) == 5
    rebuild.leave(db, "tn")
    assert reindex(db, "t", conninfo=conninfo).removed == ("public.tn_ccnew",)


def test_somebody_else(db: Database, plain_role: str) -> None:
    db.execute(TABLE)
    conninfo = db.server.conninfo(db.name, plain_role)
    error = refusal(db, "t", conninfo=conninfo)
    assert codes(error) == ["rights"]
    assert "postgres" in error.message
    db.execute(f'CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s; ALTER TABLE s.t OWNER TO "{plain_role}"')
    db.execute(f"ALTER DATABASE {db.name} SET search_path = s")
    with pytest.raises(PgleanError):
        reindex(db, "t", conninfo=conninfo)


@pytest.mark.min_version(17)
def test_maintain(db: Database, plain_role: str) -> None:
    db.execute(f'{TABLE}; GRANT MAINTAIN ON t TO "{plain_role}"')
    conninfo = db.server.conninfo(db.name, plain_role)
    assert len(reindex(db, "t", conninfo=conninfo).indexes) == 3
    # What is left only its owner can drop.
    rebuild.leave(db, "tn")
    with pglean.connect(conninfo) as database:
        plan = database.plan_reindex(["t"])
    assert [finding.code for finding in plan.warnings] == ["leftover"]
    assert "As its owner: DROP INDEX CONCURRENTLY public.tn_ccnew;" in str(plan.warnings[0])
    assert reindex(db, "t", conninfo=conninfo).removed == ()
    assert reindex(db, "t").removed == ("public.tn_ccnew",)


# ---- leftovers


@pytest.mark.parametrize("phase", rebuild.HOLDS)
def test_leftovers_are_removed(db: Database, phase: str) -> None:
    db.execute(TABLE)
    expected = "tn_ccold" if phase == rebuild.READERS else "tn_ccnew"
    assert rebuild.leave(db, "tn", phase) == {expected}
    with pglean.connect(db.conninfo) as database:
        (work,) = database.plan_reindex(indexes=["t_pkey"]).works
        assert [index.name for index in work.removals] == [expected]
        assert "A REINDEX CONCURRENTLY of public.tn that failed" in work.removals[0].story
        assert rebuild.invalid(db) == {expected}
        told: list[str] = []
        result = database.reindex(indexes=["t_pkey"], on_progress=lambda progress: told.append(progress.message))
    assert result.removed == (f"public.{expected}",)
    assert any(f"removed invalid index public.{expected}" in message for message in told)
    assert rebuild.invalid(db) == set()
    assert set(rebuild.indexes(db, "t")) == {"t_pkey", "tn", "tv"}
    assert_sound(db, "t")


def test_several_leftovers(db: Database) -> None:
    long = "x" * 63
    db.execute(f"{TABLE}; CREATE INDEX {long} ON t (n, id)")
    left = rebuild.leave(db, "tv") | rebuild.leave(db, "tv") | rebuild.leave(db, "tv", rebuild.SNAPSHOTS)
    left |= rebuild.leave(db, long) | rebuild.leave(db, "tv", rebuild.READERS)
    assert left == {"tv_ccnew", "tv_ccnew1", "tv_ccnew2", "x" * 57 + "_ccnew", "tv_ccold"}
    assert {name.removeprefix("public.") for name in reindex(db, "t").removed} == left
    assert rebuild.invalid(db) == set()


def test_leftover_that_is_named_itself(db: Database) -> None:
    db.execute(TABLE)
    rebuild.leave(db, "tn")
    result = reindex(db, indexes=["tn_ccnew"])
    assert (result.indexes, result.removed) == ((), ("public.tn_ccnew",))


def test_leftovers_of_toast_tables(db: Database, plain_role: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    db.execute(f'ALTER TABLE t OWNER TO "{plain_role}"')
    toast = db.scalar("SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 't'::regclass")
    with db.connect(autocommit=False) as writer, db.connect() as session:
        writer.execute("INSERT INTO t VALUES (-2, repeat('x', 9000))")
        session.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            session.execute(f"REINDEX INDEX CONCURRENTLY {toast}_index")
        writer.rollback()
    left = f"{toast}_index_ccnew"
    assert rebuild.invalid(db) == {left.removeprefix("pg_toast.")}
    with pglean.connect(db.server.conninfo(db.name, plain_role)) as database:
        told: list[str] = []
        assert database.reindex(["t"], on_progress=lambda progress: told.append(progress.message)).removed == ()
        assert any(f"As a superuser: DROP INDEX CONCURRENTLY {left};" in message for message in told)
    if db.server.version >= 170000:
        # Who may rebuild but not drop is told who may, and not that it cannot be rebuilt.
        db.execute(f'GRANT pg_maintain TO "{plain_role}"; GRANT USAGE ON SCHEMA pg_toast TO "{plain_role}"')
        db.execute("ALTER TABLE t OWNER TO postgres")
        conninfo = db.server.conninfo(db.name, plain_role)
        try:
            for options in ({}, {"tablespace": "pg_default"}):
                error = refusal(db, indexes=[left], conninfo=conninfo, **options)
                assert codes(error) == ["leftover"]
                assert error.hint == f"As its owner: DROP INDEX CONCURRENTLY {left};"
        finally:
            db.execute(f'REVOKE pg_maintain FROM "{plain_role}"; REVOKE USAGE ON SCHEMA pg_toast FROM "{plain_role}"')
    assert reindex(db, "t").removed == (left,)
    assert rebuild.invalid(db) == set()


def test_what_only_looks_like_a_leftover(db: Database) -> None:
    db.execute(
        f"""
        {TABLE}
        CREATE INDEX a_ccnew ON t (n); CREATE INDEX b_ccold ON t (id);
        INSERT INTO t SELECT -1, n, v FROM t WHERE id = 1 AND n = 9;
        """
    )
    with db.connect(autocommit=False) as writer, db.connect() as session:
        writer.execute("INSERT INTO t VALUES (-7)")
        session.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            session.execute("CREATE INDEX CONCURRENTLY c_ccnew ON t (v, n)")
        writer.rollback()
    result = reindex(db, "t")
    assert (result.removed, result.error) == ((), None)
    # The last of them is an invalid index like any other: nothing stands for it.
    assert {"public.a_ccnew", "public.b_ccold", "public.c_ccnew"} <= set(done(result))
    assert rebuild.invalid(db) == set()


def test_what_is_defined_otherwise_is_no_leftover(db: Database) -> None:
    """For all its name."""
    db.execute(f"{TABLE}; CREATE EXTENSION IF NOT EXISTS pg_trgm; CREATE INDEX tr ON t USING gist (v gist_trgm_ops)")
    others = ["CREATE INDEX tn_ccnew ON t (n) INCLUDE (v) WITH (fillfactor = 70)"]
    others += ["CREATE INDEX tr_ccnew ON t USING gist (v gist_trgm_ops (siglen = 32))"]
    if db.scalar("SELECT current_setting('server_version_num')::int >= 150000"):
        db.execute("CREATE UNIQUE INDEX tu ON t (id)")
        others += ["CREATE UNIQUE INDEX tu_ccnew ON t (id) NULLS NOT DISTINCT"]
    for statement in others:
        db.execute(statement)
    db.execute(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indrelid = 't'::regclass AND indexrelid::regclass::text ~ '_ccnew'"
    )
    result = reindex(db, "t")
    assert (result.error, result.removed) == (None, ())
    assert rebuild.invalid(db) == set()


# ---- invalid indexes


def test_invalid_indexes_are_rebuilt(db: Database) -> None:
    db.execute(f"{TABLE}; CREATE TABLE u (n int); INSERT INTO u VALUES (1), (1)")
    for table, index in (("u", "un"), ("t", "tw")):
        with pytest.raises(psycopg.errors.UniqueViolation):
            db.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {index} ON {table} (n)")
    error = reindex(db, indexes=["un"]).error
    assert error is not None
    assert error.message == "could not rebuild unique index public.un: a key occurs more than once"
    assert error.detail == "Key (n)=(1) is duplicated."
    assert "DROP INDEX CONCURRENTLY public.un;" in (error.hint or "")
    assert error.exit_status == 1
    # Nothing of that is left, and the rest of a table is done.
    assert rebuild.invalid(db) == {"un", "tw"}
    result = reindex(db, "u", "t")
    assert set(result.failures) == {"public.un", "public.tw"}
    assert set(done(result)) == {"public.t_pkey", "public.tn", "public.tv"}
    db.execute("DELETE FROM u WHERE ctid = '(0,1)'")
    assert done(reindex(db, "u")) == ["public.un"]
    assert rebuild.invalid(db) == {"tw"}


def test_invalid_index_of_a_constraint_and_of_a_partition(db: Database) -> None:
    db.execute(
        f"""
        {TABLE}
        CREATE TABLE p (id int, v int) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
        CREATE INDEX pv ON ONLY p (v); CREATE INDEX p1v ON p1 (v); ALTER INDEX pv ATTACH PARTITION p1v;
        UPDATE pg_index SET indisvalid = false WHERE indexrelid IN ('p1v'::regclass, 't_pkey'::regclass);
        """
    )
    assert done(reindex(db, indexes=["p1v", "t_pkey"])) == ["public.t_pkey", "public.p1v"]
    assert rebuild.invalid(db) == set()
    assert db.fetchall("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'pv'::regclass") == [
        ("p1v",)
    ]
    assert db.scalar("SELECT conindid::regclass::text FROM pg_constraint WHERE conname = 't_pkey'") == "t_pkey"


def test_valid_unique_index_over_equal_rows(db: Database) -> None:
    """As after an upgrade of the C library."""
    db.execute("CREATE TABLE t (v text); INSERT INTO t VALUES ('a'), ('b'); CREATE UNIQUE INDEX tv ON t (v)")
    db.execute("UPDATE pg_index SET indisready = false WHERE indexrelid = 'tv'::regclass")
    db.execute("INSERT INTO t VALUES ('a')")
    db.execute("UPDATE pg_index SET indisready = true WHERE indexrelid = 'tv'::regclass")
    result = reindex(db, "t")
    assert result.error is not None
    assert "is damaged" in (result.error.hint or "")
    assert rebuild.invalid(db) == set()
