"""What a run tells while it goes on: a stream of frozen `Progress` values, with rates and an estimate of the end.

One `Reporter` per run is told of events by all its threads; it hands on a snapshot to the caller's callback, at most
a few times a second and always when the phase changes, and keeps the last one for the job's row.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a run at a moment."""

    job: int
    table: str
    phase: str
    #: Units of this phase that are done and that there are in all (blocks, indexes); total 0 where nobody can know.
    done: int = 0
    total: int = 0
    unit: str = ""
    #: Rows copied so far.
    rows: int = 0
    #: Changes recorded and not yet taken over, as last counted.
    changes_waiting: int = 0
    #: Changes taken over so far.
    changes_applied: int = 0
    #: What the run waits for, e.g. a lock and who holds it; empty while it works.
    waiting_for: str = ""
    #: A line for people, e.g. that writers are being slowed down; empty without news.
    message: str = ""
    #: Whether it tells what is done, and nothing that has happened to the run: it asks for nobody's attention.
    informational: bool = False
    #: Seconds since the run began, and since the phase began.
    elapsed_s: float = 0.0
    phase_s: float = 0.0
    #: Units of this phase, and rows, that an earlier process had done.
    done_before: int = 0
    rows_before: int = 0
    #: Whether `waiting_for` is a sentence: what is the case as long as it waits.
    throttled: bool = False

    @property
    def waiting(self) -> str:
        """What to say of `waiting_for`; empty where there is nothing."""
        return waiting_text(self.waiting_for, throttled=self.throttled)

    @property
    def fraction(self) -> float | None:
        """How much of this phase is done, 0 to 1; None where nobody can know."""
        return min(self.done / self.total, 1.0) if self.total else None

    @property
    def rate(self) -> float:
        """Units of this phase per second, by this process."""
        return (self.done - self.done_before) / self.phase_s if self.phase_s > 0 else 0.0

    @property
    def rows_rate(self) -> float:
        """Rows copied per second of this phase, by this process."""
        return (self.rows - self.rows_before) / self.phase_s if self.phase_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end of this phase at this rate; None where nobody can know."""
        if not self.total or self.rate <= 0:
            return None
        return max(self.total - self.done, 0) / self.rate


def waiting_text(waiting_for: str, *, throttled: bool) -> str:
    """``waiting for a lock``, ``waiting: the server writes …``; empty where there is nothing."""
    if not waiting_for:
        return ""
    return f"waiting: {waiting_for}" if throttled else f"waiting for {waiting_for}"


Callback = Callable[[Progress], None]

_INTERVAL_S = 0.2


class Reporter:
    """Gathers events of one run, from any thread."""

    def __init__(self, job: int, table: str, callback: Callback | None = None) -> None:
        self._lock = threading.Lock()
        self._callback = callback
        self._started = self._phase_started = time.monotonic()
        self._told = 0.0
        self._state = Progress(job=job, table=table, phase="planned")

    @property
    def state(self) -> Progress:
        """The latest snapshot."""
        with self._lock:
            now = time.monotonic()
            return replace(self._state, elapsed_s=now - self._started, phase_s=now - self._phase_started)

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        """A phase begins."""
        with self._lock:
            self._phase_started = time.monotonic()
            self._state = replace(
                self._state, phase=name, done=0, done_before=0, total=total, unit=unit, waiting_for="", message=""
            )
        self._tell(force=True)

    def total(self, total: int, unit: str) -> None:
        """How much there is to do in this phase, or in its next part, which counts in a unit of its own."""
        self.update(done=0, done_before=0, total=total, unit=unit)

    def resumed(self, units: int, *, rows: int) -> None:
        """`units` of this phase are done by an earlier process: they are not of the rate."""
        self.update(done_before=units, rows_before=rows)
        self.advance(units, rows=rows)

    def advance(self, units: int, *, rows: int = 0) -> None:
        """`units` of this phase are done."""
        with self._lock:
            self._state = replace(
                self._state,
                done=self._state.done + units,
                rows=self._state.rows + rows,
                waiting_for="",
            )
        self._tell()

    def applied(self, changes: int, waiting: int) -> None:
        """Changes were taken over, and so many are known to wait."""
        with self._lock:
            self._state = replace(
                self._state,
                changes_applied=self._state.changes_applied + changes,
                changes_waiting=waiting,
                waiting_for="",
            )
        self._tell()

    def waiting(self, reason: str, *, throttled: bool = False) -> None:
        """The run waits for something; where it is throttled, `reason` is a sentence."""
        self.update(waiting_for=reason, throttled=throttled)
        self._tell(force=True)

    def message(self, text: str, *, informational: bool = False) -> None:
        """A line for people."""
        with self._lock:
            self._state = replace(self._state, message=text, informational=informational)
        self._tell(force=True)
        with self._lock:
            self._state = replace(self._state, message="", informational=False)

    def update(self, **changes: Any) -> None:
        with self._lock:
            self._state = replace(self._state, **changes)
        self._tell()

    def _tell(self, *, force: bool = False) -> None:
        if self._callback is None:
            return
        now = time.monotonic()
        with self._lock:
            if not force and now - self._told < _INTERVAL_S:
                return
            self._told = now
        self._callback(self.state)
