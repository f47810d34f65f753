"""The machine and the programs that the numbers belong to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import psycopg.pq

ROOT: Final = Path(__file__).parents[1]
FSYNCS: Final = 100


@dataclass(frozen=True, slots=True)
class CpuTime:
    """What the processors have done since the machine was started, in clock ticks."""

    total: int
    idle: int
    #: Taken by other virtual machines.
    stolen: int

    @classmethod
    def now(cls) -> CpuTime:
        """Read the counters; all zero where there is no /proc."""
        try:
            # user nice system idle iowait irq softirq steal; guest time is contained in user time.
            ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return cls(0, 0, 0)
        return cls(sum(ticks), ticks[3] + ticks[4], ticks[7])

    def stolen_since(self, earlier: CpuTime) -> float:
        """The share of time since then that others have taken."""
        return (self.stolen - earlier.stolen) / max(self.total - earlier.total, 1)

    def busy_since(self, earlier: CpuTime) -> float:
        """The share of time since then that was not idle."""
        return 1 - (self.idle - earlier.idle) / max(self.total - earlier.total, 1)


def busy_now(seconds: float = 1.0) -> float:
    """How busy the machine is with other things, as a share of all its processors."""
    before = CpuTime.now()
    time.sleep(seconds)
    return CpuTime.now().busy_since(before)


def facts(data: Path) -> dict[str, str]:
    """Cores, memory, kernel, and how long the disk of the data directory takes to make a write durable."""
    return {
        "processors": f"{os.cpu_count()} x {_field('/proc/cpuinfo', 'model name') or platform.processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system": f"{_file_system(data)}, a durable write of 8 kB takes {_fsync_ms(data):.2f} ms",
    }


def versions(conn: psycopg.Connection, pg_repack: Path | None) -> dict[str, str]:
    """What was compared, on what."""
    found = conn.execute("SELECT version()").fetchone()
    assert found is not None
    result = {
        "server": str(found[0]).partition(" on ")[0],
        "pglean": f"{importlib.metadata.version('pglean')}, {_revision()}",
        "Python": f"{platform.python_version()}, psycopg {psycopg.__version__} ({psycopg.pq.__impl__})",
    }
    if pg_repack is not None:
        result["pg_repack"] = _output(str(pg_repack), "--version").removeprefix("pg_repack ")
    return result


def _revision() -> str:
    revision = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if not revision:
        return "not from a repository"
    # The results themselves are written into the repository, and make no other program of it.
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", "src")
    return f"commit {revision}{' with changes' if changed else ''}"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _file_system(path: Path) -> str:
    """The type of the file system that holds a path, by the longest mount point above it."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, mount, its_kind = line.split()[:3]
        if path.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, its_kind
    return kind


def _fsync_ms(directory: Path) -> float:
    page = bytes(8192)
    times = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(FSYNCS):
            file.seek(0)
            start = time.perf_counter()
            file.write(page)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
