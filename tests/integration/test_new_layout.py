"""What only a rewrite can give: other tablespaces, fillfactor, compression, storage and access method for old rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql

import pglean
from pglean import pausepoint
from pglean.embedded import EmbeddedServer
from pglean.errors import Refused
from tests.servers import Database, create_database
from tests.support.churn import churn, write
from tests.support.oracle import assert_nothing_left, definition, name, repack

pytestmark = pytest.mark.in_turn

#: About 13 kB that hardly compress; 4 kB that compress well and then stay in the row; 40 kB that do not quite.
BIG = "(SELECT string_agg(md5(g * 1000 + i || ''), '') FROM generate_series(1, 400) i)"
INLINE = "repeat('word ' || g || ' ', 400)"
WORDS = "(SELECT string_agg('w' || i, ' ') FROM generate_series(g, g + 800) i)"
WIDE = "(SELECT string_agg(md5(g * 1000 + i % 97 || ''), '') FROM generate_series(1, 1200) i)"


def but_for(db: Database, pattern: str) -> Callable[[str], str]:
    """The present definition, where it differs from an earlier one only in what the pattern matches (`repack`)."""

    def without(text: str) -> list[str]:
        return re.sub(pattern, "", text, flags=re.MULTILINE).split()

    def becomes(before: str) -> str:
        now = definition(db)
        return now if without(now) == without(before) else before

    return becomes


def places(db: Database, table: str = "t") -> dict[str, str]:
    """Where heap, TOAST table and indexes lie: name -> tablespace; of the TOAST tables the names are left out."""
    rows = db.fetchall(
        """
        SELECT CASE c.relkind WHEN 't' THEN 'toast' ELSE c.relname END, coalesce(s.spcname, 'default'),
               pg_relation_filepath(c.oid)
          FROM pg_class t
          JOIN pg_class c ON c.oid IN (t.oid, t.reltoastrelid)
                          OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = t.oid)
          LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
         WHERE t.oid = %s::regclass
        """,
        (table,),
    )
    for _, space, path in rows:
        assert path.startswith("base/") == (space == "default"), (space, path)
    return {name: space for name, space, _ in rows}


def make(db: Database, owner: str, space: str = "") -> None:
    db.execute(
        f"""
        CREATE TABLE t (id int, v text, n int) {space and f"TABLESPACE {space}"};
        INSERT INTO t SELECT g, {BIG}, g % 7 FROM generate_series(1, 60) g;
        ALTER TABLE t ADD CONSTRAINT pk PRIMARY KEY (id);
        CREATE INDEX i ON t (n) {space and f"TABLESPACE {space}"};
        ALTER TABLE t OWNER TO "{owner}";
        DELETE FROM t WHERE id % 3 = 0;
        """
    )


def test_tablespace(tablespace: str, db: Database, owner: str) -> None:
    """-s moves heap and TOAST table, and no index; with -S these too; without either all stay where they are."""
    make(db, owner)
    home = dict.fromkeys(("t", "toast", "pk", "i"), "default")
    assert places(db) == home

    def moved(**options: object) -> dict[str, str]:
        repack(
            db, "t", during=churn("t"), becomes=but_for(db, "^SET default_tablespace = .*|; Tablespace: .*"), **options
        )
        write(db, "t")
        return places(db)

    assert moved(tablespace=tablespace) == {**home, "t": tablespace, "toast": tablespace}
    assert moved() == {**home, "t": tablespace, "toast": tablespace}
    assert moved(tablespace="pg_default") == home
    assert moved(tablespace=tablespace, move_indexes=True) == dict.fromkeys(home, tablespace)
    assert moved(tablespace="pg_default") == {**home, "pk": tablespace, "i": tablespace}
    assert moved(tablespace="pg_default", move_indexes=True) == home


def test_tablespace_that_is_the_databases_own(tablespace: str, server: EmbeddedServer, owner: str) -> None:
    """Whose relations bear no tablespace in the catalog: else nobody could move the database."""
    with create_database(server) as db:
        make(db, owner)
        with psycopg.connect(server.conninfo(), autocommit=True) as session:
            db.close()
            session.execute(sql.SQL("ALTER DATABASE {} SET TABLESPACE {}").format(
                sql.Identifier(db.name), sql.Identifier(tablespace)))  # fmt: skip
        with pglean.connect(db.conninfo) as database:
            plan = database.plan("t", tablespace=tablespace, move_indexes=True)
            assert set(plan.disk_bytes_by_tablespace) == {None}
            assert set(database.plan("t", tablespace="pg_default").disk_bytes_by_tablespace) == {None, "pg_default"}
            database.repack("t", tablespace=tablespace, move_indexes=True)
        query = "SELECT count(*) FROM pg_class WHERE reltablespace <> 0 AND relname IN ('t', 'pk', 'i')"
        assert db.scalar(query) == 0
        with pglean.connect(db.conninfo) as database:
            database.repack("t", tablespace="pg_default", move_indexes=True)
        assert db.scalar(query) == 3
        with pglean.connect(db.conninfo) as database:
            database.repack("t", tablespace=tablespace, move_indexes=True)
        assert db.scalar(query) == 0


def test_tablespace_with_an_odd_name(server: EmbeddedServer, owner: str) -> None:
    space = 'My "Space"'
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute("SET allow_in_place_tablespaces = on")
        session.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(sql.Identifier(space)))
        try:
            with create_database(server) as db:
                make(db, owner)
                with pglean.connect(db.conninfo) as database:
                    assert set(database.plan("t", tablespace=space).disk_bytes_by_tablespace) == {None, space}
                    database.repack("t", tablespace=space, move_indexes=True)
                assert set(places(db).values()) == {space}
        finally:
            session.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(space)))


def test_index_made_meanwhile_is_moved_as_well(tablespace: str, db: Database, owner: str) -> None:
    make(db, owner)
    with (
        pausepoint.intercept(
            "phase: verifying", lambda: db.execute("CREATE INDEX IF NOT EXISTS later ON t (left(v, 9))")
        ),
        pglean.connect(db.conninfo) as database,
    ):
        database.repack("t", tablespace=tablespace, move_indexes=True, verify="full")
    assert places(db) == dict.fromkeys(("t", "toast", "pk", "i", "later"), tablespace)


def test_fillfactor(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, v text) WITH (parallel_workers = 1);
        INSERT INTO t SELECT g, md5(g || '') FROM generate_series(1, 8000) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    full = db.scalar("SELECT pg_relation_size('t')")
    repack(
        db,
        "t",
        fillfactor=50,
        becomes=lambda text: text.replace("(parallel_workers='1')", "(parallel_workers='1', fillfactor='50')"),
    )
    assert 1.8 < db.scalar("SELECT pg_relation_size('t')") / full < 2.2
    # It stays.
    repack(db, "t", during=churn("t"))
    assert db.scalar("SELECT pg_relation_size('t')") / full > 1.8
    repack(db, "t", fillfactor=100, becomes=lambda text: text.replace("fillfactor='50'", "fillfactor='100'"))
    assert db.scalar("SELECT pg_relation_size('t')") <= full


def _lz4(db: Database) -> bool:
    return "lz4" in db.scalar("SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'")


def by_pglz(db: Database) -> None:
    """Whatever is compressed without being told how, now and in later sessions: from 19 on the default is lz4."""
    db.execute(sql.SQL("ALTER DATABASE {} SET default_toast_compression = pglz").format(sql.Identifier(db.name)))
    db.close()


def methods(db: Database, columns: str) -> set[str | None]:
    """How the values of some columns are compressed."""
    found = ", ".join(f"pg_column_compression({column})" for column in columns)
    query = f"SELECT DISTINCT method FROM t, unnest(ARRAY[{found}]) AS method"
    return {row[0] for row in db.fetchall(sql.SQL(query))}


def test_compression(db: Database, owner: str) -> None:
    """From pglz to lz4 and back, values of all kinds, inline and out of line; those to come as well."""
    if not _lz4(db):
        pytest.skip("this server was built without lz4")
    by_pglz(db)
    kinds = {
        "a": ("text", INLINE),
        "b": ("text", WIDE),
        "c": ("bytea", f"convert_to({WIDE}, 'UTF8')"),
        "d": ("jsonb", f"jsonb_build_object('k', {WIDE})"),
        "e": ("text[]", f"array_fill({INLINE}, '{{2,2}}', '{{0,-3}}')"),
        "f": ("words", f"ARRAY[{WIDE}]"),
        "g": ("word", INLINE),
        "h": ("varchar(100000)", WIDE),
        "i": ("pair", f"ROW(g, {INLINE})::pair"),
        "j": ("pair[]", f"ARRAY[ROW(g, {INLINE})::pair]"),
        "k": ("textrange", f"textrange({INLINE}, {INLINE} || 'x')"),
        "l": ("tsvector", f"to_tsvector('simple', {WORDS})"),
        "m": ("words[]", f"ARRAY[ARRAY[{WIDE}]::words]"),
        "n": ("varchar(9)[]", "array_fill('v' || g, '{1000}')"),
        "o": ("int[]", "'[3:4]={1,2}'"),
    }  # fmt: skip
    db.execute(
        """
        CREATE DOMAIN word AS text CHECK (VALUE <> '');
        CREATE DOMAIN words AS text[] CHECK (VALUE[1] <> '');
        CREATE TYPE pair AS (n int, v text);
        CREATE TYPE textrange AS RANGE (subtype = text);
        """
    )
    db.execute(
        sql.SQL(
            f"CREATE TABLE t (id int PRIMARY KEY, {', '.join(f'{name} {kind}' for name, (kind, _) in kinds.items())});"
            f" INSERT INTO t SELECT g, {', '.join(value for _, value in kinds.values())} FROM generate_series(1, 40) g;"
            " INSERT INTO t (id) VALUES (0);"
            f' ALTER TABLE t OWNER TO "{owner}"'
        )
    )
    # A domain's new check does not hold for old values, which are copied all the same.
    db.execute("ALTER DOMAIN word ADD CHECK (VALUE NOT LIKE 'word 7%') NOT VALID")
    columns = "".join(kinds)
    assert methods(db, columns) == {"pglz", None}
    for method in ("lz4", "pglz"):
        repack(
            db,
            "t",
            compression=method,
            during=churn("t"),
            becomes=but_for(db, r"ALTER TABLE ONLY public\.t ALTER COLUMN \w+ SET COMPRESSION \w+;"),
        )
        assert methods(db, columns) == {method, None}
        assert db.scalar("SELECT count(DISTINCT attcompression) FROM pg_attribute WHERE attrelid = 't'::regclass"
                         " AND attnum > 1") == 1  # fmt: skip
        # Those to come.
        db.execute("UPDATE t SET a = a || '!', b = b || '!', e[0][-2] = e[0][-2] || '!' WHERE id % 2 = 0 AND id > 0")
        assert methods(db, "abe") == {method, None}
    # All that could be compressed still is.
    assert db.scalar("SELECT count(*) FROM t WHERE pg_column_compression(b) IS NULL AND id > 0") == 0


#: The column alone, with others, twice removed, in an expression, in a predicate; by methods that store something else.
COMPRESSED = """
    CREATE TABLE {t} (gone text, id int PRIMARY KEY, a text NOT NULL, b text[], n int, c varchar COMPRESSION pglz,
                      d text);
    ALTER TABLE {t} DROP gone;
    ALTER TABLE {t} ALTER d SET STORAGE PLAIN;
    CREATE UNIQUE INDEX {t}_1 ON {t} (a);
    CREATE INDEX {t}_2 ON {t} (n, c DESC) INCLUDE (a);
    CREATE INDEX {t}_3 ON {t} (lower(a), a) WHERE c <> '';
    CREATE INDEX {t}_4 ON {t} ((n + 1));
    CREATE INDEX {t}_5 ON {t} USING gin (b);
    CREATE INDEX {t}_6 ON {t} USING hash (a);
    CREATE INDEX {t}_7 ON {t} USING spgist (a);
    CREATE INDEX {t}_8 ON {t} USING brin (a, n, d);
    ALTER INDEX {t}_3 ALTER COLUMN 1 SET STATISTICS 100;
    INSERT INTO {t} (id, a, b, n, c) SELECT g, 'a' || g, '{{x,y}}', g, 'c' || g FROM generate_series(1, 200) AS g;
"""


def attributes(db: Database, table: str) -> list[tuple[Any, ...]]:
    """How the columns of a table and of its indexes are stored, by number."""
    return db.fetchall(
        """
        SELECT CASE WHEN c.oid = t.oid THEN '' ELSE replace(c.relname, t.relname, '') END, a.attnum, a.attname,
               a.attcompression, a.attstorage
          FROM pg_class t
          JOIN pg_class c ON c.oid = t.oid OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = t.oid)
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
         WHERE t.oid = %s::regclass
         ORDER BY 1, 2
        """,
        (table,),
    )


def test_compression_of_index_columns(db: Database, owner: str) -> None:
    """Table and indexes say afterwards what ALTER TABLE would have made them say, and what new indexes say."""
    for table in ("t", "u"):
        db.execute(sql.SQL(COMPRESSED.format(t=table)))
        db.execute(f'ALTER TABLE {table} OWNER TO "{owner}"')
    assert attributes(db, "t") == attributes(db, "u")
    settings = r"ALTER TABLE ONLY public\.\w ALTER COLUMN \w+ SET COMPRESSION \w+;|COMPRESSION \w+"
    for method in ("lz4", "pglz") if _lz4(db) else ("pglz",):
        repack(db, "t", compression=method, during=churn("t"), becomes=but_for(db, settings))
        db.execute("ALTER TABLE u " + ", ".join(f"ALTER {column} SET COMPRESSION {method}" for column in "abcd"))
        assert attributes(db, "t") == attributes(db, "u")
        assert {row[3] for row in attributes(db, "t") if row[2] in "abcd"} == {method[0]}
        # It stays, and indexes that are rebuilt or made later are no different.
        repack(db, "t")
        db.execute("REINDEX TABLE t")
        for table in ("t", "u"):
            db.execute(name(f"CREATE INDEX {table}_9 ON {table} (n, c, (id + 1), a)"))
        assert attributes(db, "t") == attributes(db, "u")
        db.execute("DROP INDEX t_9, u_9")
        dumped = re.findall(r"^ALTER TABLE ONLY public\.([tu]) (ALTER COLUMN .*)", definition(db), re.MULTILINE)
        assert [what for table, what in dumped if table == "t"] == [what for table, what in dumped if table == "u"]
        db.execute(f"UPDATE t SET a = a || {INLINE.replace('g', 'id')} WHERE id < 9; UPDATE t SET a = left(a, 9)")


def test_columns_settings_are_applied_to_old_rows(db: Database, owner: str) -> None:
    """A column whose storage or compression was changed gets its old values stored so; others are not touched."""
    by_pglz(db)
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, a text, b text, c text, d text, e int[], f text);
        ALTER TABLE t ALTER f SET STORAGE EXTERNAL;
        INSERT INTO t SELECT g, {INLINE}, {WIDE}, {INLINE}, {WIDE}, array_fill(g, '{{2000}}'), {WIDE}
          FROM generate_series(1, 30) g;
        ALTER TABLE t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER c SET STORAGE PLAIN,
                      ALTER e SET STORAGE EXTERNAL, ALTER f SET STORAGE EXTENDED;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    assert methods(db, "abcde") == {"pglz"}
    repack(db, "t", during=churn("t"))
    assert methods(db, "abe") == {None}
    # There might be no room in a page for those of the column that is PLAIN now.
    assert methods(db, "cdf") == {"pglz"}
    repack(
        db,
        "t",
        compression="pglz",
        becomes=but_for(db, r"ALTER TABLE ONLY public\.t ALTER COLUMN \w+ SET COMPRESSION \w+;"),
    )
    if _lz4(db):
        db.execute("ALTER TABLE t ALTER d SET COMPRESSION lz4")
        repack(db, "t", during=churn("t"))
        assert (methods(db, "d"), methods(db, "f")) == ({"lz4"}, {"pglz"})
        db.execute("ALTER TABLE t ALTER c SET COMPRESSION lz4")
        repack(db, "t")


def test_access_method(db: Database, owner: str) -> None:
    """There and back; what needs the access method is noted and, afterwards, no longer."""
    db.execute(
        """
        CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
        CREATE FUNCTION handler(internal) RETURNS table_am_handler LANGUAGE internal AS 'heap_tableam_handler';
        CREATE ACCESS METHOD "Other Heap" TYPE TABLE HANDLER handler;
        """
    )
    make(db, owner)

    def needed_by() -> list[str]:
        rows = db.fetchall(
            "SELECT a.amname || ' by ' || CASE c.relkind WHEN 't' THEN 'toast' ELSE c.relname END"
            "  FROM pg_depend d JOIN pg_am a ON a.oid = d.refobjid JOIN pg_class c ON c.oid = d.objid"
            " WHERE d.refclassid = 'pg_am'::regclass AND d.classid = 'pg_class'::regclass AND a.oid > 16384 ORDER BY 1"
        )
        return [row[0] for row in rows]

    method = "SELECT amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.oid = 't'::regclass"
    before = needed_by()
    repacked = partial(repack, db, "t", during=churn("t"), becomes=but_for(db, "^SET default_table_access_method.*"))
    # amcheck knows the one access method only.
    with pytest.raises(pg.FeatureNotSupported, match="only heap AM"):
        repacked(access_method="heap2")
    assert db.scalar(method) == "heap2"
    assert [line for line in needed_by() if line.endswith("by t")] == ["heap2 by t"]
    write(db, "t")
    repacked(access_method="heap")
    assert db.scalar(method) == "heap"
    assert needed_by() == before
    with pglean.connect(db.conninfo) as database:
        (warning,) = database.plan("t", access_method="Other Heap").warnings
        assert warning.code == "method"
        assert "not the server's own heap" in warning.message
        database.repack("t", access_method="Other Heap", verify="full")
    assert db.scalar(method) == "Other Heap"
    db.execute("DELETE FROM t; INSERT INTO t VALUES (1, 'x', 1)")


def test_what_does_not_exist_is_refused(db: Database) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    wanted: dict[str, Any] = {"tablespace": "pg_global", "access_method": "btree"}
    if not _lz4(db):
        wanted["compression"] = "lz4"
    with pglean.connect(db.conninfo) as database, pytest.raises(Refused) as caught:
        database.repack("t", **wanted)
    codes = ["tablespace", "method", "compression"][: len(wanted)]
    assert [finding.code for finding in caught.value.findings] == codes
    assert db.scalar("SELECT to_regnamespace('pglean')") is None


def test_failed_run_changes_nothing(tablespace: str, db: Database, owner: str) -> None:
    """What the table is told, it is told in the transaction of the swap."""
    make(db, owner)
    before, where = definition(db), places(db)

    def fail() -> None:
        raise RuntimeError("enough")

    options: dict[str, Any] = {"tablespace": tablespace, "move_indexes": True, "fillfactor": 60, "compression": "pglz"}
    with pausepoint.intercept("swap: before the commit", fail), pglean.connect(db.conninfo) as database:
        with pytest.raises(pglean.PgleanError, match="enough"):
            database.repack("t", **options)
        assert (definition(db), places(db)) == (before, where)
        assert_nothing_left(db)
        plan = database.plan("t", **options)
        assert f"heap and indexes in tablespace {tablespace}; pages filled to 60 %; long values" in " ".join(plan.steps)
        assert set(plan.disk_bytes_by_tablespace) == {tablespace}


def test_kept_run_is_not_gone_on_with_by_other_options(tablespace: str, db: Database) -> None:
    make(db, "postgres")
    with pglean.connect(db.conninfo) as database:
        with (
            pausepoint.intercept("copy: in a chunk", lambda: db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pglean%'"
            )),
            pytest.raises(pglean.PgleanError),
        ):  # fmt: skip
            database.repack("t", tablespace=tablespace)
        with pytest.raises(Refused, match="was begun with other options") as caught:
            database.repack("t", fillfactor=70)
        (finding,) = caught.value.findings
        assert finding.code == "kept-run"
        assert finding.detail == "Given differently: --tablespace, --fillfactor."
        (run,) = database.status()
        assert f"{database.server.command(f'resume {run.id}')} goes on" in str(caught.value)
        assert database.repack("t", tablespace=tablespace, jobs=1).job == run.id
    assert places(db)["t"] == tablespace
