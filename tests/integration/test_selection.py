"""Which tables are meant: families, schemas, extensions, patterns as psql has them, and what comes first."""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql

import pglean
from pglean import selection
from pglean.embedded import EmbeddedServer
from pglean.errors import UsageError
from pglean.selection import Chosen, Selection
from pglean.sql import query
from tests.servers import Database

#: Schemas whose tables psql lists, and which are never meant: the server's own, and temporary ones.
_OTHERS = ("pg_", "information_schema")


def names(chosen: list[Chosen]) -> list[str]:
    return [one.qualified_name for one in chosen]


@pytest.fixture
def select(db: Database) -> Iterator[Callable[..., list[Chosen]]]:
    with pglean.connect(db.conninfo) as database:
        yield database.select


# ---- all of a database, or of schemas


def test_all_that_holds_rows_is_meant(db: Database, select: Callable[..., list[Chosen]]) -> None:
    assert select() == []
    with pglean.connect(db.conninfo) as database:
        db.execute("CREATE TABLE first (id int PRIMARY KEY)")
        database.repack("first")
    db.execute("""
        CREATE SCHEMA "Odd Name"; CREATE TABLE "Odd Name"."it""s" (n int);
        CREATE UNLOGGED TABLE unlogged (n int); CREATE TEMP TABLE temporary (n int);
        CREATE VIEW v AS SELECT 1; CREATE MATERIALIZED VIEW mv AS SELECT 1;
        CREATE TABLE parted (n int) PARTITION BY RANGE (n);
        CREATE TABLE leaf PARTITION OF parted FOR VALUES FROM (1) TO (2);
        CREATE TABLE child () INHERITS (first);
    """)
    found = select()
    assert set(names(found)) == {"public.first", '"Odd Name"."it""s"', "public.unlogged", "public.leaf", "public.child"}
    assert not any(one.named for one in found)
    for one in found:
        assert one.oid == db.scalar("SELECT %s::regclass::oid", (one.qualified_name,))
        assert one.total_bytes == db.scalar("SELECT pg_total_relation_size(%s::oid)", (one.oid,))


def test_schemas(db: Database, select: Callable[..., list[Chosen]]) -> None:
    db.execute("""
        CREATE SCHEMA sales; CREATE TABLE sales.a (n int); CREATE TABLE sales.b (n int);
        CREATE SCHEMA "Sales"; CREATE TABLE "Sales".c (n int);
        CREATE SCHEMA "sales*"; CREATE TABLE "sales*".d (n int);
        CREATE SCHEMA empty; CREATE TABLE public.e (n int);
    """)
    assert set(names(select(schemas=["sales"]))) == {"sales.a", "sales.b"}
    # A schema of that very name comes first, as with pg_repack, whatever the name would mean in SQL.
    assert names(select(schemas=["Sales"])) == ['"Sales".c']
    assert names(select(schemas=["sales*"])) == ['"sales*".d']
    assert names(select(schemas=['"Sales"'])) == ['"Sales".c']
    assert set(names(select(schemas=["SALES"]))) == {"sales.a", "sales.b"}
    assert set(names(select(schemas=["sale?", "publi*"]))) == {"sales.a", "sales.b", "public.e"}
    assert select(schemas=["empty"]) == []
    assert select(schemas=["pg_catalog"]) == []
    for absent in ("absent", "absent*", "sales.a", "a(b"):
        with pytest.raises(UsageError):
            select(schemas=[absent])


def test_extensions_are_left_out(db: Database, select: Callable[..., list[Chosen]]) -> None:
    db.execute("""
        CREATE TABLE ours (n int); CREATE TABLE theirs (n int); ALTER EXTENSION plpgsql ADD TABLE theirs;
    """)
    assert set(names(select())) == {"public.ours", "public.theirs"}
    for name in ("plpgsql", "PLpgSQL", '"plpgsql"'):
        assert names(select(without_extensions=[name, "absent"])) == ["public.ours"]
    assert set(names(select(without_extensions=["absent", '"PLpgSQL"']))) == {"public.ours", "public.theirs"}
    assert select(schemas=["public"], without_extensions=["plpgsql"]) == select(tables=["our*"])


# ---- families


def test_inheritance_at_any_depth(db: Database, select: Callable[..., list[Chosen]]) -> None:
    db.execute("""
        CREATE SCHEMA other;
        CREATE TABLE top (id int PRIMARY KEY); CREATE TABLE second (n int);
        CREATE TABLE one () INHERITS (top); CREATE TABLE other.two () INHERITS (top, second);
        CREATE TABLE "Both" () INHERITS (one, other.two); CREATE TABLE alone (n int);
    """)
    family = {"public.top", "public.one", "other.two", 'public."Both"'}
    found = select(parents=["top"])
    assert set(names(found)) == family
    assert len(found) == 4
    assert [one.qualified_name for one in found if one.named] == ["public.top"]
    assert set(names(select(parents=["public.one"]))) == {"public.one", 'public."Both"'}
    assert set(names(select(parents=["top", "second"]))) == {*family, "public.second"}
    (alone,) = select(parents=["alone"])
    assert (alone.qualified_name, alone.named) == ("public.alone", True)
    # By -t it is the table alone.
    assert names(select(tables=["top"])) == ["public.top"]
    with pytest.raises(UsageError, match="does not exist"):
        select(parents=["absent"])


def test_partitions_at_any_depth(db: Database, select: Callable[..., list[Chosen]]) -> None:
    db.execute("""
        CREATE TABLE m (a int, b int, c int) PARTITION BY RANGE (a);
        CREATE TABLE m1 PARTITION OF m FOR VALUES FROM (1) TO (2) PARTITION BY LIST (b);
        CREATE TABLE m1a PARTITION OF m1 FOR VALUES IN (1) PARTITION BY HASH (c);
        CREATE TABLE m1a0 PARTITION OF m1a FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE "M1a1" PARTITION OF m1a FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE TABLE m1b PARTITION OF m1 DEFAULT;
        CREATE INDEX ON m (a); CREATE TABLE bare (n int) PARTITION BY RANGE (n);
        CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER away FOREIGN DATA WRAPPER nowhere;
        CREATE FOREIGN TABLE m2 PARTITION OF m FOR VALUES FROM (2) TO (3) SERVER away;
    """)
    leaves = {"public.m1a0", 'public."M1a1"', "public.m1b"}
    # The foreign one is among them: that it is not repacked has to be said.
    assert set(names(select(parents=["m"]))) == {*leaves, "public.m2"}
    assert set(names(select(parents=["m1"]))) == leaves
    assert not any(one.named for one in select(parents=["m"]))
    assert select(parents=["bare"]) == []
    # By its name it is the partitioned table itself, of which preflight will say that it holds no rows.
    (named,) = select(tables=["m"])
    assert (named.name, named.named) == ("m", True)
    # Patterns mean only what holds rows.
    assert set(names(select(tables=["m*"]))) == {"public.m1a0", "public.m1b"}
    with pytest.raises(UsageError, match="only partitioned tables match"):
        select(tables=["bar?"])


# ---- patterns


ODD = (
    "t", "t1", "T1", "tt", "t_1", "t$1", "t.1", "a b", "a*b", "a?b", 'a"b', "a|b", "[]", "a[1]", "a+", "aa", "(x)",
    "{2}", "Ünicode", "ünicode", "orders", "order_items", "o'brien", "x^", "tab\\back", "a$",
)  # fmt: skip
PATTERNS = (
    "*", "t*", "T*", "t?", "?", "??", '"t"*', '"T"*', '"T1"', '"t*"', "t.*", "odd.*", "*.*", "*.t", "o*.t?", "*b*",
    '"Odd S"*.*', '"Odd S".t?', '"Odd S"."T1"', "t$1", "t$*", '"t$1"', '"a*b"', '"a?b"', '"a"""*', 'a""*', "a|t",
    "(a|t)*", "[at]*", "[]", "a[]", '"[]"', "a+", '"a+"', "t{2}", '"{2}"', "ü*", "Ü*", "ord(er|ers)*", "orders?", "x^",
    "^t", "a[1]", "t(", "[", "no*such", "public.*", "PUBLIC.T*", "*.*.*", "a.b.c.d", ".t", "t.", "a.*.t",
)  # fmt: skip


@pytest.fixture
def odd(db: Database) -> Database:
    """Tables of odd names in three schemas, of which two are looked into, and one hides what is in the other."""
    db.execute('CREATE SCHEMA odd; CREATE SCHEMA "Odd S"')
    for schema, some in (("public", ODD), ("odd", ODD[::3]), ("Odd S", ODD[1::2])):
        for name in some:
            db.execute(sql.SQL("CREATE TABLE {} ()").format(sql.Identifier(schema, name)))
    # What hides a table of that name need not be one.
    db.execute("CREATE VIEW odd.t1 AS SELECT 1; CREATE TABLE odd.parted (n int) PARTITION BY RANGE (n)")
    db.execute("CREATE SEQUENCE public.seq; CREATE TEMP TABLE aa ()")
    return db


def random_patterns(seed: int) -> Iterator[str]:
    chance = random.Random(seed)
    pieces = [
        "t",
        "T",
        "a",
        "o",
        "1",
        "*",
        "*",
        "?",
        ".",
        "$",
        '"',
        '"',
        "|",
        "+",
        "[",
        "]",
        "(",
        ")",
        "odd",
        "_",
        "{2}",
    ]
    for _ in range(300):
        text = "".join(chance.choices(pieces, k=chance.randint(1, 6)))
        # psql would go on reading behind a quote that is not closed.
        yield text if text.count('"') % 2 == 0 else text + '"'


def by_psql(db: Database, bindir: Path, patterns: list[str], options: str) -> list[set[tuple[str, str]]]:
    """What psql's \\dt lists for each: schema and name of tables that are not partitioned."""
    program = bindir / "psql" if (bindir / "psql").exists() else shutil.which("psql")
    if program is None:
        pytest.skip("there is no psql")
    script = "".join(f"\\dt {pattern}\n\\echo ----\n" for pattern in patterns)
    done = subprocess.run(
        [program, "-X", "-q", "-A", "-t", "-F", "\x1f", "-d", db.conninfo],
        input=script, env={"PGOPTIONS": options, "LC_ALL": "C.UTF-8", "PGCLIENTENCODING": "UTF8"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    listings = done.stdout.split("----\n")
    assert len(listings) == len(patterns) + 1, done.stderr
    rows = [[line.split("\x1f") for line in listing.splitlines() if "\x1f" in line] for listing in listings[:-1]]
    return [{(row[0], row[1]) for row in some if row[2] == "table" and not row[0].startswith(_OTHERS)} for some in rows]


@pytest.mark.parametrize("path", ["public", 'odd, "$user", public', '"Odd S", pg_catalog, odd'])
def test_patterns_mean_what_psql_lists(
    odd: Database, bindir: Path, path: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Names are resolved as SQL does; here even they are to be read as psql does.
    monkeypatch.setattr(selection, "is_pattern", lambda _: True)
    options = "-c search_path=" + path.replace(" ", "\\ ")
    patterns = [*PATTERNS, f"{odd.name}.public.t*", *random_patterns(seed)]
    with (
        pglean.connect(f"{odd.conninfo} options='{options.replace(chr(92), chr(92) * 2)}'") as database,
        database.server.connect("test") as conn,
    ):
        for pattern, listed in zip(patterns, by_psql(odd, bindir, patterns, options), strict=True):
            try:
                chosen = selection.select(database.server, conn, Selection(tables=(pattern,)))
            except UsageError:
                chosen = []
            assert {(one.schema, one.name) for one in chosen} == listed, pattern


def test_names_mean_what_they_did(odd: Database, select: Callable[..., list[Chosen]]) -> None:
    for text in ("T1", '"T1"', '"Odd S".t$1', '"a*b"', 'PUBLIC."[]"', "odd . t"):
        (one,) = select(tables=[text])
        assert one.named
        assert one.oid == odd.scalar("SELECT to_regclass(%s)::oid", (text,))
    for absent in ("absent", "odd.absent", "a.b.c.d"):
        with pytest.raises(UsageError):
            select(tables=[absent])
    # Each once, in the order in which they are named, and as what it was named best.
    found = select(tables=["orders", "o*", "order_items", "t1"])
    assert [(one.name, one.named) for one in found] == [
        ("orders", True),
        ("o'brien", False),
        ("order_items", True),
        ("t1", True),
    ]


def test_wrong_patterns(odd: Database, select: Callable[..., list[Chosen]]) -> None:
    for pattern, message in (
        ("absent*", "no table matches the pattern absent*"),
        ("pg_class*", "no table matches"),
        ("t(", "invalid pattern"),
        ("other.public.t*", "invalid pattern"),
    ):
        with pytest.raises(UsageError) as caught:
            select(tables=[pattern])
        assert message in caught.value.message


def test_operators_of_others_are_not_used(odd: Database) -> None:
    """A search path that begins with somebody's schema makes his operators no part of our query."""
    odd.execute("""
        CREATE FUNCTION odd.evil(name, text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE 'evil'; END$$;
        CREATE OPERATOR odd.~ (FUNCTION = odd.evil, LEFTARG = name, RIGHTARG = text);
        CREATE OPERATOR odd.= (FUNCTION = odd.evil, LEFTARG = name, RIGHTARG = text);
        CREATE FUNCTION odd.current_schemas(boolean) RETURNS name[] LANGUAGE plpgsql AS $$BEGIN RAISE 'evil'; END$$;
    """)
    with pglean.connect(f"{odd.conninfo} options='-c search_path=odd,pg_catalog'") as database:
        assert "odd.orders" not in names(database.select(tables=["t*"]))


# ---- what comes first


def test_largest_gain_first(db: Database, select: Callable[..., list[Chosen]]) -> None:
    for name, rows, kept in (("large_full", 20000, 1), ("small_bloated", 4000, 8), ("bloated", 10000, 50)):
        db.execute(f"""
            CREATE TABLE {name} (id int, filler text) WITH (autovacuum_enabled = off);
            INSERT INTO {name} SELECT i, repeat('x', 100) FROM generate_series(1, {rows}) AS i;
            DELETE FROM {name} WHERE id % {kept} <> 0; ANALYZE {name};
        """)
    db.execute("""
        CREATE TABLE unknown_small (id int) WITH (autovacuum_enabled = off); INSERT INTO unknown_small VALUES (1);
        CREATE TABLE unknown_large (id int) WITH (autovacuum_enabled = off);
        INSERT INTO unknown_large SELECT generate_series(1, 10000);
        CREATE TABLE emptied (filler text) WITH (autovacuum_enabled = off);
        INSERT INTO emptied SELECT repeat('x', 100) FROM generate_series(1, 30000);
        DELETE FROM emptied; ANALYZE emptied;
        CREATE TABLE loose (id int, filler text) WITH (autovacuum_enabled = off, fillfactor = 20);
        INSERT INTO loose SELECT i, repeat('x', 100) FROM generate_series(1, 1000) AS i; ANALYZE loose;
    """)
    found = select()
    in_order = [one.name for one in found]
    assert in_order[:3] == ["emptied", "bloated", "small_bloated"]
    assert set(in_order[3:5]) == {"large_full", "loose"}
    assert in_order[5:] == ["unknown_large", "unknown_small"]
    sizes = {one.name: one for one in found}
    heap = {one.name: db.scalar("SELECT pg_relation_size(%s::oid)", (one.oid,)) for one in found}
    for name, share in (("emptied", 1), ("bloated", 0.98), ("small_bloated", 0.875)):
        assert (gain := sizes[name].gain_bytes) is not None
        assert gain == pytest.approx(heap[name] * share, rel=0.05)
    for name in ("large_full", "loose"):
        assert (gain := sizes[name].gain_bytes) is not None
        assert gain < heap[name] * 0.2
    assert sizes["unknown_large"].gain_bytes is None


def test_who_has_a_table_for_himself_is_not_waited_for(db: Database, select: Callable[..., list[Chosen]]) -> None:
    db.execute("""
        CREATE TABLE a (id int PRIMARY KEY, t text); CREATE TABLE b (id int PRIMARY KEY, t text);
        CREATE TABLE c (n int);
        INSERT INTO a SELECT i, 'x' FROM generate_series(1, 5000) AS i;
        INSERT INTO b SELECT i, 'x' FROM generate_series(1, 5000) AS i;
    """)
    db.execute("VACUUM ANALYZE a, b")
    usual = {one.name: one for one in select()}
    toast = db.scalar("SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'b'")
    for statement in ("LOCK TABLE a", "REINDEX INDEX a_pkey", "DROP TABLE a", f"REINDEX TABLE {toast}"):
        with db.connect() as other:
            other.execute(f"BEGIN; {statement}")
            found = {one.name: one for one in select()}
            other.execute("ROLLBACK")
        assert set(found) == {"a", "b", "c"}
        for name in "abc":
            # Their last VACUUM counted no other forks.
            assert found[name].total_bytes == pytest.approx(usual[name].total_bytes, abs=5 * 8192)
            assert found[name].gain_bytes == usual[name].gain_bytes


def test_locked_after_it_was_looked_at(
    db: Database, select: Callable[..., list[Chosen]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is tried again, and in the end estimated."""
    db.execute("CREATE TABLE a (id int); INSERT INTO a SELECT generate_series(1, 5000); ANALYZE a")
    monkeypatch.setattr(selection, "_LOCK_TIMEOUT_MS", 10)
    # As if nobody had the table for himself.
    monkeypatch.setattr(selection, "query", _blind)
    with db.connect() as other:
        other.execute("BEGIN; LOCK TABLE a")
        (found,) = select()
        other.execute("ROLLBACK")
    assert found.total_bytes == db.scalar("SELECT pg_relation_size('a')")


def _blind(name: str) -> sql.SQL:
    return sql.SQL(query(name).as_string(None).replace("'AccessExclusiveLock'", "'no such lock'"))


def test_an_ordinary_role_sees_sizes(db: Database, plain_role: str) -> None:
    db.execute("CREATE TABLE a (id int); INSERT INTO a SELECT generate_series(1, 5000); ANALYZE a")
    with pglean.connect(f"{db.conninfo} user='{plain_role}'") as database:
        (found,) = database.select()
    assert (found.name, found.gain_bytes, found.total_bytes > 0) == ("a", None, True)


# ---- many


@pytest.mark.newest
def test_many_relations_need_no_more_statements(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    number = 10_000
    db.execute("CREATE TABLE parted (n int) PARTITION BY LIST (n)")
    db.execute(f"""
        DO $$ BEGIN FOR i IN 1..{number} LOOP
            EXECUTE 'CREATE TABLE t' || i || ' ()';
            IF i % 500 = 0 THEN COMMIT; END IF;
        END LOOP; END $$
    """)
    db.execute("CREATE SCHEMA few; CREATE TABLE few.t1 ()")

    def statements(**parts: list[str]) -> tuple[int, int]:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="pglean.sql"), pglean.connect(db.conninfo) as database:
            found = len(database.select(**parts))
        return found, len(caplog.records)

    for parts, comparison in (
        ({}, {"schemas": ["few"]}),
        ({"schemas": ["public"]}, {"schemas": ["few"]}),
        ({"tables": ["public.t*"]}, {"tables": ["few.t*"]}),
    ):
        found, count = statements(**parts)
        assert found >= number
        assert abs(count - statements(**comparison)[1]) <= 1


def test_databases(db: Database, server: EmbeddedServer) -> None:
    with pglean.connect(db.conninfo) as database:
        found = database.databases()
        assert {"postgres", db.name} <= set(found)
        assert found == sorted(found)
        assert not {"template0", "template1"} & set(found)
        other = database.in_database("postgres")
        assert other.server.capabilities.database == "postgres"
        # Interrupted together.
        database.server.cancel("SIGINT")
        with pytest.raises(pglean.errors.Interrupted):
            other.select()
