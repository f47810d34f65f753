"""Work is never lost: a run that was killed, cut off or paused goes on from every point, or is aborted from it."""

from __future__ import annotations

import signal
import threading
from datetime import datetime, timedelta

import pytest

import pglean
from pglean import pausepoint
from pglean.errors import Aborted, ConnectionLost, Paused
from pglean.result import Result
from pglean.rewrite import copy
from pglean.rewrite import job as jobs
from pglean.rewrite.copy import Ranges
from pglean.rewrite.phase import Phase
from pglean.session import Connection
from tests.faults.test_client import stopped
from tests.support.client import Client
from tests.support.fault import Fault, repack
from tests.support.oracle import until
from tests.support.play import Background
from tests.support.points import COMMITTED, POINTS, some
from tests.support.stage import Stage

pytestmark = pytest.mark.in_turn

#: Between two pieces of work, where a pause takes effect.
PAUSES = ("phase: copying", "copy: before a chunk", "phase: indexing", "index: before a build", "phase: ready")


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("point", some(POINTS, 2))
def test_killed_client_is_gone_on_with(stage: Stage, point: str) -> None:
    with stopped(stage, point) as client:
        client.kill()
    stage.deserted()
    stage.write()
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        assert run.state == "interrupted"
        result = database.resume(run.id)
        assert stage.repacked
        if isinstance(result, Result) and run.phase not in ("planned", "capturing"):
            assert result.job == run.id
            (finished,) = database.log()
            assert (finished.id, finished.state) == (run.id, "done")
    stage.check()


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("point", some(POINTS, 0))
def test_killed_client_is_aborted_after(stage: Stage, point: str) -> None:
    with stopped(stage, point) as client:
        client.kill()
    stage.write()
    stage.settle("abort")
    stage.check()


def test_second_run_goes_on_with_the_first(stage: Stage) -> None:
    """Whoever just calls `pglean repack` again, as a timer does, loses nothing either."""
    with stopped(stage, "index: after a build") as client:
        client.kill()
    stage.deserted()
    stage.write()
    messages: list[str] = []
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        result = database.repack(stage.name, on_progress=lambda p: messages.append(p.message))
        assert result.job == run.id
    assert f"goes on with run {run.id}, which had come to indexing" in messages
    assert "copying" not in result.phases
    stage.check()


def test_chunks_that_are_copied_are_not_copied_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "_FIRST_BLOCKS", 8)
    monkeypatch.setattr(Ranges, "took", lambda *_: None)
    point = "copy: before a chunk"

    def terminate() -> None:
        for pid in stage.sessions():
            stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    assert isinstance(repack(stage, Fault(point, terminate, occurrence=4), jobs=1), ConnectionLost)
    blocks = stage.db.scalar("SELECT blocks FROM pglean.job")
    done = stage.db.fetchall("SELECT first_block, end_block FROM pglean.chunk ORDER BY 1")
    assert len(done) == 3
    stage.write()
    more: list[str] = []
    with pausepoint.intercept(point, lambda: more.append(point)), pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        database.resume(run.id)
    assert len(more) == -(-(blocks - 24) // 8)
    stage.check()


@pytest.mark.parametrize("point", PAUSES)
def test_pause_and_resume(stage: Stage, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is asked for while the run stands at the point, and takes effect at the next piece of work."""
    standing, go_on = threading.Event(), threading.Event()

    noted = threading.Event()
    watch = jobs.command

    def command(conn: Connection, job_id: int) -> str | None:
        asked = watch(conn, job_id)
        if asked == "pause":
            noted.set()
        return asked

    monkeypatch.setattr(jobs, "command", command)

    def stand() -> None:
        standing.set()
        assert go_on.wait(30)

    outcome = Background(lambda: repack(stage, Fault(point, stand)))
    assert standing.wait(30)
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        asking = Background(lambda: pglean_pause(stage, run.id))
        assert noted.wait(30)
        # The watch takes a look at a time: at the next one, what came of the last is in force.
        noted.clear()
        assert noted.wait(30)
        go_on.set()
        asking.result()
        assert isinstance(outcome.result(), Paused)
        (run,) = database.status()
        assert (run.state, run.command) == ("paused", None)
        stage.write()
        assert isinstance(database.resume(run.id), Result)
    assert stage.repacked
    stage.check()


def pglean_pause(stage: Stage, job: int) -> None:
    with pglean.connect(stage.db.conninfo) as database:
        database.pause(job, wait_s=30)


@pytest.mark.parametrize("point", PAUSES)
def test_abort_of_a_living_run(stage: Stage, point: str) -> None:
    standing = threading.Event()

    def stand() -> None:
        standing.set()
        until(lambda: stage.status()[0].command == "abort", "the abort was asked for")

    outcome = Background(lambda: repack(stage, Fault(point, stand)))
    assert standing.wait(30)
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        state, remains = database.abort(run.id)
    told = outcome.result()
    assert remains == []
    # Where it had nothing left to do before the watch looked again, it may have come to its end.
    assert state == ("done" if stage.repacked else "undone")
    assert isinstance(told, Aborted) or stage.repacked
    stage.check()


def test_hold_and_swap(stage: Stage) -> None:
    outcome = Background(lambda: repack(stage, hold=True))
    until(lambda: [run.state for run in stage.status()] == ["ready"], "the copy is ready")
    (run,) = stage.status()
    until(lambda: "pglean swap" in str(stage.status()[0].progress.get("waiting_for")), "it says what it waits for")
    stage.write()
    assert stage.file == stage.first_file
    with pglean.connect(stage.db.conninfo) as database:
        database.swap(run.id)
    assert isinstance(outcome.result(), Result)
    assert stage.repacked
    stage.check()


def test_swap_window(stage: Stage) -> None:
    """Far from now: it waits, and swaps all the same when told to."""
    begin = datetime.now().astimezone() + timedelta(hours=6)
    window = f"{begin:%H:%M}-{begin + timedelta(minutes=1):%H:%M}"
    outcome = Background(lambda: repack(stage, swap_window=window))
    until(lambda: [run.state for run in stage.status()] == ["ready"], "the copy is ready")
    until(lambda: window in str(stage.status()[0].progress.get("waiting_for")), "it says what it waits for")
    with pglean.connect(stage.db.conninfo) as database:
        database.swap(stage.status()[0].id)
    assert isinstance(outcome.result(), Result)
    stage.check()


def test_ctrl_c_keeps_where_that_was_asked_for(stage: Stage) -> None:
    arguments = ["repack", "--keep", "-t", stage.table.as_string(None), stage.db.conninfo]
    with Client(arguments, {"phase: catching up"}) as client:
        client.await_line("phase: catching up")
        client.signal(signal.SIGINT)
        assert client.wait() == 8
        (run,) = stage.status()
        assert f"{stage.typed(f'resume {run.id}')} continues" in client.stderr
    assert run.state == "paused"
    stage.write()
    stage.settle("resume")
    stage.check()


def test_client_that_comes_back_is_refused(stage: Stage) -> None:
    """It hung (SIGSTOP), its watch was ended, somebody else went on with the run; then it wakes up."""
    with stopped(stage, "copy: before a chunk") as client:
        client.freeze()
        for pid in stage.sessions():
            name = stage.db.scalar("SELECT application_name FROM pg_stat_activity WHERE pid = %s", (pid,))
            if name == "pglean watch":
                stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))
        (run,) = stage.status()
        assert run.state == "interrupted"
        stage.write()
        with pglean.connect(stage.db.conninfo) as database:
            assert isinstance(database.resume(run.id), Result)
        client.thaw()
        client.go_on()
        assert client.wait() != 0
    stage.check()


def test_resume_of_what_had_swapped(stage: Stage) -> None:
    with stopped(stage, COMMITTED) as client:
        client.kill()
    stage.deserted()
    (run,) = stage.status()
    assert run.phase == Phase.CLEANING.label
    with pglean.connect(stage.db.conninfo) as database:
        assert database.resume(run.id) is None
    assert stage.repacked
    stage.check()
