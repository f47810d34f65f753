"""The WAL is brought to the disk as it gathers; whatever becomes of the session that sees to it, the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import pglean
from pglean import pausepoint
from pglean.embedded import EmbeddedServer
from tests.servers import SETTINGS, Database
from tests.support.oracle import until

pytestmark = pytest.mark.newest

_TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, i FROM generate_series(1, 20000) AS i"
_GATHERED = "SELECT pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn()"
_LOOKS = "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'UPDATE SKIP' AND pid <> pg_backend_pid()"
_PAUSES = _LOOKS + " AND state = 'idle' AND state_change > query_start"
_NEXT_ID = "SELECT split_part(pg_current_snapshot()::text, ':', 2)"
_FLUSHER = "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^pglean .* flush$'"


@pytest.fixture
def idle_writer(bindir: Path) -> Iterator[EmbeddedServer]:
    """A server that leaves it to others to bring the WAL to the disk."""
    with EmbeddedServer(bindir, settings={**SETTINGS, "wal_writer_delay": "10s", "autovacuum": "off"}) as server:
        yield server


def test_what_gathers_is_flushed_and_nothing_else_costs_a_transaction(idle_writer: EmbeddedServer) -> None:
    conninfo = idle_writer.conninfo()
    with pglean.connect(conninfo) as database, psycopg.connect(conninfo, autocommit=True) as session:
        session.execute(_TABLE + "; CREATE TABLE other (v text)")
        session.execute("SET synchronous_commit = off")

        def number(query: str) -> int:
            row = session.execute(query).fetchone()
            assert row is not None
            return int(row[0])

        def write() -> None:
            session.execute("SELECT pg_current_xact_id()")
            until(lambda: number(_LOOKS) == 1, "it looks")
            before = number(_NEXT_ID)
            until(lambda: number(_PAUSES) > 0, "it has looked again, and waits")
            assert number(_NEXT_ID) == before
            with session.transaction():
                session.execute("INSERT INTO other SELECT repeat('x', 500) FROM generate_series(1, 20000)")
                until(lambda: number(_GATHERED) <= 2_000_000, "what has gathered is on the disk")

        with pausepoint.intercept("copy: in a chunk", write):
            database.repack("t")


@pytest.mark.parametrize("event", ["ended", "locked"])
def test_the_run_goes_on(db: Database, event: str) -> None:
    db.execute(_TABLE)
    with pglean.connect(db.conninfo) as database:
        database.repack("t")
        blocker = db.connect()

        def meddle() -> None:
            if event == "ended":
                db.execute(f"SELECT pg_terminate_backend(pid) FROM ({_FLUSHER}) AS f")
                until(lambda: db.fetchall(_FLUSHER) == [], "the session has ended")
            else:
                blocker.execute("BEGIN; LOCK TABLE pglean.version IN ACCESS EXCLUSIVE MODE")
                waits = f"SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN ({_FLUSHER})"
                until(lambda: db.scalar(waits) == 1, "the session waits for the lock")
                until(lambda: db.scalar(waits) == 0, "it waits no longer")
                blocker.execute("ROLLBACK")

        with pausepoint.intercept("copy: in a chunk", meddle):
            result = database.repack("t")
        assert result.rows == 20000
