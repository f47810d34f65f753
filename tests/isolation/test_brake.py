"""Writers that are faster than the refreshes: they are paused in slices, so that every run ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import pglean
from pglean import Progress, locks
from pglean.locks import Hold
from pglean.rewrite import catchup
from pglean.rewrite.catchup import Flow
from pglean.rewrite.run import Run
from pglean.throttle import Gate
from tests.servers import Database
from tests.support import oracle
from tests.support.model import Spec
from tests.support.writers import Writers


def test_writers_are_paused_until_the_rest_fits(db: Database, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its brake has held the table once, the run is made to believe that too much is left to take over."""
    held = threading.Event()
    messages: list[str] = []
    hold = locks.locked

    def told(progress: Progress) -> None:
        if progress.message:
            messages.append(progress.message)

    @contextlib.contextmanager
    def watched(*arguments: Any) -> Iterator[Hold | None]:
        with hold(*arguments) as lock:
            held.set()
            yield lock

    monkeypatch.setattr(catchup, "_ROUNDS_BEFORE_BRAKE", 1)
    monkeypatch.setattr(catchup, "locked", watched)
    monkeypatch.setattr(catchup.Flow, "calm", lambda _: held.is_set())
    monkeypatch.setattr(catchup.Flow, "fits", lambda *_: held.is_set())
    monkeypatch.setattr(catchup, "_SHRINKS", 0.0)
    spec = Spec()
    spec.create(db.connect())
    with Writers(db.conninfo, spec, seed) as writers, pglean.connect(db.conninfo) as database:
        writers.wait_for(10)
        result = database.repack(spec.table, verify="full", max_lock_ms=400, on_progress=told)
        writers.wait_for(10)
    assert held.is_set()
    assert any("writers are paused" in message for message in messages), messages
    assert result.rows > 0
    writers.compare()
    oracle.assert_nothing_left(db)


def test_nobody_is_paused_while_the_gate_is_closed(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken over meanwhile: it would be for nothing."""
    held, looked = threading.Event(), threading.Semaphore(0)
    hold, drain = locks.locked, catchup.drain
    tried: list[bool] = []

    class Watched(Gate):
        @property
        def reason(self) -> str:
            looked.release()
            return super().reason

    @contextlib.contextmanager
    def watched(*arguments: Any) -> Iterator[Hold | None]:
        with hold(*arguments) as lock:
            held.set()
            yield lock

    def braked(run: Run) -> Flow:
        if not tried:
            tried.append(True)
            run.gate = Watched()
            run.gate.close("closed")
            with catchup._braking(run) as brake:
                assert brake is not None
                for _ in range(4):
                    assert looked.acquire(timeout=20)
                assert not held.is_set()
                run.gate.open()
                assert held.wait(20)
        return drain(run)

    monkeypatch.setattr(catchup, "locked", watched)
    monkeypatch.setattr(catchup, "drain", braked)
    db.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")
    with pglean.connect(db.conninfo) as database:
        database.repack("t", max_lock_ms=100, min_free_bytes=0)
    assert tried
    oracle.assert_nothing_left(db)
