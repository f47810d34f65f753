"""How busy the server's processors are, as its Linux kernel counts them; nothing has to be installed for that.

A worker more is worth having while a processor is idle. Where none is, it takes from the application what it gains:
on two processors with 4,000 updates a second, two workers that copied for 0.4 s held transactions up by 200 ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psycopg

from pglean.session import Connection
from pglean.sql import query

#: Processors that others must leave for a worker more beside the one that works: with fewer it would share theirs.
ENOUGH = 1.5


@dataclass(frozen=True, slots=True)
class Sample:
    """The kernel's counters at a moment; in ticks, of which a processor has a hundred a second."""

    count: int
    idle: int
    total: int
    #: What sessions of ours have used, and the WAL writer, which is kept busy by them.
    ours: int = 0

    def left_until(self, later: Sample) -> float:
        """Processors that were idle or ours between the two samples, on average."""
        ticks = later.total - self.total
        if ticks <= 0:
            return 0.0
        return self.count * (later.idle - self.idle + later.ours - self.ours) / ticks


def parse(text: str, processes: Iterable[str] = ()) -> Sample | None:
    """The first lines of /proc/stat, and /proc/PID/stat of each process of ours; None where it is something else.

    Waiting for the disk does not count as idle: another worker would want the disk as well.
    """
    lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    if len(lines) < 2 or len(lines[0]) < 6:
        return None
    # user nice system idle iowait irq softirq steal; what guests have had is in `user` already.
    ticks = [int(value) for value in lines[0][1:9]]
    return Sample(len(lines) - 1, ticks[3], sum(ticks), sum(map(_ticks, processes)))


def _ticks(stat: str) -> int:
    """User and system time of a process: the 14th and 15th field, the second being its name in parentheses."""
    return sum(map(int, stat.rpartition(")")[2].split()[11:13]))


def sample(conn: Connection, pids: list[int]) -> Sample | None:
    """The server's processors now; None where that cannot be known: no Linux, or no right to read files there."""
    try:
        row = conn.execute(query("report.processors"), {"pids": pids}).fetchone()
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InternalError_):
        # A process that ends while it is read of is an error without a code of its own.
        return None
    assert row is not None
    return parse(row[0], row[1]) if row[0] else None


class Meter:
    """How many processors others have left since it was made."""

    def __init__(self, conn: Connection, pids: list[int]) -> None:
        """`pids`: of the sessions that are ours."""
        self._pids = pids
        self._before = sample(conn, pids)

    def left(self, conn: Connection) -> float | None:
        """Processors that were idle or ours until now; None where that cannot be known."""
        now = sample(conn, self._pids)
        return None if self._before is None or now is None else self._before.left_until(now)

    def busy(self, conn: Connection) -> bool:
        """Whether others leave none to a worker more; False where that cannot be known."""
        left = self.left(conn)
        return left is not None and left < ENOUGH
