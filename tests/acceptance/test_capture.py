"""`--capture` on the command line, and what is told of it."""

from __future__ import annotations

import json

import pytest

from pglean import pausepoint
from tests.support.command import Run
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


def test_repack(stage: Stage, run: Run) -> None:
    with pausepoint.intercept("phase: verifying", stage.write):
        status, _, err = run("repack", "-t", "items", "--capture", "wal", "--verify", "full")
    assert status == 0, err
    assert stage.repacked
    stage.check()


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ([], "by three triggers (SHARE"),
        (["--capture", "trigger"], "by three triggers (SHARE"),
        (["--capture", "wal"], "from the WAL by a temporary replication slot (SHARE"),
        (["--capture", "auto"], "from the WAL by a temporary replication slot (SHARE"),
        (["--capture", "auto", "--max-slot-wal", "1GB"], "from the WAL by a permanent replication slot (SHARE"),
        (["--capture", "auto", "--keep"], "by three triggers, because --keep needs a replication slot"),
    ],
    ids=" ".join,
)
def test_plan(stage: Stage, run: Run, options: list[str], step: str) -> None:
    status, out, err = run("repack", "-t", "items", "-N", "--json", *options)
    assert status == 0, err
    (plan,) = json.loads(out)
    assert step in plan["steps"][0]
    assert plan["capture"] == ("wal" if "from the WAL" in step else "trigger")
    assert stage.db.scalar("SELECT count(*) FROM pg_replication_slots") == 0


def test_auto_says_why_it_takes_triggers(stage: Stage, run: Run) -> None:
    stage.db.execute("ALTER TABLE items REPLICA IDENTITY NOTHING")
    why = "the replica identity of public.items is not its key (items_pkey)"
    status, _, err = run("repack", "-t", "items", "--capture", "wal")
    assert status == 3
    assert f"pglean: error: {why}" in err
    assert "ALTER TABLE public.items REPLICA IDENTITY DEFAULT;" in err
    status, _, err = run("repack", "-t", "items", "--capture", "auto")
    assert status == 0, err
    assert f"changes are captured by triggers: {why}" in err
    stage.db.execute("ALTER TABLE items REPLICA IDENTITY DEFAULT")
    stage.check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--capture", "both"], "Invalid value for '--capture'"),
        (["--max-slot-wal", "1GB"], "--max-slot-wal needs --capture wal or auto"),
        (["--capture", "trigger", "--max-slot-wal", "1GB"], "--max-slot-wal needs --capture wal or auto"),
        (["--capture", "wal", "--max-slot-wal", "much"], "invalid value for option --max-slot-wal: much"),
        (["--capture", "wal", "--keep"], "--keep with --capture wal needs --max-slot-wal"),
    ],
    ids=" ".join,
)
def test_usage(stage: Stage, run: Run, options: list[str], message: str) -> None:
    status, _, err = run("repack", "-t", "items", *options)
    assert status == 2
    assert message.lower() in err.lower()
    stage.check()


def test_status_of_a_kept_run(stage: Stage, run: Run) -> None:
    def pause() -> None:
        stage.db.execute("UPDATE pglean.job SET command = 'pause'")

    with pausepoint.intercept("phase: copying", pause):
        status, _, err = run("repack", "-t", "items", "--capture", "wal", "--max-slot-wal", "1GB", "--hold")
    assert status == 8
    assert "its replication slot retains WAL" in err
    out = run("status")[1]
    assert "replication slot pglean_" in out
    assert "of WAL" in out
    (found,) = json.loads(run("status", "--json")[1])
    assert found["capture"] == "wal"
    assert found["slot"].endswith(f"_{found['id']}")
    assert found["slot_wal_bytes"] > 0
    stage.write()
    assert run("swap", str(found["id"]))[0] == 2
    assert run("abort", str(found["id"]))[0] == 0
    assert stage.db.scalar("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pglean%'") == 0
    assert stage.db.scalar("SELECT count(*) FROM pg_publication") == 0
    stage.check()
