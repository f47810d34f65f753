"""What a run does to the server, seen from outside: locks, the horizon, WAL, disk and processor time.

One session asks every few milliseconds who holds ACCESS EXCLUSIVE on the table, and less often for
the oldest transaction that a session of the tool still sees as running.  Something that was seen is taken to
have lasted from half-way after the sample before to half-way before the sample after, so that a
length is wrong by no more than the time between two samples; both are told.  Two statements never
share a transaction here, so that the session itself holds up nothing.

The disk is looked at less often, from files and not through the server, and processor time at the
beginning and at the end only.  Where the server is on another machine, both are left out.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg

from ground import DATABASE, Ground, Local

INTERVAL_S: Final = 0.005
HORIZON_INTERVAL_S: Final = 0.05
DISK_INTERVAL_S: Final = 0.25

# The functions below the views, which would join names that nobody asks for. The rest is asked less often: it lasts
# for longer, and costs more.
_LOCKS: Final = """
SELECT extract(epoch FROM clock_timestamp()), string_agg(relation::text || ' ' || virtualtransaction, ',')
  FROM pg_lock_status()
 WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted
   AND database = $1::oid AND relation = ANY ($2::oid[])
"""
# A lazy VACUUM shows a snapshot that holds nothing up; sessions of pgbench are the load, which has its own.
_HORIZON: Final = """
SELECT extract(epoch FROM clock_timestamp())::float8,
       (SELECT xmin::text
          FROM (SELECT backend_xmin
                  FROM pg_stat_get_activity(NULL)
                 WHERE backend_xmin IS NOT NULL AND datid = %(database)s AND pid <> pg_backend_pid()
                   AND application_name <> 'pgbench' AND backend_type <> 'autovacuum worker'
                   AND coalesce(leader_pid, pid) NOT IN (SELECT pid FROM pg_stat_get_progress_info('VACUUM'))
                 UNION ALL
                SELECT xmin FROM pg_get_replication_slots()
                 WHERE xmin IS NOT NULL AND slot_name <> ALL (%(slots)s)) AS horizons (xmin)
         ORDER BY age(xmin) DESC LIMIT 1),
       (SELECT array_agg(built.pid::text || ' ' || session.xact_start::text)
          FROM pg_stat_get_progress_info('CREATE INDEX') AS built, pg_stat_get_activity(built.pid) AS session
         WHERE built.datid = %(database)s)
"""
_ABOUT: Final = """
SELECT (SELECT oid FROM pg_database WHERE datname = current_database()),
       ARRAY(SELECT slot_name::text FROM pg_replication_slots),
       ARRAY(SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbench'),
       pg_backend_pid()
"""
_WAL: Final = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"


class Stretches:
    """The longest stretch of time in which something was there, as samples tell."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._since: dict[Hashable, float] = {}
        self._last: float | None = None

    def see(self, at_s: float, found: Iterable[Hashable]) -> None:
        """A sample: what was there at a moment."""
        middle = at_s if self._last is None else (self._last + at_s) / 2
        self._last = at_s
        there = set(found)
        for key in [key for key in self._since if key not in there]:
            self.longest_s = max(self.longest_s, middle - self._since.pop(key))
        for key in there:
            self._since.setdefault(key, middle)

    def end(self) -> None:
        """No sample follows; what is still there has been there until now."""
        if self._last is not None:
            self.see(self._last, ())


@dataclass(frozen=True, slots=True)
class Processors:
    """Processor seconds that processes of a server have used."""

    #: All of it, with processes that have ended.
    total_s: float
    #: By process id, of those that live.
    of: dict[int, float]

    @classmethod
    def used(cls, postmaster: int) -> Processors:
        """Read them. What has ended is on the postmaster's account, as soon as it has noticed."""
        tick = os.sysconf("SC_CLK_TCK")
        of, total = {}, 0.0
        for entry in os.scandir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                # State, parent, ...; user and system time and, of children that have ended, both again.
                words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if postmaster in {pid, int(words[1])}:
                    of[pid] = (int(words[11]) + int(words[12])) / tick
                    total += of[pid]
                    if pid == postmaster:
                        total += (int(words[13]) + int(words[14])) / tick
        return cls(total, of)


class Disk:
    """The largest size that files have had, beyond the first."""

    def __init__(self, *directories: Path) -> None:
        self._directories = directories
        self._first = self._bytes()
        self.extra_bytes = 0

    def look(self) -> None:
        """Measure them once more."""
        self.extra_bytes = max(self.extra_bytes, self._bytes() - self._first)

    def _bytes(self) -> int:
        return sum(map(_tree_bytes, self._directories))


def _tree_bytes(directory: Path | str) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                is_directory = entry.is_dir(follow_symlinks=False)
                total += _tree_bytes(entry.path) if is_directory else entry.stat(follow_symlinks=False).st_size
    return total


class Watch:
    """Looks at the copy and its server, from entry to exit."""

    def __init__(self, ground: Ground, tables: list[int], *, samples: bool = True) -> None:
        """`tables`: their OIDs. Without `samples` only what can be read before and after is told."""
        self._ground, self._tables, self._samples = ground, tables, samples
        self._local: Local | None = None
        self._locks, self._horizon, self._builds = Stretches(), Stretches(), Stretches()
        self._moments: list[float] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self._files: tuple[Disk, Disk] | None = None
        self._values: dict[str, float] = {}
        #: Processor seconds of the session that asks, on the server; and of the threads here.
        self.own_server_s = self.own_client_s = 0.0

    def __enter__(self) -> Self:
        self._conn = psycopg.connect(self._ground.conninfo(DATABASE), autocommit=True, application_name="bench")
        self._conn.prepare_threshold = 0
        row = self._conn.execute(_ABOUT).fetchone()
        assert row is not None
        self._database, self._slots, self._load, self._backend = row
        self._local = self._ground.local()
        if self._local is not None:
            base = self._local.datadir / "base"
            self._files = Disk(base / str(self._database), base / "pgsql_tmp"), Disk(self._local.datadir / "pg_wal")
            self._processors = Processors.used(self._local.postmaster)
        self._wal = self._wal_bytes()
        self._threads = [threading.Thread(target=self._sample, daemon=True)] if self._samples else []
        if self._samples and self._files is not None:
            self._threads.append(threading.Thread(target=self._look, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        try:
            if self._error is None and error is None:
                self._values = self._figures()
        finally:
            self._conn.close()
        if self._error is not None and error is None:
            raise self._error

    def figures(self) -> dict[str, float]:
        """What was seen, once it is over."""
        return dict(self._values)

    def _sample(self) -> None:
        # Below psycopg's cursors, which would take more time than the server does.
        libpq = self._conn.pgconn
        parameters = [str(self._database).encode(), "{{{}}}".format(",".join(map(str, self._tables))).encode()]
        libpq.prepare(b"locks", _LOCKS.encode())
        began, due = time.thread_time(), 0.0
        try:
            while not self._stop.wait(INTERVAL_S):
                result = libpq.exec_prepared(b"locks", parameters)
                at, holders = result.get_value(0, 0), result.get_value(0, 1)
                if at is None:
                    raise psycopg.OperationalError(libpq.get_error_message())
                self._moments.append(float(at))
                self._locks.see(float(at), [] if holders is None else holders.split(b","))
                if float(at) >= due:
                    due = float(at) + HORIZON_INTERVAL_S
                    self._see_horizon()
        except psycopg.Error as error:
            self._error = error
        self.own_client_s += time.thread_time() - began

    def _see_horizon(self) -> None:
        parameters = {"database": self._database, "slots": self._slots}
        row = self._conn.execute(_HORIZON, parameters, prepare=True).fetchone()
        assert row is not None
        at_s, horizon, builds = row
        self._horizon.see(at_s, () if horizon is None else (horizon,))
        self._builds.see(at_s, builds or ())

    def _look(self) -> None:
        assert self._files is not None
        began = time.thread_time()
        while not self._stop.wait(DISK_INTERVAL_S):
            for files in self._files:
                files.look()
        self.own_client_s += time.thread_time() - began

    def _figures(self) -> dict[str, float]:
        values = {"wal_mb": (self._wal_bytes() - self._wal) / 1e6}
        if self._samples:
            values |= self._sampled()
        if self._local is not None and self._files is not None:
            now, then = Processors.used(self._local.postmaster), self._processors
            load_s = sum(now.of[pid] - then.of.get(pid, 0.0) for pid in self._load if pid in now.of)
            self.own_server_s = now.of.get(self._backend, 0.0) - then.of.get(self._backend, 0.0)
            values |= {
                "server_cpu_s": now.total_s - then.total_s - load_s - self.own_server_s,
                "load_cpu_s": load_s,
            }
        return values

    def _sampled(self) -> dict[str, float]:
        for stretches in (self._locks, self._horizon, self._builds):
            stretches.end()
        values = {
            "lock_ms": self._locks.longest_s * 1000,
            "xmin_s": self._horizon.longest_s,
            # VACUUM FULL and CLUSTER tell nothing of the indexes that they build.
            **({"index_s": self._builds.longest_s} if self._builds.longest_s else {}),
        }
        gaps = [b - a for a, b in zip(self._moments, self._moments[1:], strict=False)]
        if gaps:
            values |= {"sample_ms": statistics.median(gaps) * 1000, "worst_sample_ms": max(gaps) * 1000}
        if self._files is not None:
            database, wal = self._files
            values |= {"disk_mb": database.extra_bytes / 1e6, "wal_disk_mb": wal.extra_bytes / 1e6}
        return values

    def _wal_bytes(self) -> int:
        row = self._conn.execute(_WAL).fetchone()
        assert row is not None
        return int(row[0])
