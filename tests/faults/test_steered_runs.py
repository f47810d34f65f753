"""What a review of kept, steered and superseded runs has found: each was tried, and went wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest

import pglean
from pglean.errors import Aborted, LockNotObtained, PgleanError, TableChanged, TakenOver, UsageError
from pglean.result import Result
from tests.faults.test_client import stopped
from tests.servers import Database
from tests.support.fault import Fault, repack
from tests.support.oracle import until
from tests.support.play import Background
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

#: A key column becomes another and comes back in one transaction, and rows are written meanwhile.
THERE_AND_BACK = {
    "another type": """
        CREATE DOMAIN whole AS int;
        ALTER TABLE {t} ALTER id TYPE whole;
        UPDATE {t} SET amount = -1 WHERE id < 50;
        ALTER TABLE {t} ALTER id TYPE int;
        DROP DOMAIN whole""",
    "another name": """
        ALTER TABLE {t} RENAME id TO x;
        ALTER TABLE {t} RENAME amount TO id;
        UPDATE {t} SET note = 'written' WHERE x < 50;
        ALTER TABLE {t} RENAME id TO amount;
        ALTER TABLE {t} RENAME x TO id""",
}


def both(stage: Stage, script: str) -> None:
    """On the table and on its model, in a transaction each, by a session that has not met our triggers yet."""
    for name in (stage.name, f'"model of {stage.name}"'):
        with psycopg.connect(stage.db.conninfo) as conn:
            conn.execute(script.format(t=name))


@pytest.mark.parametrize("what", THERE_AND_BACK)
@pytest.mark.parametrize("point", ["phase: indexing", "phase: ready"])
def test_key_column_that_comes_back(stage: Stage, what: str, point: str) -> None:
    """The end state shows nothing; what was written was recorded wrongly, or not at all: the run begins again."""
    outcome = repack(stage, Fault(point, lambda: both(stage, THERE_AND_BACK[what])))
    assert isinstance(outcome, Result), outcome
    assert stage.repacked
    stage.check()


@pytest.mark.parametrize("what", THERE_AND_BACK)
def test_key_column_that_comes_back_while_the_run_is_kept(stage: Stage, what: str) -> None:
    with stopped(stage, "phase: ready") as client:
        client.kill()
    stage.deserted()
    both(stage, THERE_AND_BACK[what])
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        assert isinstance(database.resume(run.id), Result)
    assert stage.repacked
    stage.check()


def test_emptied_triggers_are_a_gap(stage: Stage) -> None:
    """An undo that was lost half-way has emptied them; OID and xmin of the triggers are what they were."""
    with stopped(stage, "phase: ready") as client:
        client.kill()
    stage.deserted()
    job = stage.status()[0].id
    stage.db.execute(
        f"CREATE OR REPLACE FUNCTION pglean.capture_{job}_update() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END'"
    )
    stage.write()
    with pglean.connect(stage.db.conninfo) as database:
        database.repack(stage.name)
    stage.check()


def test_status_and_abort_while_an_index_is_built(stage: Stage) -> None:
    """REINDEX holds ACCESS EXCLUSIVE on the twin, perhaps for hours: nobody may have to wait for that."""
    seen: list[int] = []

    def look() -> None:
        with pglean.connect(stage.db.conninfo) as database:
            (run,) = database.status()
            seen.append(run.shadow_bytes)
            with pytest.raises(LockNotObtained):
                database.abort(run.id, wait_s=0.1)

    outcome = repack(stage, Fault("index: after a build", look))
    # It may come to its end before its watch looks again.
    assert isinstance(outcome, Result | Aborted)
    assert seen[0] > 0
    stage.check()


def test_session_that_was_superseded_enters_nothing(stage: Stage) -> None:
    """Its watch was ended while it stood before the next phase; another session has gone on."""

    def go_on() -> None:
        watch = stage.db.scalar(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pglean watch'"
        )
        stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (watch,))
        with pglean.connect(stage.db.conninfo) as database:
            (run,) = database.status()
            database.resume(run.id)

    outcome = repack(stage, Fault("phase: catching up", go_on))
    assert isinstance(outcome, PgleanError)
    assert stage.repacked
    stage.check()


def test_session_that_was_ended_in_capturing_makes_nothing(stage: Stage) -> None:
    def end() -> None:
        watch = stage.db.scalar(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pglean watch'"
        )
        stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (watch,))
        with pglean.connect(stage.db.conninfo) as database:
            (run,) = database.status()
            assert database.abort(run.id) == ("undone", [])

    assert isinstance(repack(stage, Fault("phase: capturing", end)), TakenOver)
    stage.check()


def test_resume_of_a_table_that_is_another_now(stage: Stage) -> None:
    """In a restored dump the OID may be that of any table; nobody has asked for that one to be rewritten."""
    other = Stage(stage.db, "other")
    with stopped(stage, "phase: ready") as client:
        client.kill()
    stage.deserted()
    (run,) = stage.status()
    stage.db.execute("UPDATE pglean.job SET relation = 'other'::regclass")
    with pglean.connect(stage.db.conninfo) as database, pytest.raises(TableChanged):
        database.resume(run.id)
    assert not other.repacked
    assert not stage.repacked
    stage.check()
    other.check()


def test_resume_of_what_remains_is_refused(stage: Stage) -> None:
    with stopped(stage, "phase: ready") as client:
        client.kill()
    stage.deserted()
    (run,) = stage.status()
    with psycopg.connect(stage.db.conninfo) as reader:
        reader.execute(f"SELECT FROM {stage.name} LIMIT 1")
        with pglean.connect(stage.db.conninfo) as database:
            state, remains = database.abort(run.id, wait_s=0.5)
            assert state == "remains"
            assert remains
            with pytest.raises(UsageError, match="was undone, but for what could not be removed"):
                database.resume(run.id)
    with pglean.connect(stage.db.conninfo) as database:
        database.cleanup()
    stage.check()


def test_pause_that_comes_too_late(stage: Stage) -> None:
    """Asked for when there is nothing left to be paused: that is said, and not that it was."""
    asked: list[BaseException] = []

    def pause() -> None:
        try:
            with pglean.connect(stage.db.conninfo) as database:
                database.pause(stage.status()[0].id, wait_s=30)
        except PgleanError as error:
            asked.append(error)

    standing = threading.Event()

    def stand() -> None:
        standing.set()
        until(lambda: stage.db.scalar("SELECT command FROM pglean.job") == "pause", "the pause was asked for")

    outcome = Background(lambda: repack(stage, Fault("phase: cleaning", stand)))
    assert standing.wait(30)
    pausing = Background(pause)
    assert isinstance(outcome.result(), Result)
    pausing.result()
    assert "has come to its end: done" in str(asked[0])
    stage.check()


def test_dump_of_definitions_alone(db: Database) -> None:
    """It has the tables of the schema, and nothing in them."""
    with pglean.connect(db.conninfo) as database:
        db.execute("CREATE TABLE t (id int PRIMARY KEY)")
        database.repack("t")
        db.execute("DELETE FROM pglean.version; DELETE FROM pglean.job")
        calls: list[Callable[[], object]] = [database.status, database.cleanup, database.uninstall]
        for call in calls:
            with pytest.raises(PgleanError, match="has lost what stood in it"):
                call()
        db.execute("DROP SCHEMA pglean CASCADE")
        assert database.status() == []
