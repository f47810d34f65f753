"""Tables without a key under random writers: each row is there as often as it ought to be."""

from __future__ import annotations

import pytest
from psycopg import sql

import pglean
from pglean import pausepoint
from pglean.errors import Refused
from pglean.rewrite import copy
from pglean.sql import fragment
from tests.servers import Database
from tests.support import oracle
from tests.support.multiset import KINDS, SENT_KINDS, Counters, Kind
from tests.support.play import standing_still

pytestmark = pytest.mark.in_turn

#: Where the run stands still until the writers have gone on.
POINTS = (
    "capture: prepared",
    "copy: snapshot taken",
    "copy: before a chunk",
    "copy: in a chunk",
    "copy: before the snapshot is let go",
    "phase: indexing",
    "index: before a build",
    "refresh: before a round",
    "refresh: before the commit",
    "swap: before the lock",
    "swap: after the commit",
)


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "_FIRST_BLOCKS", 8)
    monkeypatch.setattr(copy, "_MOST_BLOCKS", 16)


def repack_under_load(
    db: Database, kind: Kind, seed: int, *, pauses: tuple[int, ...], transactions: int, capture: str = "trigger"
) -> None:
    """Repack while the writers are at work, as often as there are `pauses`, then compare."""
    kind.create(db.connect())
    with Counters(db.conninfo, kind, seed) as writers, pglean.connect(db.conninfo) as database:
        writers.wait_for(10)
        for number, times in enumerate(pauses):
            with standing_still(POINTS, times, lambda: writers.wait_for(transactions)):
                result = database.repack("t", jobs=1 + number % 3, verify="full", capture=capture)
            assert result.changes_applied > 0
        writers.wait_for(10)
    writers.compare()
    oracle.assert_sound(db, "t")
    oracle.assert_nothing_left(db)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_row_is_lost_or_doubled(db: Database, kind: Kind, seed: int) -> None:
    """Two repacks, one after the other."""
    repack_under_load(db, kind, seed, pauses=(2, 0), transactions=6)


@pytest.mark.parametrize("kind", SENT_KINDS, ids=lambda kind: kind.name)
def test_captured_from_the_wal(db: Database, kind: Kind, seed: int) -> None:
    repack_under_load(db, kind, seed, pauses=(2, 0), transactions=6, capture="wal")


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(5))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_row_is_lost_or_doubled_in_many_runs(db: Database, kind: Kind, seed: int, round_: int) -> None:
    """The same, longer, with more interleavings."""
    repack_under_load(db, kind, seed + round_, pauses=(4, 0, 4, 1), transactions=10)


def test_what_is_held_during_the_copy(db: Database) -> None:
    """A snapshot, by one session, and no lock on the table; the session that writes the heartbeat is free to do so."""
    db.execute(
        "CREATE TABLE t (n int, v text); INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 900) g"
    )
    held: list[tuple[str, bool, int]] = []

    def look() -> None:
        held.extend(
            db.fetchall(
                "SELECT application_name, backend_xmin IS NOT NULL, (SELECT count(*) FROM pg_locks l"
                " WHERE l.pid = a.pid AND l.relation = 't'::regclass) FROM pg_stat_activity a"
                " WHERE application_name LIKE 'pglean %' AND xact_start IS NOT NULL AND datname = current_database()"
            )
        )

    with pausepoint.intercept("copy: before a chunk", look), pglean.connect(db.conninfo) as database:
        database.repack("t", jobs=1)
    assert len(held) > 3
    assert set(held) == {("pglean 1 t snapshot", True, 0)}


@pytest.mark.parametrize(
    ("columns", "then", "message"),
    [
        ("n int", "", "has no key, and its replica identity is not FULL"),
        ("n int, r regclass", "FULL", "column r of public.t has the type regclass"),
        ("n int, x xml[]", "FULL", "column x of public.t has the type xml"),
        ("n int, g int GENERATED ALWAYS AS (n) STORED", "FULL", "a generated column (g)"),
        ("n int, e even, m mood, a text[]", "FULL OWNER keeper", "column e of public.t has the type public.even"),
    ],
)
def test_what_is_not_captured_from_the_wal(db: Database, columns: str, then: str, message: str) -> None:
    """Triggers are taken then, where that is left open."""
    db.execute("DO $$ BEGIN CREATE ROLE keeper LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    db.execute("CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0); CREATE TYPE mood AS ENUM ('sad')")
    db.execute(sql.SQL("CREATE TABLE t ({})").format(fragment(columns)))
    if "FULL" in then:
        db.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    if "OWNER" in then:
        db.execute("ALTER TABLE t OWNER TO keeper")
    db.execute("INSERT INTO t (n) SELECT g FROM generate_series(1, 100) AS g")
    with pglean.connect(db.conninfo) as database:
        if "generated" in message and db.server.version >= 180000:
            database.repack("t", capture="wal", verify="full")
            return
        with pytest.raises(Refused) as refused:
            database.repack("t", capture="wal")
        assert [finding.code for finding in refused.value.findings] == ["capture"]
        assert message in str(refused.value)
        assert message in database.plan("t", capture="auto").steps[0]
        database.repack("t", capture="auto", verify="full")
    oracle.assert_nothing_left(db)
