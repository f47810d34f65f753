"""Tables without a key: values of every kind, and the options of a run, with changes between its steps."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

import pglean
from tests.servers import Database
from tests.support.oracle import Change, assert_nothing_left, assert_sound, definition, once, repack, rows

pytestmark = pytest.mark.in_turn

#: About 6 kB that do not compress well.
_BIG = "(SELECT string_agg(md5(g * 1000 + i || ''), '') FROM generate_series(1, 200) i)"


def script(*statements: str) -> Change:
    """Statements, each in a transaction of its own."""

    def run(db: Database) -> None:
        for statement in statements:
            db.execute(sql.SQL(statement))

    return run


def test_values_out_of_line(db: Database, owner: str) -> None:
    """Also where a row is updated in another column, and where a column's storage is not that of its type."""
    db.execute(
        f"""
        CREATE TABLE t (n int, x text, e text, m text, p text, a text[]);
        ALTER TABLE t ALTER e SET STORAGE EXTERNAL, ALTER m SET STORAGE MAIN, ALTER p SET STORAGE PLAIN;
        INSERT INTO t SELECT g % 5, {_BIG}, {_BIG}, {_BIG}, left({_BIG}, g * 50), ARRAY[{_BIG}]
            FROM generate_series(1, 60) g;
        INSERT INTO t SELECT * FROM t;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    changes = script(
        "UPDATE t SET n = n + 10 WHERE n = 1",
        "UPDATE t SET e = e || 'x', m = NULL WHERE n = 2",
        "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE n = 3 LIMIT 7)",
        "INSERT INTO t SELECT * FROM t WHERE n = 4",
    )
    repack(db, "t", during=(changes, changes, changes))
    repack(db, "t", during=(changes,), compression="pglz", fillfactor=60, becomes=lambda _: definition(db))


def test_rows_that_fill_their_page(db: Database, owner: str) -> None:
    """Nothing is left beside them, not even for the number that is recorded with them."""
    db.execute(
        f"""
        CREATE TABLE t (p text); ALTER TABLE t ALTER p SET STORAGE PLAIN;
        INSERT INTO t SELECT repeat('x', 8126) FROM generate_series(1, 20);
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    changes = script(
        "INSERT INTO t VALUES (repeat('y', 8126))",
        "UPDATE t SET p = repeat('z', 8126) WHERE ctid = (SELECT max(ctid) FROM t)",
        "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t)",
    )
    repack(db, "t", during=(changes, changes))
    assert db.fetchall("SELECT DISTINCT pg_column_compression(p) FROM t") == [(None,)]


def test_columns_of_every_origin(db: Database, owner: str) -> None:
    virtual = ", v int GENERATED ALWAYS AS (n * 3) VIRTUAL" if db.connect().info.server_version >= 180000 else ""
    db.execute(
        f"""
        CREATE TABLE t (gone int, n int, s int GENERATED ALWAYS AS (n * 2) STORED, i int GENERATED ALWAYS AS IDENTITY
            {virtual}, "N" int, "a.b" text DEFAULT 'x');
        ALTER TABLE t DROP gone;
        INSERT INTO t (n) SELECT g % 3 FROM generate_series(1, 300) g;
        ALTER TABLE t ADD late timestamptz DEFAULT '2020-01-01', ADD image int DEFAULT 7;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    changes = script(
        "UPDATE t SET n = n + 1, image = 8 WHERE n = 1",
        "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE n = 0 LIMIT 20)",
        "INSERT INTO t (n) VALUES (1), (1), (NULL)",
    )
    repack(db, "t", during=(changes, changes, changes))


def test_labels_renamed_and_domains_altered_meanwhile(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TYPE pair AS (m mood, n int);
        CREATE DOMAIN d AS int CHECK (VALUE < 100); CREATE DOMAIN dm AS mood;
        CREATE TABLE t (m mood, ms mood[], p pair, d d, dm dm);
        INSERT INTO t SELECT 'sad', '{{glad,sad}}', ('(sad,' || g || ')')::pair, g % 10, 'glad'
            FROM generate_series(1, 200) g;
        ALTER TABLE t OWNER TO "{owner}"; ALTER TYPE mood OWNER TO "{owner}"; ALTER DOMAIN d OWNER TO "{owner}";
        """
    )
    changes = script("UPDATE t SET d = d + 1 WHERE d = 5", "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t)")
    rename = script(
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'triste'",
        "ALTER TYPE mood ADD VALUE 'soso' BEFORE 'glad'",
        "ALTER DOMAIN d DROP CONSTRAINT d_check",
        "ALTER DOMAIN d ADD CHECK (VALUE < 50)",
        "UPDATE t SET d = d + 1 WHERE d = 7",
        "UPDATE t SET m = 'soso' WHERE d = 1",
    )
    repack(db, "t", during=(changes, rename, changes), becomes=lambda _: definition(db))


@pytest.mark.parametrize(
    "options",
    [
        {"order_by": "n DESC, v"},
        {"mvcc_safe": True},
        {"jobs": 4, "verify": "count"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(db: Database, owner: str, options: dict[str, Any]) -> None:
    db.execute(
        f"""
        CREATE TABLE t (n int, v text); CREATE INDEX ON t (n); CREATE INDEX ON t (lower(v)) WHERE n > 3;
        INSERT INTO t SELECT g % 100, 'v' || g % 10 FROM generate_series(1, 3000) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    changes = script("UPDATE t SET v = v || '!' WHERE n = 7", "INSERT INTO t SELECT * FROM t LIMIT 10")
    repack(db, "t", during=(changes, changes, changes), **options)


@pytest.mark.parametrize("identity", ["FULL", "NOTHING", "DEFAULT"])
def test_replica_identity_and_publications(db: Database, identity: str) -> None:
    """Those for all tables let nobody delete from a table without an identity; that of the helpers is theirs."""
    publish = "insert, update, delete" if identity == "FULL" else "insert"
    db.execute(
        f"""
        CREATE TABLE t (n int); INSERT INTO t SELECT g % 10 FROM generate_series(1, 1000) g;
        ALTER TABLE t REPLICA IDENTITY {identity};
        CREATE PUBLICATION every FOR ALL TABLES WITH (publish = '{publish}');
        """
    )
    changes = script(
        "INSERT INTO t SELECT * FROM t LIMIT 5", "UPDATE t SET n = 11 WHERE n = 1", "DELETE FROM t WHERE n = 2"
    )
    repack(db, "t", during=(changes, changes))


def test_nothing_was_written(db: Database, owner: str) -> None:
    db.execute(f'CREATE TABLE t (n int); INSERT INTO t VALUES (1), (1), (NULL); ALTER TABLE t OWNER TO "{owner}"')
    result = repack(db, "t")
    assert (result.rows, result.changes_applied) == (3, 0)
    db.execute("DELETE FROM t")
    assert repack(db, "t").rows == 0


def test_row_that_comes_and_goes(db: Database) -> None:
    """What cancels out is not looked for in the copy."""
    db.execute("CREATE TABLE t (n int, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g")
    changes = script(
        "UPDATE t SET n = n + 1000",
        "UPDATE t SET n = n - 1000",
        "BEGIN; INSERT INTO t VALUES (5, 'v'); SAVEPOINT s; DELETE FROM t WHERE n = 5; ROLLBACK TO s;"
        " DELETE FROM t WHERE ctid = (SELECT max(ctid) FROM t); COMMIT",
        "UPDATE t SET v = v",
    )
    repack(db, "t", during=(changes, changes, changes))


def test_index_of_images_is_rebuilt_in_another_encoding(db: Database, owner: str) -> None:
    """By REINDEX DATABASE, say; the hash of a row stays what it was."""
    db.execute(
        f"""
        CREATE TABLE t (n int, v text); INSERT INTO t SELECT g, 'ä' || g FROM generate_series(1, 100) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    rebuild = script(
        "SET client_encoding TO 'LATIN1'; REINDEX INDEX pglean.images_1; SET client_encoding TO 'UTF8'",
        "DELETE FROM t WHERE n < 40",
    )
    repack(db, "t", during=(script(), rebuild))


def test_functions_are_not_for_everybody_by_default(db: Database, owner: str) -> None:
    db.execute(
        f"""
        ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
        CREATE TABLE t (n int, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    changes = script("DELETE FROM t WHERE n = 4", "INSERT INTO t VALUES (4, 'w')")
    repack(db, "t", during=(changes, changes))


def test_type_gets_an_attribute_meanwhile(db: Database, owner: str) -> None:
    """The image of a value stays what it was; how it is sent does not."""
    db.execute(
        f"""
        CREATE TYPE pair AS (n int, v text); CREATE DOMAIN pairs AS pair[];
        CREATE TABLE t (n int, p pair, ps pairs);
        INSERT INTO t SELECT g % 50, ROW(g % 20, 'v')::pair, ARRAY[ROW(g, 'w')::pair] FROM generate_series(1, 100) g;
        ALTER TABLE t OWNER TO "{owner}"; ALTER TYPE pair OWNER TO "{owner}";
        """
    )
    changes = script("UPDATE t SET n = 7 WHERE (p).n = 9")
    alter = script(
        "ALTER TYPE pair ADD ATTRIBUTE more int CASCADE", "DELETE FROM t WHERE (p).n = 5", "UPDATE t SET n = -n"
    )
    repack(db, "t", during=(script("DELETE FROM t WHERE (p).n = 3"), alter, changes), becomes=lambda _: definition(db))


def test_what_is_not_hashed_is_warned_of(db: Database) -> None:
    db.execute(
        """
        CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TYPE pair AS (m int, n int); CREATE DOMAIN dm AS mood;
        CREATE TABLE t (n int, m mood, ms mood[], p pair, "Q" pair[], d dm, a aclitem, ns int[]);
        CREATE TABLE all_alike (p pair); CREATE TABLE each_different (m mood, ms mood[]);
        """
    )

    def warned(table: str) -> list[str]:
        with pglean.connect(db.conninfo) as database:
            return [str(finding) for finding in database.plan(table).warnings if finding.code == "hash"]

    (warning,) = warned("t")
    assert 'are found without looking at p, "Q", d, a\n' in warning
    assert "rows that differ in nothing else are read" in warning
    (warning,) = warned("all_alike")
    assert "all rows are read" in warning
    assert warned("each_different") == []


def test_copy_that_lacks_a_row(db: Database) -> None:
    """Rows that are to be taken from the copy and are not there end the run, which is kept to be looked at."""
    db.execute("CREATE TABLE t (n int); INSERT INTO t SELECT g % 10 FROM generate_series(1, 100) g")
    expected = rows(db, "t")

    def harm() -> None:
        db.execute("DELETE FROM pglean.shadow_1 WHERE n = 3")
        db.execute("UPDATE t SET n = 30 WHERE n = 3")
        expected[:] = rows(db, "t")

    with (
        pglean.connect(db.conninfo) as database,
        once("phase: verifying", harm),
        pytest.raises(pglean.errors.RowsMissing, match="10 rows that were changed or deleted") as raised,
    ):
        database.repack("t")
    assert raised.value.exit_status == 7
    assert "What was begun is undone; the table is as it was." in str(raised.value)
    assert rows(db, "t") == expected
    assert_sound(db, "t")
    assert_nothing_left(db)


def test_plan(db: Database) -> None:
    db.execute("CREATE TABLE t (n int); INSERT INTO t SELECT g FROM generate_series(1, 10000) g; ANALYZE t")
    with pglean.connect(db.conninfo) as database:
        plan = database.plan("t")
        without = plan.table.total_bytes
        assert "record changed rows as they were and as they are" in plan.steps[0]
        assert "all under one snapshot" in plan.steps[1]
        assert plan.steps[2].startswith("build a temporary index on the copy; ")
        assert plan.disk_bytes == without + 240_000
        assert sum(plan.disk_bytes_by_tablespace.values()) == plan.disk_bytes
