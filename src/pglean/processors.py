"""How busy the server's processors are, as its Linux kernel counts them; nothing has to be installed for that.

A worker more is worth having while a processor is idle. Where none is, it takes from the application what it gains:
on two processors with 4,000 updates a second, two workers that copied for 0.4 s held transactions up by 200 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from pglean.server import Connection, scalar
from pglean.sql import query

#: With less of an idle processor another worker would have to share one with the application.
ENOUGH = 0.8


@dataclass(frozen=True, slots=True)
class Sample:
    """The kernel's counters at a moment; in ticks, of which a processor has a hundred a second."""

    count: int
    idle: int
    total: int

    def idle_until(self, later: Sample) -> float:
        """Processors that were idle between the two samples, on average."""
        ticks = later.total - self.total
        return self.count * (later.idle - self.idle) / ticks if ticks > 0 else 0.0


def parse(text: str) -> Sample | None:
    """The first lines of /proc/stat; None where it is something else.

    Waiting for the disk does not count as idle: another worker would want the disk as well.
    """
    lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    if len(lines) < 2 or len(lines[0]) < 6:
        return None
    # user nice system idle iowait irq softirq steal; what guests have had is in `user` already.
    ticks = [int(value) for value in lines[0][1:9]]
    return Sample(len(lines) - 1, ticks[3], sum(ticks))


def sample(conn: Connection) -> Sample | None:
    """The server's processors now; None where that cannot be known: no Linux, or no right to read files there."""
    try:
        text = scalar(conn, query("report.processors"))
    except psycopg.errors.InsufficientPrivilege:
        return None
    return parse(text) if text else None


class Meter:
    """How many processors have been idle, on average, since it was made."""

    def __init__(self, conn: Connection) -> None:
        self._before = sample(conn)

    def idle(self, conn: Connection) -> float | None:
        """Idle processors until now; None where that cannot be known."""
        now = sample(conn)
        return None if self._before is None or now is None else self._before.idle_until(now)

    def busy(self, conn: Connection) -> bool:
        """Whether there is none that another worker would have for itself; False where that cannot be known."""
        idle = self.idle(conn)
        return idle is not None and idle < ENOUGH
