"""A run that captures changes from the WAL, killed, blocked, and tampered with."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

import pglean
from pglean import cli, pausepoint
from pglean.capture import decoder
from pglean.embedded import EmbeddedServer
from pglean.errors import (
    ConnectionLost,
    LockNotObtained,
    Paused,
    PgleanError,
    Refused,
    TableChanged,
    UsageError,
    WalRetained,
)
from pglean.result import Result
from tests.faults.test_client import stopped
from tests.faults.test_crash import crash
from tests.servers import SETTINGS, Database, create_database
from tests.support.client import Client
from tests.support.fault import Fault, assert_told, repack
from tests.support.model import Spec
from tests.support.oracle import until
from tests.support.points import COMMITTED, POINTS, SAMPLE, UNDO
from tests.support.stage import Stage
from tests.support.writers import Writers

pytestmark = pytest.mark.newest

LIMITS = {"temporary": None, "permanent": 1 << 30}
#: Of a run that is killed here something is there already.
KILLED_AT = (
    "capture: prepared",
    "copy: in a chunk",
    pytest.param("index: after a build", marks=pytest.mark.slow),
    pytest.param("phase: verifying", marks=pytest.mark.slow),
    "swap: before the commit",
)


def left(stage: Stage) -> list[str]:
    """Slots and publications of ours."""
    rows = stage.db.fetchall(
        "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'pglean%' AND database = current_database()"
        " UNION ALL SELECT pubname FROM pg_publication WHERE pubname LIKE 'pglean%'"
    )
    return [name for (name,) in rows]


def check(stage: Stage) -> None:
    stage.check()
    assert left(stage) == []


@pytest.fixture(autouse=True)
def no_slot(stage: Stage) -> Iterator[None]:
    """Slots do not go with the schema of an earlier test."""
    yield
    stage.db.execute(
        "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
        " WHERE database = current_database() AND active_pid IS NOT NULL"
    )
    stage.db.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        " WHERE database = current_database() AND NOT temporary"
    )


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "point",
    [*SAMPLE, "phase: verifying", pytest.param("refresh: before the commit", marks=pytest.mark.slow)],
)
def test_loss_of_all_sessions(stage: Stage, point: str, limit: str) -> None:
    def terminate() -> None:
        for pid in stage.sessions():
            stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    outcome = repack(stage, Fault(point, terminate), capture="wal", max_slot_wal_bytes=LIMITS[limit])
    assert_told(stage, outcome, ConnectionLost.exit_status)
    stage.write()
    if limit == "temporary":
        assert stage.status() == []
    stage.settle("resume")
    check(stage)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("who", ["stream", "decoder"])
def test_loss_of_one_session(stage: Stage, who: str, limit: str) -> None:
    def terminate() -> None:
        stage.db.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'pglean %% ' || %s",
            (who,),
        )

    outcome = repack(stage, Fault("phase: verifying", terminate), capture="wal", max_slot_wal_bytes=LIMITS[limit])
    assert_told(stage, outcome, ConnectionLost.exit_status)
    stage.write()
    stage.settle("resume")
    check(stage)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("point", KILLED_AT)
def test_killed_client(stage: Stage, point: str, limit: str) -> None:
    size = [] if LIMITS[limit] is None else ["--max-slot-wal", "1GB"]
    arguments = ["repack", "-t", stage.table.as_string(None), "-d", stage.db.conninfo, "--capture", "wal", *size]
    with Client(arguments, [point]) as client:
        client.await_line(point)
        client.kill()
    stage.deserted()
    stage.write()
    if limit == "temporary":
        until(lambda: not any("_" in name[7:] for name in left(stage)), "the temporary slot is gone")
        for run in stage.status():
            assert run.state == "interrupted"
            with (
                pglean.connect(stage.db.conninfo) as database,
                pytest.raises(UsageError, match="cannot be gone on with"),
            ):
                database.resume(run.id)
        with pglean.connect(stage.db.conninfo) as database:
            database.repack(stage.table.as_string(None), capture="wal")
    else:
        (run,) = stage.status()
        assert run.slot is not None
        assert run.capture == "wal"
        with pglean.connect(stage.db.conninfo) as database:
            if point == "capture: prepared":
                database.cleanup()
            else:
                assert run.slot_wal_bytes
                database.resume(run.id)
                assert stage.repacked
    check(stage)


@pytest.mark.parametrize("limit", LIMITS)
def test_cleanup(stage: Stage, limit: str) -> None:
    size = [] if LIMITS[limit] is None else ["--max-slot-wal", "1GB"]
    arguments = ["repack", "-t", stage.table.as_string(None), "-d", stage.db.conninfo, "--capture", "wal", *size]
    with Client(arguments, ["phase: verifying"]) as client:
        client.await_line("phase: verifying")
        client.kill()
    stage.deserted()
    with pglean.connect(stage.db.conninfo) as database:
        ((_, remains),) = database.cleanup()
    assert remains == []
    check(stage)


@pytest.mark.parametrize("signal_", [signal.SIGINT])
def test_interrupted(stage: Stage, signal_: signal.Signals) -> None:
    arguments = ["repack", "-t", stage.table.as_string(None), "-d", stage.db.conninfo, "--capture", "wal"]
    with Client(arguments, ["copy: in a chunk"]) as client:
        client.await_line("copy: in a chunk")
        client.signal(signal_)
        assert client.wait() == 8
    check(stage)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=[pytest.mark.slow] if number % 4 else [])
        for number, point in enumerate(point for point in POINTS if point not in (UNDO, COMMITTED))
    ],
)
def test_error_is_undone(stage: Stage, point: str) -> None:
    def fail() -> None:
        raise RuntimeError("mishap")

    assert_told(stage, repack(stage, Fault(point, fail), capture="wal"), PgleanError.exit_status)
    check(stage)


def paused(stage: Stage) -> int:
    """A run that is kept, with a permanent slot."""

    def pause() -> None:
        stage.db.execute("UPDATE pglean.job SET command = 'pause' WHERE state = 'running'")
        until(lambda: stage.db.scalar("SELECT command FROM pglean.job ORDER BY id DESC LIMIT 1") == "pause", "asked")

    outcome = repack(stage, Fault("phase: verifying", pause), capture="wal", max_slot_wal_bytes=1 << 30, hold=True)
    assert isinstance(outcome, PgleanError)
    (run,) = stage.status()
    assert run.state == "paused", outcome
    stage.deserted()
    return run.id


@pytest.mark.parametrize("how", ["dropped", "read", "publication"])
def test_tampered_while_it_is_kept(stage: Stage, how: str) -> None:
    """The run begins again, and loses nothing."""
    job = paused(stage)
    stage.write()
    ((slot, publication),) = stage.db.fetchall(
        "SELECT slot_name, pubname FROM pg_replication_slots, pg_publication WHERE database = current_database()"
    )
    match how:
        case "dropped":
            stage.db.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        case "read":
            stage.db.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", (slot,))
        case "publication":
            stage.db.execute(
                sql.SQL("ALTER PUBLICATION {} SET (publish = 'insert')").format(sql.Identifier(publication))
            )
    with pglean.connect(stage.db.conninfo) as database:
        result = database.repack(stage.table.as_string(None), capture="wal")
    assert isinstance(result, Result)
    assert result.job != job
    check(stage)


def test_kept_run_keeps_its_capture(stage: Stage) -> None:
    job = paused(stage)
    name = stage.table.as_string(None)
    stage.write()
    with pglean.connect(stage.db.conninfo) as database:
        with pytest.raises(Refused, match="begun with other options"):
            database.repack(name, capture="trigger")
        result = database.repack(name)
    assert result.job == job
    check(stage)


def test_pause_of_a_temporary_slot_is_refused(stage: Stage) -> None:
    def pause() -> None:
        with pglean.connect(stage.db.conninfo) as database, pytest.raises(UsageError, match="cannot be paused"):
            database.pause(stage.status()[0].id, wait_s=5)

    assert isinstance(repack(stage, Fault("phase: verifying", pause), capture="wal"), Result)
    check(stage)


def test_too_much_wal(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_LOOK_S", 0.1)
    other = stage.db.connect(autocommit=False)

    def write() -> None:
        # The slot retains what is written since the oldest open transaction began.
        other.execute("CREATE TABLE IF NOT EXISTS elsewhere (v text); INSERT INTO elsewhere VALUES ('open')")
        stage.db.execute("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 40000)")

    outcome = repack(stage, Fault("phase: verifying", write), capture="wal", max_slot_wal_bytes=16 << 20, hold=True)
    other.close()
    assert isinstance(outcome, WalRetained), outcome
    assert outcome.exit_status == 10
    assert "the limit of --max-slot-wal is 16 MB" in str(outcome)
    check(stage)


@pytest.mark.parametrize("prepared", [False, True])
def test_writers_keep_the_slot_from_being_made(stage: Stage, prepared: bool) -> None:
    other = stage.db.connect(application_name="long one")
    other.execute("BEGIN; CREATE TABLE elsewhere (v int)")
    if prepared:
        other.execute("PREPARE TRANSACTION 'long two'")
    for limit in LIMITS.values():
        outcome = repack(stage, capture="wal", max_slot_wal_bytes=limit, wait_timeout_s=0.5)
        assert isinstance(outcome, LockNotObtained)
        assert ("long two" if prepared else "long one") in str(outcome)
        assert outcome.exit_status == 4
        check(stage)
    other.execute("ROLLBACK PREPARED 'long two'" if prepared else "ROLLBACK")
    assert isinstance(repack(stage, capture="wal"), Result)
    check(stage)


def test_stall_is_an_error(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_STALL_S", 0.5)

    def stop() -> None:
        monkeypatch.setattr("pglean.capture.stream.Stream.messages", lambda *_: iter(()))

    outcome = repack(stage, Fault("phase: verifying", stop), capture="wal")
    assert isinstance(outcome, ConnectionLost)
    assert "logical decoding does not get on" in str(outcome)
    check(stage)


@contextlib.contextmanager
def server_with(bindir: Path, **settings: str) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(bindir, settings={**SETTINGS, **settings})
    server.start()
    try:
        yield server
    finally:
        server.close(mode="immediate")


def test_what_the_server_lacks(bindir: Path) -> None:
    with (
        server_with(bindir, wal_level="replica", max_replication_slots="0", max_wal_senders="0") as server,
        create_database(server) as db,
    ):
        stage = Stage(db)
        name = stage.table.as_string(None)
        with pglean.connect(db.conninfo) as database:
            with pytest.raises(Refused) as caught:
                database.repack(name, capture="wal")
            on_demand = server.version >= 190000
            assert [finding.message for finding in caught.value.findings] == [
                *([] if on_demand else ["wal_level is replica"]),
                "all 0 replication slots are in use",
                "all 0 WAL senders are in use",
            ]
            told: list[str] = []
            database.repack(name, capture="auto", on_progress=lambda p: told.append(p.message or ""))
            assert any(text.startswith("changes are captured by triggers: ") for text in told)
        stage.check()


def test_server_that_takes_everybody_for_a_standby(bindir: Path) -> None:
    with server_with(bindir) as server, create_database(server) as db:
        stage = Stage(db)
        db.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        db.execute("SET synchronous_commit = local; SELECT pg_reload_conf()")
        until(lambda: "*" in str(db.connect().execute("SHOW synchronous_standby_names").fetchone()), "the setting")
        with pglean.connect(db.conninfo) as database, pytest.raises(Refused, match="names every standby"):
            database.repack(stage.table.as_string(None), capture="wal")
        db.execute("ALTER SYSTEM RESET synchronous_standby_names")
        db.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("point", ["capture: prepared", "phase: verifying", "swap: before the commit", COMMITTED])
def test_crash(stage: Stage, point: str) -> None:
    """A permanent slot outlives a crash, which takes back the last moments of the run."""
    with stopped(stage, point, options=["--capture", "wal", "--max-slot-wal", "1GB"]) as client:
        crash(stage, flushed=False)
        client.kill()
    stage.db.server.start()
    stage.write()
    if point == "capture: prepared":
        with pglean.connect(stage.db.conninfo) as database:
            assert [remains for _, remains in database.cleanup()] == [[]]
    stage.settle("resume")
    check(stage)


def test_orphans(stage: Stage) -> None:
    """Whoever drops our schema while a run is kept leaves its slot and publication, of which nobody knows then."""

    def pause() -> None:
        raise Paused("paused")

    outcome = repack(stage, Fault("phase: indexing", pause), capture="wal", max_slot_wal_bytes=1 << 30)
    assert isinstance(outcome, Paused), outcome
    assert len(left(stage)) == 2
    stage.db.execute("DROP SCHEMA pglean CASCADE")
    with pglean.connect(stage.db.conninfo) as database:
        assert [text.rpartition(" ")[0] for text in database.orphans()] == ["publication", "replication slot"]
        # A run of the same number takes their place; what is begun meanwhile is no orphan.
        orphaned: list[str] = []
        with pausepoint.intercept("phase: indexing", lambda: orphaned.extend(database.orphans(drop=True))):
            database.repack(stage.table.as_string(None), capture="wal", max_slot_wal_bytes=1 << 30)
        assert orphaned == []
        assert database.orphans() == []
    stage.write()
    check(stage)


def test_orphans_are_dropped(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    def pause() -> None:
        raise Paused("paused")

    assert isinstance(repack(stage, Fault("phase: indexing", pause), capture="wal", max_slot_wal_bytes=1 << 30), Paused)
    stage.db.execute("DROP SCHEMA pglean CASCADE")
    assert cli.run(["status", stage.db.conninfo]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(" pglean_")[0] for line in told] == ["publication", "replication slot"]
    assert all("`pglean cleanup " in line and f" -d {stage.db.name}` drops it" in line for line in told)
    assert cli.run(["cleanup", stage.db.conninfo]) == 0
    assert capsys.readouterr().out.count(": dropped, its run is not known any more") == 2
    assert left(stage) == []
    assert cli.run(["uninstall", stage.db.conninfo]) == 0
    assert capsys.readouterr().out == "there is no schema pglean\n"
    check(stage)


def test_resume_of_a_table_that_was_dropped(stage: Stage) -> None:
    def pause() -> None:
        raise Paused("paused")

    assert isinstance(repack(stage, Fault("phase: indexing", pause), capture="wal", max_slot_wal_bytes=1 << 30), Paused)
    stage.db.execute(sql.SQL("DROP TABLE {}").format(stage.table))
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        with pytest.raises(TableChanged, match="was dropped: run 1 is undone"):
            database.resume(run.id)
        assert database.status() == []
    assert left(stage) == []


def test_nobody_writing_meets_a_publication_that_goes(db: Database, seed: int) -> None:
    """Neither at the swap nor where a run is undone: it goes while nobody can write."""
    spec = Spec()
    spec.create(db.connect())

    def fail() -> None:
        raise RuntimeError("mishap")

    with Writers(db.conninfo, spec, seed) as writers, pglean.connect(db.conninfo) as database:
        for _ in range(4):
            with pausepoint.intercept("phase: indexing", fail), pytest.raises(PgleanError, match="mishap"):
                database.repack(spec.table, capture="wal")
            database.repack(spec.table, capture="wal")
            writers.wait_for(5)
    writers.compare()
