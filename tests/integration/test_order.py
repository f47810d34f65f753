"""The order of the rows in the new files: as given, by the clustering index, in both ways, whatever the values are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.disk import Space
from pglean.errors import Refused, UsageError, VerificationFailed
from pglean.guard import Source
from pglean.options import Options
from pglean.rewrite import copy, order
from pglean.rewrite.plan import Plan
from tests.servers import Database
from tests.support.churn import churn
from tests.support.oracle import calm, name, once, repack
from tests.support.sorted import RANGES, correlation, out_of_place

pytestmark = pytest.mark.in_turn

ROWS = """
    CREATE TABLE t (
        id int PRIMARY KEY, n int, "Weird ""Name" text, v varchar(40), w text COLLATE "C", f float8, d timestamptz,
        a int[]);
    INSERT INTO t
    SELECT g, (g * 7919) % 1009, md5(g::text), CASE WHEN g % 9 > 0 THEN chr(64 + g % 60) || g END, upper(md5(g::text)),
           g / 3.0, timestamptz '2024-01-01 UTC' + g * interval '1 hour', ARRAY[g % 7, g % 11]
      FROM generate_series(1, 3000) AS g;
    UPDATE t SET n = NULL WHERE id % 50 = 0;
    CREATE FUNCTION twice(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN n * 2; END';
"""


def give(db: Database, owner: str, *tables: str) -> None:
    """Let the tables belong to somebody."""
    for table in tables or ("t",):
        db.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(name(table), sql.Identifier(owner)))


def plan(db: Database, **options: Any) -> Plan:
    with pglean.connect(db.conninfo) as database:
        return database.plan("t", **options)


@pytest.fixture
def by_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the statistics say."""
    for module, attribute, value in RANGES:
        monkeypatch.setattr(module, attribute, value)


# ---- orders that are given

ORDERS = {
    "columns": "n, id",
    "descending": "n DESC, id DESC",
    "nulls first": "n NULLS FIRST, id",
    "nulls last": "n DESC NULLS LAST, id",
    "quoted": '"Weird ""Name" DESC',
    "qualified": 't."Weird ""Name"',
    "expressions": "lower(w), n % 7, id",
    "function of the owner's": "public.twice(n) DESC, id",
    "subselect": "(SELECT count(*) FROM pg_catalog.pg_class AS c WHERE c.oid = t.id), n, id",
    "mixed types": "a, d DESC, f, v",
    "collation": 'v COLLATE "C" DESC NULLS LAST, id',
    "operator": "n USING OPERATOR(pg_catalog.>), id",
    "comment": "n, id -- as ever",
    "comment in between": "n /* ; ) */, id",
    "marks of the driver": "n % 10, '{}%s'::text || v, '%(x)s{x}'::text || w, id",
    "literals": "n = 5 DESC, v LIKE '%x%'::text, $$a;b$$::text || v, id",
    "case": "CASE WHEN id % 2 = 0 THEN n END, id",
    "brackets": "(((n))), (id)",
    "the row as a whole": "t",
}


@pytest.mark.parametrize("given", ORDERS.values(), ids=ORDERS)
def test_as_given(db: Database, owner: str, given: str) -> None:
    db.execute(name(ROWS))
    give(db, owner)
    repack(db, "t", order_by=given)
    assert out_of_place(db, "t", given.replace("-- as ever", "")) == 0


def test_shuffled(db: Database, owner: str) -> None:
    db.execute(name(ROWS))
    give(db, owner)
    repack(db, "t", order_by="random()", during=churn("t"))


REFUSED = (
    "id LIMIT 5",
    "id OFFSET 1",
    "id FETCH FIRST 1 ROW ONLY",
    "id FETCH FIRST 1 ROWS WITH TIES",
    "id FOR UPDATE",
    "id FOR KEY SHARE OF t SKIP LOCKED",
    "id UNION SELECT 1",
    "generate_series(1, 2)",
    "id, unnest(a)",
    "count(*)",
    "id, sum(n)",
    "(SELECT max(t.id))",
    "row_number() OVER ()",
    "id ROWS UNBOUNDED PRECEDING",
    "id RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW",
    "id GROUPS CURRENT ROW EXCLUDE TIES",
    "id) x, (select 1",
    "id) FROM t; DROP TABLE t; SELECT count(*) OVER (ORDER BY id",
    "id); DROP TABLE t; --",
    "id; DROP TABLE t",
    "id; COMMIT",
    "id /*",
    "'id",
    '"id',
    "$$id",
    "E'\\'",
    "1",
    "1, id",
    "id, 2 DESC",
    "NULL",
    "'id'",
    "$1",
    "id + $1",
    "%s",
    "%(id)s",
    "{}",
    "{id}",
    "id\0",
    "id\0 LIMIT 5",
    "id \udcff",
    "nowhere",
    "twice(id)",
    "x.id",
    "ctid",
    "xmin",
    "",
    "   ",
    ",",
    "id,",
    "--",
    "id WHERE true",
    "id HAVING true",
    "DISTINCT id",
    "*",
    "a b",
    "id ASC DESC",
    "id INTO x",
    "id RETURNING 1",
    "id WINDOW w AS ()",
    "p",
)


@pytest.mark.newest
def test_what_is_no_order_is_refused(db: Database, plain_role: str) -> None:
    """Each with a message of its own, before anything is touched."""
    db.execute(name(ROWS))
    db.execute("ALTER TABLE t ADD p point")
    before = (db.fetchall("TABLE t"), db.fetchall("SELECT oid, xmin FROM pg_class"))
    for owner in ("postgres", plain_role):
        give(db, owner)
        before = (db.fetchall("TABLE t"), db.fetchall("SELECT oid, xmin FROM pg_class ORDER BY oid"))
        with pglean.connect(db.conninfo) as database:
            for given in REFUSED:
                for attempt in (database.plan, database.repack):
                    message = ""
                    try:
                        attempt("t", order_by=given)
                    except UsageError as error:
                        message = error.message
                    assert "order-by" in message, given
        assert db.fetchall("SELECT nspname FROM pg_namespace WHERE nspname = 'pglean'") == [] or owner == plain_role
        after = (db.fetchall("TABLE t"), db.fetchall("SELECT oid, xmin FROM pg_class ORDER BY oid"))
        assert before[0] == after[0]
        db.execute("DROP SCHEMA IF EXISTS pglean CASCADE")


@pytest.mark.newest
def test_errors_say_how_to_mend_it(db: Database) -> None:
    db.execute(name(ROWS))
    for given, detail, hint in (
        ("id LIMIT 5", 'Syntax error at or near "LIMIT".', "columns and expressions"),
        ("twice(id)", "Function twice(integer) does not exist.", "public.f(x)"),
        ("v COLLATE mine", 'Collation "mine" for encoding "UTF8" does not exist.', "with its schema"),
        ("Id, Nowhere", 'Column "nowhere" does not exist.', "capitals and blanks need quotes"),
        ("2", "ORDER BY position 2 is not in select list.", "not its position"),
        ("$1 || v", "There is a parameter in it.", "columns and expressions"),
    ):
        with pytest.raises(UsageError) as caught:
            plan(db, order_by=given)
        assert caught.value.message == f"invalid value for option --order-by: {given}"
        assert caught.value.detail == detail
        assert hint in (caught.value.hint or "")


def test_order_that_fails_leaves_nothing(db: Database, owner: str) -> None:
    db.execute(name(ROWS))
    give(db, owner)
    file = db.scalar("SELECT pg_relation_filenode('t')")
    with pglean.connect(db.conninfo) as database:
        with pytest.raises(pglean.PgleanError, match="division by zero"):
            database.repack("t", order_by="1 / (id - 17)")
        assert database.status() == []
    assert db.scalar("SELECT pg_relation_filenode('t')") == file


# ---- the clustering index


@dataclass(frozen=True, slots=True)
class Clustering:
    """An index i, and the order that it is."""

    index: str
    order: str


CLUSTERINGS = {
    "key": Clustering("CREATE UNIQUE INDEX i ON t (n, id)", "n, id"),
    "descending": Clustering("CREATE INDEX i ON t (n DESC, id)", "n DESC, id"),
    "nulls": Clustering("CREATE INDEX i ON t (n NULLS FIRST, id DESC NULLS LAST)", "n NULLS FIRST, id DESC NULLS LAST"),
    "include": Clustering("CREATE INDEX i ON t (f DESC) INCLUDE (n)", "f DESC"),
    "expressions": Clustering(
        "CREATE INDEX i ON t (lower(w), (n % 7) DESC, id)", 'lower(w) COLLATE pg_catalog."C", ((n % 7)) DESC, id'
    ),
    "function of the owner's": Clustering("CREATE INDEX i ON t (twice(n), id)", "public.twice(n), id"),
    "quoted": Clustering('CREATE INDEX i ON t ("Weird ""Name")', '"Weird ""Name"'),
    "varchar": Clustering("CREATE INDEX i ON t (v)", "v"),
    "collation": Clustering('CREATE INDEX i ON t (v COLLATE "POSIX" DESC)', 'v COLLATE pg_catalog."POSIX" DESC'),
    "its own collation": Clustering("CREATE INDEX i ON t (w)", "w"),
    "operator class": Clustering(
        "CREATE INDEX i ON t (v text_pattern_ops DESC)", "v USING OPERATOR(pg_catalog.~>~) NULLS FIRST"
    ),
    "array": Clustering("CREATE INDEX i ON t (a, id)", "a USING OPERATOR(pg_catalog.<) NULLS LAST, id"),
    "operator class of the owner's": Clustering(
        """
        CREATE FUNCTION less(int, int) RETURNS bool IMMUTABLE STRICT LANGUAGE sql AS 'SELECT $1 %% 10 < $2 %% 10';
        CREATE FUNCTION same(int, int) RETURNS bool IMMUTABLE STRICT LANGUAGE sql AS 'SELECT $1 %% 10 = $2 %% 10';
        CREATE FUNCTION more(int, int) RETURNS bool IMMUTABLE STRICT LANGUAGE sql AS 'SELECT $1 %% 10 > $2 %% 10';
        CREATE FUNCTION compare(int, int) RETURNS int IMMUTABLE STRICT LANGUAGE sql AS 'SELECT $1 %% 10 - $2 %% 10';
        CREATE OPERATOR <% (LEFTARG = int, RIGHTARG = int, FUNCTION = less, COMMUTATOR = OPERATOR(public.>%));
        CREATE OPERATOR >% (LEFTARG = int, RIGHTARG = int, FUNCTION = more, COMMUTATOR = OPERATOR(public.<%));
        CREATE OPERATOR =% (LEFTARG = int, RIGHTARG = int, FUNCTION = same, COMMUTATOR = =%);
        CREATE OPERATOR CLASS last_digit FOR TYPE int USING btree AS
            OPERATOR 1 <%, OPERATOR 3 =%, OPERATOR 5 >%, FUNCTION 1 compare(int, int);
        CREATE INDEX i ON t (id last_digit)
        """.replace("%%", "%"),
        "id USING OPERATOR(public.<%) NULLS LAST",
    ),
}


@pytest.mark.parametrize("case", CLUSTERINGS.values(), ids=CLUSTERINGS)
def test_clustering_index_is_the_default(db: Database, owner: str, case: Clustering) -> None:
    db.execute(name(ROWS))
    db.execute(name(case.index))
    db.execute("ALTER TABLE t CLUSTER ON i")
    give(db, owner)
    found = plan(db).order
    assert found is not None
    assert (found.text, found.index, found.origin) == (case.order, "i", "CLUSTER ON i")
    repack(db, "t")
    assert out_of_place(db, "t", case.order) == 0
    assert db.scalar("SELECT indisclustered FROM pg_index WHERE indexrelid = 'i'::regclass")


def test_no_order_and_another_order(db: Database) -> None:
    db.execute(name(ROWS))
    db.execute("CREATE INDEX i ON t (n, id); ALTER TABLE t CLUSTER ON i")
    assert plan(db, cluster=False).order is None
    found = plan(db, order_by="id DESC").order
    assert found is not None
    assert (found.text, found.index, found.origin) == ("id DESC", None, "-o")
    repack(db, "t", cluster=False)
    assert out_of_place(db, "t", "n, id") > 2000
    repack(db, "t", order_by="id DESC", cluster=True)
    assert out_of_place(db, "t", "id DESC") == 0


@pytest.mark.newest
def test_clustered_on_an_index_without_order(db: Database) -> None:
    db.execute(name(ROWS))
    db.execute(
        'ALTER TABLE t ADD p point; CREATE INDEX "By Place" ON t USING gist (p); ALTER TABLE t CLUSTER ON "By Place"'
    )
    found = plan(db)
    assert found.order is None
    (finding,) = (each for each in found.warnings if each.code == "clustering-index")
    assert finding.message == 'public.t is clustered on index "By Place", whose access method gist has no order'
    assert not [each for each in plan(db, cluster=False).warnings if each.code == "clustering-index"]
    repack(db, "t")


@pytest.mark.min_version(18)
def test_by_a_virtual_column(db: Database, owner: str) -> None:
    db.execute(name(ROWS))
    db.execute("ALTER TABLE t ADD shown text GENERATED ALWAYS AS (upper(v) || n) VIRTUAL; ALTER TABLE t DROP f")
    give(db, owner)
    repack(db, "t", order_by="shown DESC NULLS LAST, id", during=churn("t"))
    found = plan(db, order_by="shown")
    assert found.order is not None
    assert found.order.reason == "the order does not begin with a stored column by itself"


def test_no_code_of_the_owner_runs_as_us(db: Database, plain_role: str) -> None:
    """Neither in the planning of the run, nor while it sorts."""
    db.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, g FROM generate_series(1, 2000) AS g"
    )
    db.execute(
        "CREATE FUNCTION spy(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS"
        " 'BEGIN IF current_user = ''postgres'' THEN RAISE ''runs as %'', current_user; END IF; RETURN -n; END'"
    )
    give(db, plain_role)
    db.execute("GRANT ALL ON SCHEMA public TO PUBLIC")
    with db.connect() as conn:
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(plain_role)))
        conn.execute(
            "CREATE INDEX i ON t (spy(id)); CREATE INDEX j ON t ((spy(1) + id));"
            "CREATE STATISTICS s ON (spy(id)), (spy(2)) FROM t"
        )
        conn.execute("ANALYZE t; ALTER TABLE t CLUSTER ON i")
    for given in (None, "public.spy(3), public.spy(id)", "id DESC"):
        found = plan(db, order_by=given)
        assert found.order is not None
        with pglean.connect(db.conninfo) as database:
            assert database.repack("t", order_by=given, verify="full").rows == 2000
        db.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(plain_role)))
        assert out_of_place(db, "t", "id DESC") == 0
        db.execute("RESET ROLE")


# ---- ranges

VALUES: dict[str, tuple[str, Sequence[str | None]]] = {
    "integer": ("int", (None, "-2147483648", "2147483647", "0", *map(str, range(-500, 500, 7)))),
    "bigint": ("bigint", (None, "-9223372036854775808", "9223372036854775807", *map(str, range(0, 10**18, 10**16)))),
    "numeric": ("numeric", (None, "NaN", "Infinity", "-Infinity", "1e100", *(f"{i}.0{i}" for i in range(150)))),
    "double": ("float8", (None, "NaN", "Infinity", "-Infinity", "-0", "1e-300", *(f"{i}e{i}" for i in range(150)))),
    "date": ("date", (None, "infinity", "-infinity", "0044-03-15 BC", *(f"20{i:02}-07-01" for i in range(99)))),
    "timestamp": (
        "timestamp",
        (None, "infinity", "-infinity", *(f"2024-05-{i % 28 + 1} 0{i % 9}:00" for i in range(99))),
    ),
    "timestamptz": (
        "timestamptz",
        (None, "infinity", "-infinity", *(f"20{i:02}-10-27 02:30+0{i % 9}" for i in range(99))),
    ),
    "text": ("text", (None, "", " ", "'", "\\", "%s", "{}", "…", "ß", *(f"x{i * 7 % 100}" for i in range(99)))),
    "text in C": ('text COLLATE "C"', (None, "", "Z", "a", "é", "\U0001f600", *(f"{i:x}" for i in range(99)))),
    "varchar": ("varchar(9)", (None, "", *(f"{i * 13 % 100}" for i in range(99)))),
    "char": ("char(5)", (None, "", "a", "a\t", "a!", *(f"{i * 13 % 100}" for i in range(99)))),
    "uuid": ("uuid", (None, *(f"{i * 99991:032x}" for i in range(99)))),
    "bytea": ("bytea", (None, "", "\\x00", "\\xff", *(f"\\x{i:02x}{i:02x}" for i in range(99)))),
    "same": ("int", (*(["1"] * 50), *map(str, range(60)))),
}


HOW = ("", "DESC", "NULLS FIRST", "DESC NULLS LAST")


@pytest.mark.usefixtures("by_ranges")
@pytest.mark.parametrize("case", VALUES.values(), ids=VALUES)
def test_every_value_is_in_one_range(db: Database, owner: str, case: tuple[str, Sequence[str | None]]) -> None:
    kind, values = case
    db.execute(name(f'CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "X" {kind}, pad text)'))
    with db.connect().cursor() as cursor:
        cursor.executemany(
            "INSERT INTO t (\"X\", pad) VALUES (%s, repeat('pad', 50))", [(value,) for value in values] * 4
        )
    db.execute('CREATE INDEX ON t ("X" DESC); ANALYZE t')
    give(db, owner)
    for how in HOW:
        given = f'"X" {how}, id'
        found = plan(db, order_by=given)
        assert found.order is not None
        assert found.order.ranges is not None, found.order.reason
        assert found.order.pieces > 3
        source = Source(sql.SQL("ONLY t"), sql.Identifier("ctid"))
        ids = [
            row[0]
            for piece in range(found.order.pieces)
            for row in db.fetchall(
                sql.SQL("SELECT id FROM {}").format(found.order.select(found.table, source, piece, piece + 1))
            )
        ]
        assert ids == [row[0] for row in db.fetchall(name(f"SELECT id FROM t ORDER BY {given}"))]
    given = f'"X" {HOW[len(kind) % 4]}, id'
    repack(db, "t", order_by=given, jobs=1)
    assert out_of_place(db, "t", given) == 0


@pytest.mark.usefixtures("by_ranges")
def test_bounds_ascend_as_values_do(db: Database) -> None:
    """Not as their texts do."""
    db.execute(
        "CREATE TABLE t (id int PRIMARY KEY, pad text);"
        "INSERT INTO t SELECT g, repeat('pad', 50) FROM generate_series(-5000, 50000, 3) AS g; ANALYZE t"
    )
    found = plan(db, order_by="id").order
    assert found is not None
    assert found.ranges is not None
    bounds = [int(bound) for bound in found.ranges.bounds]
    assert bounds == sorted(set(bounds))
    # As many as there are pages of 4 kB, although the histogram has 101.
    assert len(bounds) > 500


@pytest.mark.usefixtures("by_ranges")
def test_during_changes(db: Database, owner: str) -> None:
    db.execute(name(ROWS))
    db.execute("CREATE INDEX i ON t (n); ANALYZE t")
    give(db, owner)
    repack(db, "t", order_by="n DESC", during=churn("t"), jobs=3)


@pytest.mark.usefixtures("by_ranges")
def test_stale_statistics_make_unequal_pieces(db: Database) -> None:
    db.execute(name(ROWS))
    db.execute("CREATE INDEX i ON t (n); ANALYZE t; ALTER TABLE t SET (autovacuum_enabled = off)")
    db.execute("UPDATE t SET n = n + 100000 WHERE id % 3 > 0; UPDATE t SET n = NULL WHERE id % 3 = 0")
    repack(db, "t", order_by="n", jobs=1)
    assert out_of_place(db, "t", "n") == 0


@pytest.mark.usefixtures("by_ranges")
def test_a_range_is_read_by_the_index(db: Database, owner: str) -> None:
    """Not the whole table for each, whatever the planner thinks of the statistics."""
    db.execute(name(ROWS))
    db.execute("CREATE INDEX i ON t (n, id); ANALYZE t")
    give(db, owner)
    with pglean.connect(db.conninfo) as database:
        found = database.plan("t", order_by="n, id")
    assert found.order is not None
    with db.connect(autocommit=False) as conn:
        order.prepare(conn, found.order, indexed=True)
        select = found.order.select(
            found.table, Source(sql.SQL("ONLY t"), sql.Identifier("ctid")), 1, found.order.pieces // 2
        )
        ((explained,),) = conn.execute(sql.SQL("EXPLAIN (FORMAT JSON) SELECT * FROM {}").format(select)).fetchall()
    text = json.dumps(explained)
    assert '"Index Name": "i"' in text
    assert "Seq Scan" not in text


@pytest.mark.usefixtures("by_ranges")
def test_index_that_is_dropped_meanwhile(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is copied at once: without the index each range would have the whole table read."""
    monkeypatch.setattr(order, "_ALONE_BELOW", 1 << 20)
    db.execute(name(ROWS))
    db.execute("CREATE INDEX i ON t (n); ANALYZE t")
    messages: list[str] = []
    chunks: list[tuple[int, int]] = []
    record = copy._chunk

    def chunk(run: Any, conn: Any, worker: str, first: int, end: int, *, indexed: bool) -> int:
        rows = record(run, conn, worker, first, end, indexed=indexed)
        chunks.append((first, end))
        return rows

    monkeypatch.setattr(copy, "_chunk", chunk)
    with once("copy: before a chunk", lambda: db.execute("DROP INDEX i")), pglean.connect(db.conninfo) as database:
        pieces = database.plan("t", order_by="n").order
        assert pieces is not None
        result = database.repack("t", order_by="n", verify="full", on_progress=lambda p: messages.append(p.message))
    assert result.rows == 3000
    assert "no index begins with n any more: the rest is copied at once" in messages
    assert chunks == [(0, pieces.pieces)]
    assert out_of_place(db, "t", "n") == 0


@pytest.mark.usefixtures("by_ranges")
def test_damaged_index_loses_nothing(db: Database) -> None:
    """A row that the index does not have is not copied; that is found, since rows are counted without an index."""
    db.execute(
        "CREATE TABLE t (id int PRIMARY KEY, pad text);"
        "INSERT INTO t SELECT g, repeat('x', 99) FROM generate_series(1, 4000) AS g"
    )
    db.execute("VACUUM ANALYZE t")
    db.execute("UPDATE pg_index SET indisready = false WHERE indrelid = 't'::regclass")
    db.execute("INSERT INTO t VALUES (2000000, 'not in the index')")
    db.execute("UPDATE pg_index SET indisready = true WHERE indrelid = 't'::regclass")
    db.execute("VACUUM t")
    with pglean.connect(db.conninfo) as database:
        with pytest.raises(VerificationFailed, match="4001 rows in the table, 4000 in its copy"):
            database.repack("t", order_by="id")
        for run in database.status():
            database.abort(run.id)
        # One statement reads the heap as it is.
        db.execute("DROP SCHEMA pglean CASCADE")
        result = database.repack("t", order_by="id + 0")
    assert result.rows == 4001


# ---- which way


def test_the_plan_says_which_way_and_why(db: Database) -> None:
    db.execute(name(ROWS))
    db.execute("ANALYZE t")

    def told(given: str) -> str:
        found = plan(db, order_by=given, jobs=3)
        assert found.order is not None
        assert found.order.reason in found.steps[1]
        return found.order.reason

    assert (
        told("id") == "the rows lie nearly sorted already (correlation of id: 1.000)" or correlation(db, "t", "id") < 1
    )
    assert told("n") == "no index begins with n"
    db.execute("CREATE INDEX ON t (n) WHERE n > 5")
    assert told("n") == "no index begins with n"
    db.execute("CREATE INDEX ON t (n)")
    assert told("N desc , id").startswith("the rows lie scattered (correlation of n: ")
    assert told('"id" + 1') == "the order does not begin with a stored column by itself"
    assert told("a") == "the type or collation of a is not one to be divided into ranges"
    db.execute('CREATE INDEX ON t (v text_pattern_ops); CREATE INDEX ON t (w COLLATE "POSIX"); CREATE INDEX ON t (d)')
    assert told("v") == "no index begins with v"
    assert told("w") == "no index begins with w"
    db.execute("DELETE FROM pg_statistic WHERE starelid = 't'::regclass AND staattnum = 7")
    assert told("d").startswith("there are no statistics of d")
    db.execute('ALTER TABLE t ADD "user" int UNIQUE')
    assert told("user") == "the order does not begin with a stored column by itself"
    assert told('"user"').startswith("there are no statistics")
    steps = plan(db, order_by="id DESC").steps
    assert "copy the rows sorted by id DESC (-o) by ranges of id in chunks of about 500 ms, 1 at a time: " in steps[1]
    steps = plan(db, order_by="f").steps
    assert steps[1] == (
        "copy the rows sorted by f (-o) in one statement, which holds its snapshot for as long as it takes:"
        " no index begins with f"
    )


def test_nondeterministic_collations_are_not_divided(db: Database, icu: None) -> None:
    db.execute("CREATE COLLATION anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v text COLLATE anycase); CREATE INDEX i ON t (v)")
    db.execute("INSERT INTO t SELECT g, chr(65 + g % 2 * 32) || g FROM generate_series(1, 500) g; ANALYZE t")
    db.execute("ALTER TABLE t CLUSTER ON i")
    found = plan(db).order
    assert found is not None
    assert found.ranges is None
    repack(db, "t")
    assert out_of_place(db, "t", "v") == 0


@pytest.mark.parametrize("jobs", [1, 4])
def test_correlation_after(db: Database, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    """Several workers write side by side; the order suffers little."""
    for module, attribute, value in RANGES[1:]:
        monkeypatch.setattr(module, attribute, value)
    monkeypatch.setattr(copy, "_TRIAL_S", 0.0)
    monkeypatch.setattr(copy, "_PAYS", 0.0)
    db.execute(
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, pad text);"
        "INSERT INTO t SELECT g, timestamptz '2020-01-01 UTC' + g * interval '1 minute', repeat('x', 60)"
        "  FROM generate_series(1, 60000) AS g; CREATE INDEX i ON t (at DESC);"
        "UPDATE t SET pad = pad || 'y' WHERE id % 200 = 1; ANALYZE t; ALTER TABLE t CLUSTER ON i"
    )
    found = plan(db, jobs=jobs).order
    assert found is not None
    assert found.ranges is not None, found.reason
    assert found.workers(jobs) == jobs
    repack(db, "t", jobs=jobs)
    assert correlation(db, "t", "at") < -0.99
    if jobs == 1:
        assert out_of_place(db, "t", "at DESC") == 0


@pytest.mark.newest
def test_refusals_come_first(db: Database) -> None:
    db.execute("CREATE UNLOGGED TABLE t (n int PRIMARY KEY)")
    with pytest.raises(Refused):
        plan(db, order_by="n LIMIT 5")
    with psycopg.connect(db.conninfo) as conn:
        conn.execute("ALTER TABLE t SET LOGGED")
    with pytest.raises(UsageError):
        plan(db, order_by="n LIMIT 5")


def test_clustering_index_with_a_literal_of_a_users_type(db: Database, owner: str) -> None:
    """Read as text, it would run what the type's name has come to mean, with our rights."""
    db.execute(
        f"""
        CREATE TYPE mood AS ENUM ('good', 'bad');
        CREATE TABLE t (id int PRIMARY KEY, m mood);
        INSERT INTO t SELECT g, CASE WHEN g % 2 = 0 THEN 'good' ELSE 'bad' END::mood FROM generate_series(1, 100) g;
        CREATE INDEX i ON t ((m = 'bad'::mood));
        ALTER TABLE t CLUSTER ON i;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    found = plan(db)
    if owner == "postgres":
        assert found.order is not None
        assert found.order.index == "i"
        repack(db, "t")
        assert [row[0] for row in db.fetchall("SELECT m FROM t ORDER BY ctid LIMIT 50")] == ["good"] * 50
    else:
        assert found.order is None
        assert [each.code for each in found.warnings] == ["clustering-index"]
        assert found.warnings[0].message.endswith("index i, which has a literal of a user's type")


def test_literals_say_their_types(db: Database, owner: str) -> None:
    """Of what is compared with them its owner decides, and reading one could run his code with our rights."""
    db.execute(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, v text, d date);
        INSERT INTO t SELECT g, 'v' || g % 7, date '2020-01-01' + g % 13 FROM generate_series(1, 200) g;
        ALTER TABLE t OWNER TO "{owner}";
        """
    )
    for text in ("v < 'v3', id", "date '2020-01-05' < d", "v = $$v3$$", "'{1}'::int[] = ARRAY[id]"):
        if owner == "postgres":
            assert plan(db, order_by=text).order is not None
        else:
            with pytest.raises(UsageError, match="invalid value for option --order-by") as caught:
                plan(db, order_by=text)
            assert "Say its type" in str(caught.value)
    text = "v < 'v3'::text, d > '2020-01-05'::date, /* it's */ id -- it's"
    repack(db, "t", order_by=text)
    assert out_of_place(db, "t", "v < 'v3', d > '2020-01-05', id") == 0


# ---- space


def test_space_for_sorting(tablespace: str, db: Database) -> None:
    """One sort of all rows needs as much once more for its temporary files, at most; sorting by ranges does not."""
    db.execute(
        f"""
        ALTER DATABASE {db.name} SET maintenance_work_mem = '1MB';
        CREATE TABLE t (id int PRIMARY KEY, n int, v text);
        INSERT INTO t SELECT g, (g * 7919) % 20011, repeat(md5(g::text), 3) FROM generate_series(1, 20000) AS g;
        INSERT INTO t SELECT -g, 0, (SELECT string_agg(md5((g * i)::text), '') FROM generate_series(1, 300) AS i)
          FROM generate_series(1, 30) AS g;
        CREATE INDEX i ON t (n) TABLESPACE {tablespace};
        ANALYZE t;
        """
    )
    heap, toast, pkey = (db.scalar(query) for query in (
        "SELECT pg_table_size('t') - pg_total_relation_size(reltoastrelid) FROM pg_class WHERE oid = 't'::regclass",
        "SELECT pg_total_relation_size(reltoastrelid) FROM pg_class WHERE oid = 't'::regclass",
        "SELECT pg_relation_size('t_pkey')",
    ))  # fmt: skip
    index = db.scalar("SELECT pg_relation_size('i')")
    total = heap + toast + pkey + index
    unsorted, by_ranges, once = plan(db), plan(db, order_by="id"), plan(db, order_by="n")
    assert unsorted.order is None
    assert by_ranges.order is not None
    assert by_ranges.order.ranges is not None
    assert once.order is not None
    assert once.order.ranges is None
    assert unsorted.disk_bytes == by_ranges.disk_bytes == total
    assert once.disk_bytes == total + heap
    home = {None: heap + toast + pkey, tablespace: index}
    assert unsorted.disk_bytes_by_tablespace == by_ranges.disk_bytes_by_tablespace == home
    assert once.disk_bytes_by_tablespace == {**home, None: home[None] + heap}
    # The files of a sort lie where the database does, wherever the table goes; of long values they hold none.
    moved = plan(db, order_by="n", tablespace=tablespace, move_indexes=True)
    assert moved.disk_bytes_by_tablespace == {None: heap, tablespace: total}
    assert moved.disk_bytes == once.disk_bytes
    calm(db)
    spilled = "SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()"
    before = db.scalar(spilled)
    with pglean.connect(db.conninfo) as database:
        database.repack("t", order_by="n", compression="pglz", verify="none")
    calm(db)
    # Space is taken for them by the piece, which with a table so small makes a difference.
    assert heap / 2 < db.scalar(spilled) - before < 1.25 * heap
    assert out_of_place(db, "t", "n") == 0


def test_space_for_sorting_that_is_not_there(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is warned of what the copy and the sort take together."""
    db.execute(f"{ROWS}; ANALYZE t")
    copied = plan(db, order_by="id").disk_bytes
    both = plan(db, order_by="n").disk_bytes
    least = Options().min_free_bytes
    monkeypatch.setattr(Space, "free_bytes", lambda space: dict.fromkeys(space.paths, least + (copied + both) // 2))
    assert [warning.code for warning in plan(db, order_by="id").warnings] == []
    (warning,) = plan(db, order_by="n").warnings
    assert warning.code == "space"
