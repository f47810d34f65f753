"""What other objects do with the table: foreign keys, triggers, policies and names go on working after a run."""

from __future__ import annotations

import pytest
from psycopg import errors as pg
from psycopg import sql

import pglean
from tests.servers import Database
from tests.support.churn import churn
from tests.support.oracle import repack, rows

pytestmark = pytest.mark.in_turn

LONG = "ä" * 31 + "x"  # 63 bytes


def test_referenced_and_referencing_foreign_keys(db: Database, owner: str) -> None:
    db.execute(
        """
        CREATE TABLE one (id int PRIMARY KEY, v text UNIQUE);
        CREATE TABLE t (id int PRIMARY KEY, one int REFERENCES one ON DELETE CASCADE ON UPDATE CASCADE,
                        self int REFERENCES t DEFERRABLE INITIALLY DEFERRED);
        CREATE TABLE many (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE ON UPDATE CASCADE,
                           s int DEFAULT 1 REFERENCES t ON DELETE SET NULL ON UPDATE SET DEFAULT);
        INSERT INTO one SELECT g, 'v' || g FROM generate_series(1, 100) g;
        INSERT INTO t SELECT g, g, g FROM generate_series(1, 100) g;
        INSERT INTO many SELECT g, g, g FROM generate_series(1, 100) g;
        """
    )
    for table in ("one", "t", "many"):
        db.execute(f'ALTER TABLE {table} OWNER TO "{owner}"')
    for table in ("one", "t", "many"):
        repack(
            db,
            table,
            during=(
                "DELETE FROM one WHERE id = (SELECT max(id) FROM one)",
                "UPDATE t SET id = -id, self = -self WHERE id = (SELECT max(id) FROM t)",
                "UPDATE one SET id = -id WHERE id = (SELECT max(id) - 1 FROM one)",
            ),
        )
    for statement in (
        "INSERT INTO t VALUES (1000, 1000, NULL)",
        "INSERT INTO t VALUES (1000, 1, 999)",
        "INSERT INTO many VALUES (1000, 999)",
        "UPDATE many SET t = 999 WHERE id = 1",
    ):
        with pytest.raises(pg.ForeignKeyViolation):
            db.execute(statement)
    db.execute(
        "UPDATE one SET id = 500 WHERE id = 5; DELETE FROM one WHERE id = 6; "
        "UPDATE t SET id = 700, self = 700 WHERE id = 7"
    )
    assert db.fetchall("SELECT id, one FROM t WHERE id IN (5, 6, 700) ORDER BY id") == [(5, 500), (700, 7)]
    assert db.fetchall("SELECT id, t, s FROM many WHERE id IN (5, 6, 7) ORDER BY id") == [(5, 5, 5), (7, 700, 1)]
    for constraint in ("t_one_fkey", "t_self_fkey"):
        db.execute(sql.SQL("ALTER TABLE t ALTER CONSTRAINT {} DEFERRABLE").format(sql.Identifier(constraint)))


@pytest.mark.parametrize("force", ["", "ALTER TABLE t FORCE ROW LEVEL SECURITY"], ids=["enabled", "forced"])
def test_row_security(db: Database, owner: str, plain_role: str, force: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, who text, v text);
        INSERT INTO t SELECT g, CASE g % 2 WHEN 0 THEN 'plain role' ELSE 'nobody' END, repeat('v', g) FROM
            generate_series(1, 100) g;
        ALTER TABLE t ENABLE ROW LEVEL SECURITY; {force};
        CREATE POLICY own ON t USING (who = current_user) WITH CHECK (who = current_user);
        CREATE POLICY late ON t AS RESTRICTIVE FOR SELECT USING (id > 10);
        GRANT ALL ON t TO "plain role";
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(db, "t", during=churn("t"))
    assert db.scalar("SELECT count(*) FROM t") == 100
    with db.connect(user=plain_role) as session:
        (seen,) = session.execute("SELECT count(*) FROM t").fetchone() or (None,)
        all_of_it = owner == plain_role and not force
        assert seen == (100 if all_of_it else 45)
        if not all_of_it:
            with pytest.raises(pg.InsufficientPrivilege):
                session.execute("INSERT INTO t VALUES (1000, 'nobody', '')")


@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
def test_triggers_that_change_the_row(db: Database, owner: str, when: str) -> None:
    # Named so that they fire before and after those of the run; the AFTER ones write to the same row again.
    change = (
        "IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; NEW.v := NEW.v || '+'; RETURN NEW;"
        if when == "BEFORE"
        else "IF TG_OP = 'DELETE' THEN INSERT INTO t VALUES (OLD.id + 1000, 'again');"
        " ELSIF pg_trigger_depth() = 1 THEN UPDATE t SET v = v || '+' WHERE id = NEW.id; END IF; RETURN NULL;"
    )
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g;
        CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {change} END $$;
        CREATE TRIGGER aaa {when} INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION change();
        CREATE TRIGGER zzz {when} UPDATE OF v ON t FOR EACH ROW WHEN (OLD.id > 50) EXECUTE FUNCTION change();
        CREATE TRIGGER off {when} UPDATE ON t FOR EACH ROW EXECUTE FUNCTION change();
        ALTER TABLE t DISABLE TRIGGER off;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(
        db,
        "t",
        during=(
            "UPDATE t SET v = 'w' WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0",
            "INSERT INTO t SELECT g FROM generate_series(200, 210) g; UPDATE t SET id = -id WHERE id % 7 = 0",
            "INSERT INTO t VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET v = 'met'; DELETE FROM t WHERE id = 2",
        ),
    )
    assert db.scalar("UPDATE t SET v = 'x' WHERE id = 3 RETURNING v") == ("x+" if when == "BEFORE" else "x")
    assert db.scalar("SELECT v FROM t WHERE id = 3") == "x+"


def test_trigger_that_keeps_writes_away(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g;
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER keep BEFORE DELETE OR UPDATE ON t FOR EACH ROW WHEN (OLD.id < 50) EXECUTE FUNCTION keep();
        ALTER TABLE t ENABLE ALWAYS TRIGGER keep;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t", during=("DELETE FROM t WHERE id % 2 = 0", "UPDATE t SET v = 'w' WHERE id % 3 = 0"))
    assert db.scalar("SELECT count(*) FROM t") == 74


def test_constraint_and_statement_triggers(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g;
        CREATE TABLE log (n int);
        GRANT ALL ON log TO PUBLIC;
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log SELECT count(*) FROM
            seen; RETURN NULL; END';
        CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN IF NEW.v = ''bad'' THEN RAISE ''bad row'' USING ERRCODE = ''check_violation''; END IF;
                RETURN NULL; END';
        CREATE TRIGGER tell AFTER UPDATE ON t REFERENCING NEW TABLE AS seen FOR EACH STATEMENT EXECUTE FUNCTION tell();
        CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            EXECUTE FUNCTION late();
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t", during=("UPDATE t SET v = 'w' WHERE id <= 10", "UPDATE t SET v = 'w' WHERE id <= 20"))
    db.execute("UPDATE t SET v = 'w' WHERE id <= 30")
    assert db.fetchall("SELECT n FROM log ORDER BY n") == [(10,), (20,), (30,)]
    with pytest.raises(pg.CheckViolation, match="bad row"):
        db.execute("UPDATE t SET v = 'bad' WHERE id = 1")


NAMES = {
    "capitals and blanks": "Big Table",
    "quotes": 'it\'s "quoted" \'\'""',
    "newline, tab and backslash": "two\nlines\tand \\ a back\\slash",
    "63 bytes": LONG,
    "per cent and braces": "100 % of %s %(x)s {} {0} $1 $$",
    "reserved word": "select",
    "dots and dashes": "a.b -- /* c */; DROP",
    "names of ours": "shadow_1",
    "helper's column": "pglean tid",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_odd_names(db: Database, owner: str, name: str) -> None:
    """Of schema, table, columns, indexes, constraints, types, collations and triggers alike."""
    other = name[:-1] + "2" if len(name.encode()) == 63 else name + "2"
    i, o = sql.Identifier(name), sql.Identifier(other)
    parts = {"n": i, "o": o, "owner": sql.Identifier(owner)}
    db.execute(
        sql.SQL(
            """
            CREATE SCHEMA {n};
            CREATE TYPE {n}.{o} AS ENUM ('a', 'b');
            CREATE COLLATION {n}.{n} FROM "C";
            CREATE TABLE {n}.{n} ({n} text COLLATE {n}.{n}, {o} {n}.{o} NOT NULL, n int, CONSTRAINT {o} PRIMARY
                KEY ({n}, {o}));
            CREATE INDEX {n} ON {n}.{o} (n) WHERE {o} = 'a';
            """.replace("ON {n}.{o}", "ON {n}.{n}").replace("CREATE INDEX {n}", 'CREATE INDEX "an index"')
        ).format(**parts)
    )
    db.execute(
        sql.SQL(
            """
            CREATE INDEX ON {n}.{n} (lower({n}) COLLATE {n}.{n}, ({o} = 'b'));
            CREATE FUNCTION {n}.{n}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
            CREATE TRIGGER {n} BEFORE UPDATE ON {n}.{n} FOR EACH ROW EXECUTE FUNCTION {n}.{n}();
            INSERT INTO {n}.{n} SELECT 'k' || g, 'a', g FROM generate_series(1, 60) g;
            ALTER TABLE {n}.{n} OWNER TO {owner};
            """
        ).format(**parts)
    )
    table = sql.Identifier(name, name).as_string(None)
    repack(db, table)
    repack(db, table, during=churn(table))


def test_names_that_triggers_of_a_run_would_have(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT g, 'v' FROM generate_series(1, 60) g;
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER pglean_1_insert BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
        CREATE TRIGGER pglean_2_delete_ BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
        CREATE TRIGGER pglean_2_delete BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t", during=churn("t"))
    repack(db, "t", during=churn("t"))


def test_table_is_found_by_the_roles_search_path(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE SCHEMA a; CREATE SCHEMA b;
        CREATE TABLE a.t (id int PRIMARY KEY); CREATE TABLE b.t (id int PRIMARY KEY);
        INSERT INTO a.t VALUES (1); INSERT INTO b.t VALUES (2);
        ALTER TABLE b.t OWNER TO "{owner}";
        """
    )
    db.execute(sql.SQL("ALTER DATABASE {} SET search_path = b, a").format(sql.Identifier(db.name)))
    files = "SELECT pg_relation_filenode('a.t'), pg_relation_filenode('b.t')"
    ((a, b),) = db.fetchall(files)
    with pglean.connect(db.conninfo) as database:
        assert database.repack("t").table == "b.t"
    ((a_after, b_after),) = db.fetchall(files)
    assert a_after == a
    assert b_after != b


def test_dependents_of_the_table_see_its_rows(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 60) g;
        CREATE VIEW w AS SELECT v FROM t WHERE id < 10;
        CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n FROM t;
        CREATE FUNCTION f() RETURNS bigint LANGUAGE sql STABLE BEGIN ATOMIC SELECT count(*) FROM t; END;
        ALTER TABLE t OWNER TO "{owner}"; ALTER VIEW w OWNER TO "{owner}"; ALTER MATERIALIZED VIEW m OWNER TO "{owner}";
        """
    )
    with db.connect() as session:
        # Plans made before the swap, and rows written to the new file by a plan of the old one.
        session.execute(
            "PREPARE q AS SELECT count(*) FROM t WHERE v > $1; PREPARE u AS UPDATE t SET v = $1 WHERE id = $2"
        )
        for _ in range(6):
            session.execute("EXECUTE q('a')")
        session.execute("EXECUTE u('before', 1)")
        with pglean.connect(db.conninfo) as database:
            database.repack("t")
        assert session.execute("EXECUTE q('a')").fetchone() == (60,)
        session.execute("EXECUTE u('after', 2)")
    db.execute("DELETE FROM t WHERE id = 60; REFRESH MATERIALIZED VIEW m")
    assert db.fetchall("SELECT v FROM w ORDER BY v")[:2] == [("after",), ("before",)]
    assert db.scalar("SELECT n FROM m") == db.scalar("SELECT f()") == 59
    assert len(rows(db, "t")) == 59
