"""Something that goes wrong at a named point of a run in this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pglean
from pglean import pausepoint
from pglean.errors import PgleanError
from pglean.result import Result
from tests.support.stage import Stage

#: Here the application writes during every run, so that refreshes have something to do.
WRITING = "phase: indexing"


class Fault:
    """Runs `action` when the point is reached for the `occurrence`-th time."""

    def __init__(self, point: str, action: Callable[[], None], occurrence: int = 1) -> None:
        self.point, self._action, self._left = point, action, occurrence
        self._lock = threading.Lock()

    @property
    def struck(self) -> bool:
        """Whether the run came there so often."""
        return self._left <= 0

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            due = self._left == 0
        if due:
            self._action()


def _all(actions: Iterable[Callable[[], None]]) -> None:
    for action in actions:
        action()


def repack(stage: Stage, *faults: Fault, **options: Any) -> Result | PgleanError:
    """Repack the stage's table, while the application writes and the faults strike; returns what came of it."""
    with contextlib.ExitStack() as stack:
        actions: dict[str, list[Callable[[], None]]] = {WRITING: [Fault(WRITING, stage.write)]}
        for fault in faults:
            actions.setdefault(fault.point, []).append(fault)
        for point, todo in actions.items():
            stack.enter_context(pausepoint.intercept(point, partial(_all, todo)))
        database = stack.enter_context(pglean.connect(stage.db.conninfo))
        try:
            return database.repack(stage.table.as_string(None), **{"jobs": 2, "wait_timeout_s": 10, **options})
        except PgleanError as error:
            return error


def assert_told(stage: Stage, outcome: Result | PgleanError, exit_status: int) -> None:
    """The run failed with this status; where the files had been exchanged, or it is kept, that is said."""
    assert isinstance(outcome, PgleanError), "the run went through"
    assert outcome.exit_status == exit_status, str(outcome)
    assert ("the table is repacked" in str(outcome)) == stage.repacked, str(outcome)
    kept = [run.id for run in stage.status()]
    assert (stage.typed(f"resume {kept[0]}") if kept else "") in str(outcome), str(outcome)
    assert ("What was done is kept" in str(outcome)) == bool(kept), str(outcome)
    assert "Undoing failed" not in str(outcome), str(outcome)
    assert "Still there" not in str(outcome), str(outcome)
