"""Who holds the vacuum horizon, each kind made for real: he is told with what he keeps, and how that is ended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean import horizon
from pglean.advice import survey
from pglean.advice.advice import Action, ActionKind, Advice, Hold
from pglean.embedded import EmbeddedServer
from pglean.horizon import Holding
from tests.servers import SETTINGS, Database, create_database
from tests.support.oracle import until

pytestmark = pytest.mark.in_turn

_DEAD = 5000


@pytest.fixture(scope="module")
def calm(bindir: Path) -> Iterator[EmbeddedServer]:
    """A server whose autovacuum does not come."""
    with EmbeddedServer(bindir, settings={**SETTINGS, "autovacuum_naptime": "1d"}) as server:
        yield server.start()


@pytest.fixture
def db(calm: EmbeddedServer) -> Iterator[Database]:
    with create_database(calm) as database:
        _items(database)
        yield database


def _items(db: Database) -> None:
    with db.connect() as session:
        session.execute("CREATE TABLE items (id int PRIMARY KEY, note text)")
        session.execute("INSERT INTO items SELECT g, md5(g::text) FROM generate_series(1, 10000) AS g")
        session.execute("VACUUM ANALYZE items")


def advise(db: Database) -> Advice:
    with pglean.connect(db.conninfo) as database:
        return database.advise(["items"], min_gain_bytes=100_000)


def write_and_vacuum(db: Database) -> None:
    """Rows die, and VACUUM does not get rid of them."""
    with db.connect() as session:
        session.execute(sql.SQL("DELETE FROM items WHERE id <= {}").format(sql.Literal(_DEAD)))
    until(lambda: counted(db, "n_dead_tup") >= _DEAD, "it is counted")
    # When VACUUM has ended is known, and only by its estimated time when it began.
    at = sql.Literal(db.scalar("SELECT clock_timestamp()"))
    until(lambda: db.scalar(sql.SQL("SELECT clock_timestamp() > {} + interval '0.1 s'").format(at)), "time has passed")
    vacuum(db)


def counted(db: Database, column: str) -> int:
    text = sql.SQL("SELECT {} FROM pg_stat_user_tables WHERE relname = 'items'").format(sql.Identifier(column))
    return int(db.scalar(text))


def vacuum(db: Database) -> None:
    before = counted(db, "vacuum_count")
    with db.connect() as session:
        session.execute("VACUUM ANALYZE items")
    until(lambda: counted(db, "vacuum_count") > before, "that is counted")


def held(db: Database, kind: Holding) -> tuple[Hold, Action]:
    """Who keeps the dead rows of the table, and what ends that. VACUUM is not advised, nor a repack without a word."""
    advice = advise(db)
    (hold,) = advice.holds
    assert hold.holder.kind is kind
    assert hold.holder.age_transactions > 0
    assert hold.keeps == (("public.items", _DEAD),)
    (action,) = (one for one in advice if one.kind is ActionKind.END_HOLDER)
    assert advice.actions[0] is action
    assert (
        "VACUUM has been at 1 table since, and their dead rows are still there: public.items (5,000)" in action.reason
    )
    assert action.gain == "up to 5,000 dead rows can be removed, by the next VACUUM"
    assert ActionKind.VACUUM not in [one.kind for one in advice]
    return hold, action


def released(db: Database) -> None:
    """VACUUM helps again."""
    (action,) = (one for one in advise(db) if one.kind is ActionKind.VACUUM)
    assert action.command == "VACUUM public.items;"
    vacuum(db)
    until(lambda: counted(db, "n_dead_tup") == 0, "they are removed")
    advice = advise(db)
    assert advice.holds == ()
    assert {one.kind for one in advice} <= {ActionKind.REPACK, ActionKind.NOTHING}


def test_idle_in_transaction(db: Database) -> None:
    session = db.connect(autocommit=False, application_name="old report")
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 'the report'")
    write_and_vacuum(db)
    hold, action = held(db, Holding.SESSION)
    assert (hold.holder.pid, hold.holder.role) == (session.info.backend_pid, "postgres")
    assert hold.holder.state == "idle in transaction"
    assert action.command == f"SELECT pg_terminate_backend({session.info.backend_pid});"
    assert "old report, idle in transaction, transaction open for 0:00:0" in action.reason
    assert action.reason.endswith("; its query: SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 'the report'")
    advice = advise(db)
    (wait,) = (one for one in advice if one.kind is ActionKind.WAIT)
    assert "5,000 rows are dead, which cannot be removed yet: the horizon is held by pid " in wait.reason
    assert (advice.looked_at, advice.fine) == (1, 0)
    session.close()
    until(lambda: advise(db).holds == (), "it has ended")
    released(db)


def test_a_transaction_that_began_after_the_last_vacuum(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dead may go or not: VACUUM is advised, with a word about it."""
    with db.connect() as session:
        session.execute("DELETE FROM items WHERE id <= 5000")
    until(lambda: counted(db, "n_dead_tup") >= _DEAD, "it is counted")
    reader = db.connect(autocommit=False)
    reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT")
    db.execute("SELECT pg_current_xact_id()")
    (action,) = advise(db)
    assert action.kind is ActionKind.VACUUM
    # Whoever has just begun will be gone soon.
    assert not any("the horizon is held" in note for note in action.notes)
    monkeypatch.setattr(survey, "_OPEN_S", 0.0)
    (action,) = advise(db)
    assert f"what has died since the horizon is held by pid {reader.info.backend_pid} " in action.notes[-1]
    reader.close()


def _dead_since_the_last_vacuum(db: Database) -> None:
    """Nobody kept VACUUM from anything: rows have died after it."""
    vacuum(db)
    with db.connect() as session:
        session.execute("DELETE FROM items WHERE id <= 5000")
    until(lambda: counted(db, "n_dead_tup") >= _DEAD, "it is counted")


def _ages(db: Database) -> None:
    db.execute("SELECT pg_current_xact_id()")


@pytest.mark.parametrize("statement", ["SELECT pg_sleep(600)", "SELECT pg_current_xact_id()", "SELECT 1"])
def test_a_transaction_that_was_open_before_but_held_nothing(db: Database, statement: str) -> None:
    """A snapshot is that of the statement, and an XID comes with the first write: VACUUM was not in their way."""
    session = db.connect(autocommit=False)
    session.execute("SELECT 1")
    until(lambda: bool(horizon_free(db, session.info.backend_pid)), "it holds nothing")
    _dead_since_the_last_vacuum(db)
    sent = session.pgconn
    sent.send_query(statement.encode())
    if "sleep" in statement:
        until(lambda: not horizon_free(db, session.info.backend_pid), "it runs")
    else:
        while sent.get_result():
            pass
    _ages(db)
    advice = advise(db)
    assert [hold.keeps for hold in advice.holds if hold.keeps] == []
    assert [one.kind for one in advice] == [ActionKind.VACUUM]
    db.fetchall(sql.SQL("SELECT pg_terminate_backend({})").format(sql.Literal(session.info.backend_pid)))
    session.close()


def horizon_free(db: Database, pid: int) -> bool:
    text = sql.SQL("SELECT backend_xmin IS NULL AND backend_xid IS NULL FROM pg_stat_activity WHERE pid = {}")
    return bool(db.scalar(text.format(sql.Literal(pid))))


def test_snapshots_in_another_database(db: Database) -> None:
    """Only its XID holds here, which it got after VACUUM."""
    with create_database(db.server) as other:
        session = other.connect(autocommit=False)
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT")
        _dead_since_the_last_vacuum(db)
        session.execute("SELECT pg_current_xact_id()")
        _ages(db)
        with pglean.connect(db.conninfo) as database, database.server.connect("look") as conn:
            (holder,) = (one for one in horizon.holders(conn) if one.pid == session.info.backend_pid)
        assert holder.age_transactions == 2
        assert [one.kind for one in advise(db)] == [ActionKind.VACUUM]
        session.close()


def test_since_when_an_xid_is_held_is_known_where_commits_leave_their_time(bindir: Path) -> None:
    settings = {**SETTINGS, "autovacuum_naptime": "1d", "track_commit_timestamp": "on"}
    with EmbeddedServer(bindir, settings=settings) as server, create_database(server.start()) as db:
        _items(db)
        session = db.connect(autocommit=False)
        session.execute("SELECT pg_current_xact_id()")
        write_and_vacuum(db)
        # It is younger than VACUUM.
        session.execute("SELECT 1")
        held(db, Holding.SESSION)
        session.close()


def test_a_walsender_with_a_transaction_is_no_standby(db: Database) -> None:
    """Such as that of a subscriber's first copy of a table."""
    session = db.connect(replication="database", cursor_factory=psycopg.ClientCursor, application_name="sub")
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    session.execute("SELECT count(*) FROM items")
    write_and_vacuum(db)
    hold, action = held(db, Holding.SESSION)
    assert (hold.holder.pid, hold.holder.application_name) == (session.info.backend_pid, "sub")
    assert action.command == f"SELECT pg_terminate_backend({session.info.backend_pid});"
    session.close()


def test_prepared_transaction(db: Database) -> None:
    db.execute("BEGIN; CREATE TABLE made (); PREPARE TRANSACTION 'it''s old'")
    write_and_vacuum(db)
    hold, action = held(db, Holding.PREPARED)
    assert (hold.holder.name, hold.holder.role) == ("it's old", "postgres")
    # Which of both, the transaction manager knows.
    assert action.command == ""
    assert action.reason.endswith("; to end it: COMMIT PREPARED 'it''s old' or ROLLBACK PREPARED 'it''s old'")
    assert action.notes[0].startswith("ask the transaction manager first whether it commits")
    db.execute("ROLLBACK PREPARED 'it''s old'")
    released(db)


def test_logical_slot(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps rows of the system catalogs alone."""
    db.execute("SELECT pg_create_logical_replication_slot('unread', 'pgoutput')")
    write_and_vacuum(db)
    # None of the table's: they are gone.
    until(lambda: counted(db, "n_dead_tup") == 0, "they are removed")
    assert advise(db).holds == ()
    monkeypatch.setattr(horizon, "LONG_TRANSACTIONS", 0)
    (hold,) = advise(db).holds
    assert (hold.holder.kind, hold.holder.catalogs_only, hold.holder.active) == (Holding.SLOT, True, False)
    assert hold.keeps == ()
    assert re.fullmatch(
        r"replication slot unread \(system catalogs only, \d+ transactions behind\)", hold.holder.phrase
    )
    (action,) = (one for one in advise(db) if one.kind is ActionKind.END_HOLDER)
    assert action.command == ""
    assert "start the subscriber that uses it, or SELECT pg_drop_replication_slot('unread')" in action.reason
    assert action.notes == ("the subscriber of a slot that is dropped has to be built anew",)


def test_standbys(bindir: Path) -> None:
    """One that tells its oldest snapshot as it streams; then one with a slot, which outlives it."""
    settings = {**SETTINGS, "autovacuum_naptime": "1d", "track_commit_timestamp": "on"}
    with EmbeddedServer(bindir, settings=settings) as primary, create_database(primary) as db:
        _items(db)
        told = "SELECT count(*) FROM pg_stat_replication WHERE backend_xmin IS NOT NULL"
        feedback = {"hot_standby_feedback": "on", "wal_receiver_status_interval": "1s"}
        with primary.standby(settings=feedback, application_name="reporting") as standby:
            standby.start()
            reader = Database(standby, db.name).connect(autocommit=False)
            reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT")
            until(lambda: db.scalar(told) == 1, "the standby has told its oldest snapshot")
            write_and_vacuum(db)
            hold, action = held(db, Holding.STANDBY)
            assert hold.holder.application_name == "reporting"
            assert action.command == ""
            assert "to end it: end what has long been open on the standby, or set hot_standby_feedback" in action.reason
            # There nothing is said of the horizon, which is the primary's.
            there = advise(Database(standby, db.name))
            assert ([warning.code for warning in there.warnings], there.holds) == (["standby"], ())
            reader.close()
        until(lambda: not db.scalar("SELECT count(*) FROM pg_stat_replication"), "the standby is gone")
        released(db)
        db.execute("TRUNCATE items; SELECT pg_create_physical_replication_slot('follower')")
        db.execute("INSERT INTO items SELECT g, md5(g::text) FROM generate_series(1, 10000) AS g")
        vacuum(db)
        with primary.standby(settings={**feedback, "primary_slot_name": "follower"}) as standby:
            standby.start()
            xmin = "SELECT xmin IS NOT NULL FROM pg_replication_slots"
            until(lambda: bool(db.scalar(xmin)), "the standby has told its oldest snapshot")
        until(lambda: not db.scalar("SELECT active FROM pg_replication_slots"), "the standby is gone")
        write_and_vacuum(db)
        hold, action = held(db, Holding.SLOT)
        assert (hold.holder.name, hold.holder.state) == ("follower", "physical")
        assert action.command == ""
        assert "start the standby that uses it, or SELECT pg_drop_replication_slot('follower')" in action.reason
        assert action.notes == ("the standby of a slot that is dropped has to be built anew",)
        db.execute("SELECT pg_drop_replication_slot('follower')")
        released(db)
