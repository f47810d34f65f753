"""Runs on tables without a key that are killed, cut off, paused, or met by DDL: no row is lost or doubled."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
from psycopg import sql

import pglean
from pglean import pausepoint
from pglean.capture import decoder
from pglean.errors import ConnectionLost, LockNotObtained, Paused, PgleanError, TableChanged
from pglean.result import Result
from pglean.rewrite import copy, watch
from pglean.rewrite import job as jobs
from pglean.session import Connection, scalar
from tests.faults.test_client import stopped
from tests.faults.test_right_of_way import take
from tests.servers import Database
from tests.support.fault import Fault, repack
from tests.support.play import Background
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

POINTS = (
    "capture: before the commit",
    "copy: snapshot taken",
    "copy: in a chunk",
    "copy: before the snapshot is let go",
    "phase: indexing",
    "index: after a build",
    "refresh: before the commit",
    "swap: before the commit",
    "swap: after the commit",
)
_AGAIN = "the copy of public.items begins again"


@pytest.fixture
def keyless(stage: Stage, arena: Database, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """The same stage, on which nothing tells rows apart."""
    arena.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")
    monkeypatch.setattr(copy, "_FIRST_BLOCKS", 8)
    return Stage(arena, keyless=True)


@pytest.mark.parametrize("point", POINTS)
def test_killed_client_is_gone_on_with(keyless: Stage, point: str) -> None:
    with stopped(keyless, point) as client:
        client.kill()
    keyless.deserted()
    keyless.write()
    messages: list[str] = []
    with pglean.connect(keyless.db.conninfo) as database:
        (run,) = database.status()
        assert run.state == "interrupted"
        result = database.resume(run.id, on_progress=lambda p: messages.append(p.message))
        assert keyless.repacked
        assert not isinstance(result, Result) or run.phase == "capturing" or result.job == run.id
    # A chunk that was not committed leaves nothing to be copied again.
    assert any(_AGAIN in message for message in messages) == (point == "copy: before the snapshot is let go")
    keyless.check()


@pytest.mark.parametrize("point", ["copy: in a chunk", "refresh: before the commit"])
def test_killed_client_is_aborted_after(keyless: Stage, point: str) -> None:
    with stopped(keyless, point) as client:
        client.kill()
    keyless.write()
    keyless.settle("abort")
    keyless.check()


def test_interrupted_run_is_undone(keyless: Stage) -> None:
    with stopped(keyless, "copy: in a chunk") as client:
        client.signal(signal.SIGINT)
        assert client.wait() == 8, client.stderr
    keyless.check()


def test_snapshot_is_lost(keyless: Stage) -> None:
    """With the session that holds it: what was copied under it is worth nothing."""

    def terminate() -> None:
        assert keyless.db.scalar(
            "SELECT bool_and(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity"
            " WHERE application_name ~ '^pglean .* snapshot$' AND datname = current_database()"
        )

    outcome = repack(keyless, Fault("copy: before a chunk", terminate, occurrence=3), jobs=1)
    assert isinstance(outcome, ConnectionLost), outcome
    assert "The run is kept, but its copy begins again" in str(outcome)
    assert keyless.db.scalar("SELECT count(*) FROM pglean.chunk") == 2
    keyless.write()
    messages: list[str] = []
    with pglean.connect(keyless.db.conninfo) as database:
        (run,) = database.status()
        result = database.resume(run.id, on_progress=lambda p: messages.append(p.message))
    assert isinstance(result, Result)
    assert result.job == run.id
    assert any(_AGAIN in message for message in messages)
    keyless.check()


@pytest.mark.parametrize("point", ["copy: before a chunk", "index: before a build"])
def test_pause_and_resume(keyless: Stage, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a copy nothing is kept, which is said; of all else everything."""
    noted = threading.Event()
    watch = jobs.command

    def command(conn: Connection, job_id: int) -> str | None:
        asked = watch(conn, job_id)
        if asked == "pause":
            noted.set()
        return asked

    monkeypatch.setattr(jobs, "command", command)

    def pause() -> None:
        keyless.db.execute("UPDATE pglean.job SET command = 'pause' WHERE state = 'running'")
        assert noted.wait(30)
        # The watch takes a look at a time: at the next one, what came of the last is in force.
        noted.clear()
        assert noted.wait(30)

    outcome = repack(keyless, Fault(point, pause, occurrence=2 if "copy" in point else 1), jobs=1)
    assert isinstance(outcome, Paused), outcome
    assert ("its copy begins again" in str(outcome)) == ("copy" in point)
    keyless.write()
    keyless.settle("resume")
    keyless.check()


def test_chunk_gives_way(keyless: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is copied again under the same snapshot."""
    begun = threading.Event()
    statement = copy._statement

    def long_statement(*arguments: Any) -> sql.Composed:
        composed = statement(*arguments)
        if begun.is_set():
            return composed
        begun.set()
        return composed + sql.SQL(" AND pg_catalog.pg_sleep(60) IS NOT NULL")

    monkeypatch.setattr(copy, "_statement", long_statement)
    outcome = Background(lambda: repack(keyless, Fault("copy: before a chunk", keyless.write, occurrence=3)))
    assert begun.wait(30)
    take(keyless)
    assert isinstance(outcome.result(), Result), outcome.result()
    assert keyless.repacked
    keyless.check()


@pytest.mark.parametrize(
    "ddl",
    [
        "TRUNCATE items",
        "ALTER TABLE items ALTER amount TYPE bigint",
        "ALTER TABLE items ADD more int",
        "ALTER TABLE items RENAME TO others; CREATE VIEW items AS SELECT 1 / 0 AS id, '' AS code, 1 AS amount",
    ],
)
def test_ddl_during_the_copy(keyless: Stage, ddl: str) -> None:
    """It is seen though the snapshot of the copy is older."""
    outcome = repack(keyless, Fault("copy: before a chunk", lambda: keyless.db.execute(ddl), occurrence=2), jobs=1)
    assert isinstance(outcome, TableChanged), outcome
    assert keyless.status() == []


def test_triggers_off_and_on_during_the_copy(keyless: Stage) -> None:
    """What was written meanwhile was not recorded: the run begins again."""

    def switch() -> None:
        keyless.db.execute("ALTER TABLE items DISABLE TRIGGER ALL")
        keyless.write()
        keyless.db.execute("ALTER TABLE items ENABLE TRIGGER ALL")

    outcome = repack(keyless, Fault("copy: before a chunk", switch, occurrence=2), jobs=1)
    assert isinstance(outcome, Result), outcome
    keyless.check()


# ---- a client that hangs, while others go on with its run


@pytest.fixture
def unwatched(keyless: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that hangs does not notice what has become of its sessions; no unique index keeps its rows out."""
    keyless.db.execute("DROP INDEX items_code_idx")
    monkeypatch.setattr(watch, "_INTERVAL_S", 600)
    monkeypatch.setattr(jobs, "_LAST_WORDS", "300ms")


def _terminate(stage: Stage, pattern: str) -> None:
    assert stage.db.scalar(
        "SELECT bool_and(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity"
        " WHERE application_name ~ %s AND datname = current_database()",
        (pattern,),
    )


def _gone_on_with(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> BaseException | None:
    """By another client, which copies all in one chunk, and is cut off then; returns what came of it."""
    monkeypatch.setattr(copy, "_FIRST_BLOCKS", 1 << 17)
    before = set(stage.sessions())

    def cut_off() -> None:
        for pid in set(stage.sessions()) - before:
            stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    with pausepoint.intercept("phase: catching up", cut_off), pglean.connect(stage.db.conninfo) as database:
        try:
            database.resume(1)
        except PgleanError as error:
            return error
    return None


@pytest.mark.usefixtures("unwatched")
def test_hanging_client_keeps_its_snapshot(keyless: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody goes on with the run then, though it has lost the claim on the table."""
    outcomes: list[BaseException | None] = []

    def hang() -> None:
        _terminate(keyless, "^pglean watch")
        outcomes.append(_gone_on_with(keyless, monkeypatch))

    repack(keyless, Fault("copy: before a chunk", hang, occurrence=3), jobs=1, verify="none")
    assert [type(outcome) for outcome in outcomes] == [LockNotObtained], outcomes
    keyless.write()
    keyless.settle("resume")
    keyless.check()


@pytest.mark.usefixtures("unwatched")
def test_hanging_client_has_lost_its_snapshot(keyless: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of its that was just begun goes nowhere: the copy is another's by then."""
    outcomes: list[BaseException | None] = []
    checked = jobs.check_current
    chunks = [0]

    def check(conn: Connection, job: jobs.Job) -> None:
        if not outcomes and scalar(conn, "SELECT current_setting('transaction_isolation')") == "repeatable read":
            chunks[0] += 1
            if chunks[0] == 3:
                outcomes.append(None)
                _terminate(keyless, "^pglean (watch|.* snapshot$)")
                outcomes[0] = _gone_on_with(keyless, monkeypatch)
        checked(conn, job)

    monkeypatch.setattr(jobs, "check_current", check)
    outcome = repack(keyless, jobs=1, verify="none")
    assert [type(other) for other in outcomes] == [ConnectionLost], outcomes
    assert isinstance(outcome, PgleanError), outcome
    keyless.write()
    keyless.settle("resume")
    keyless.check()


# ---- captured from the WAL

_WAL = ("--capture", "wal", "--max-slot-wal", "1GB")


@pytest.fixture
def full(keyless: Stage) -> Stage:
    """The same, with what it takes to capture its changes from the WAL."""
    for table in (keyless.table, keyless.model):
        keyless.db.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(table))
    return keyless


@pytest.mark.parametrize(
    "point",
    [
        "copy: in a chunk",
        "copy: before the snapshot is let go",
        "refresh: before the commit",
        pytest.param("index: after a build", marks=pytest.mark.slow),
        pytest.param("swap: before the commit", marks=pytest.mark.slow),
        pytest.param("swap: after the commit", marks=pytest.mark.slow),
    ],
)
def test_killed_client_that_read_the_wal(full: Stage, point: str) -> None:
    """Nothing is recorded twice, though the slot sends again what it does not know to be recorded."""
    with stopped(full, point, options=_WAL) as client:
        client.kill()
    full.deserted()
    full.write()
    full.settle("resume")
    full.check()


@pytest.mark.parametrize("limit", [None, 1 << 30], ids=["temporary", "permanent"])
def test_lost_in_the_middle_of_a_transaction(full: Stage, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is recorded as a whole, or not at all."""
    monkeypatch.setattr(decoder, "_BATCH_BYTES", 1_000)

    def terminate() -> None:
        for pid in full.sessions():
            full.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    outcome = repack(
        full,
        Fault("decoder: a part is written", terminate, occurrence=3),
        jobs=1,
        capture="wal",
        max_slot_wal_bytes=limit,
    )
    assert isinstance(outcome, ConnectionLost), outcome
    full.write()
    full.settle("resume")
    full.check()


def test_recorded_in_parts(full: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_BATCH_BYTES", 1_000)
    outcome = repack(full, Fault("phase: verifying", full.write), jobs=1, capture="wal", verify="full")
    assert isinstance(outcome, Result), outcome
    assert full.repacked
    full.check()
