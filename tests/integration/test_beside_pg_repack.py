"""The same arguments to pg_repack and to `pglean repack`, in two equal databases, come to the same.

Compared are what was rewritten, the rows, their order where one was asked for, definitions, tablespaces and sizes.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pglean import cli
from pglean.embedded import EmbeddedServer
from tests.servers import Database, create_database
from tests.support import oracle

DOCUMENT = Path(__file__).parents[2] / "docs" / "from-pg_repack.md"

#: Tables of many kinds, each with dead rows between the others. Rows of one that is sorted are of the same length: a
#: shorter one may be put into the rest of an earlier page.
DEFINITION = """
CREATE EXTENSION pg_repack;
CREATE EXTENSION btree_gist;

CREATE TABLE plain (id int PRIMARY KEY, u int NOT NULL UNIQUE, v text) WITH (autovacuum_enabled = off);
CREATE INDEX plain_v ON plain (lower(v)) WHERE id > 10;
INSERT INTO plain SELECT g, (g * 7919) % 100003, repeat('V' || to_char(g % 6000, 'FM0000'), 10)
  FROM generate_series(1, 6000) AS g;

CREATE TABLE toasted (id int PRIMARY KEY, compressed text, uncompressed text);
ALTER TABLE toasted ALTER uncompressed SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT g, (SELECT string_agg(md5((g * h)::text), '') FROM generate_series(1, 120) AS h),
       repeat(md5(g::text), 100) FROM generate_series(1, 200) AS g;

CREATE TABLE clustered (id int PRIMARY KEY, at timestamptz NOT NULL UNIQUE, v text);
INSERT INTO clustered SELECT g, '2024-01-01'::timestamptz + (g * 7919 % 100003) * interval '1 s', md5(g::text)
  FROM generate_series(1, 6000) AS g;
ALTER TABLE clustered CLUSTER ON clustered_at_key;

CREATE SCHEMA "Odd Schema";
CREATE TABLE "Odd Schema"."Odd ""Table"" 'T'" ("The Key" int PRIMARY KEY, "select" text DEFAULT 'x', gone int);
ALTER TABLE "Odd Schema"."Odd ""Table"" 'T'" DROP COLUMN gone, ADD "later, on" int DEFAULT 7;
CREATE INDEX "Odd ""Index"" I" ON "Odd Schema"."Odd ""Table"" 'T'" ("select", "The Key" DESC) INCLUDE ("later, on");
INSERT INTO "Odd Schema"."Odd ""Table"" 'T'" SELECT g, md5(g::text) FROM generate_series(1, 3000) AS g;

CREATE SCHEMA app;
CREATE TABLE app.one (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text,
                      l text GENERATED ALWAYS AS (lower(v)) STORED);
INSERT INTO app.one (v) SELECT 'V' || g FROM generate_series(1, 3000) AS g;
CREATE TABLE app.two (id int PRIMARY KEY, one bigint REFERENCES app.one ON DELETE CASCADE, during int4range,
                      CHECK (id > 0), EXCLUDE USING gist (during WITH &&)) WITH (fillfactor = 70);
INSERT INTO app.two SELECT g, g, int4range(g, g + 1) FROM generate_series(1, 1000) AS g;
CREATE INDEX ON app.two USING brin (id);
CREATE STATISTICS app.s ON id, one FROM app.two;
ALTER TABLE app.two ALTER one SET STATISTICS 500;
COMMENT ON TABLE app.two IS 'two';
GRANT SELECT ON app.two TO PUBLIC;
CREATE VIEW app.view AS SELECT * FROM app.two;
CREATE FUNCTION app.noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE TRIGGER noted BEFORE INSERT ON app.two FOR EACH ROW EXECUTE FUNCTION app.noted();

CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS (child);
INSERT INTO parent SELECT g, md5(g::text) FROM generate_series(1, 1500) AS g;
INSERT INTO child SELECT g, md5(g::text) FROM generate_series(1, 1500) AS g;
INSERT INTO grandchild SELECT g, md5(g::text) FROM generate_series(1, 1500) AS g;

CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (1000) TO (3000);
INSERT INTO parted SELECT g, md5(g::text) FROM generate_series(1, 2999) AS g;

CREATE TABLE placed (id int PRIMARY KEY, v text) TABLESPACE {space};
CREATE INDEX placed_v ON placed (v) TABLESPACE {space};
INSERT INTO placed SELECT g, md5(g::text) FROM generate_series(1, 3000) AS g;

CREATE TABLE without_key (id int, v text);
INSERT INTO without_key SELECT g, md5(g::text) FROM generate_series(1, 1000) AS g;
"""

#: The kind of relation, its name, or that of the table for a TOAST table and its index; to be told apart in all states.
_RELATIONS = """
SELECT CASE c.relkind WHEN 't' THEN 'toast' WHEN 'i' THEN 'index' ELSE 'table' END,
       CASE WHEN c.relkind = 't' OR i.indrelid IN (SELECT reltoastrelid FROM pg_class)
            THEN (SELECT t.oid::regclass::text FROM pg_class t WHERE t.reltoastrelid IN (c.oid, i.indrelid))
                 || CASE c.relkind WHEN 'i' THEN ' (index of its TOAST table)' ELSE '' END
            ELSE c.oid::regclass::text END AS name,
       pg_relation_filenode(c.oid), coalesce(s.spcname, ''), pg_relation_size(c.oid)
  FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
  LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'i', 't') AND c.oid >= 16384 AND n.nspname NOT IN ('repack', 'pglean')
   AND NOT EXISTS (SELECT FROM pg_class t JOIN pg_namespace o ON o.oid = t.relnamespace
                    WHERE t.reltoastrelid IN (c.oid, i.indrelid) AND o.nspname IN ('repack', 'pglean'))
"""

#: By how much what pglean has written may be larger, in pages. Each of two workers that copy ends with a page that is
#: not full, and a table is extended by several pages at once where more than one writes to it.
_PAGES = 2
_PAGE = 8192


@dataclass(frozen=True, slots=True)
class Case:
    """The arguments of both, in which ``{other}`` and ``{bare}`` stand for tablespaces."""

    arguments: tuple[str, ...]
    #: Tables of which the order of the rows was asked for.
    ordered: tuple[str, ...] = ()
    #: Names in the result for what must at least have been rewritten; none where nothing is done.
    rewritten: tuple[str, ...] = ()


def case(arguments: str, *rewritten: str, ordered: tuple[str, ...] = ()) -> Case:
    """Of arguments without blanks in them."""
    return Case(tuple(arguments.split()), ordered, rewritten)


CASES = {
    "table": case("-t plain", "plain", "plain_v", "plain_pkey"),
    "long options": case(
        "--table=public.plain --no-order --no-kill-backend --wait-timeout=10 --no-analyze --jobs 2 --elevel=warning"
        " --no-password",
        "plain",
    ),
    "toasted": case("-t toasted", "toasted"),
    "clustered": case("-t clustered", "clustered", ordered=("clustered",)),
    "clustered, no order": case("-n -t clustered", "clustered"),
    "order": Case(("-t", "plain", "-o", "u DESC, id"), ("plain",), ("plain",)),
    "order instead of the clustering index": case("-t clustered -o v", "clustered", ordered=("clustered",)),
    "order by an expression": Case(("-t", "plain", "--order-by=lower(v) DESC"), ("plain",), ("plain",)),
    "quoted": Case(("-t", '"Odd Schema"."Odd ""Table"" \'T\'"'), rewritten=('"Odd Schema"."Odd ""Table"" \'T\'"',)),
    "quoted, in order": Case(
        ("-t", '"Odd Schema"."Odd ""Table"" \'T\'"', "-o", '"select" DESC'),
        ('"Odd Schema"."Odd ""Table"" \'T\'"',),
    ),
    "tablespace": Case(("-t", "plain", "-s", "{other}"), rewritten=("plain",)),
    "tablespace, indexes too": Case(("-t", "toasted", "-t", "plain", "-s", "{bare}", "-S"), rewritten=("plain_v",)),
    "to another tablespace": Case(("-t", "placed", "--tablespace", "{other}"), rewritten=("placed",)),
    "back to the default": case("-t placed -s pg_default --moveidx", "placed", "placed_v"),
    "stays in its tablespace": case("-t placed", "placed", "placed_v"),
    "inheritors": case("-I parent", "parent", "child", "grandchild"),
    "some inheritors": case("--parent-table=child", "child", "grandchild"),
    "partitions": case("-I parted", "parted_1", "parted_2"),
    "schema": case("-c app", "app.one", "app.two"),
    "schemas, to a tablespace": Case(("-c", "app", "--schema=Odd Schema", "-s", "{other}"), rewritten=("app.one",)),
    "indexes": case("-x -t plain", "plain_v", "plain_pkey"),
    "indexes, to a tablespace": Case(("--only-indexes", "-t", "plain", "-s", "{bare}"), rewritten=("plain_v",)),
    "indexes of inheritors": case("-x -I parent", "parent_pkey", "child_pkey", "grandchild_pkey"),
    "index": case("-i plain_v", "plain_v"),
    "indexes by name": Case(
        ("-i", "placed_v", "--index", '"Odd Schema"."Odd ""Index"" I"', "--tablespace={bare}"),
        rewritten=("placed_v",),
    ),
    "whole database": case("", "plain", "toasted", "app.two", "grandchild", ordered=("clustered",)),
    "without an extension": case("-c app --exclude-extension btree_gist -k", "app.one", "app.two"),
    "dry run": case("-N"),
}


@dataclass(frozen=True, slots=True)
class State:
    """All of a database that a repack may, or must not, change."""

    #: By kind and name: file, tablespace, bytes.
    relations: dict[tuple[str, str], tuple[int, str, int]]
    #: By table: its own rows, in the order in which they lie.
    rows: dict[str, list[str]]
    definition: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Arena:
    """A server with pg_repack, a database to begin with, and what it is like."""

    template: Database
    before: State
    spaces: dict[str, str]


@pytest.fixture(scope="module")
def arena(bindir: Path, request: pytest.FixtureRequest) -> Iterator[Arena]:
    """Skips where pg_repack is not installed for the server."""
    if not (bindir / "pg_repack").is_file():
        pytest.skip("pg_repack is not installed for this server")
    server: EmbeddedServer = request.getfixturevalue("server")
    # pg_repack puts the name of the tablespace for indexes into its statements as it is.
    spaces = {"space": "Beside", "other": "Else Where", "bare": "elsewhere"}
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute("SET allow_in_place_tablespaces = on")
        for space in spaces.values():
            session.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(sql.Identifier(space)))
    with create_database(server) as template:
        places = {key: sql.Identifier(space) for key, space in spaces.items()}
        template.execute(sql.SQL(DEFINITION).format(**places))
        for table in _tables(template):
            template.execute(oracle.name(f"DELETE FROM ONLY {table} WHERE ctid::text LIKE ANY ('{{%3),%7)}}')"))
            template.execute(oracle.name(f"ANALYZE {table}"))
        before = observe(template)
        template.close()
        yield Arena(template, before, spaces)
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        for space in spaces.values():
            session.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(space)))


def _tables(db: Database) -> list[str]:
    return [name for kind, name, *_ in db.fetchall(_RELATIONS) if kind == "table"]


def observe(db: Database) -> State:
    relations = {(kind, name): (file, space, size) for kind, name, file, space, size in db.fetchall(_RELATIONS)}
    rows = {
        name: [row for (row,) in db.fetchall(oracle.name(f"SELECT r::text FROM ONLY {name} AS r ORDER BY r.ctid"))]
        for kind, name in relations
        if kind == "table"
    }
    dumped = db.server.run(
        "pg_dump", "--schema-only", "--exclude-schema=pglean", "--exclude-schema=repack", dbname=db.name
    ).stdout
    lines = [line for line in dumped.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
    return State(relations, rows, "\n".join(lines))


def changed(before: State, after: State) -> set[tuple[str, str]]:
    """What has another file."""
    return {relation for relation, (file, *_) in after.relations.items() if before.relations[relation][0] != file}


def by_pg_repack(arena: Arena, arguments: list[str]) -> State:
    server = arena.template.server
    with create_database(server, template=arena.template.name) as db:
        done = server.run("pg_repack", *arguments, dbname=db.name, check=False)
        assert done.returncode == 0, done.stderr
        return observe(db)


def by_pglean(arena: Arena, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> State:
    server = arena.template.server
    with create_database(server, template=arena.template.name) as db:
        for name, value in {"PORT": server.port, "HOST": server.socket_dir, "USER": "postgres"}.items():
            monkeypatch.setenv(f"PG{name}", str(value))
        monkeypatch.setenv("PGDATABASE", db.name)
        status = cli.run(["repack", *arguments])
        assert status == 0
        after = observe(db)
        if db.scalar("SELECT to_regnamespace('pglean') IS NOT NULL"):
            oracle.assert_nothing_left(db)
        return after


def test_every_option_is_taken_and_explained(bindir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = bindir / "pg_repack"
    if not program.is_file():
        pytest.skip("pg_repack is not installed for this server")
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"^  (?:(-\w), )?(--[a-z-]+)", told, re.MULTILINE))
    assert len(options) > 25
    assert cli.run(["repack", "--help"]) == 0
    taken = set(re.findall(r"(?<!\S)--?[\w-]+", capsys.readouterr().out))
    explained = set(re.findall(r"(?<![\w-])--?[a-zA-Z-]+", DOCUMENT.read_text(encoding="utf-8")))
    for short, long in options:
        assert {short, long} - {""} <= taken
        assert {short, long} - {""} <= explained


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_beside_pg_repack(arena: Arena, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [argument.format(**arena.spaces) for argument in case.arguments]
    theirs = by_pg_repack(arena, arguments)
    ours = by_pglean(arena, arguments, monkeypatch)

    rewritten = changed(arena.before, theirs)
    assert {name for _, name in rewritten} >= set(case.rewritten)
    # It passes over tables without a key.
    beyond = {relation for relation in changed(arena.before, ours) if relation[1].startswith("without_key")}
    assert bool(beyond) == (not case.arguments)
    assert changed(arena.before, ours) == rewritten | beyond
    assert ours.definition == theirs.definition
    assert {relation: space for relation, (_, space, _) in ours.relations.items()} == {
        relation: space for relation, (_, space, _) in theirs.relations.items()
    }
    for table, rows in theirs.rows.items():
        assert sorted(ours.rows[table]) == sorted(rows)
        assert sorted(rows) == sorted(arena.before.rows[table])
    for table in case.ordered:
        assert ours.rows[table] == theirs.rows[table]
        assert ours.rows[table] != arena.before.rows[table]
    larger = {
        relation: (size, theirs.relations[relation][2])
        for relation, (_, _, size) in ours.relations.items()
        if size > theirs.relations[relation][2] + _PAGES * _PAGE
    }
    assert larger == {}
