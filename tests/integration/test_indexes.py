"""Indexes of every method and kind: rebuilt as they were, under their own OIDs, and found to have every row."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from psycopg import errors as pg

from tests.servers import Database
from tests.support.churn import churn, write
from tests.support.oracle import name, repack

pytestmark = pytest.mark.in_turn

ROWS = """
    CREATE TABLE t (
        key int PRIMARY KEY, id int NOT NULL, n int, f float8, v text, w varchar(30), a int[], j jsonb, p
            point, b box, c circle, r int4range,
        s tsvector, i inet, d timestamptz);
    INSERT INTO t
    SELECT g, g, g % 20, g / 7.0, 'value ' || md5(g::text), 'w' || g % 50, ARRAY[g % 7, g % 11],
        jsonb_build_object('k', g % 13, 'l', g),
           point(g % 30, g % 17), box(point(g, g), point(g + 2, g + 3)), circle(point(g, g), 2), int4range(g, g + 5),
           to_tsvector('simple', 'word' || g % 9 || ' other' || g), inet '10.0.0.0' + g,
           timestamptz '2020-01-01 UTC' + g * interval '1 hour'
      FROM generate_series(1, 900) g;
    UPDATE t SET n = NULL, v = NULL WHERE id % 50 = 0;
"""


@dataclass(frozen=True, slots=True)
class Case:
    """An index named i on the table t, and a condition that is to be answered by it."""

    ddl: str
    condition: str
    needs: str = ""


INDEXES = {
    "btree": Case("CREATE INDEX i ON t (n, v)", "n = 7"),
    "btree of many equal values": Case("CREATE INDEX i ON t (n) WITH (deduplicate_items = on)", "n = 7"),
    "btree without deduplication": Case("CREATE INDEX i ON t (n) WITH (deduplicate_items = off)", "n = 7"),
    "btree descending, nulls first": Case("CREATE INDEX i ON t (n DESC NULLS FIRST, v ASC NULLS LAST)", "n IS NULL"),
    "btree descending, nulls last": Case("CREATE INDEX i ON t (n DESC NULLS LAST)", "n > 17"),
    "btree with fillfactor": Case("CREATE INDEX i ON t (n) WITH (fillfactor = 55)", "n = 7"),
    "btree including": Case("CREATE INDEX i ON t (n) INCLUDE (v, f)", "n = 7"),
    "unique including": Case("CREATE UNIQUE INDEX i ON t (d) INCLUDE (v)", "d = '2020-01-02 UTC'"),
    "unique nulls not distinct": Case("CREATE UNIQUE INDEX i ON t (f) NULLS NOT DISTINCT", "f = 7 / 7.0"),
    "unique nulls not distinct constraint": Case(
        "ALTER TABLE t ADD CONSTRAINT i UNIQUE NULLS NOT DISTINCT (n, id)", "n = 7 AND id > 3"
    ),
    "partial": Case("CREATE INDEX i ON t (v) WHERE n = 3 AND f > 1", "n = 3 AND f > 1 AND v > 'value 4'"),
    "unique partial": Case("CREATE UNIQUE INDEX i ON t (w) WHERE id < 50", "id < 50 AND w = 'w7'"),
    "expression": Case("CREATE INDEX i ON t (lower(v), (n + 1))", "lower(v) = 'value ' || md5('5')"),
    "expression by a function of the owner's": Case(
        "CREATE INDEX i ON t (twice(n))",
        "twice(n) = 14",
        needs="CREATE FUNCTION twice(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN n * 2; END'",
    ),
    "partial by a function of the owner's": Case(
        "CREATE INDEX i ON t (v) WHERE odd(n)",
        "odd(n) AND v > 'value 4'",
        needs="CREATE FUNCTION odd(n int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN n % 2 = 1; END'",
    ),
    "collation": Case('CREATE INDEX i ON t (v COLLATE "POSIX")', "v COLLATE \"POSIX\" < 'value 1'"),
    "pattern operator class": Case("CREATE INDEX i ON t (v text_pattern_ops)", "v LIKE 'value 1%'"),
    "hash": Case("CREATE INDEX i ON t USING hash (v) WITH (fillfactor = 60)", "v = 'value ' || md5('5')"),
    "gin array": Case("CREATE INDEX i ON t USING gin (a)", "a @> '{3,4}'"),
    "gin jsonb": Case("CREATE INDEX i ON t USING gin (j)", """j @> '{"k": 5}'"""),
    "gin jsonb path operator class": Case("CREATE INDEX i ON t USING gin (j jsonb_path_ops)", """j @> '{"k": 5}'"""),
    "gin without fast update": Case("CREATE INDEX i ON t USING gin (s) WITH (fastupdate = off)", "s @@ 'word3'"),
    "gin with fast update": Case(
        "CREATE INDEX i ON t USING gin (s) WITH (fastupdate = on, gin_pending_list_limit = 64)", "s @@ 'word3'"
    ),
    "gin expression": Case(
        "CREATE INDEX i ON t USING gin (to_tsvector('english', v))",
        "to_tsvector('english', v) @@ to_tsquery('english', 'value')",
    ),
    "gin trigrams": Case(
        "CREATE INDEX i ON t USING gin (v gin_trgm_ops)", "v LIKE '%abc%'", needs="CREATE EXTENSION pg_trgm"
    ),
    "gin of a scalar": Case(
        "CREATE INDEX i ON t USING gin (n, a)", "n = 7 AND a @> '{3}'", needs="CREATE EXTENSION btree_gin"
    ),
    "gist point": Case(
        "CREATE INDEX i ON t USING gist (p) WITH (buffering = on, fillfactor = 70)", "p <@ box '(3,3),(5,5)'"
    ),
    "gist box and range": Case("CREATE INDEX i ON t USING gist (b, r)", "b && box '(3,3),(9,9)' AND r @> 8"),
    "gist including": Case("CREATE INDEX i ON t USING gist (c) INCLUDE (id)", "c && circle '<(9,9),3>'"),
    "gist range": Case("CREATE INDEX i ON t USING gist (r)", "r && int4range(20, 30)"),
    "gist inet operator class": Case("CREATE INDEX i ON t USING gist (i inet_ops)", "i << '10.0.1.0/24'"),
    "gist operator class parameter": Case(
        "CREATE INDEX i ON t USING gist (s tsvector_ops (siglen = 40))", "s @@ 'word3'"
    ),
    "gist trigrams with parameter": Case(
        "CREATE INDEX i ON t USING gist (v gist_trgm_ops (siglen = 64))",
        "v LIKE '%abc%'",
        needs="CREATE EXTENSION pg_trgm",
    ),
    "gist of a scalar": Case("CREATE INDEX i ON t USING gist (n)", "n = 7", needs="CREATE EXTENSION btree_gist"),
    "spgist quad tree": Case("CREATE INDEX i ON t USING spgist (p)", "p <@ box '(3,3),(5,5)'"),
    "spgist k-d tree": Case("CREATE INDEX i ON t USING spgist (p kd_point_ops)", "p <@ box '(3,3),(5,5)'"),
    "spgist text": Case("CREATE INDEX i ON t USING spgist (v) WITH (fillfactor = 75)", "v = 'value ' || md5('5')"),
    "spgist range including": Case("CREATE INDEX i ON t USING spgist (r) INCLUDE (n)", "r && int4range(20, 30)"),
    "spgist inet": Case("CREATE INDEX i ON t USING spgist (i)", "i << '10.0.1.0/24'"),
    "brin": Case("CREATE INDEX i ON t USING brin (d) WITH (pages_per_range = 2)", "d < '2020-01-03 UTC'"),
    "brin with autosummarize": Case(
        "CREATE INDEX i ON t USING brin (id) WITH (pages_per_range = 1, autosummarize = on)", "id < 40"
    ),
    "brin inclusion": Case(
        "CREATE INDEX i ON t USING brin (r, b) WITH (pages_per_range = 1)", "r && int4range(20, 30)"
    ),
    "brin bloom with parameters": Case(
        "CREATE INDEX i ON t USING brin (v text_bloom_ops (n_distinct_per_range = 50, false_positive_rate = "
        "0.05)) WITH (pages_per_range = 1)",
        "v = 'value ' || md5('5')",
    ),
    "brin minmax multi": Case(
        "CREATE INDEX i ON t USING brin (f float8_minmax_multi_ops (values_per_range = 16))", "f < 9"
    ),
    "bloom": Case(
        "CREATE INDEX i ON t USING bloom (n, id) WITH (length = 80, col1 = 4)",
        "n = 7 AND id = 7",
        needs="CREATE EXTENSION bloom",
    ),
    "exclusion": Case(
        "ALTER TABLE t ADD CONSTRAINT i EXCLUDE USING gist (r WITH &&) WHERE (id % 6 = 0)",
        "r && int4range(20, 30) AND id % 6 = 0",
    ),
    "exclusion by equality": Case(
        "ALTER TABLE t ADD CONSTRAINT i EXCLUDE USING btree (id WITH =, n WITH =)", "id < 20 AND n = 7"
    ),
    "deferrable exclusion by hash": Case(
        "ALTER TABLE t ADD CONSTRAINT i EXCLUDE USING hash (d WITH =) DEFERRABLE INITIALLY DEFERRED",
        "d = '2020-01-02 UTC'",
    ),
    "deferrable unique": Case(
        "ALTER TABLE t ADD CONSTRAINT i UNIQUE (d, n) DEFERRABLE INITIALLY DEFERRED", "d < '2020-01-02 UTC'"
    ),
}
SINCE = {"unique nulls not distinct": 15, "unique nulls not distinct constraint": 15}


def found(db: Database, condition: str, *, by_index: bool) -> list[int]:
    """The ids that meet a condition, by a scan of the table or by its index i."""
    with db.connect() as session:
        off = ["enable_seqscan"] if by_index else ["enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan"]
        for setting in off:
            session.execute(name(f"SET {setting} = off"))
        query = f"SELECT id FROM t WHERE {condition} ORDER BY id"
        plan = "\n".join(str(row[0]) for row in session.execute(name(f"EXPLAIN (COSTS off) {query}")))
        assert (" on i\n" in plan + "\n" or " using i on" in plan) == by_index, plan
        return [row[0] for row in session.execute(name(query))]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=what, marks=[pytest.mark.min_version(SINCE[what])] if what in SINCE else [])
        for what, case in INDEXES.items()
    ],
)
def test_index(db: Database, owner: str, case: Case) -> None:
    db.execute(f'{ROWS}; {case.needs}; {case.ddl}; ALTER TABLE t OWNER TO "{owner}"')
    repack(db, "t")
    repack(db, "t", during=churn("t"))
    write(db, "t")
    expected = found(db, case.condition, by_index=False)
    assert found(db, case.condition, by_index=True) == expected
    assert expected


def test_constraints_go_on(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, d int UNIQUE DEFERRABLE, r int4range, EXCLUDE USING
            gist (r WITH &&));
        CREATE UNIQUE INDEX ON t ((u * 1000 + d)) WHERE u > 0;
        INSERT INTO t SELECT g, g, g, int4range(g * 10, g * 10 + 5) FROM generate_series(1, 60) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    repack(
        db,
        "t",
        during=("UPDATE t SET d = 61 - d, u = -u", "UPDATE t SET u = -u, d = 61 - d", "DELETE FROM t WHERE id > 50"),
    )
    for values in ("(1, 900, 900, NULL)", "(900, 1, 900, NULL)", "(900, 900, 1, NULL)"):
        with pytest.raises(pg.UniqueViolation):
            db.execute(name(f"INSERT INTO t VALUES {values}"))
    with pytest.raises(pg.ExclusionViolation):
        db.execute("INSERT INTO t VALUES (900, 900, 900, '[12,13)')")
    db.execute("UPDATE t SET d = 51 - d")


def test_marks_options_and_statistics_targets_stay(db: Database, owner: str) -> None:
    db.execute(
        f"""
        {ROWS};
        CREATE INDEX i ON t ((n * 2), lower(v));
        ALTER INDEX i ALTER COLUMN 1 SET STATISTICS 55;
        CREATE INDEX j ON t (w) WITH (fillfactor = 61);
        ALTER TABLE t CLUSTER ON j;
        CREATE UNIQUE INDEX k ON t (d, id);
        ALTER TABLE t ALTER d SET NOT NULL;
        ALTER TABLE t REPLICA IDENTITY USING INDEX k;
        ALTER TABLE t OWNER TO "{owner}";
        ANALYZE t;
        """
    )
    marks = (
        "SELECT indexrelid, indisclustered, indisreplident, indisprimary FROM pg_index WHERE indrelid = "
        "'t'::regclass ORDER BY 1"
    )
    before = db.fetchall(marks)
    repack(db, "t")
    repack(db, "t", during=churn("t"))
    assert db.fetchall(marks) == before
    assert db.scalar("SELECT attstattarget FROM pg_attribute WHERE attrelid = 'i'::regclass AND attnum = 1") == 55
    # The new file keeps to the fillfactor that is not read from the twin.
    assert db.scalar("SELECT reloptions::text FROM pg_class WHERE oid = 'j'::regclass") == "{fillfactor=61}"
    db.execute("CLUSTER t")
    repack(db, "t")


def test_tablespaces_stay(tablespace: str, db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE t (id int, v text, n int) TABLESPACE {tablespace};
        ALTER TABLE t ADD PRIMARY KEY (id);
        CREATE INDEX here ON t (v) TABLESPACE {tablespace};
        CREATE INDEX there ON t (n);
        INSERT INTO t SELECT g, (SELECT string_agg(md5(g * i || ''), '') FROM generate_series(1, 70) i), g FROM
            generate_series(1, 60) g;
        CREATE TABLE u (id int PRIMARY KEY, v text);
        CREATE INDEX away ON u (v) TABLESPACE {tablespace};
        INSERT INTO u SELECT g, 'v' FROM generate_series(1, 60) g;
        ALTER TABLE t OWNER TO "{owner}"; ALTER TABLE u OWNER TO "{owner}";
        """
    )
    paths = (
        "SELECT c.oid::regclass, regexp_replace(pg_relation_filepath(c.oid), '[0-9]+$', ''), c.reltablespace "
        "FROM pg_class c"
        " WHERE c.relname IN ('t', 't_pkey', 'here', 'there', 'u', 'u_pkey', 'away')"
        "    OR c.oid IN (SELECT reltoastrelid FROM pg_class WHERE relname IN ('t', 'u')) ORDER BY c.relname"
    )
    before = db.fetchall(paths)
    # The role's own default must not decide.
    db.execute(f"ALTER DATABASE {db.name} SET default_tablespace = {tablespace}")
    for table in ("t", "u"):
        repack(db, table)
        repack(db, table, during=churn(table))
    assert [row[1:] for row in db.fetchall(paths)] == [row[1:] for row in before]


def test_index_only_scan_fetches_nothing_from_the_heap(db: Database, owner: str) -> None:
    db.execute(f'{ROWS}; CREATE INDEX i ON t (n) INCLUDE (f); UPDATE t SET f = -f; ALTER TABLE t OWNER TO "{owner}"')
    repack(db, "t")
    with db.connect() as session:
        session.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        ((plan,),) = session.execute("EXPLAIN (ANALYZE, FORMAT JSON) SELECT n FROM t WHERE n < 15")
    node = plan[0]["Plan"]
    assert node["Node Type"] == "Index Only Scan"
    assert node["Index Name"] == "i"
    assert node["Actual Rows"] > 600
    assert node["Heap Fetches"] == 0


def test_many_indexes(db: Database, owner: str) -> None:
    db.execute(ROWS)
    for number in range(40):
        db.execute(f"CREATE INDEX i{number} ON t (n, (id + {number}))")
    db.execute(f'ALTER TABLE t OWNER TO "{owner}"')
    repack(db, "t", during=churn("t"), jobs=4)


def test_indexes_attached_to_those_of_a_partitioned_table(db: Database, owner: str) -> None:
    db.execute(
        f"""
        CREATE TABLE p (id int, n int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE t PARTITION OF p FOR VALUES FROM (0) TO (1000);
        CREATE INDEX pn ON p (n); CREATE UNIQUE INDEX pu ON p (id, n); CREATE INDEX ph ON p USING gin
            (to_tsvector('simple', v));
        CREATE INDEX own ON t (v);
        INSERT INTO p SELECT g, g % 7, 'v' || g FROM generate_series(0, 400) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    attached = "SELECT inhrelid, inhparent FROM pg_inherits ORDER BY 1, 2"
    before = db.fetchall(attached)
    repack(db, "t")
    repack(db, "t", during=churn("t"))
    assert db.fetchall(attached) == before
    with pytest.raises(pg.DependentObjectsStillExist):
        db.execute("DROP INDEX t_n_idx")
    db.execute("DROP INDEX pn; CREATE INDEX pn ON p (n, v)")
    repack(db, "t")
