"""A database of very many tables: nothing that a run asks of the catalogs grows with their number.

Under the exclusive lock a query for each relation of the database kept everybody waiting for more than a second with
20,000 tables.
"""

from __future__ import annotations

import pytest

import pglean
from tests.servers import Database
from tests.support.oracle import until

pytestmark = pytest.mark.newest

_TABLES = 1500
_MAKE = f"""
DO $$
BEGIN
    FOR i IN 1 .. {_TABLES} LOOP
        EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', i);
    END LOOP;
END $$
"""
# Those that have a row, or several, for each relation.
_LOOKUPS = """
SELECT relname, coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_sys_tables
 WHERE relname IN ('pg_class', 'pg_index', 'pg_attribute', 'pg_depend', 'pg_constraint', 'pg_trigger', 'pg_inherits')
"""


def _lookups(db: Database) -> dict[str, int]:
    """How often each catalog was looked into, once all sessions of ours have ended, with which they tell it."""
    ours = (
        "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^pglean '"
    )
    until(lambda: bool(db.scalar(ours)), "all sessions have ended")
    # What this session has looked up, it would else tell at some time or other.
    db.execute("SELECT pg_stat_force_next_flush()")
    return {name: int(count) for name, count in db.fetchall(_LOOKUPS)}


def test_statistics_of_other_tables_are_not_read(db: Database) -> None:
    """Asked for those of a table by a join, the server put its view of them together for all tables, for each index."""
    db.execute(_MAKE)
    db.execute(
        "DO $$ BEGIN FOR i IN 1 .. 100 LOOP EXECUTE format('INSERT INTO t%s VALUES (1)', i); END LOOP; END $$;"
        "CREATE TABLE orders (id int PRIMARY KEY, a int, b int);"
        "INSERT INTO orders SELECT i, i, i FROM generate_series(1, 10000) AS i;"
        "CREATE INDEX ON orders (a); CREATE INDEX ON orders (b); ANALYZE"
    )
    read = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_sys_tables WHERE relname = 'pg_statistic'"
    _lookups(db)
    before = db.scalar(read)
    with pglean.connect(db.conninfo) as database:
        # Which index takes longest to build is asked where there are more of them than workers.
        database.repack("orders", jobs=2, order_by="a")
    _lookups(db)
    assert db.scalar(read) - before < db.scalar("SELECT count(*) FROM pg_statistic")


def test_no_catalog_is_asked_for_each_relation(db: Database) -> None:
    db.execute(_MAKE)
    db.execute("CREATE TABLE orders (id int PRIMARY KEY, v text); CREATE INDEX ON orders (v)")
    db.execute("INSERT INTO orders SELECT i, i FROM generate_series(1, 100) AS i")
    db.execute("VACUUM ANALYZE orders")
    before: dict[str, int] = {}
    # The first run makes the schema.
    for _ in range(2):
        before = _lookups(db)
        with pglean.connect(db.conninfo) as database:
            database.repack("orders")
    asked = {name: count - before[name] for name, count in _lookups(db).items()}
    # Each table has a TOAST table, and both have an index.
    assert all(count < 4 * _TABLES for count in asked.values()), asked
