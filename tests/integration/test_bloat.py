"""What `Database.bloat` says a repack would leave, against what it leaves: within 5 % where all is read, else 15 %.

One database with tables of many kinds is looked at by every method, then each of them is repacked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import LiteralString

import pytest
from psycopg import sql

import pglean
from pglean.bloat.finding import RelationBloat
from tests.servers import Database
from tests.support.oracle import until

#: Name, columns and storage parameters, the rows, indexes, what makes it bloated.
_TABLES: dict[str, tuple[LiteralString, ...]] = {
    "narrow": (
        "CREATE TABLE narrow (id int PRIMARY KEY, n int)",
        "INSERT INTO narrow SELECT g, g % 100 FROM generate_series(1, 100000) AS g",
        "CREATE INDEX ON narrow (n)",
        "DELETE FROM narrow WHERE random() < 0.5",
    ),
    "wide": (
        """
        CREATE TABLE wide (id bigint PRIMARY KEY, a text, b numeric, c timestamptz, d boolean, e jsonb, f text NOT NULL)
        """,
        """
        INSERT INTO wide
        SELECT g, CASE WHEN random() < 0.7 THEN repeat('x', (random() * 60)::int) END, random() * 100000,
               now() + g * interval '1 s', random() < 0.5, jsonb_build_object('k', g, 'v', md5(g::text)),
               repeat(md5(g::text), 5 + (random() * 10)::int)
          FROM generate_series(1, 20000) AS g
        """,
        "CREATE INDEX ON wide (c)",
        "CREATE INDEX ON wide (b)",
        "CREATE INDEX ON wide (a)",
        "CREATE INDEX ON wide (d, c)",
        "DELETE FROM wide WHERE random() < 0.6",
    ),
    "toasted": (
        "CREATE TABLE toasted (id int PRIMARY KEY, body text)",
        "ALTER TABLE toasted ALTER body SET STORAGE EXTERNAL",
        """
        INSERT INTO toasted
        SELECT g, repeat(md5(g::text), 20 + (random() * 300)::int) FROM generate_series(1, 3000) AS g
        """,
        "DELETE FROM toasted WHERE random() < 0.5",
    ),
    "many_indexes": (
        """
        CREATE TABLE many_indexes (id int PRIMARY KEY, code text, customer int, status text, amount numeric(10,2),
                                   at timestamptz, ref uuid)
        """,
        """
        INSERT INTO many_indexes
        SELECT g, 'C' || lpad(g::text, 8, '0'), (random() * 5000)::int,
               (ARRAY['new', 'paid', 'shipped', 'done'])[1 + (random() * random() * 3.99)::int],
               (random() * 1000)::numeric(10,2), now() - random() * interval '300 d', gen_random_uuid()
          FROM generate_series(1, 40000) AS g
        """,
        "CREATE UNIQUE INDEX ON many_indexes (code)",
        "CREATE INDEX ON many_indexes (customer)",
        "CREATE INDEX ON many_indexes (status)",
        "CREATE INDEX ON many_indexes (at)",
        "CREATE INDEX ON many_indexes (status, customer)",
        "CREATE INDEX ON many_indexes (ref)",
        "CREATE INDEX ON many_indexes (amount) WITH (fillfactor = 70)",
        "CREATE INDEX ON many_indexes (lower(code))",
        "CREATE INDEX ON many_indexes (at) WHERE status = 'new'",
        "CREATE INDEX ON many_indexes (customer) INCLUDE (amount)",
        "UPDATE many_indexes SET amount = amount + 1 WHERE random() < 0.5",
        "UPDATE many_indexes SET at = at + interval '1 d' WHERE random() < 0.3",
        "DELETE FROM many_indexes WHERE random() < 0.3",
    ),
    "fillfactor_70": (
        "CREATE TABLE fillfactor_70 (id int PRIMARY KEY, v text) WITH (fillfactor = 70)",
        "INSERT INTO fillfactor_70 SELECT g, md5(g::text) FROM generate_series(1, 60000) AS g",
        "DELETE FROM fillfactor_70 WHERE random() < 0.4",
    ),
    "sparse": (
        "CREATE TABLE sparse (id int PRIMARY KEY, v text)",
        "INSERT INTO sparse SELECT g, repeat('y', (random() * 80)::int) FROM generate_series(1, 150000) AS g",
        "DELETE FROM sparse WHERE id % 10 <> 0",
    ),
    "reshaped": (
        "CREATE TABLE reshaped (id int PRIMARY KEY, gone text, w int, v text)",
        """
        INSERT INTO reshaped
        SELECT g, md5(g::text), g, repeat('z', (random() * 50)::int) FROM generate_series(1, 40000) AS g
        """,
        "ALTER TABLE reshaped DROP gone",
        "ALTER TABLE reshaped ADD more bigint DEFAULT 7",
        "DELETE FROM reshaped WHERE random() < 0.3",
    ),
}

#: Dead rows that no VACUUM has removed, nor from the indexes.
_UPDATED: dict[str, tuple[LiteralString, ...]] = {
    "updated": (
        "CREATE TABLE updated (id int PRIMARY KEY, n bigint, v text) WITH (autovacuum_enabled = off)",
        "INSERT INTO updated SELECT g, g, md5(g::text) FROM generate_series(1, 40000) AS g",
        "CREATE INDEX ON updated (n)",
        "UPDATE updated SET n = -n WHERE id % 5 < 3",
        "DELETE FROM updated WHERE id % 5 = 4",
    )
}


def fill(db: Database, *names: str) -> None:
    """Make these tables, and what the server knows of them."""
    run(db, (_TABLES[name] for name in names))
    db.execute("VACUUM")
    run(db, _UPDATED.values())
    db.execute("ANALYZE")


def run(db: Database, tables: Iterable[Sequence[LiteralString]]) -> None:
    """Execute what makes these tables, always with the same numbers."""
    with db.connect() as session:
        session.execute("SET jit = off")
        session.execute("SELECT setseed(0.5)")
        for statements in tables:
            for statement in statements:
                session.execute(statement)
        pid = session.info.backend_pid
    # What it has counted is told to the server when it ends.
    until(lambda: db.scalar("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", (pid,)), "it has ended")


def left(db: Database) -> dict[tuple[str, str, str], int]:
    """Present sizes."""
    rows = db.fetchall(
        """
        SELECT relname, 'heap', relname, pg_relation_size(oid) FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        UNION ALL
        SELECT c.relname, 'toast', '', pg_relation_size(i.indrelid) + pg_relation_size(i.indexrelid)
          FROM pg_class c JOIN pg_index i ON i.indrelid = c.reltoastrelid WHERE c.relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT c.relname, 'index', x.relname, pg_relation_size(x.oid)
          FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid JOIN pg_class x ON x.oid = i.indexrelid
         WHERE c.relnamespace = 'public'::regnamespace
        """
    )
    return {(table, kind, name): size for table, kind, name, size in rows}


def off(relation: RelationBloat, real: int) -> float:
    """By which share it is off; a page or two are the ends of files, and no error."""
    assert relation.after_bytes is not None, relation
    return max(abs(relation.after_bytes - real) - 2 * 8192, 0) / max(real, 8192)


def usual_estimate(db: Database) -> dict[tuple[str, str, str], int]:
    """What the most common estimation queries expect (pgsql-bloat-estimation's method, as a formula of its own).

    They add up mean widths with a header, padded as a whole, and fill pages with that: no padding between columns, no
    posting lists of equal keys, no partial index.
    """
    rows = db.fetchall(
        """
        SELECT c.relname, 'heap', c.relname, ceil(c.reltuples / floor(
                   (8192 - 24) * coalesce(substring(c.reloptions::text FROM 'fillfactor=(\\d+)')::float8, 100) / 100
                   / (4 + ceil((24 + sum((1 - s.null_frac) * s.avg_width)) / 8) * 8))) * 8192
          FROM pg_class c JOIN pg_stats s ON s.schemaname = 'public' AND s.tablename = c.relname
         WHERE c.relkind = 'r' GROUP BY c.oid
        UNION ALL
        SELECT t.relname, 'index', c.relname, (1 + ceil(c.reltuples / floor(
                   (8192 - 24 - 16) * coalesce(substring(c.reloptions::text FROM 'fillfactor=(\\d+)')::float8, 90) / 100
                   / (4 + ceil((8 + sum((1 - s.null_frac) * s.avg_width)) / 8) * 8)))) * 8192
          FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
          JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = ANY (i.indkey)
          JOIN pg_stats s ON s.schemaname = 'public' AND s.tablename = t.relname AND s.attname = a.attname
         WHERE i.indexprs IS NULL GROUP BY c.oid, t.oid
        """
    )
    return {(table, kind, name): int(size) for table, kind, name, size in rows}


def test_extended_statistics(db: Database) -> None:
    with db.connect() as session:
        session.execute("CREATE TABLE pairs (a int, b int)")
        session.execute("INSERT INTO pairs SELECT g / 40, g / 80 FROM generate_series(1, 40000) AS g")
        session.execute("CREATE INDEX pairs_idx ON pairs (b, a)")
    db.execute("ANALYZE pairs")

    def said() -> RelationBloat:
        with pglean.connect(db.conninfo) as database:
            ((table,)) = database.bloat(["pairs"], method="estimate")
        return table.indexes[0]

    real = int(db.scalar("SELECT pg_relation_size('pairs_idx')"))
    # As if both were independent, nearly each pair would be another one.
    assert off(said(), real) > 1
    db.execute("CREATE STATISTICS pairs_stats (ndistinct) ON a, b FROM pairs; ANALYZE pairs")
    assert off(said(), real) < 0.05


#: How often each key of an index occurs, by a formula of the row's number.
_RUNS: dict[str, LiteralString] = {
    "once": "g",
    "twice": "g / 2",
    "three times": "g / 3",
    "five times": "g / 5",
    "ten times": "g / 10",
    "once or twice": "CASE WHEN g % 3 = 0 THEN g ELSE g / 3 + 1000000 END",
    "two or three times": "g / 5 + CASE WHEN g % 5 < 2 THEN 0 ELSE 1000000 END",
    "by chance, seldom": "(random() * 80000)::int",
    "by chance, often": "(random() * 20000)::int",
}


@pytest.mark.parametrize("runs", _RUNS)
@pytest.mark.newest
def test_keys_that_occur_a_few_times(db: Database, runs: str) -> None:
    """ANALYZE sees less than half of them."""
    with db.connect() as session:
        session.execute("SELECT setseed(0.5)")
        session.execute(
            sql.SQL("CREATE TABLE runs AS SELECT ({})::int AS n FROM generate_series(1, 80000) AS g").format(
                sql.SQL(_RUNS[runs])
            )
        )
        session.execute("CREATE INDEX ON runs (n); ANALYZE runs")
    with pglean.connect(db.conninfo) as database:
        ((table,)) = database.bloat(["runs"], method="estimate")
    (index,) = table.indexes
    assert off(index, index.bytes) < 0.05


@pytest.mark.slow
@pytest.mark.newest
def test_a_database_of_many_relations(db: Database) -> None:
    """More than 100,000 tables, partitions, indexes, TOAST tables and their indexes."""
    insert = "INSERT INTO %I SELECT g, ''x'', mod(g, 3), now() FROM generate_series(1, 10) AS g"
    plain, parents, parts = 24_000, 10, 150
    names = [f"t{number}" for number in range(plain)]
    for begin in range(0, plain, 500):
        db.execute(
            f"""
            DO $$ BEGIN
                FOR i IN {begin} .. {begin + 499} LOOP
                    EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a text, b int, c timestamptz)', i);
                    EXECUTE format('CREATE INDEX ON t%s (b)', i);
                    EXECUTE format('{insert}', 't' || i);
                END LOOP;
            END $$
            """
        )
    for parent in range(parents):
        db.execute(
            f"""
            DO $$ BEGIN
                CREATE TABLE p{parent} (id int PRIMARY KEY, a text, b int, c timestamptz) PARTITION BY RANGE (id);
                CREATE INDEX ON p{parent} (b);
                FOR i IN 0 .. {parts - 1} LOOP
                    EXECUTE format('CREATE TABLE p{parent}_%s PARTITION OF p{parent} FOR VALUES FROM (%s) TO (%s)',
                                   i, i * 100, i * 100 + 100);
                END LOOP;
                INSERT INTO p{parent} SELECT g, 'x', mod(g, 3), now() FROM generate_series(0, {parts * 100 - 1}) AS g;
            END $$
            """
        )
        names += [f"p{parent}_{number}" for number in range(parts)]
    for begin in range(0, len(names), 500):
        db.execute(sql.SQL("ANALYZE {}").format(sql.SQL(", ").join(map(sql.Identifier, names[begin : begin + 500]))))
    relations = db.scalar("SELECT count(*) FROM pg_class WHERE oid >= 16384")
    assert relations > 100_000
    for method in ("estimate", "auto"):
        with pglean.connect(db.conninfo) as database:
            begun = time.monotonic()
            found = database.bloat(method=method)
            took_s = time.monotonic() - begun
        print(f"{relations:,} relations, {method}: {took_s:.1f} s")
        # A few, where nothing else computes.
        assert took_s < 60
        assert len(found) == plain + parents
        assert found.looked_at == len(names)
        assert all(table.bloat is not None for table in found)


def test_what_a_repack_leaves(db: Database) -> None:
    fill(db, *_TABLES)
    tables = [*_TABLES, *_UPDATED]
    with pglean.connect(db.conninfo) as database:
        said = {"estimate": database.bloat(method="estimate"), "sample": database.bloat(tables)}
        usual = usual_estimate(db)
        db.execute("CREATE EXTENSION pgstattuple")
        said |= {method: database.bloat(method=method) for method in ("approx", "exact")}
        for name in tables:
            database.repack(name, analyze=False)
    real = left(db)
    wrong = []
    ours, theirs = [], []
    for method, bloat in said.items():
        most = 0.05 if method == "exact" else 0.15
        assert {table.name for table in bloat} == set(tables)
        for table in bloat:
            assert table.method in (method, f"{method}+"), table
            for relation in table.relations:
                key = table.name, relation.kind, relation.name
                error = off(relation, real[key])
                print(f"{method:9}{key}: {relation.bytes} to {relation.after_bytes}, really {real[key]}, {error:.1%}")
                if error > most:
                    wrong.append(f"{method}, {key}: {relation.after_bytes}, not {real[key]}")
                if method == "estimate" and key in usual:
                    ours.append(error)
                    theirs.append(max(abs(usual[key] - real[key]) - 2 * 8192, 0) / real[key])
                    print(f"          the usual query: {usual[key]}, {theirs[-1]:.1%}")
            left_of_it = sum(size for (name, _, _), size in real.items() if name == table.name)
            assert table.after_bytes == pytest.approx(left_of_it, rel=most, abs=3 * 8192), table
    assert not wrong
    print(f"mean error of estimate {sum(ours) / len(ours):.1%}, of the usual query {sum(theirs) / len(theirs):.1%}")
    assert sum(ours) < sum(theirs) / 2
    assert max(theirs) > 0.5
