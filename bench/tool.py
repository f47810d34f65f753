"""The tools that are compared, each run as a client process that is watched from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ground import Ground
from workload import Workload

PGLEAN: Final = "pglean"
PG_REPACK: Final = "pg_repack"
VACUUM_FULL: Final = "vacuum-full"
CLUSTER: Final = "cluster"
SQUEEZE: Final = "squeeze"
REPACK19: Final = "repack19"
#: What there is on a private server, and what has to be named with a server that has it.
NAMES: Final = (PGLEAN, PG_REPACK, VACUUM_FULL, CLUSTER)
PEERS: Final = (SQUEEZE, REPACK19)
#: Whoever needs the table lets nobody else touch it from beginning to end.
OFFLINE: Final = frozenset({VACUUM_FULL, CLUSTER})

_POLL_S: Final = 0.02
_INTERRUPT_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that has ended."""

    #: Seconds since the epoch, as pgbench logs them.
    started: float
    ended: float
    elapsed_s: float
    exit_status: int
    #: Whether it was ended because its time was up.
    capped: bool
    peak_rss_bytes: int
    cpu_s: float
    output: str
    errors: str


class Tool:
    """A program that rewrites the table of a workload."""

    def __init__(self, name: str, ground: Ground, workload: Workload, jobs: int, more: Sequence[str] = ()) -> None:
        """`more`: further options, for pglean. Raises `FileNotFoundError` where the program is not installed."""
        self.name, self._ground = name, ground
        table, order, index = workload.table, workload.order_by, workload.order_index
        ordered = ("-o", order) if order else ()
        tables = ("-I" if workload.partitions else "-t", table)
        pace = ("-j", str(jobs))
        # Of many small tables, several at the same time; no other tool can.
        ours = ("-j", "1", "--tables-at-once", str(jobs)) if workload.partitions else pace
        using = f" USING INDEX {index}" if order else ""
        given = f"'{index}'" if order else "NULL"
        commands: dict[str, Callable[[], list[str]]] = {
            PGLEAN: lambda: [
                *(sys.executable, "-m", "pglean", "repack", *tables, *ours, *ordered, "--json", "-q", *more),
            ],
            PG_REPACK: lambda: [str(find_pg_repack(ground.bindir)), *tables, *pace, *(ordered or ("--no-order",))],
            VACUUM_FULL: lambda: self._psql(f"VACUUM (FULL, ANALYZE) {table}"),
            # Partition by partition, since PostgreSQL 14 cannot do otherwise.
            CLUSTER: lambda: self._psql(
                *(f"CLUSTER {leaf} USING {leaf}{index.removeprefix(table)}" for leaf in workload.leaves),
                f"ANALYZE {table}",
            ),
            SQUEEZE: lambda: self._psql(
                *(f"SELECT squeeze.squeeze_table('public', '{leaf}', {given}, NULL, NULL)" for leaf in workload.leaves)
            ),
            REPACK19: lambda: self._psql(
                *(f"REPACK (CONCURRENTLY, ANALYZE) {leaf}{using}" for leaf in workload.leaves)
            ),
        }
        self._command = commands[name]()

    def _psql(self, *statements: str) -> list[str]:
        psql = [str(self._ground.program("psql")), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
        return [*psql, *(word for statement in statements for word in ("-c", statement))]

    def shown(self) -> str:
        """The command as one would type it; where to connect is in its environment."""
        words = [Path(self._command[0]).name, *(f'"{word}"' if " " in word else word for word in self._command[1:])]
        return " ".join(words[:20]) + (" …" if len(words) > 20 else "")

    def warm_up(self) -> None:
        """Have its files read and, for Python, compiled, which is not what the first run is to be measured by.

        Raises `subprocess.CalledProcessError` where it does not run at all.
        """
        program = self._command[: 3 if self.name == PGLEAN else 1]
        subprocess.run([*program, "--version"], capture_output=True, check=True)

    def run(self, cap_s: float) -> Finished:
        """Run it to its end, or for `cap_s` seconds."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            started, start = time.time(), time.perf_counter()
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=self._ground.environment(),
                start_new_session=True,
            )
            try:
                watched = _watch(process, start, cap_s)
            except BaseException:
                process.kill()
                process.wait()
                raise
            elapsed_s, capped, peak_rss_bytes, cpu_s = watched
            output.seek(0)
            errors.seek(0)
            return Finished(
                started=started,
                ended=started + elapsed_s,
                elapsed_s=elapsed_s,
                exit_status=process.returncode,
                capped=capped,
                peak_rss_bytes=peak_rss_bytes,
                cpu_s=cpu_s,
                output=output.read().decode(errors="replace"),
                errors=errors.read().decode(errors="replace").strip(),
            )


def find_pg_repack(bindir: Path | None) -> Path:
    """The program, beside the server's or on the path.

    Raises `FileNotFoundError` where there is none.
    """
    beside = None if bindir is None else bindir / "pg_repack"
    found = beside if beside is not None and beside.is_file() else Path(shutil.which("pg_repack") or "")
    if not found.is_file():
        raise FileNotFoundError("pg_repack is not installed; on Debian: apt-get install postgresql-15-repack")
    return found


def told(finished: Finished) -> dict[str, Any]:
    """What pglean says of its run itself, of several tables together; empty for the other tools."""
    try:
        results = json.loads(finished.output)
    except ValueError:
        return {}
    done = [result for result in results if isinstance(result, dict) and result.get("status") == "done"]
    if not done:
        return {}
    phases: dict[str, float] = {}
    for result in done:
        for phase, seconds in result["phases"].items():
            phases[phase] = phases.get(phase, 0.0) + float(seconds)
    return {
        "phases": phases,
        "exclusive_lock_ms": max(result["exclusive_lock_ms"] for result in done),
        "changes_applied": sum(result["changes_applied"] for result in done),
        "wal_bytes": sum(result["wal_bytes"] for result in done),
    }


def _watch(process: subprocess.Popen[bytes], start: float, cap_s: float) -> tuple[float, bool, int, float]:
    """Wait for the end; elapsed seconds (to the interrupt, if it takes one), capped, peak memory, processor time.

    The kernel's own maximum of resident memory, `ru_maxrss`, also counts the time before the
    program was loaded, when the process was a copy of this one, which is larger than pg_repack.
    The high-water mark of the address space does not, but is gone with the process.
    """
    peak, capped_after = 0, 0.0
    while True:
        peak = max(peak, _high_water_mark(process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        elapsed_s = time.perf_counter() - start
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return (
                capped_after or elapsed_s,
                bool(capped_after),
                peak or usage.ru_maxrss * 1024,
                usage.ru_utime + usage.ru_stime,
            )
        if not capped_after and elapsed_s > cap_s:
            capped_after = elapsed_s
            process.send_signal(signal.SIGINT)
        elif capped_after and elapsed_s > capped_after + _INTERRUPT_TIMEOUT_S:
            process.kill()
        time.sleep(_POLL_S)


def _high_water_mark(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
