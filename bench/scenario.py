"""The scenarios: which table, at which size, what happens around a run of a tool, and what is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from load import CLIENTS
from result import Metric
from tool import OFFLINE, VACUUM_FULL
from watch import DISK_INTERVAL_S, HORIZON_INTERVAL_S, INTERVAL_S
from workload import ACCESSES, HOT, INSERT, UNIFORM, WORKLOADS, Workload

IDLE: Final = "idle"
STEADY: Final = "steady"
FLAT_OUT: Final = "flat-out"
LOADS: Final = (IDLE, STEADY, FLAT_OUT)
SCALES: Final = (1, 4, 16)

_SERVER: Final = (
    Metric("disk_mb", "database at most, beyond its size before, MB", 1),
    Metric("wal_disk_mb", "pg_wal at most, beyond its size before, MB", 1, compared=False),
    Metric("lock_ms", "exclusive lock, longest, as the server saw it, ms", 1),
    Metric("xmin_s", "xmin horizon held, longest, s", 2),
    Metric("index_s", "build of one index, longest, s", 2),
    Metric("server_cpu_s", "server, processor time without that of applications, s", 2),
)
_CLIENT: Final = (
    Metric("cpu_s", "client, processor time, s", 2),
    Metric("peak_rss_mb", "client, peak memory, MB", 1),
)
_AFTERWARDS: Final = (
    Metric("before_mb", "size before, MB", 1, compared=False),
    Metric("after_mb", "size after, MB", 1),
    Metric("heap_fetches", "heap fetches of an index-only scan afterwards", 0),
    Metric("sample_ms", "between two samples, median, ms", 1, compared=False),
    Metric("worst_sample_ms", "between two samples, longest, ms", 1, compared=False),
)
_LOADED: Final = (
    Metric("elapsed_s", "time, s", 2),
    Metric("before_tps", "transactions/s before", 0, compared=False),
    Metric("tps", "transactions/s during", 0, better="higher"),
    Metric("tps_share", "share of throughput kept, %", 1, better="higher"),
    Metric("before_p50_ms", "p50 before, ms", 2, compared=False),
    Metric("p50_ms", "p50 during, ms", 2),
    Metric("before_p99_ms", "p99 before, ms", 2, compared=False),
    Metric("p99_ms", "p99 during, ms", 2),
    Metric("before_worst_ms", "longest stall of a client before, ms", 1, compared=False),
    Metric("worst_ms", "longest stall of a client during, ms", 1),
    Metric("silence_ms", "longest time without a commit, ms", 1),
    Metric("wal_mb", "WAL written, with that of applications, MB", 1, compared=False),
    *_SERVER,
    Metric("load_cpu_s", "server, processor time of applications' sessions, s", 2, compared=False),
    *_CLIENT,
    *_AFTERWARDS,
)
METRICS: Final[dict[str, tuple[Metric, ...]]] = {
    IDLE: (
        Metric("elapsed_s", "time, s", 2),
        Metric("wal_mb", "WAL written, MB", 1),
        *_SERVER,
        *_CLIENT,
        *_AFTERWARDS,
    ),
    STEADY: _LOADED,
    FLAT_OUT: _LOADED,
}
#: What the sampling would make worse: counted in runs that are not sampled, where there are any.
TIMES: Final = {metric.key for metric in _LOADED} - {metric.key for metric in (*_SERVER, *_AFTERWARDS)} - {
    "wal_mb",
    "peak_rss_mb",
} | {"server_cpu_s"}
_EXPLANATIONS: Final = {
    IDLE: "Nothing else uses the server.",
    STEADY: f"pgbench writes single rows at a fixed rate over {CLIENTS} clients. Latency counts from the time a"
    " transaction was due, not from when a client had time for it: what was held up by a lock also holds up what"
    " comes after it. Counted are all transactions that overlap the tool's run.",
    FLAT_OUT: f"{CLIENTS} clients of pgbench write single rows one after the other as fast as they can. A run"
    " that did not finish was interrupted, and counts with the time it was given.",
}
_ACCESSES: Final = {
    UNIFORM: "Every row is as likely to be updated as any other.",
    HOT: "One row in a hundred, all over the table, takes 99 of a hundred updates.",
    INSERT: "Rows are inserted and none updated.",
}
MEASURED: Final = (
    "In the first of several runs of each tool the server is sampled, and times, latencies and processor times are not"
    " counted; in the others it is the other way round.",
    f"Every {INTERVAL_S * 1000:g} ms, or as soon as the machine lets it, one session of its own asks which transaction"
    f" holds ACCESS EXCLUSIVE on the table (`pg_locks`), and every {HORIZON_INTERVAL_S * 1000:g} ms for builds of"
    " indexes and the oldest xmin of the database's sessions and of new replication slots, without that of"
    " applications, of autovacuum, and of a lazy VACUUM, which holds nothing up."
    " Something lasted from half-way after the sample before to half-way before the sample after. *xmin horizon"
    " held* is how long the oldest xmin stayed the same transaction; on an idle server transactions that follow each"
    " other closely may look like one. WAL is that of the whole server during the run.",
    f"Disk: sum of the sizes of the files of the database, with temporary files, and apart from it of `pg_wal`, every"
    f" {DISK_INTERVAL_S * 1000:g} ms. WAL files that are recycled do not grow.",
    "The server's processor time is that of all its processes, with those that have ended, from `/proc`; of it, what"
    " sessions of applications used, triggers included, is told apart, and what the sampling used is left out.",
    "The client is the tool's process. The index-only scan reads all keys of the table as the tool left it, before any"
    " VACUUM, and under a load after that has ended: pages that applications have written since count as well.",
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload at a size, and what applications do meanwhile."""

    workload: str
    load: str
    #: Of what applications do; without meaning where there are none.
    access: str
    scale: int

    @property
    def name(self) -> str:
        """For the results."""
        return ", ".join([self.workload, f"{self.scale}x", self.load, *([self.access] if self.loaded else [])])

    @property
    def loaded(self) -> bool:
        """Whether there is a load, which rewrites that lock the table from beginning to end are no match for."""
        return self.load != IDLE

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured."""
        return METRICS[self.load]

    @property
    def about(self) -> str:
        """What happens, in words."""
        return " ".join([_EXPLANATIONS[self.load], *([_ACCESSES[self.access]] if self.loaded else [])])

    def takes(self, tool: str) -> bool:
        """Whether a tool makes sense here."""
        if WORKLOADS[self.workload].order_by and tool == VACUUM_FULL:
            return False
        return not (self.loaded and tool in OFFLINE)


def _usual() -> tuple[Scenario, ...]:
    # The full product would take a day; these are about an hour on two cores.
    return (
        *(Scenario("orders", IDLE, UNIFORM, scale) for scale in SCALES),
        *(Scenario("orders", STEADY, UNIFORM, scale) for scale in (4, 16)),
        *(Scenario("orders", FLAT_OUT, access, 4) for access in ACCESSES),
        *(Scenario("documents", load, UNIFORM, 1) for load in (IDLE, FLAT_OUT)),
        *(Scenario("many-indexes", load, UNIFORM, 1) for load in (IDLE, FLAT_OUT)),
        *(Scenario("partitions", load, UNIFORM, 1) for load in (IDLE, STEADY)),
        *(Scenario("ordered", load, UNIFORM, 1) for load in (IDLE, FLAT_OUT)),
    )


USUAL: Final = _usual()


def chosen(
    workloads: Sequence[str], loads: Sequence[str], accesses: Sequence[str], scales: Sequence[int], *, every: bool
) -> list[Scenario]:
    """The usual scenarios among those, or with `every` all combinations."""
    if not every:
        return [
            s
            for s in USUAL
            if s.workload in workloads
            and s.load in loads
            and s.scale in scales
            and (not s.loaded or s.access in accesses)
        ]
    return [
        Scenario(workload, load, access, scale)
        for workload in workloads
        for scale in scales
        for load in loads
        for access in (accesses if load != IDLE else (UNIFORM,))
    ]


def rows(workload: Workload, scale: int, divisor: int) -> int:
    """Of the table before half are deleted: a multiple of 200, as the hot rows want it."""
    return max(workload.base_rows * scale // divisor // 200, 1) * 200
