"""The server crashes, and comes back."""

from __future__ import annotations

import pytest

from pglean import cli
from pglean.errors import ConnectionLost
from pglean.rewrite.status import ways_on
from tests.faults.test_client import stopped
from tests.support.fault import Fault, assert_told, repack
from tests.support.points import COMMITTED, some
from tests.support.stage import Stage

pytestmark = pytest.mark.in_turn

_POINTS = ("capture: before the commit", "copy: in a chunk", "phase: ready", "swap: before the commit", COMMITTED)


def crash(stage: Stage, *, flushed: bool = True) -> None:
    """Stop the server as a crash does: right after everything was brought to the disk, or losing the last moments."""
    if flushed:
        stage.db.execute("SELECT pg_logical_emit_message(true, 'test', '')")
    # The session of the test would not know.
    stage.db.close()
    stage.db.server.stop("immediate")


@pytest.mark.parametrize("point", _POINTS)
def test_run_outlives_the_crash(stage: Stage, point: str) -> None:
    """It waits for the server to come back, and notes there what has become of it."""

    def crash_and_recover() -> None:
        crash(stage)
        stage.db.server.start()

    fault = Fault(point, crash_and_recover)
    assert_told(stage, repack(stage, fault), ConnectionLost.exit_status)
    assert fault.struck
    # Before the triggers are on it is worth nothing, after the swap there is nothing to go on with.
    kept = point not in ("capture: before the commit", COMMITTED)
    assert [run.state for run in stage.status()] == (["paused"] if kept else [])
    stage.write()
    stage.settle("resume")
    assert stage.repacked == (point != "capture: before the commit")
    stage.check()


@pytest.mark.parametrize("how", ["cleanup", "resume"])
@pytest.mark.parametrize("flushed", [True, False], ids=["flushed", "lossy"])
@pytest.mark.parametrize("point", some(_POINTS, 1))
def test_nobody_outlives_the_crash(stage: Stage, point: str, flushed: bool, how: str) -> None:
    with stopped(stage, point) as client:
        crash(stage, flushed=flushed)
        client.kill()
    stage.db.server.start()
    stage.write()
    stage.compare()
    # What the run did in its last moments may be lost with the crash, all of it together: its row as well.
    if how == "cleanup":
        assert cli.run(["cleanup", stage.db.conninfo]) == 0
    else:
        stage.settle("resume")
    stage.check()


def test_server_that_stays_away_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pglean.rewrite.ending._RECONNECT_S", 1.0)
    outcome = repack(stage, Fault("phase: ready", lambda: crash(stage)))
    assert isinstance(outcome, ConnectionLost)
    assert "Its state could not be noted" in str(outcome)
    assert cli.run(["status", stage.db.conninfo]) == 5
    stage.db.server.start()
    (run,) = stage.status()
    assert run.state == "interrupted"
    assert ways_on(run.id, stage.typed) in str(outcome)
    stage.write()
    stage.settle("resume")
    stage.check()


def test_server_that_stays_away_from_undoing_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pglean.rewrite.ending._RECONNECT_S", 1.0)

    def crash_and_fail() -> None:
        crash(stage)
        raise RuntimeError("of another kind")

    outcome = repack(stage, Fault("phase: ready", crash_and_fail))
    assert "of another kind" in str(outcome)
    assert "Undoing failed as well" in str(outcome)
    assert f"{stage.typed('cleanup')} undoes it" in str(outcome)
    stage.db.server.start()
    assert cli.run(["cleanup", stage.db.conninfo]) == 0
    assert not stage.repacked
    stage.check()
