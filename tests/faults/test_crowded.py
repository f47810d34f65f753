"""A run beside others that keep all processors busy: one thing after the other, and their commits first."""

from __future__ import annotations

import sys
from collections import Counter

import psycopg
import pytest

from pglean import pausepoint
from pglean.result import Result
from pglean.rewrite import job as jobs
from pglean.rewrite.run import Run
from pglean.session import Connection
from pglean.table import Table
from tests.support.fault import repack
from tests.support.stage import Stage


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The server's processors are busy; what was about to be done each time that others went first."""
    callers: list[str] = []
    give_way = Run.give_way

    def watched(self: Run, conn: Connection) -> None:
        # Whoever waits in a transaction keeps locks and a snapshot for that time.
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert self.crowded
        callers.append(sys._getframe(1).f_code.co_qualname)
        give_way(self, conn)

    monkeypatch.setattr(Run, "give_way", watched)
    monkeypatch.setattr("pglean.rewrite.copy._TRIAL_S", 0.0)
    monkeypatch.setattr("pglean.processors.Meter.busy", lambda *_: True)
    return callers


def test_gives_way_between_all_that_cannot_be_divided(
    stage: Stage, waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []
    monkeypatch.setattr(pausepoint, "trace", reached.append)
    analyze = jobs.analyze

    def noted(conn: Connection, table: Table) -> None:
        analyze(conn, table)
        reached.append("analyzed")

    monkeypatch.setattr(jobs, "analyze", noted)
    assert isinstance(repack(stage, verify="full"), Result)
    indexes = int(stage.db.scalar("SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", (stage.name,)))
    counts = Counter(waits)
    assert counts.keys() == {"round_", "freeze", "run.<locals>.build", "_analyze", "_drop.<locals>.between"}
    assert counts["run.<locals>.build"] == indexes
    assert counts["_drop.<locals>.between"] == 2
    # The statistics are there first: what had to wait for the files to go does not wait for these as well.
    assert reached.index("analyzed") < reached.index("cleanup: before a drop")
    stage.check()


@pytest.mark.usefixtures("waits")
def test_mvcc_safe(stage: Stage) -> None:
    assert isinstance(repack(stage, mvcc_safe=True), Result)
    stage.check()
