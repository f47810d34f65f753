"""Undoing while somebody else has the table, or a table of ours, in use."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import TupleRow

from pglean import cli
from pglean.errors import Interrupted, LockNotObtained, PgleanError
from pglean.rewrite import cleanup
from tests.support.fault import Fault, repack
from tests.support.points import COMMITTED
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


@pytest.fixture
def other(stage: Stage) -> Iterator[psycopg.Connection[TupleRow]]:
    """Another session, with a transaction open."""
    with stage.db.connect(application_name="other") as session:
        session.execute("BEGIN")
        yield session


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_DROP_WAIT_S", 0.0)


def fail() -> None:
    raise Interrupted("enough")


def read_and_fail(other: psycopg.Connection[TupleRow]) -> None:
    """Somebody begins to read the table for long; then the run fails."""
    other.execute("SELECT count(*) FROM items")
    fail()


def test_reader_in_the_way_of_undoing(
    stage: Stage, other: psycopg.Connection[TupleRow], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = repack(stage, Fault("phase: ready", lambda: read_and_fail(other)), wait_timeout_s=0.3)
    pid = other.info.backend_pid
    assert isinstance(outcome, Interrupted)
    assert "Still there: three triggers without effect on public.items" in str(outcome)
    assert f"pid {pid} (postgres, other, idle in transaction" in str(outcome)
    # Nothing else is left than triggers that do nothing; the application goes on.
    assert stage.db.scalar("SELECT count(*) FROM pg_class WHERE relname ~ '^(shadow|changes)_'") == 0
    assert stage.db.scalar("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pglean%'") == 3
    stage.write()
    stage.compare()
    (run,) = stage.status()
    assert run.state == "remains"
    assert run.error is not None
    assert f"pid {pid}" in run.error

    # Blocked still: said, with a status of its own.
    assert cli.run(["cleanup", "-T", "0.3", stage.db.conninfo]) == LockNotObtained.exit_status
    told = capsys.readouterr()
    assert told.out == ""
    assert "not everything could be removed" in told.err
    assert f"pid {pid}" in told.err
    assert [run.state for run in stage.status()] == ["remains"]
    assert cli.run(["uninstall", stage.db.conninfo]) == PgleanError.exit_status
    capsys.readouterr()

    other.execute("COMMIT")
    assert cli.run(["cleanup", stage.db.conninfo]) == 0
    assert capsys.readouterr().out == f"job {run.id} on public.items: cleaned up\n"
    stage.check()
    assert not stage.repacked


def test_next_run_removes_silenced_triggers(stage: Stage, other: psycopg.Connection[TupleRow]) -> None:
    repack(stage, Fault("phase: ready", lambda: read_and_fail(other)), wait_timeout_s=0.3)
    assert [run.state for run in stage.status()] == ["remains"]
    other.execute("COMMIT")
    assert cli.run(["repack", "-q", "-t", "items", stage.db.conninfo]) == 0
    assert stage.repacked
    stage.check()


def test_writer_in_the_way_of_undoing(
    stage: Stage, other: psycopg.Connection[TupleRow], capsys: pytest.CaptureFixture[str]
) -> None:
    """He has recorded his keys in the change table, so that it is locked as well until he ends."""
    change = "UPDATE {} SET note = NULL WHERE id = 8"

    def write() -> None:
        for table in ("items", '"model of items"'):
            other.execute(change.format(table))
        fail()

    outcome = repack(stage, Fault("phase: ready", write), wait_timeout_s=0.3)
    (run,) = stage.status()
    assert f"table pglean.changes_{run.id} (in use by pid {other.info.backend_pid}" in str(outcome)
    assert run.state == "remains"
    assert cli.run(["cleanup", "-T", "0.3", stage.db.conninfo]) == LockNotObtained.exit_status
    assert f"table pglean.changes_{run.id} (in use by pid" in capsys.readouterr().err
    other.execute("COMMIT")
    assert cli.run(["cleanup", stage.db.conninfo]) == 0
    stage.check()


def test_dump_in_the_way_of_finishing(stage: Stage, other: psycopg.Connection[TupleRow]) -> None:
    """A pg_dump reads whatever it finds: the old files cannot be dropped before it ends. The table is repacked."""

    def dump() -> None:
        job = stage.db.scalar("SELECT max(id) FROM pglean.job")
        other.execute(f"LOCK TABLE pglean.shadow_{job} IN ACCESS SHARE MODE")

    outcome = repack(stage, Fault(COMMITTED, dump))
    assert stage.repacked
    assert isinstance(outcome, LockNotObtained)
    (run,) = stage.status()
    assert "the table is repacked" in str(outcome)
    assert f"Still there: table pglean.shadow_{run.id} (in use by pid {other.info.backend_pid}" in str(outcome)
    assert run.state == "remains"
    stage.compare()
    other.execute("COMMIT")
    assert cli.run(["cleanup", stage.db.conninfo]) == 0
    assert stage.db.scalar("SELECT state FROM pglean.job") == "done"
    stage.check()
