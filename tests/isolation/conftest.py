"""What the tests of this directory share: a table with its model, and runs that work in small portions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg import sql

from pglean.embedded import EmbeddedServer
from pglean.rewrite import copy, refresh
from tests.servers import Database, create_database
from tests.support import oracle
from tests.support.play import Play


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, and refreshes divided among workers, on a table of a few thousand rows too."""
    monkeypatch.setattr(refresh, "_SHARED_FROM", 0)
    monkeypatch.setattr(refresh, "_SHARE_RECORDS", 40)
    monkeypatch.setattr(copy, "_FIRST_BLOCKS", 8)
    monkeypatch.setattr(copy, "_MOST_BLOCKS", 8)


@pytest.fixture(scope="module")
def shared(server: EmbeddedServer) -> Iterator[Database]:
    """A database for all tests of a module: making one takes longer than most of them."""
    with create_database(server) as database:
        yield database


@pytest.fixture
def emptied(shared: Database) -> Iterator[Database]:
    """That database, with nothing left in it of the test before."""
    empty(shared)
    yield shared
    shared.close()


@pytest.fixture
def play(emptied: Database) -> Play:
    """A table ``t`` with its model ``m``, in a database that was emptied."""
    return Play(emptied)


def empty(db: Database) -> None:
    """Remove all that a test may have left: objects, publications, slots, prepared transactions."""
    for (gid,) in db.fetchall("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
        db.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
    mine = "FROM pg_replication_slots WHERE database = current_database()"
    oracle.until(lambda: not db.fetchall(f"SELECT {mine} AND active"), "the slots are idle")
    db.fetchall(f"SELECT pg_drop_replication_slot(slot_name) {mine}")
    for (name,) in db.fetchall("SELECT pubname FROM pg_publication"):
        db.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))
    for (name,) in db.fetchall("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'"):
        db.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
    db.execute("CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO PUBLIC")
