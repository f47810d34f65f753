"""What the server's counters and parameters may say of a table, and what `Database.bloat` makes of it."""

from __future__ import annotations

from typing import LiteralString

import pytest
from psycopg import sql

import pglean
from pglean.advice.advice import ActionKind
from pglean.bloat.finding import TableBloat
from tests.servers import Database
from tests.support.oracle import until


def ended(db: Database, *statements: LiteralString) -> None:
    """In a session that has ended, and told the server what it has counted."""
    with db.connect() as session:
        for statement in statements:
            session.execute(statement)
        pid = session.info.backend_pid
    until(lambda: db.scalar("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", (pid,)), "it has ended")


def bloat(db: Database, method: str = "estimate") -> dict[str, TableBloat]:
    """Of all tables of the database."""
    with pglean.connect(db.conninfo) as database:
        return {table.name: table for table in database.bloat(method=method)}


@pytest.fixture
def letters(db: Database) -> Database:
    """A table of values in the TOAST table, and one beside it."""
    ended(
        db,
        "CREATE TABLE beside AS SELECT g FROM generate_series(1, 1000) AS g",
        "CREATE TABLE letters (id int PRIMARY KEY, body text) WITH (autovacuum_enabled = off)",
        "ALTER TABLE letters ALTER body SET STORAGE EXTERNAL",
        "INSERT INTO letters SELECT g, repeat(md5(g::text), 100) FROM generate_series(1, 500) AS g",
    )
    ended(db, "VACUUM (ANALYZE)")
    return db


def test_an_emptied_table_with_long_values(letters: Database) -> None:
    """Its counters say that no chunk lives; the file is as large as ever."""
    ended(letters, "DELETE FROM letters")
    counted = (
        "SELECT pg_stat_get_live_tuples(reltoastrelid) = 0 AND pg_stat_get_tuples_deleted(reltoastrelid) > 0"
        " FROM pg_class WHERE relname = 'letters'"
    )
    until(lambda: letters.scalar(counted), "that is counted")
    found = bloat(letters)
    assert found["beside"].heap.known
    toast = found["letters"].toast
    assert toast is not None
    assert not toast.known
    assert toast.notes == ("no live value is counted in the TOAST table, but rows of the table: VACUUM counts",)
    ended(letters, "ANALYZE letters")
    toast = bloat(letters)["letters"].toast
    assert toast is not None
    assert toast.after_bytes is not None
    assert toast.after_bytes <= 2 * 8192


@pytest.mark.newest
def test_figures_that_make_no_sense(letters: Database) -> None:
    """Whoever may write to the catalog, or restore statistics, writes what he likes: the others are told of."""
    letters.execute("UPDATE pg_class SET reltuples = 'Infinity' WHERE relname = 'letters'")
    found = bloat(letters)
    assert found["beside"].heap.known
    odd = found["letters"]
    assert not odd.heap.known
    assert odd.bytes > 500 * 3200
    assert odd.gain_bytes == 0
    assert odd.notes[0].startswith("could not be reckoned: ")


@pytest.mark.newest
@pytest.mark.parametrize("size", [3200, 3900, 8100])
def test_values_of_equal_length(db: Database, size: int) -> None:
    """A table just written is not bloated, however full its last chunks are."""
    ended(
        db,
        "CREATE TABLE letters (id int PRIMARY KEY, body text) WITH (autovacuum_enabled = off)",
        "ALTER TABLE letters ALTER body SET STORAGE EXTERNAL",
    )
    db.execute("INSERT INTO letters SELECT g, repeat('x', %s) FROM generate_series(1, 1000) AS g", (size,))
    db.close()
    ended(db, "VACUUM (ANALYZE) letters")
    toast = bloat(db)["letters"].toast
    assert toast is not None
    assert toast.bytes > 1000 * size
    assert toast.gain_bytes < 0.03 * toast.bytes


def test_much_was_written_since_analyze(db: Database) -> None:
    """Nothing of that is bloat; while statistics say nothing of it, neither is it said that it were none."""
    create = "CREATE TABLE items (id int PRIMARY KEY, n int) WITH (autovacuum_enabled = off); CREATE INDEX ON items (n)"
    ended(db, create, "INSERT INTO items SELECT g, g FROM generate_series(1, 1000) AS g")
    ended(db, "ANALYZE items")
    ended(db, "INSERT INTO items SELECT g, g FROM generate_series(1001, 300000) AS g")
    items = bloat(db)["items"]
    assert items.heap.notes == ("no statistics of most rows: 299,000 were written since the last ANALYZE",)
    assert items.bloat is None
    key, other = items.indexes
    assert key.gain_bytes < 0.02 * key.bytes
    assert not other.known
    with pglean.connect(db.conninfo) as database:
        assert [action.kind for action in database.advise(method="estimate").actions] == [ActionKind.ANALYZE]
    ended(db, "ANALYZE items")
    ended(db, "INSERT INTO items SELECT g, g FROM generate_series(300001, 400000) AS g")
    written = "SELECT n_mod_since_analyze = 100000 FROM pg_stat_user_tables WHERE relname = 'items'"
    until(lambda: bool(db.scalar(written)), "what was written is counted")
    items = bloat(db)["items"]
    assert items.heap.notes == ("old statistics: 100,000 rows were written since the last ANALYZE",)
    assert items.gain_bytes < 0.02 * items.bytes


#: As somebody may write 70, and what of it the server takes for something else.
_SPELLINGS = {"70": 70, "70.0": 70, "7e1": 70, "0x46": 70, "0106": 70, " +69.7": 70, "070": 56, "0x46.8p0": 70}


@pytest.mark.newest
def test_parameters_in_any_spelling(db: Database) -> None:
    """They are read as the server reads them: how full it makes its pages tells."""
    for number, spelling in enumerate(_SPELLINGS):
        name = sql.Identifier(f"t{number}")
        db.execute(
            sql.SQL("CREATE TABLE {} (id int PRIMARY KEY WITH (fillfactor = {})) WITH (fillfactor = {})").format(
                name, sql.Literal(spelling), sql.Literal(spelling)
            )
        )
        db.execute(sql.SQL("INSERT INTO {} SELECT generate_series(1, 20000)").format(name))
        db.execute(sql.SQL("REINDEX TABLE {}").format(name))
    db.execute("ALTER TABLE t0 SET (autovacuum_freeze_max_age = '200000000.0', autovacuum_vacuum_threshold = '0x32')")
    db.execute("ALTER TABLE t0 SET (autovacuum_vacuum_scale_factor = '2e-1', autovacuum_enabled = 'of')")
    db.execute("CREATE INDEX alike ON t0 ((id % 2)) WITH (deduplicate_items = 'OF')")
    db.execute("VACUUM ANALYZE")
    found = bloat(db)
    for number, read in enumerate(_SPELLINGS.values()):
        table = found[f"t{number}"]
        assert table.heap.after_bytes == table.heap.bytes, number
        assert abs(table.indexes[0].gain_bytes) <= 8192, number
        assert (read == 70) == (table.heap.bytes == found["t0"].heap.bytes)
    assert found["t0"].indexes[1].gain_bytes <= 8192
    with pglean.connect(db.conninfo) as database:
        assert database.advise(min_gain_bytes=0).looked_at == len(_SPELLINGS)
        assert database.plan("t2").warnings == database.plan("t1").warnings
        database.repack("t4")
    assert bloat(db)["t4"].heap.bytes == found["t4"].heap.bytes


def test_sizes_of_what_is_locked(letters: Database) -> None:
    """They are old, be they so small that the table is left out: that is told."""
    ended(letters, "CREATE TABLE new AS SELECT 1 AS n")
    with letters.connect(autocommit=False) as session, pglean.connect(letters.conninfo) as database:
        session.execute("LOCK TABLE new, letters")
        found = database.bloat(min_bytes=1 << 30)
        assert found.tables == ()
        assert [warning.message for warning in found.warnings if warning.code == "locked"] == [
            "locked by somebody: public.letters, public.new; sizes are those of the last VACUUM or ANALYZE"
        ]
