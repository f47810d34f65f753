"""What the server's counters and parameters may say of a table, and what `Database.bloat` makes of it."""

from __future__ import annotations

from typing import LiteralString

import pytest

import pglean
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
    found = bloat(letters)
    assert found["beside"].heap.known
    toast = found["letters"].toast
    assert toast is not None
    assert not toast.known
    assert toast.notes == ("no live values are counted in the TOAST table, but rows in the table: VACUUM counts anew",)
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
