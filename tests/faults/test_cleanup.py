"""`cleanup` where not all is as a run has left it: in a restored dump, beside a run that ends, after one that fails."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import pglean
from pglean import pausepoint
from pglean.claim import claim
from pglean.embedded import EmbeddedServer
from pglean.errors import ConnectionLost, PgleanError
from pglean.result import Result
from pglean.rewrite import cleanup
from tests.servers import create_database
from tests.support.fault import Fault, assert_told, repack
from tests.support.oracle import assert_nothing_left, assert_sound, once, until
from tests.support.play import Background
from tests.support.stage import Stage

pytestmark = pytest.mark.in_turn

DROP = "cleanup: before a drop"


def leave(stage: Stage) -> int:
    """Leave what a killed run leaves; returns its number."""

    def fail() -> None:
        raise RuntimeError("killed")

    with (
        once("phase: ready", fail),
        once("undo", fail),
        pglean.connect(stage.db.conninfo) as database,
        pytest.raises(RuntimeError),
    ):
        database.repack(stage.name)
    stage.deserted()
    return int(stage.db.scalar("SELECT max(id) FROM pglean.job"))


def restore(server: EmbeddedServer, file: Path, database: str) -> None:
    """Run a dump; one made by a newer pg_dump than the server sets what an older server does not know."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if "transaction_timeout" not in line), encoding="utf-8")
    server.run("psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={file}", dbname=database)


def test_restored_dump_of_a_run_in_progress(stage: Stage, server: EmbeddedServer, tmp_path: Path) -> None:
    """There the triggers are on a table with another OID, which no row of ours knows; they would fail every write."""
    file = tmp_path / "dump.sql"

    def dump() -> None:
        stage.write()
        server.run("pg_dump", f"--file={file}", dbname=stage.db.name)

    with create_database(server) as restored:
        # So that nothing gets the number that it had.
        restored.execute("CREATE TABLE in_front (); DROP TABLE in_front")
        with once("phase: ready", dump), pglean.connect(stage.db.conninfo) as database:
            database.repack(stage.name)
        stage.check()
        restore(server, file, restored.name)
        triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pglean%' AND tgrelid = 'items'::regclass"
        assert restored.scalar(triggers) == 3
        with pglean.connect(restored.conninfo) as database:
            ((run, remains),) = database.cleanup()
            assert (run.table, remains) == (stage.name, [])
            assert database.status() == []
            assert_nothing_left(restored)
            restored.execute("UPDATE items SET note = 'restored' WHERE id = 8")
            database.repack(stage.name, verify="full")
        assert restored.scalar("SELECT count(*) FROM items WHERE note = 'restored'") == 1
        assert_sound(restored, stage.name)
        assert_nothing_left(restored)


def test_next_run_in_a_restored_dump(stage: Stage, server: EmbeddedServer, tmp_path: Path) -> None:
    """Nobody has to know of `cleanup` for the run that repacks the restored table to go through."""
    file = tmp_path / "dump.sql"

    def dump() -> None:
        server.run("pg_dump", f"--file={file}", dbname=stage.db.name)

    with once("phase: ready", dump), pglean.connect(stage.db.conninfo) as database:
        database.repack(stage.name)
    with create_database(server) as restored:
        restore(server, file, restored.name)
        with pglean.connect(restored.conninfo) as database:
            database.repack(stage.name, verify="full")
            database.cleanup()
        assert_sound(restored, stage.name)
        assert_nothing_left(restored)


def test_one_that_fails_does_not_keep_the_others(stage: Stage) -> None:
    """Somebody's view reads the copy that one run has left: that one is told of, the others are undone."""
    others = Stage(stage.db, "others")
    first = leave(stage)
    second = leave(others)
    stage.db.execute(f"CREATE VIEW peeking AS SELECT id FROM pglean.shadow_{first}")
    with pglean.connect(stage.db.conninfo) as database:
        outcome = {run.id: remains for run, remains in database.cleanup()}
        assert outcome.keys() == {first, second}
        assert "depend" in outcome[first][0]
        assert outcome[second] == []
        ((run),) = database.status()
        assert (run.id, run.state) == (first, "remains")
        assert run.error is not None
        assert "depend" in run.error
        # The application goes on, on both.
        for each in (stage, others):
            each.write()
            each.compare()
        stage.db.execute("DROP VIEW peeking")
        ((_, remains),) = database.cleanup()
        assert remains == []
    stage.check()
    others.check()


@pytest.mark.parametrize("occurrence", [1, 2, 3, 4])
def test_stopped_between_two_drops(stage: Stage, monkeypatch: pytest.MonkeyPatch, occurrence: int) -> None:
    """Large indexes are dropped one by one, then the table; what is left is found, and the table is repacked."""
    monkeypatch.setattr(cleanup, "_LARGE_BYTES", 0)
    indexes = int(stage.db.scalar("SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", (stage.name,)))
    assert indexes >= 3
    ours = "SELECT count(*) FROM pg_class WHERE relnamespace = 'pglean'::regnamespace AND relname ~ '^twin_[0-9]'"
    left: list[int] = []

    def look() -> None:
        left.append(int(stage.db.scalar(ours)))
        raise RuntimeError("enough")

    outcome = repack(stage, Fault(DROP, look, occurrence))
    assert_told(stage, outcome, PgleanError.exit_status)
    assert left == [indexes - occurrence + 1]
    assert stage.repacked
    stage.check()


@pytest.mark.parametrize("large_bytes", [0, 1 << 40])
def test_files_are_dropped_by_size(stage: Stage, monkeypatch: pytest.MonkeyPatch, large_bytes: int) -> None:
    monkeypatch.setattr(cleanup, "_LARGE_BYTES", large_bytes)
    reached: list[str] = []
    monkeypatch.setattr(pausepoint, "trace", reached.append)
    indexes = int(stage.db.scalar("SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", (stage.name,)))
    assert isinstance(repack(stage), Result)
    # The old files and the table of changes, in any case.
    assert reached.count(DROP) == 2 + (0 if large_bytes else indexes)
    stage.check()


def test_dropping_an_index_is_forbidden(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an event trigger, which does not forbid to drop tables: indexes go with theirs."""
    monkeypatch.setattr(cleanup, "_LARGE_BYTES", 0)
    stage.db.execute(
        "CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not here'; END$$;"
        "CREATE EVENT TRIGGER forbid ON ddl_command_start WHEN TAG IN ('DROP INDEX') EXECUTE FUNCTION forbid()"
    )
    assert isinstance(repack(stage), Result)
    stage.db.execute("DROP EVENT TRIGGER forbid")
    stage.check()


def test_killed_between_two_drops(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_LARGE_BYTES", 0)

    def terminate() -> None:
        for pid in stage.sessions():
            stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    fault = Fault(DROP, terminate, 2)
    assert_told(stage, repack(stage, fault), ConnectionLost.exit_status)
    assert stage.repacked
    stage.write()
    stage.settle("resume")
    stage.check()


def test_constraint_that_somebody_added_to_the_old_files(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its index cannot be dropped by itself: it goes with the table."""
    monkeypatch.setattr(cleanup, "_LARGE_BYTES", 0)

    def add() -> None:
        job = stage.db.scalar("SELECT max(id) FROM pglean.job")
        stage.db.execute(f"ALTER TABLE pglean.shadow_{job} ADD CONSTRAINT his UNIQUE (id)")

    assert isinstance(repack(stage, Fault("phase: cleaning", add)), Result)
    stage.check()


def test_large_index_that_is_locked(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a pg_dump, say: it is told which table is in use, and by whom; later it goes."""
    monkeypatch.setattr(cleanup, "_LARGE_BYTES", 0)
    monkeypatch.setattr(cleanup, "_DROP_WAIT_S", 0.2)
    with stage.db.connect() as reader:

        def read() -> None:
            job = stage.db.scalar("SELECT max(id) FROM pglean.job")
            reader.execute(f"BEGIN; SELECT FROM pglean.shadow_{job} LIMIT 1")

        outcome = repack(stage, Fault("phase: cleaning", read))
        assert isinstance(outcome, PgleanError)
        assert "in use by pid" in str(outcome)
        assert "the table is repacked" in str(outcome)
        reader.execute("COMMIT")
    with pglean.connect(stage.db.conninfo) as database:
        ((_, remains),) = database.cleanup()
    assert remains == []
    stage.check()


def test_run_that_ends_while_it_is_looked_at(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed as running, over when it is claimed: what it has told of itself stays as it is."""
    standing, go_on = threading.Event(), threading.Event()

    def stand() -> None:
        standing.set()
        assert go_on.wait(20)

    def repack() -> None:
        with pglean.connect(stage.db.conninfo) as database:
            database.repack(stage.name)

    history = "SELECT to_jsonb(j) FROM pglean.job AS j"
    ended: list[Any] = []
    with once("phase: cleaning", stand), pglean.connect(stage.db.conninfo) as database:
        run = Background(repack)
        assert standing.wait(20)

        def claim_late(conn: Any, oid: int) -> bool:
            go_on.set()
            run.result()
            until(lambda: stage.sessions() == [conn.info.backend_pid], "the sessions of the run have ended")
            ended.extend(stage.db.fetchall(history))
            return claim(conn, oid)

        monkeypatch.setattr(cleanup, "claim", claim_late)
        assert database.cleanup() == []
    ((row,),) = ended
    assert row["state"] == "done"
    assert row["result"] is not None
    assert stage.db.fetchall(history) == ended
    stage.check()
