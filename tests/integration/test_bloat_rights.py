"""What `Database.bloat` may not see is said; what others hold is skipped; nobody's code runs with our rights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.bloat import sample, survey
from pglean.bloat.density import Density
from pglean.bloat.finding import Method, TableBloat
from pglean.errors import Refused, UsageError
from tests.servers import Database

pytestmark = pytest.mark.newest

_ITEMS = """
CREATE TABLE items (id int PRIMARY KEY, amount int, note text) WITH (autovacuum_enabled = off);
INSERT INTO items SELECT g, g % 100, md5(g::text) FROM generate_series(1, 20000) AS g;
DELETE FROM items WHERE id % 2 = 0;
CREATE INDEX ON items (amount);
"""


@pytest.fixture
def items(db: Database) -> Database:
    with db.connect() as session:
        session.execute(_ITEMS)
    db.execute("ANALYZE items")
    return db


def main_forks(db: Database) -> int:
    """Size of the table, or of its partitions, without free-space and visibility maps."""
    return int(
        db.scalar(
            """
            SELECT sum(pg_total_relation_size(relid) - coalesce(pg_relation_size(relid, 'fsm')
                              + pg_relation_size(relid, 'vm'), 0))
              FROM (SELECT relid FROM pg_partition_tree('items') UNION SELECT 'items'::regclass) AS family(relid)
            """
        )
    )


def bloat(db: Database, *, user: str = "postgres", **asked: Any) -> TableBloat:
    """What is said of the only table of that name."""
    with pglean.connect(f"{db.conninfo} user='{user}'") as database:
        (found,) = database.bloat(["items"], **asked)
    return found


def test_a_role_without_rights(items: Database, plain_role: str) -> None:
    found = bloat(items, user=plain_role, method="estimate")
    assert found.bytes == main_forks(items)
    assert (found.after_bytes, found.bloat, found.method) == (None, None, "none")
    assert "no statistics to be seen: the role may not read the table" in found.notes
    found = bloat(items, user=plain_role)
    assert "not sampled: the role may not read the table" in found.notes
    items.execute(sql.SQL("GRANT SELECT ON items TO {}").format(sql.Identifier(plain_role)))
    assert bloat(items, user=plain_role, method="estimate") == bloat(items, method="estimate")


def test_row_security(items: Database, plain_role: str) -> None:
    items.execute(sql.SQL("GRANT SELECT ON items TO {}").format(sql.Identifier(plain_role)))
    items.execute("CREATE POLICY few ON items USING (id < 10); ALTER TABLE items ENABLE ROW LEVEL SECURITY")
    notes = bloat(items, user=plain_role).notes
    assert "no statistics to be seen: row security is in the way" in notes
    assert "not sampled: row security is in the way" in notes
    assert bloat(items).method == "sample"


def test_what_a_role_may_not_do_is_not_tried(items: Database, plain_role: str) -> None:
    """The server would log it as an error, with each look of a monitor."""
    role = sql.Identifier(plain_role)
    items.execute("CREATE SCHEMA hidden; CREATE TABLE hidden.items (LIKE items); INSERT INTO hidden.items TABLE items")
    items.execute("CREATE ROLE another; ALTER TABLE items OWNER TO another")
    begin = items.server.log_path.stat().st_size

    def why() -> str:
        with pglean.connect(f"{items.conninfo} user='{plain_role}'") as database:
            assert len(database.bloat()) == 2
            (table,) = database.bloat(["items"])
            (found,) = database.density(["items"])
            (hidden,) = database.density(schemas=["hidden"])
        assert hidden.why == "the role may not read the schema"
        assert (f"not sampled: {found.why}" in table.notes) == bool(found.why)
        return found.why

    try:
        assert why() == "the role may not read the table"
        items.execute("CREATE EXTENSION pgstattuple; CREATE EXTENSION pg_freespacemap")
        items.execute("VACUUM items")
        assert why() == "the role may not read the table"
        items.execute(sql.SQL("GRANT SELECT ON items TO {}").format(role))
        assert why() == "its owner (another) could change it meanwhile, and the role may not lock it against that"
        items.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
        assert why() == "row security is in the way"
        items.execute(sql.SQL("ALTER TABLE items DISABLE ROW LEVEL SECURITY; GRANT DELETE ON items TO {}").format(role))
        assert why() == ""
        log = items.server.log_path.read_bytes()[begin:].decode()
        assert [line for line in log.splitlines() if items.name in line and "ERROR" in line] == []
    finally:
        items.execute("DROP OWNED BY another; DROP ROLE another")


def test_the_extension(items: Database, plain_role: str) -> None:
    with pytest.raises(Refused, match="method exact is not to be had: the extension pgstattuple is not installed"):
        bloat(items, method="exact")
    items.execute('CREATE SCHEMA "Odd %s"; CREATE EXTENSION pgstattuple SCHEMA "Odd %s"')
    assert bloat(items, method="exact").heap.method is Method.EXACT
    with pytest.raises(Refused, match="may not call the functions of pgstattuple"):
        bloat(items, user=plain_role, method="approx")
    items.execute(sql.SQL('GRANT USAGE ON SCHEMA "Odd %s" TO {}').format(sql.Identifier(plain_role)))
    items.execute(sql.SQL("GRANT pg_stat_scan_tables TO {}").format(sql.Identifier(plain_role)))
    try:
        # That role reads no rows, and may yet count them.
        found = bloat(items, user=plain_role, method="exact")
        assert found.heap.after_bytes == bloat(items, method="exact").heap.after_bytes
    finally:
        items.execute(sql.SQL("REVOKE pg_stat_scan_tables FROM {}").format(sql.Identifier(plain_role)))


def test_functions_of_others_are_not_called(items: Database, plain_role: str) -> None:
    items.execute("CREATE EXTENSION pgstattuple")
    items.execute(sql.SQL("ALTER FUNCTION pgstattuple(regclass) OWNER TO {}").format(sql.Identifier(plain_role)))
    with pytest.raises(Refused, match="do not belong to a superuser"):
        bloat(items, method="exact")


def test_what_is_locked_is_skipped(items: Database) -> None:
    items.execute("CREATE EXTENSION pgstattuple")
    with items.connect() as other, other.transaction():
        other.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        # Neither waits for the lock, nor is anything made up: this is what ANALYZE has counted.
        found = bloat(items, method="exact")
        assert found.heap.method is Method.ESTIMATE
        assert "not measured: somebody has it locked" in found.notes
        assert "locked by somebody: its size is that of the last VACUUM or ANALYZE" in found.notes
    other_found = bloat(items, method="exact")
    assert other_found.heap.bytes == found.heap.bytes
    assert other_found.heap.method is Method.EXACT


@pytest.mark.parametrize("lock", ["TABLE items", "INDEX items_pkey"])
def test_a_sample_waits_for_nobody(items: Database, lock: str) -> None:
    with items.connect() as other, other.transaction():
        # There is no other way to lock an index.
        other.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE" if "TABLE" in lock else "REINDEX INDEX items_pkey")
        begun = time.monotonic()
        assert "not sampled: somebody has it locked" in bloat(items).notes
        assert density(items, 10).why == "somebody has it locked"
        assert time.monotonic() - begun < 5


def test_what_is_too_large_is_not_read(items: Database) -> None:
    items.execute("CREATE EXTENSION pgstattuple")
    size = int(items.scalar("SELECT pg_relation_size('items')"))
    found = bloat(items, method="exact", max_scan_bytes=size - 1)
    assert found.heap.method is Method.ESTIMATE
    assert found.heap.notes == ("not measured: larger than --max-scan",)
    assert {index.method for index in found.indexes} == {Method.EXACT}
    assert bloat(items, method="exact", max_scan_bytes=size).heap.method is Method.EXACT


def test_no_statistics(db: Database) -> None:
    with db.connect() as session:
        session.execute(_ITEMS)
    found = bloat(db, method="estimate")
    assert found.after_bytes is None
    # CREATE INDEX counts rows as well, in some versions.
    assert found.notes[0] in {
        "no statistics: neither VACUUM nor ANALYZE has counted its rows",
        "no statistics of columns amount, note: ANALYZE makes them",
    }
    # A sample needs none, but of how many values there are of what is indexed.
    found = bloat(db)
    assert found.heap.method is Method.SAMPLE
    assert found.heap.after_bytes == pytest.approx(found.heap.bytes / 2, rel=0.05)
    primary, amount = found.indexes
    assert primary.method is Method.SAMPLE
    assert (amount.after_bytes, amount.notes) == (None, ("no statistics of its columns",))


def test_error_bound_of_a_sample(items: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bloat(items).heap
    assert real.error_bytes == 0
    monkeypatch.setattr(sample, "BLOCKS", 60)
    samples = [bloat(items).heap for _ in range(10)]
    within = 0
    for heap in samples:
        assert heap.after_bytes is not None
        assert real.after_bytes is not None
        assert heap.error_bytes is not None
        assert 0.1 < heap.error_bytes / heap.after_bytes < 0.5
        within += abs(heap.after_bytes - real.after_bytes) <= heap.error_bytes
    # 19 of 20 in the mean; that it is less than 6 of 10 happens once in 10,000 times.
    assert within >= 6


def test_other_access_methods_and_partial_indexes(items: Database) -> None:
    items.execute("CREATE INDEX items_brin ON items USING brin (id)")
    items.execute("CREATE INDEX items_part ON items (note) WHERE amount < 10")
    found = {index.name: index for index in bloat(items, method="estimate").indexes}
    assert found["items_brin"].notes == ("brin: only the size is known",)
    assert found["items_brin"].after_bytes is None
    part = found["items_part"]
    assert part.after_bytes == pytest.approx(part.bytes, rel=0.1)


def test_materialized_views(items: Database) -> None:
    items.execute("ALTER TABLE items RENAME TO rows; CREATE MATERIALIZED VIEW items AS SELECT * FROM rows")
    items.execute("ANALYZE items")
    found = bloat(items)
    # 107 rows to a page.
    assert found.heap.after_bytes == pytest.approx(10000 / 107 * 8192, rel=0.1)
    assert found.notes == ("not sampled: only tables are sampled",)
    items.execute("CREATE EXTENSION pgstattuple")
    assert bloat(items, method="exact").heap.method is Method.EXACT


def test_partitions(db: Database) -> None:
    db.execute("CREATE SCHEMA other; CREATE TABLE items (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE other.low PARTITION OF items FOR VALUES FROM (0) TO (10000) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE lowest PARTITION OF other.low FOR VALUES FROM (0) TO (5000)")
    db.execute("CREATE TABLE high PARTITION OF items FOR VALUES FROM (10000) TO (20000)")
    with db.connect() as session:
        session.execute("INSERT INTO items SELECT g, 'x' FROM generate_series(1, 4999) AS g")
    db.execute("ANALYZE lowest")
    found = bloat(db, method="estimate")
    assert (found.qualified_name, found.partitions) == ("public.items", 2)
    assert found.bytes == main_forks(db)
    assert "1 of 2 are not known, and counted with their size" in found.notes
    with pglean.connect(db.conninfo) as database:
        parts = database.bloat(["items"], method="estimate", partitions=True)
        assert {part.qualified_name for part in parts} == {"public.lowest", "public.high"}
        assert {part.root for part in parts} == {("public", "items")}
        assert [table.name for table in database.bloat(schemas=["public"], method="estimate")] == ["items"]
        assert len(database.bloat(schemas=["other"])) == 0
        with pytest.raises(UsageError):
            database.bloat(["items"], schemas=["public"])


def test_a_partition_that_is_named(db: Database) -> None:
    db.execute("CREATE SCHEMA other; CREATE TABLE items (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE other.low PARTITION OF items FOR VALUES FROM (0) TO (10000) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE other.lowest PARTITION OF other.low FOR VALUES FROM (0) TO (5000)")
    db.execute("CREATE TABLE other.lower PARTITION OF other.low FOR VALUES FROM (5000) TO (10000)")
    db.execute("CREATE TABLE other.high PARTITION OF items FOR VALUES FROM (10000) TO (20000)")

    def shown(*tables: str) -> dict[str, int]:
        with pglean.connect(db.conninfo) as database:
            return {one.qualified_name: one.partitions for one in database.bloat(tables, method="estimate")}

    assert shown("items") == {"public.items": 3}
    assert shown("other.lowest") == {"other.lowest": 0}
    # As far up as was asked for, and no further.
    assert shown("other.low") == {"other.low": 2}
    assert shown("other.low", "other.high") == {"other.low": 2, "other.high": 0}
    assert shown("other.lo*") == {"other.lowest": 0, "other.lower": 0}
    # Nothing is counted twice.
    assert shown("other.lowest", "other.low") == {"other.low": 2}
    assert shown("other.lowest", "other.low", "items") == {"public.items": 3}
    with pglean.connect(db.conninfo) as database:
        (lowest,) = database.bloat(["other.lowest"], method="estimate", partitions=True)
    assert (lowest.root, lowest.family) == (("public", "items"), None)


def test_auto_looks_closer_at_the_worst(items: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    items.execute("CREATE TABLE fine (id int); INSERT INTO fine SELECT generate_series(1, 20000)")
    items.execute("VACUUM ANALYZE fine")
    monkeypatch.setattr(survey, "_CANDIDATE_BYTES", 100_000)
    told: list[str] = []
    with pglean.connect(items.conninfo) as database:
        found = database.bloat(on_table=told.append)
    assert [(table.name, table.method) for table in found] == [("items", "sample"), ("fine", "estimate")]
    assert told == ["public.items (1 of 1)"]
    assert [warning.code for warning in found.warnings] == ["no-extension"]
    items.execute("CREATE EXTENSION pgstattuple")
    with pglean.connect(items.conninfo) as database:
        found = database.bloat(min_bloat=0.3)
    assert [(table.name, table.method) for table in found] == [("items", "approx")]


# ---- whose code runs


@dataclass(frozen=True)
class _Trap:
    """Something of a table that runs a function of its owner when a statement on it is planned."""

    definition: str
    reason: str


_TRAPS = (
    _Trap("CREATE INDEX items_trap ON items ((trap(1) + id))", "an index on an expression, or a partial one"),
    _Trap("CREATE INDEX items_trap ON items (id) WHERE trap(1) = 1", "an index on an expression, or a partial one"),
    _Trap("CREATE STATISTICS items_trap ON (trap(1) + id), amount FROM items", "statistics on an expression"),
    _Trap("ALTER TABLE items ENABLE ROW LEVEL SECURITY", "row security"),
)


@pytest.fixture
def mallory(db: Database, plain_role: str) -> Database:
    """A table of a plain role, with a function that tells as whom it ran."""
    db.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(plain_role)))
    with db.connect(user=plain_role) as session:
        session.execute(_ITEMS)
        session.execute("CREATE SEQUENCE as_superuser; GRANT ALL ON as_superuser TO PUBLIC")
        session.execute(
            """
            CREATE FUNCTION trap(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
            BEGIN
                IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
                    PERFORM pg_catalog.nextval('public.as_superuser');
                END IF;
                RETURN 1;
            END $$
            """
        )
    db.execute("ANALYZE items")
    return db


def sprung(db: Database) -> bool:
    """Whether the trap ran as a superuser."""
    return bool(db.scalar("SELECT is_called FROM as_superuser"))


@pytest.mark.parametrize("trap", _TRAPS, ids=lambda trap: trap.reason)
def test_no_code_of_an_owner_runs(mallory: Database, plain_role: str, trap: _Trap) -> None:
    with mallory.connect(user=plain_role) as session:
        session.execute(trap.definition)
    found = bloat(mallory)
    assert found.method == "estimate"
    assert f"not sampled: it has {trap.reason}, which is code of its owner ({plain_role}) that would run" in found.notes
    mallory.execute("CREATE EXTENSION pgstattuple")
    assert bloat(mallory, method="exact").heap.method is Method.EXACT
    assert not sprung(mallory)
    # The owner may sample his own.
    mallory.execute("DROP EXTENSION pgstattuple")
    assert bloat(mallory, user=plain_role).method.startswith("sample")
    assert not sprung(mallory)
    if "trap" in trap.definition:
        # The trap is one.
        mallory.fetchall("SELECT count(*) FROM items WHERE id = 1")
        assert sprung(mallory)


def test_a_trap_cannot_be_set_meanwhile(mallory: Database, plain_role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []
    statement = sample._statement

    def hurry(*arguments: Any) -> sql.Composed:
        with mallory.connect(user=plain_role) as session:
            session.execute("SET lock_timeout = '100ms'")
            for trap in _TRAPS:
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    session.execute(trap.definition)
                refused.append(trap.definition)
        return statement(*arguments)

    monkeypatch.setattr(sample, "_statement", hurry)
    assert bloat(mallory).heap.method is Method.SAMPLE
    assert len(refused) == len(_TRAPS)
    assert not sprung(mallory)


def test_a_table_that_is_being_vacuumed_is_not_waited_for(mallory: Database) -> None:
    with mallory.connect() as other, other.transaction():
        other.execute("LOCK TABLE items IN SHARE UPDATE EXCLUSIVE MODE")
        assert "not sampled: somebody has it locked" in bloat(mallory).notes


# ---- maps


def density(db: Database, cells: int, *, user: str = "postgres") -> Density:
    """The map of the only table of that name."""
    with pglean.connect(f"{db.conninfo} user='{user}'") as database:
        (found,) = database.density(["items"], cells=cells)
    return found


def test_a_map(items: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first half becomes empty, the second stays half full.
    items.execute("DELETE FROM items WHERE id <= 10000")
    items.execute("VACUUM items")
    sampled = density(items, 10)
    assert (sampled.source, sampled.why, sampled.qualified_name) == ("sample", "", "public.items")
    items.execute('CREATE SCHEMA "Odd Place"; CREATE EXTENSION pg_freespacemap SCHEMA "Odd Place"')
    mapped = density(items, 10)
    assert mapped.source == "free-space map"
    for found in (sampled, mapped):
        assert found.bytes == items.scalar("SELECT pg_relation_size('items')")
        assert len(found.fill) == 10
        assert all(fill is not None and fill < 0.1 for fill in found.fill[:5]), found
        assert all(fill is not None and 0.4 < fill < 0.6 for fill in found.fill[5:]), found
    items.execute("DROP EXTENSION pg_freespacemap")
    monkeypatch.setattr(sample, "BLOCKS", 80)
    some = density(items, 2)
    assert some.fill[0] is not None
    assert some.fill[0] < 0.05
    assert some.fill[1] is not None
    assert 0.2 < some.fill[1] < 0.6


def test_no_map(mallory: Database, plain_role: str) -> None:
    items = mallory
    assert density(items, 10, user=plain_role).why == ""
    with mallory.connect() as other, other.transaction():
        other.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        assert density(items, 10).why == "somebody has it locked"
    with mallory.connect(user=plain_role) as session:
        session.execute(_TRAPS[0].definition)
    assert "code of its owner" in density(items, 10).why
    assert not sprung(mallory)
    items.execute("TRUNCATE items")
    assert (density(items, 10).fill, density(items, 10).why) == ((), "")
