"""Values as they lie in heap and TOAST table: of every type, compressed, out of line, written again later."""

from __future__ import annotations

import pytest
from psycopg import errors as pg

from tests.servers import Database
from tests.support.churn import churn, write
from tests.support.oracle import repack, rows

#: An expression in g: about 13 kB that do not compress well.
BIG = "(SELECT string_agg(md5(g * 1000 + i || ''), '') FROM generate_series(1, 400) i)"


@pytest.mark.parametrize("key", ["PRIMARY KEY", pytest.param("", marks=pytest.mark.in_turn)], ids=["keyed", "keyless"])
def test_column_of_every_type(db: Database, owner: str, key: str) -> None:
    values = {
        **dict.fromkeys(("int2", "int4", "int8", "numeric", "numeric(20,5)", "float4", "float8", "money", "oid"), "g"),
        **dict.fromkeys(
            ("text", "varchar", "varchar(9)", "char(9)", '"char"', "name", "bytea", "citext", "refcursor"), "'c' || g"
        ),
        "bool": "g % 2 = 0",
        "uuid": "md5(g || '')",
        "date": "date '2020-01-01' + g",
        "time": "'10:11:12'",
        "timetz": "'10:11:12+3'",
        "timestamp": "'infinity'",
        "timestamptz(2)": "'2020-01-01 10:11:12.345+2'",
        "interval day to second": "'1 day 2 h'",
        "inet": "'10.0.0.1/8'",
        "cidr": "'10.0.0.0/8'",
        "macaddr": "'08:00:2b:01:02:03'",
        "macaddr8": "'08:00:2b:01:02:03:04:05'",
        "bit(5)": "B'10101'",
        "varbit": "B'101'",
        "json": """'{"a": [1,  2], "a": 3}'""",
        "jsonb": """'{"a": [1, 2]}'""",
        "jsonpath": "'$.a[*]'",
        "point": "'(1,2)'",
        "line": "'{1,2,3}'",
        "lseg": "'[(1,2),(3,4)]'",
        "box": "'(3,4),(1,2)'",
        "path": "'[(1,2),(3,4)]'",
        "polygon": "'((1,2),(3,4),(5,6))'",
        "circle": "'<(1,2),3>'",
        "int4range": "'[1,5)'",
        "numrange": "'empty'",
        "tstzrange": "'(,2020-01-01)'",
        "datemultirange": "'{[2020-01-01,2020-02-01)}'",
        "int[]": "'[0:1][2:3]={{1,2},{3,NULL}}'",
        "numeric(5,1)[]": "'{1.5}'",
        "text[]": """'{"a b",NULL}'""",
        "tsvector": "'a:1A b:2'",
        "tsquery": "'a & !b'",
        "pg_lsn": "'1/2'",
        "xid": "'7'",
        "cid": "'7'",
        "tid": "'(1,2)'",
        "xid8": "'7'",
        "pg_snapshot": "'1:5:3'",
        "txid_snapshot": "'1:5:3'",
        "regclass": "'pg_class'",
        "regtype": "'int4'",
        "regprocedure": "'now()'",
        "aclitem[]": "'{=r/postgres}'",
        "int2vector": "'1 2'",
        "oidvector": "'1 2'",
        "hstore": "'a=>1,b=>NULL'",
        "ltree": "'a.b'",
        "ltree[]": "'{a.b}'",
        "cube": "'(1,2)'",
        "mood": "'good'",
        "mood[]": "'{good,bad}'",
        "word": "'w' || g",
        "strict": "'s' || g",
        "pair": "ROW(g, 'x')",
        "pair[]": "ARRAY[ROW(g, 'x')::pair]",
        "nested": "ROW(ROW(g, 'x')::pair, '{1}')",
        "span": "'[1,2)'",
    }
    db.execute(
        "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION cube;"
        "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN word AS varchar(9) CHECK (VALUE <> ''); "
        "CREATE DOMAIN strict AS word NOT NULL;"
        "CREATE TYPE pair AS (a int, b text); CREATE TYPE nested AS (p pair, i int[]); "
        "CREATE TYPE span AS RANGE (subtype = float8)"
    )
    db.execute(f"CREATE TABLE t (id int {key}, {', '.join(f'c{n} {kind}' for n, kind in enumerate(values))})")
    db.execute(
        f"INSERT INTO t SELECT g, {', '.join(f'({value})::{kind}' for kind, value in values.items())} FROM "
        f"generate_series(1, 40) g"
    )
    # Nulls in every column but the one that forbids them.
    nullable = [f"c{n}" for n, kind in enumerate(values) if kind != "strict"]
    db.execute(f"UPDATE t SET {', '.join(f'{column} = NULL' for column in nullable)} WHERE id % 4 = 0")
    db.execute(f'ALTER TABLE t OWNER TO "{owner}"')
    repack(db, "t")
    repack(db, "t", during=churn("t"))
    write(db, "t")


def test_column_of_type_xml(db: Database, owner: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, x xml)")
    try:
        db.execute("INSERT INTO t SELECT g, format('<a n=\"%s\"/>', g)::xml FROM generate_series(1, 40) g")
    except pg.FeatureNotSupported:
        pytest.skip("this server was built without libxml")
    db.execute(f'ALTER TABLE t OWNER TO "{owner}"')
    repack(db, "t", during=churn("t"))


def test_compression_by_lz4(db: Database, owner: str) -> None:
    if "lz4" not in db.scalar("SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'"):
        pytest.skip("this server was built without lz4")
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, l text COMPRESSION lz4, p text COMPRESSION pglz, d text);
        INSERT INTO t SELECT g, repeat(md5(g || ''), 300), repeat(md5(g || ''), 300), repeat(md5(g || ''), 300)
            FROM generate_series(1, 40) g;
        ALTER TABLE t ALTER d SET COMPRESSION lz4;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(db, "t")
    repack(db, "t", during=churn("t"))
    db.execute("UPDATE t SET l = l || 'x', p = p || 'x', d = d || 'x' WHERE id % 2 = 0")
    assert db.fetchall(
        "SELECT pg_column_compression(l), pg_column_compression(p), pg_column_compression(d) FROM t WHERE id = 2"
    ) == [("lz4", "pglz", "lz4")]


def test_toasted_values_can_be_written_and_read_afterwards(db: Database, owner: str) -> None:
    db.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, {BIG} FROM generate_series(1, 30) g;"
        f'ALTER TABLE t OWNER TO "{owner}"; UPDATE t SET v = v WHERE id % 2 = 0'
    )
    repack(
        db,
        "t",
        during=(
            f"UPDATE t SET v = {BIG.replace('g *', 'id *')} || 'new' WHERE id % 3 = 0",
            f"INSERT INTO t SELECT g, {BIG} FROM generate_series(31, 60) g",
            "UPDATE t SET id = id + 100 WHERE id % 5 = 0; DELETE FROM t WHERE id % 7 = 0",
        ),
    )
    with db.connect(user=owner) as session:
        # Inline values that move out of line, and those out of line that are copied by reference.
        session.execute(f"INSERT INTO t SELECT g, {BIG} FROM generate_series(1000, 1020) g")
        session.execute("UPDATE t SET v = v || v WHERE id % 2 = 1")
        session.execute("UPDATE t SET id = -id")
        session.execute("DELETE FROM t WHERE id % 4 = 0")
    toast = db.scalar("SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 't'::regclass")
    assert toast == f"pg_toast.pg_toast_{db.scalar('SELECT %s::regclass::oid', ('t',))}"
    before = rows(db, "t")
    db.execute("VACUUM (FULL) t")
    assert rows(db, "t") == before
    repack(db, "t")
    assert rows(db, "t") == before


def test_toast_table_is_reclaimed(db: Database, owner: str) -> None:
    db.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, {BIG} FROM generate_series(1, 60) g;"
        f'ALTER TABLE t OWNER TO "{owner}"; DELETE FROM t WHERE id > 10'
    )
    result = repack(db, "t")
    (toast,) = (size for size in result.sizes if size.kind == "toast")
    assert toast.bytes_after < toast.bytes_before / 3
