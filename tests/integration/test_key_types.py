"""Keys of every type that can be one: rows are recorded, compared and refreshed by them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.servers import Database
from tests.support.churn import churn, write
from tests.support.oracle import repack

pytestmark = pytest.mark.in_turn


@dataclass(frozen=True, slots=True)
class KeyType:
    """A type, and an expression in g that gives a different value for each g from 1 to twice the count."""

    type: str
    value: str
    count: int = 40
    #: What must be there before.
    needs: str = ""


KEY_TYPES = {
    "int2": KeyType("int2", "g::int2"),
    "int4": KeyType("int4", "g"),
    "int8": KeyType("int8", "g * 100000000000"),
    "numeric": KeyType("numeric", "g + 0.50"),
    "numeric with modifier": KeyType("numeric(10,2)", "g + 0.5"),
    "numeric nan": KeyType("numeric", "CASE g WHEN 1 THEN 'NaN' ELSE g::text END::numeric"),
    "float4": KeyType("float4", "CASE g WHEN 1 THEN 'NaN' WHEN 2 THEN '-0' ELSE g::text END::float4"),
    "float8": KeyType("float8", "CASE g WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE g::text END::float8"),
    "text": KeyType("text", "repeat('ä', g % 7) || g"),
    "long text": KeyType("text", "repeat(md5(g::text), 70)"),
    "varchar": KeyType("varchar(20)", "'key ' || g"),
    "char(n)": KeyType("char(10)", "'k' || g"),
    "internal char": KeyType('"char"', """chr(60 + g)::"char\"""", count=20),
    "name": KeyType("name", "'key ' || g"),
    "bytea": KeyType("bytea", "decode(lpad(to_hex(g), 8, '0'), 'hex')"),
    "bool": KeyType("bool", "g % 2 = 1", count=1),
    "uuid": KeyType("uuid", "md5(g::text)::uuid"),
    "date": KeyType("date", "date '2020-01-01' + g"),
    "time": KeyType("time", "time '00:00:00.5' + g * interval '1 minute'"),
    "timetz": KeyType("timetz", "timetz '00:00:00+03' + g * interval '1 minute'"),
    "timestamp": KeyType(
        "timestamp", "CASE g WHEN 1 THEN '-infinity' ELSE timestamp '2020-01-01' + g * interval '1h' END"
    ),
    "timestamptz": KeyType("timestamptz(3)", "timestamptz '2020-01-01 UTC' + g * interval '1.123 h'"),
    "interval": KeyType("interval", "g * interval '1 month 3 days 00:00:00.1'"),
    "inet": KeyType("inet", "inet '10.0.0.0/8' + g"),
    "cidr": KeyType("cidr", "('10.0.' || g || '.0/24')::cidr"),
    "macaddr": KeyType("macaddr", "('08:00:2b:01:02:' || lpad(to_hex(g), 2, '0'))::macaddr"),
    "macaddr8": KeyType("macaddr8", "('08:00:2b:01:02:03:04:' || lpad(to_hex(g), 2, '0'))::macaddr8"),
    "bit": KeyType("bit(16)", "g::bit(16)"),
    "single bit": KeyType("bit", "(g % 2)::bit", count=1),
    "varbit": KeyType("varbit(20)", "g::bit(12)"),
    "jsonb": KeyType("jsonb", "jsonb_build_object('a', g, 'b', jsonb_build_array(g, null))"),
    "range": KeyType("int4range", "int4range(g, 2 * g + 1)"),
    "timestamp range": KeyType("tstzrange", "tstzrange(timestamptz '2020-01-01 UTC' + g * interval '1 day', NULL)"),
    "multirange": KeyType("int4multirange", "int4multirange(int4range(g, g + 1), int4range(g + 5, g + 9))"),
    "own range": KeyType("span", "span(g, g + 0.5)", needs="CREATE TYPE span AS RANGE (subtype = float8)"),
    "array": KeyType("int[]", "ARRAY[g, NULL, g + 1]"),
    "text array": KeyType("text[]", "ARRAY['a ' || g, '\"quoted\"']"),
    "tsvector": KeyType("tsvector", "to_tsvector('simple', 'one two ' || g)"),
    "tsquery": KeyType("tsquery", "to_tsquery('simple', 'one & k' || g)"),
    "oid": KeyType("oid", "(g::bigint + 4000000000)::oid"),
    "oidvector": KeyType("oidvector", "(g || ' 7')::oidvector"),
    "money": KeyType("money", "g::money"),
    "pg_lsn": KeyType("pg_lsn", "('1/' || to_hex(g))::pg_lsn"),
    "xid8": KeyType("xid8", "g::text::xid8"),
    "enum": KeyType(
        "colour",
        "('c' || g)::colour",
        needs=f"CREATE TYPE colour AS ENUM ({', '.join(repr(f'c{g}') for g in range(1, 81))})",
    ),
    "domain": KeyType("positive", "g", needs="CREATE DOMAIN positive AS int CHECK (VALUE > 0)"),
    "domain over domain": KeyType(
        "code",
        "'abc' || g",
        needs=(
            "CREATE DOMAIN word AS varchar(10) COLLATE \"C\" CHECK (VALUE ~ '^[a-z]'); "
            "CREATE DOMAIN code AS word NOT NULL"
        ),
    ),
    "domain over char(n)": KeyType("padded", "'p' || g", needs="CREATE DOMAIN padded AS char(6)"),
    "domain over array": KeyType(
        "pair", "ARRAY[g, -g]", needs="CREATE DOMAIN pair AS int[] CHECK (cardinality(VALUE) = 2)"
    ),
    "domain over bit": KeyType("flags", "g::bit(9)", needs="CREATE DOMAIN flags AS bit(9)"),
    "composite": KeyType(
        "place", "ROW(g, 'place ' || g)::place", needs="CREATE TYPE place AS (number int, label text)"
    ),
    "array of composite": KeyType(
        "place[]", "ARRAY[ROW(g, 'x')::place]", needs="CREATE TYPE place AS (number int, label text)"
    ),
    "type named like one of the server's": KeyType(
        'public."text"',
        "(ARRAY['a', 'b', 'c', 'd'])[g]::public.\"text\"",
        count=2,
        needs="CREATE TYPE public.\"text\" AS ENUM ('a', 'b', 'c', 'd')",
    ),
    "citext": KeyType("citext", "'Key' || g", needs="CREATE EXTENSION citext"),
    "hstore": KeyType("hstore", "hstore('k', g::text)", needs="CREATE EXTENSION hstore"),
    "ltree": KeyType("ltree", "('top.k' || g)::ltree", needs="CREATE EXTENSION ltree"),
    "cube": KeyType("cube", "cube(g)", needs="CREATE EXTENSION cube"),
    "isbn": KeyType("isbn13", "isbn13(('978' || lpad(g::text, 9, '0') || '0!')::isbn13)", needs="CREATE EXTENSION isn"),
    "extension in a schema of its own": KeyType(
        '"ext ension".citext',
        "'Key' || g",
        needs='CREATE SCHEMA "ext ension"; CREATE EXTENSION citext SCHEMA "ext ension"',
    ),
}


@pytest.mark.parametrize("key", KEY_TYPES.values(), ids=KEY_TYPES.keys())
def test_key_of_type(db: Database, owner: str, key: KeyType) -> None:
    moved = min(7, key.count)
    db.execute(
        f"""
        {key.needs};
        CREATE TABLE t (k {key.type} PRIMARY KEY, n int, v text);
        INSERT INTO t SELECT {key.value}, g, repeat('v', g) FROM generate_series(1, {key.count}) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(
        db,
        "t",
        during=(
            # A key moves away, others come and go.
            f"UPDATE t SET k = {key.value} FROM generate_series(1, {2 * key.count}) g"
            f" WHERE g = t.n + {key.count} AND t.n <= {moved} AND {key.count} > 1",
            "DELETE FROM t WHERE n % 5 = 2; UPDATE t SET v = 'rewritten' WHERE n % 5 = 3",
            f"INSERT INTO t SELECT {key.value}, g, 'new' FROM generate_series(1, {key.count}) g"
            " ON CONFLICT (k) DO UPDATE SET v = 'met'",
        ),
    )
    write(db, "t")


def test_composite_key_of_many_types(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TYPE colour AS ENUM ('red', 'green');
        CREATE TABLE t (v text, a int2, b char(5), c timestamptz, d numeric, e colour, f text COLLATE "C", g
            bool, h int[],
                        PRIMARY KEY (d, c, b, a, e, f, g, h));
        INSERT INTO t SELECT 'v' || n, n % 3, 'b' || n % 5, '2020-01-01', n / 10.0, 'red', n % 2, n % 2 = 0, ARRAY[n]
          FROM generate_series(1, 300) n;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(db, "t", during=churn("t"))
    repack(
        db,
        "t",
        during=("UPDATE t SET d = -d WHERE a = 1", "UPDATE t SET e = 'green', h = NULL || h", "DELETE FROM t WHERE g"),
    )


@pytest.mark.parametrize("index", ["PRIMARY KEY (k)", "UNIQUE (k)"], ids=["primary key", "unique"])
@pytest.mark.usefixtures("icu")
def test_key_under_a_nondeterministic_collation(db: Database, owner: str, index: str) -> None:
    db.execute(
        f"""
        CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE t (k text COLLATE ci NOT NULL, v text, {index});
        INSERT INTO t SELECT 'Key ' || g, 'v' FROM generate_series(1, 50) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(
        db, "t", during=("UPDATE t SET k = upper(k) WHERE k < 'key 3'", "UPDATE t SET k = lower(k)", *churn("t")[:1])
    )


@pytest.mark.usefixtures("icu")
def test_many_changes_of_keys_that_are_equal_but_not_the_same(db: Database, owner: str) -> None:
    # 'Key' and 'KEY' are one key: they must fall to one worker.
    db.execute(
        f"""
        CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE t (k text COLLATE ci PRIMARY KEY, v text);
        INSERT INTO t SELECT 'Key ' || g, 'v' FROM generate_series(1, 5000) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t", during=("UPDATE t SET k = upper(k)", "UPDATE t SET k = lower(k)", "UPDATE t SET k = initcap(k)"))


def test_many_changes_of_hashable_keys_are_shared_by_the_workers(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (a int, b numeric, v text, PRIMARY KEY (a, b));
        INSERT INTO t SELECT g, 1.0, 'v' FROM generate_series(1, 5000) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t", jobs=3, during=("UPDATE t SET b = 1.00", "UPDATE t SET b = b + 1", "UPDATE t SET a = a + 10000"))


@pytest.mark.usefixtures("icu")
def test_key_index_with_a_collation_of_its_own(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE t (k text COLLATE ci NOT NULL, v text);
        CREATE UNIQUE INDEX ON t (k COLLATE "C");
        INSERT INTO t SELECT k || g, 'v' FROM generate_series(1, 20) g, (VALUES ('key'), ('KEY')) s (k);
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(
        db,
        "t",
        during=(
            "UPDATE t SET v = 'w' WHERE k COLLATE \"C\" < 'a'",
            "DELETE FROM t WHERE v = 'w'",
            "UPDATE t SET v = k",
        ),
    )


@pytest.mark.parametrize("opclass", ["text_pattern_ops", "varchar_pattern_ops", "text_ops DESC"])
def test_key_index_with_an_operator_class(db: Database, owner: str, opclass: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (k text NOT NULL, v text);
        CREATE UNIQUE INDEX ON t (k {opclass});
        INSERT INTO t SELECT 'key ' || g, 'v' FROM generate_series(1, 50) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(db, "t", during=("UPDATE t SET k = upper(k) WHERE k < 'key 3'", *churn("t")[:2]))


def test_key_index_with_an_operator_class_of_the_owners(db: Database, owner: str) -> None:
    # Numbers that differ by their sign alone are one key.
    db.execute(
        f"""
        CREATE FUNCTION abs_cmp(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT btint4cmp(abs($1), abs($2))';
        CREATE FUNCTION abs_eq(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT abs($1) = abs($2)';
        CREATE FUNCTION abs_lt(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT abs($1) < abs($2)';
        CREATE FUNCTION abs_le(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT abs($1) <= abs($2)';
        CREATE FUNCTION abs_gt(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT abs($1) > abs($2)';
        CREATE FUNCTION abs_ge(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT abs($1) >= abs($2)';
        CREATE OPERATOR |=| (FUNCTION = abs_eq, LEFTARG = int, RIGHTARG = int);
        CREATE OPERATOR |<| (FUNCTION = abs_lt, LEFTARG = int, RIGHTARG = int);
        CREATE OPERATOR |<=| (FUNCTION = abs_le, LEFTARG = int, RIGHTARG = int);
        CREATE OPERATOR |>| (FUNCTION = abs_gt, LEFTARG = int, RIGHTARG = int);
        CREATE OPERATOR |>=| (FUNCTION = abs_ge, LEFTARG = int, RIGHTARG = int);
        CREATE OPERATOR CLASS abs_ops FOR TYPE int USING btree AS
            OPERATOR 1 |<|, OPERATOR 2 |<=|, OPERATOR 3 |=|, OPERATOR 4 |>=|, OPERATOR 5 |>|, FUNCTION 1
                abs_cmp(int, int);
        CREATE TABLE t (k int NOT NULL, v text);
        CREATE UNIQUE INDEX ON t (k abs_ops);
        INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(db, "t", during=("UPDATE t SET k = -k WHERE k % 2 = 0", "UPDATE t SET k = -k", *churn("t")[:1]))


KEY_INDEXES = {
    "deferrable primary key": "PRIMARY KEY (a) DEFERRABLE",
    "initially deferred primary key": "PRIMARY KEY (a) DEFERRABLE INITIALLY DEFERRED",
    "deferrable unique": "UNIQUE (a, b) DEFERRABLE INITIALLY DEFERRED",
    "primary key including nullable columns": "PRIMARY KEY (a) INCLUDE (v)",
    "unique including nullable columns": "UNIQUE (b) INCLUDE (v, n)",
    "several": "UNIQUE (b), UNIQUE (n, a), PRIMARY KEY (b, a)",
}


@pytest.mark.parametrize("index", KEY_INDEXES.values(), ids=KEY_INDEXES.keys())
def test_key_index(db: Database, owner: str, index: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (a int NOT NULL, b text NOT NULL, n int, v text, {index});
        INSERT INTO t SELECT g, 'b' || g, nullif(g % 3, 0), nullif('v', 'v') FROM generate_series(1, 60) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(db, "t", during=churn("t"))
    # Values wander between rows: a deferrable key lets one statement do it, others need a detour.
    repack(
        db,
        "t",
        during=(
            "UPDATE t SET a = -a, b = '-' || b; UPDATE t SET a = 61 + a, b = 'b' || (61 + a)",
            "UPDATE t SET v = 'not null any more' WHERE a % 2 = 0",
            "DELETE FROM t WHERE v IS NULL",
        ),
    )


def test_deferrable_key_with_values_exchanged_in_one_transaction(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v int);
        INSERT INTO t SELECT g, g FROM generate_series(1, 60) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t", during=("UPDATE t SET a = 61 - a", "UPDATE t SET a = a % 60 + 1", "UPDATE t SET a = 61 - a"))
    with db.connect(autocommit=False) as session:
        session.execute("UPDATE t SET a = 2 WHERE a = 1")
        session.execute("UPDATE t SET a = 1 WHERE a = 2 AND v = (SELECT max(v) FROM t WHERE a = 2)")
        session.commit()


TEMPORAL_KEYS = {
    "integer and range": ("int", "n % 10"),
    "text and range": ("text", "'k' || n % 10"),
    "varchar and range": ("varchar(5)", "'k' || n % 10"),
    "domain and range": ("kind", "'k' || n % 10"),
    "uuid and range": ("uuid", "md5((n % 10)::text)::uuid"),
    "inet and range": ("inet", "inet '10.0.0.0/8' + n % 10"),
    "enum and range": ("colour", "('c' || n % 10)::colour"),
}


@pytest.mark.min_version(18)
@pytest.mark.parametrize("key", TEMPORAL_KEYS.values(), ids=TEMPORAL_KEYS.keys())
@pytest.mark.parametrize("constraint", ["PRIMARY KEY", "UNIQUE"])
def test_temporal_key(db: Database, owner: str, constraint: str, key: tuple[str, str]) -> None:
    kind, value = key
    db.execute(
        f"""
        CREATE EXTENSION btree_gist;
        CREATE DOMAIN kind AS varchar(8);
        CREATE TYPE colour AS ENUM ('c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7', 'c8', 'c9');
        CREATE TABLE t (k {kind} NOT NULL, during daterange NOT NULL, v int, {constraint} (k, during WITHOUT OVERLAPS));
        INSERT INTO t SELECT {value}, daterange(date '2020-01-01' + n, date '2020-01-02' + n), n FROM
            generate_series(1, 100) n;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(
        db,
        "t",
        during=(
            "UPDATE t SET during = daterange(lower(during), upper(during) + 3) WHERE v % 2 = 0",
            "UPDATE t SET v = -v WHERE v % 3 = 0; DELETE FROM t WHERE v % 5 = 0",
            f"INSERT INTO t SELECT {value}, daterange('2030-01-01', '2030-02-01'), 1000 + n FROM "
            f"generate_series(0, 9) n",
        ),
    )
    write(db, "t")


@pytest.mark.min_version(18)
def test_temporal_key_over_a_multirange_and_a_foreign_key_of_a_period(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE EXTENSION btree_gist;
        CREATE TABLE t (k int, during datemultirange, v int, PRIMARY KEY (k, during WITHOUT OVERLAPS));
        INSERT INTO t SELECT n, datemultirange(daterange('2020-01-01', '2021-01-01')), n FROM generate_series(1, 50) n;
        CREATE TABLE r (id int PRIMARY KEY, k int, during datemultirange, FOREIGN KEY (k, PERIOD during) REFERENCES t);
        INSERT INTO r SELECT n, n, datemultirange(daterange('2020-03-01', '2020-04-01')) FROM generate_series(1, 20) n;
        ALTER TABLE t OWNER TO "{owner}";
        ALTER TABLE r OWNER TO "{owner}";
        """
    )
    repack(db, "t", during=("UPDATE t SET v = -v", "DELETE FROM t WHERE k > 40"))
    repack(db, "r", during=("UPDATE r SET k = k", "DELETE FROM r WHERE id > 10"))
    with pytest.raises(Exception, match="violates foreign key"):
        db.execute("DELETE FROM t WHERE k = 1")
    with pytest.raises(Exception, match="violates foreign key"):
        db.execute("INSERT INTO r VALUES (99, 1, '{[2022-01-01,2022-02-01)}')")
