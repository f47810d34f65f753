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
