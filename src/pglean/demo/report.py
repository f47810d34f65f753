"""What the demo has measured and found: frozen, units in the names. Pure: no I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from pglean.demo.shop import Check
from pglean.demo.traffic import Log
from pglean.result import Result

#: Into how many parts the measured time is cut for the small curves.
_SLICES = 48


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the traffic."""

    #: before, during or after the repack.
    name: str
    seconds: float
    transactions: int
    #: Latencies as the clients saw them, waiting for an earlier transaction of the same client included.
    median_ms: float
    p99_ms: float
    worst_ms: float

    @property
    def transactions_per_s(self) -> float:
        """Throughput of all clients together."""
        return self.transactions / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Slice:
    """A moment of the traffic, for the curves."""

    during: bool
    transactions_per_s: float
    worst_ms: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The demo from its beginning to its end."""

    #: As the server writes it, e.g. 18.6.
    server_version: str
    clients: int
    #: Transactions per second that all clients together were to begin; 0 for as many as they could.
    offered_per_s: float
    repack: Result
    windows: tuple[Window, ...]
    slices: tuple[Slice, ...]
    #: Transactions by kind, from the first to the last.
    transactions: dict[str, int]
    #: Transactions that failed, with the server's message; the first few of each client.
    errors: tuple[str, ...]
    #: Reads and writes that met another row than the one their owner had last committed.
    stale: int
    #: Rows of the table and of the traffic's own record that were compared, and how many of them were not the same.
    rows_compared: int
    rows_different: int
    checks: tuple[Check, ...]
    setup_s: float
    elapsed_s: float

    @property
    def ok(self) -> bool:
        """No row differs, no transaction failed, and every check has passed."""
        sound = not (self.rows_different or self.stale or self.errors)
        return sound and all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        windows = {
            window.name: {**asdict(window), "transactions_per_s": round(window.transactions_per_s, 1)}
            for window in self.windows
        }
        return {**asdict(self), "repack": self.repack.as_json(), "windows": windows, "ok": self.ok}


def windows(logs: Sequence[Log], marks_s: tuple[float, float, float, float]) -> tuple[Window, ...]:
    """Divide the traffic by the marks: measured from, repack from, repack to, measured to.

    A transaction that ran during the repack if only for a moment counts there: the repack may be to blame for it.
    """
    start_s, from_s, to_s, end_s = marks_s
    latencies: dict[str, list[float]] = {"before": [], "during": [], "after": []}
    for begun_s, ended_s in chain.from_iterable(log.transactions() for log in logs):
        if ended_s < start_s or begun_s > end_s:
            continue
        name = "before" if ended_s < from_s else "after" if begun_s > to_s else "during"
        latencies[name].append((ended_s - begun_s) * 1000)
    seconds = {"before": from_s - start_s, "during": to_s - from_s, "after": end_s - to_s}
    return tuple(_window(name, seconds[name], values) for name, values in latencies.items())


def _window(name: str, seconds: float, latencies_ms: list[float]) -> Window:
    if not latencies_ms:
        return Window(name, round(seconds, 3), 0, 0.0, 0.0, 0.0)
    latencies_ms.sort()
    p99 = latencies_ms[math.ceil(len(latencies_ms) * 0.99) - 1]
    return Window(
        name,
        round(seconds, 3),
        len(latencies_ms),
        round(statistics.median(latencies_ms), 2),
        round(p99, 2),
        round(latencies_ms[-1], 2),
    )


def slices(logs: Sequence[Log], marks_s: tuple[float, float, float, float]) -> tuple[Slice, ...]:
    """Cut the measured time into equal parts; a transaction belongs to the part in which it ended."""
    start_s, from_s, to_s, end_s = marks_s
    width_s = (end_s - start_s) / _SLICES
    counts, worst_ms = [0] * _SLICES, [0.0] * _SLICES
    for begun_s, ended_s in chain.from_iterable(log.transactions() for log in logs):
        place = math.floor((ended_s - start_s) / width_s)
        if 0 <= place < _SLICES:
            counts[place] += 1
            worst_ms[place] = max(worst_ms[place], (ended_s - begun_s) * 1000)
    middles_s = [start_s + (place + 0.5) * width_s for place in range(_SLICES)]
    return tuple(
        Slice(from_s <= middle_s <= to_s, round(count / width_s, 1), round(worst, 2))
        for middle_s, count, worst in zip(middles_s, counts, worst_ms, strict=True)
    )


def compare(table: Iterable[tuple[int, int]], logs: Sequence[Log]) -> tuple[int, int]:
    """Hold all rows of the table, as (id, digest), against the clients' records: rows compared, rows different.

    A row that only one side knows is a difference.
    """
    expected: dict[int, int] = {}
    for log in logs:
        expected.update(log.record)
    compared = different = 0
    for order_id, digest in table:
        compared += 1
        different += expected.pop(order_id, None) != digest
    # What is left now should have been in the table.
    return compared + len(expected), different + len(expected)
