"""The scenarios: what happens around a run of a tool, and what is measured of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from load import CLIENTS, Latency, Load
from orders import Orders, wal_position
from pglean.embedded import EmbeddedServer
from result import Metric, Run
from tool import PGLEAN, VACUUM_FULL, Finished, Tool, told

IDLE: Final = "idle"
STEADY: Final = "steady"
FLAT_OUT: Final = "flat-out"
MEMORY: Final = "memory"

_TAIL_S: Final = 1.0
_SETTLE_S: Final = 1.0

# Where the load alone is behind its schedule, its latency says nothing about the tools.
_KEPT_UP: Final = 0.95
_BACKLOG_MS: Final = 10.0

_CLIENT: Final = (
    Metric("peak_rss_mb", "client, peak memory, MB", 1),
    Metric("cpu_s", "client, processor time, s", 2),
)
METRICS: Final[dict[str, tuple[Metric, ...]]] = {
    IDLE: (
        Metric("elapsed_s", "time, s", 2),
        Metric("wal_mb", "WAL written, MB", 1),
        Metric("before_mb", "size before, MB", 1, compared=False),
        Metric("after_mb", "size after, MB", 1),
        *_CLIENT,
    ),
    STEADY: (
        Metric("elapsed_s", "time, s", 2),
        Metric("before_tps", "transactions/s before", 0, compared=False),
        Metric("tps", "transactions/s during", 0, better="higher"),
        Metric("before_p50_ms", "p50 before, ms", 2, compared=False),
        Metric("p50_ms", "p50 during, ms", 2),
        Metric("before_p99_ms", "p99 before, ms", 2, compared=False),
        Metric("p99_ms", "p99 during, ms", 2),
        Metric("before_worst_ms", "worst before, ms", 1, compared=False),
        Metric("worst_ms", "worst during, ms", 1),
        Metric("silence_ms", "longest time without a commit, ms", 1),
        *_CLIENT,
    ),
    FLAT_OUT: (
        Metric("elapsed_s", "time, s", 2),
        Metric("before_tps", "transactions/s before", 0, compared=False),
        Metric("tps", "transactions/s during", 0, better="higher"),
        Metric("tps_share", "share of throughput kept, %", 1, better="higher"),
        Metric("p99_ms", "p99 during, ms", 2),
        Metric("before_worst_ms", "worst before, ms", 1, compared=False),
        Metric("worst_ms", "worst stall, ms", 1),
        Metric("silence_ms", "longest time without a commit, ms", 1),
        *_CLIENT,
    ),
    MEMORY: _CLIENT[:1],
}
EXPLANATIONS: Final = {
    IDLE: "Nothing else uses the server.",
    STEADY: f"pgbench updates single rows at a fixed rate over {CLIENTS} clients. Latency counts from the time a"
    " transaction was due, not from when a client had time for it: what was held up by a lock also holds up what"
    " comes after it. Counted are all transactions that overlap the tool's run.",
    FLAT_OUT: f"{CLIENTS} clients of pgbench update single rows one after the other as fast as they can. A run"
    " that did not finish was interrupted, and counts with the time it was given.",
    MEMORY: "What the tool's client process needs as the table grows; nothing else uses the server.",
}


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the load is driven, and for how long."""

    #: Transactions per second of the steady load.
    rate: int
    #: Of the load, left out of the figures.
    warmup_s: float
    #: Of the load before the tool is started.
    before_s: float
    #: After so long a run ends, finished or not.
    cap_s: float


def loads(name: str) -> bool:
    """Whether there is a load, which rewrites that lock the table from beginning to end are no match for."""
    return name in {STEADY, FLAT_OUT}


class Scenarios:
    """Runs of tools on one server, each on a fresh copy of the table."""

    def __init__(self, server: EmbeddedServer, conditions: Conditions) -> None:
        self._server, self._conditions = server, conditions

    def run(self, scenario: str, tool: Tool, orders: Orders, repetition: int) -> Run:
        """One run; what went wrong is in its note, and a run that failed has no values."""
        orders.refresh()
        time.sleep(_SETTLE_S)
        filenode = orders.filenode()
        if loads(scenario):
            finished, values, problems = self._loaded(scenario, tool, orders)
        else:
            finished, values, problems = self._idle(tool, orders)
        values |= {
            "elapsed_s": finished.elapsed_s,
            "peak_rss_mb": finished.peak_rss_bytes / 1e6,
            "cpu_s": finished.cpu_s,
        }
        failure = ""
        if any(metric.key not in values for metric in METRICS[scenario]):
            failure = f"nothing was measured: {problems}{finished.errors}"
        elif finished.capped:
            problems = f"not finished after {finished.elapsed_s:.0f} s; {problems}"
        elif finished.exit_status != 0:
            failure = f"exit status {finished.exit_status}: {finished.errors or finished.output}"
        else:
            failure = orders.damage(filenode, loaded=loads(scenario))
        return Run(
            scenario=scenario,
            tool=tool.name,
            rows=orders.rows,
            repetition=repetition,
            values={} if failure else values,
            failure=failure,
            capped=finished.capped,
            note="; ".join(filter(None, [problems.rstrip("; "), *_own_words(tool, finished)])),
        )

    def _idle(self, tool: Tool, orders: Orders) -> tuple[Finished, dict[str, float], str]:
        wal = wal_position(self._server)
        finished = tool.run(self._conditions.cap_s)
        values = {
            "wal_mb": (wal_position(self._server) - wal) / 1e6,
            "before_mb": orders.total_bytes / 1e6,
            "after_mb": orders.copy_bytes() / 1e6,
        }
        return finished, values, ""

    def _loaded(self, scenario: str, tool: Tool, orders: Orders) -> tuple[Finished, dict[str, float], str]:
        rate = self._conditions.rate if scenario == STEADY else None
        with Load(self._server, orders.pairs, rate=rate) as load:
            time.sleep(self._conditions.warmup_s)
            start = time.time()
            time.sleep(self._conditions.before_s)
            finished = tool.run(self._conditions.cap_s)
            time.sleep(_TAIL_S)
            transactions, problems = load.stop()
        try:
            before = transactions.during(start, finished.started)
            during = transactions.during(finished.started, finished.ended)
        except ValueError as error:
            return finished, {}, f"{error}; {problems}"
        values = {f"before_{name}": value for name, value in _values(before).items()} | _values(during)
        values["tps_share"] = during.per_second / before.per_second * 100
        if rate and (before.per_second < _KEPT_UP * rate or before.p50_ms > _BACKLOG_MS):
            problems = f"the server did not keep up with the rate even before; {problems}"
        return finished, values, problems


def _values(latency: Latency) -> dict[str, float]:
    return {
        "tps": latency.per_second,
        "p50_ms": latency.p50_ms,
        "p99_ms": latency.p99_ms,
        "worst_ms": latency.worst_ms,
        "silence_ms": latency.silence_ms,
    }


def _own_words(tool: Tool, finished: Finished) -> Iterator[str]:
    """What pglean says of its run itself, and what any tool warned of."""
    said = told(finished) if tool.name == PGLEAN else {}
    if said.get("status") == "done":
        phases = ", ".join(f"{name} {float(seconds):.2f} s" for name, seconds in said["phases"].items())
        yield f"{phases}; exclusive lock {said['exclusive_lock_ms']:.1f} ms; {said['changes_applied']} changes applied"
    warnings = [line for line in finished.errors.splitlines() if "warning" in line.lower()]
    if warnings and tool.name != VACUUM_FULL:
        yield " / ".join(warnings)
