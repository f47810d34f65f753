"""A run beside others that keep all processors busy: one thing after the other, and their commits first."""

from __future__ import annotations

import psycopg
import pytest

from pglean import pausepoint
from pglean.result import Result
from pglean.rewrite.courtesy import Courtesy
from pglean.session import Connection
from tests.support.fault import repack
from tests.support.stage import Stage


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The server's processors are busy; what each session was about to do, or had done, when it gave way."""
    named: list[str] = []
    give_way = Courtesy.give_way

    def watched(self: Courtesy, conn: Connection, limit_s: float) -> bool:
        # Whoever waits in a transaction keeps locks and a snapshot for that time.
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        row = conn.execute("SELECT current_setting('application_name')").fetchone()
        assert row is not None
        named.append(str(row[0]).split()[-1])
        return give_way(self, conn, limit_s)

    monkeypatch.setattr(Courtesy, "give_way", watched)
    monkeypatch.setattr("pglean.rewrite.copy._TRIAL_S", 0.0)
    monkeypatch.setattr("pglean.processors.Meter.busy", lambda *_: True)
    return named


def test_gives_way_between_all_that_cannot_be_divided(
    stage: Stage, waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []
    monkeypatch.setattr(pausepoint, "trace", reached.append)
    assert isinstance(repack(stage, verify="full"), Result)
    assert {"refresh", "analyze", "cleanup"} <= set(waits)
    # What is recorded while it waits would have to be taken over under the lock.
    assert "swap" not in waits
    indexes = int(stage.db.scalar("SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", (stage.name,)))
    assert len(waits) > indexes + 4
    # The statistics come first: what had to wait for the files to go does not wait for these as well.
    assert reached.index("analyze") < reached.index("cleanup: before a drop")
    stage.check()


@pytest.mark.usefixtures("waits")
def test_mvcc_safe(stage: Stage) -> None:
    assert isinstance(repack(stage, mvcc_safe=True), Result)
    stage.check()
