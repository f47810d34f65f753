"""Signals to the command line, and its sudden death, at every point of a run.

In the ordinary tests each point meets one of the signals, and SIGKILL, on one server; the others get a sample.
`-m slow` tries every signal at every point on every server.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence

import pytest

import pglean
from pglean import cli
from pglean.cli.connection import interruptible
from pglean.errors import Interrupted
from tests.support.client import CANCELLED, Client
from tests.support.oracle import until
from tests.support.points import COMMITTED, POINTS, UNDO, some
from tests.support.stage import Stage

pytestmark = pytest.mark.in_turn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WRITING = "phase: indexing"

SIGNALLED = [(point, _SIGNALS[number % len(_SIGNALS)]) for number, point in enumerate(POINTS)]
PRODUCT = [(point, number) for point in POINTS for number in _SIGNALS]


@contextlib.contextmanager
def stopped(stage: Stage, point: str, *then: str, options: Sequence[str] = ()) -> Iterator[Client]:
    """The command line, repacking the stage's table, at a point to which it came after the application has written."""
    arguments = ["repack", "-j", "2", *options, "-t", stage.table.as_string(None), stage.db.conninfo]
    with Client(arguments, {_WRITING, point, *then}) as client:
        while (line := client.line()) != point or point == _WRITING:
            assert line is not None, f"ended with status {client.wait()}: {client.stderr}"
            if line == _WRITING:
                stage.write()
                if point == _WRITING:
                    break
            client.step()
        yield client


def interrupt(stage: Stage, point: str, number: signal.Signals) -> None:
    with stopped(stage, point) as client:
        client.signal(number)
        assert client.wait() == 8, client.stderr
        assert f"pglean: error: interrupted by {number.name}" in client.stderr
        assert "Traceback" not in client.stderr
        assert ("the table is repacked" in client.stderr) == stage.repacked
        assert client.stdout == ""
    stage.check()


def cleanup(stage: Stage) -> None:
    assert cli.run(["cleanup", stage.db.conninfo]) == 0


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize(("point", "number"), some(SIGNALLED, 0), ids=lambda value: getattr(value, "name", value))
def test_signal_is_undone(stage: Stage, point: str, number: signal.Signals) -> None:
    interrupt(stage, point, number)


@pytest.mark.slow
@pytest.mark.parametrize(("point", "number"), PRODUCT, ids=lambda value: getattr(value, "name", value))
def test_every_signal_is_undone(stage: Stage, point: str, number: signal.Signals) -> None:
    interrupt(stage, point, number)


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("point", some(POINTS, 1))
def test_killed_client_is_cleaned_up_after(stage: Stage, point: str, capsys: pytest.CaptureFixture[str]) -> None:
    with stopped(stage, point) as client:
        client.kill()
    stage.deserted()
    # The application has not noticed.
    stage.write()
    stage.compare()
    (run,) = stage.status()
    assert (run.table, run.state) == (stage.name, "interrupted")
    cleanup(stage)
    assert f"job {run.id} on public.{stage.name}: cleaned up" in capsys.readouterr().out
    state = stage.db.scalar("SELECT state FROM pglean.job WHERE id = %s", (run.id,))
    assert state == ("done" if stage.repacked else "undone")
    stage.check()


def test_kill_between_swap_and_cleanup_leaves_the_new_files(stage: Stage) -> None:
    with stopped(stage, COMMITTED) as client:
        client.kill()
    stage.deserted()
    assert stage.repacked
    (run,) = stage.status()
    assert run.phase == "cleaning"
    assert run.shadow_bytes > 0
    cleanup(stage)
    stage.check()


def test_kill_while_undoing_is_cleaned_up_after(stage: Stage) -> None:
    with stopped(stage, "phase: ready", UNDO) as client:
        client.signal(signal.SIGINT)
        client.step()
        client.await_line(UNDO)
        client.kill()
    stage.deserted()
    assert [run.state for run in stage.status()] == ["interrupted"]
    cleanup(stage)
    stage.check()


def test_second_interrupt_does_not_break_undoing(stage: Stage) -> None:
    with stopped(stage, "phase: ready", UNDO) as client:
        client.signal(signal.SIGINT)
        client.step()
        client.await_line(UNDO)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            client.signal(number)
        assert client.wait() == 8
        assert "interrupted by SIGINT" in client.stderr
        assert CANCELLED not in client.stderr
    stage.check()


def test_each_run_goes_on_with_the_one_before(stage: Stage) -> None:
    for point in ("copy: in a chunk", "phase: ready", "swap: before the commit"):
        with stopped(stage, point) as client:
            client.kill()
        stage.deserted()
        stage.write()
        assert [run.state for run in stage.status()] == ["interrupted"]
    assert cli.run(["repack", "-q", "-t", stage.table.as_string(None), stage.db.conninfo]) == 0
    assert stage.repacked
    assert stage.db.fetchall("SELECT state, epoch FROM pglean.job") == [("done", 3)]
    stage.check()


def test_next_run_undoes_what_an_interrupted_one_left_with_no_rows(stage: Stage) -> None:
    """Before its triggers are on there is nothing in it that would be worth going on with."""
    with stopped(stage, "capture: prepared") as client:
        client.kill()
    stage.deserted()
    stage.write()
    assert cli.run(["repack", "-q", "-t", stage.table.as_string(None), stage.db.conninfo]) == 0
    assert stage.repacked
    assert stage.db.fetchall("SELECT state FROM pglean.job ORDER BY id") == [("undone",), ("done",)]
    stage.check()


def test_running_one_is_left_alone_by_cleanup(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    with stopped(stage, "copy: in a chunk") as client:
        (run,) = stage.status()
        assert run.state == "running"
        cleanup(stage)
        assert capsys.readouterr().out == f"job {run.id} on public.items: a session works on it, left alone\n"
        assert cli.run(["repack", "-t", stage.table.as_string(None), stage.db.conninfo]) == 3
        assert "another run of pglean works on public.items" in capsys.readouterr().err
        client.go_on()
        assert client.wait() == 0, client.stderr
    assert stage.repacked
    stage.check()


@pytest.mark.parametrize("change", ["rename", "move", "replace", "drop"])
def test_table_changed_after_a_kill_is_cleaned_up_after(stage: Stage, change: str) -> None:
    with stopped(stage, "phase: ready") as client:
        client.kill()
    stage.deserted()
    stage.db.execute(
        {
            "rename": "ALTER TABLE items RENAME TO renamed",
            "move": "CREATE SCHEMA other; ALTER TABLE items SET SCHEMA other",
            "replace": 'ALTER TABLE items RENAME TO renamed; CREATE VIEW items AS TABLE "model of items"',
            "drop": "DROP TABLE items",
        }[change]
    )
    cleanup(stage)
    assert stage.status() == []
    back = {
        "rename": "ALTER TABLE renamed RENAME TO items",
        "move": "ALTER TABLE other.items SET SCHEMA public; DROP SCHEMA other",
        "replace": "DROP VIEW items; ALTER TABLE renamed RENAME TO items",
        "drop": 'CREATE TABLE items (LIKE "model of items"); INSERT INTO items TABLE "model of items"',
    }
    stage.db.execute(back[change])
    if change == "drop":
        stage.oid = stage.db.scalar("SELECT 'items'::regclass::oid")
    stage.check()


@pytest.mark.parametrize("point", ["capture: before the commit", "swap: before the commit"])
def test_frozen_client_does_not_keep_the_application(stage: Stage, point: str) -> None:
    """Its machine sleeps, say, while it has the table locked: the server ends the session when its time is up."""
    locked = "SELECT FROM pg_locks WHERE relation = %s AND mode IN ('ShareRowExclusiveLock', 'AccessExclusiveLock')"
    with stopped(stage, point) as client:
        assert len(stage.db.fetchall(locked, (stage.oid,))) >= 1
        client.freeze()
        stage.write()
        stage.compare()
        client.thaw()
        assert client.wait() == 5, client.stderr
        assert "connection to the server was lost" in client.stderr
    assert not stage.repacked
    # What was begun after the triggers were on is kept.
    assert [run.state for run in stage.status()] == (["paused"] if point.startswith("swap") else [])
    stage.write()
    stage.settle("resume")
    stage.check()


def test_signal_while_undoing_ends_the_batch(stage: Stage) -> None:
    """What is undone, for a reason of its own, is undone to the end; the table that would come next is not begun."""
    others = Stage(stage.db, "others")
    arguments = ["repack", "-t", stage.name, "-t", others.name, stage.db.conninfo]
    with Client(arguments, {"phase: ready", UNDO}) as client:
        client.await_line("phase: ready")
        for table in ("items", '"model of items"'):
            stage.db.execute(f"ALTER TABLE {table} ADD late int")
        client.step()
        client.await_line(UNDO)
        client.signal(signal.SIGINT)
        assert client.wait() == 8, client.stderr
        assert "interrupted by SIGINT" in client.stderr
        assert "Still there" not in client.stderr
    assert not others.repacked
    assert stage.db.fetchall("SELECT table_name, state FROM pglean.job") == [(stage.name, "undone")]
    stage.check()
    others.check()


@pytest.mark.parametrize("how", ["signal", "terminated"])
def test_end_before_the_run_begins(stage: Stage, how: str) -> None:
    """There is no job yet, hence nothing to undo; what is told is the same."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pglean run' AND wait_event_type = 'Lock'"
    with stage.db.connect() as other:
        # Another first run is about to create the schema.
        other.execute("SELECT pg_advisory_lock(%s)", (int.from_bytes(b"pgleSCHE", "big"),))
        with Client(["repack", "-t", stage.name, stage.db.conninfo], []) as client:
            until(lambda: stage.db.fetchall(waiting) != [], "the run waits for the other one")
            if how == "signal":
                client.signal(signal.SIGINT)
            else:
                stage.db.fetchall(f"SELECT pg_terminate_backend(pid) FROM ({waiting}) AS w")
            assert client.wait() == (8 if how == "signal" else 5), client.stderr
            told = "interrupted by SIGINT" if how == "signal" else "connection to the server was lost"
            assert f"pglean: error: {told}" in client.stderr
    assert stage.db.scalar("SELECT to_regnamespace('pglean')") is None
    stage.check()


def test_signal_takes_no_lock(stage: Stage) -> None:
    """Its handler may interrupt a thread anywhere, even where it holds the lock that the cancelling needs."""
    with pglean.connect(stage.db.conninfo) as database, interruptible(database):
        server = database.server
        # The lock within the Event, which nothing public leads to.
        with server._cancelled._cond:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGINT"):
            server.rest(20)
        with pytest.raises(Interrupted):
            database.status()
        with server.shielded():
            assert database.status() == []
