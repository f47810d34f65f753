"""What applications do meanwhile: pgbench writing single rows, and the log of every transaction of it.

With a rate given, pgbench draws the times at which transactions are due beforehand, and the
latency it logs counts from then: a transaction that had to wait because the one before it was held
up has waited, too.  That is what users feel, and what a closed loop would hide.
"""

from __future__ import annotations

import bisect
import itertools
import signal
import subprocess
import tempfile
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ground import Ground
from workload import Workload

CLIENTS: Final = 4
THREADS: Final = 2

_DAYS_S: Final = 1_000_000
_STOP_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Latency:
    """What the transactions of a stretch of time were like."""

    transactions: int
    per_second: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    #: Longest time in which no transaction at all came to its end.
    silence_ms: float


class Transactions:
    """All transactions of a load, by the time they ended; times are microseconds since the epoch."""

    def __init__(self, logs: list[Path]) -> None:
        """Read pgbench's log files, one per thread.

        Raises `ValueError` where a line is not of the expected form.
        """
        ended, took = array("q"), array("q")
        self.failed = 0
        for log in logs:
            with log.open() as lines:
                for line in lines:
                    # client, number, latency, script, seconds, microseconds and, with a rate, lag
                    fields = line.split()
                    if not fields[2].isdigit():  # "failed", with no latency
                        self.failed += 1
                        continue
                    took.append(int(fields[2]))
                    ended.append(int(fields[4]) * 1_000_000 + int(fields[5]))
        order = sorted(range(len(ended)), key=ended.__getitem__)
        self._ended = array("q", (ended[i] for i in order))
        self._took = array("q", (took[i] for i in order))

    def __len__(self) -> int:
        return len(self._ended)

    def during(self, start_s: float, end_s: float) -> Latency:
        """Of the transactions that overlap a stretch of time; the rate is of those that ended in it.

        Raises `ValueError` where there are none.
        """
        start, end = int(start_s * 1e6), int(end_s * 1e6)
        first, last = bisect.bisect_left(self._ended, start), bisect.bisect_right(self._ended, end)
        took = sorted(
            [
                *self._took[first:last],
                *(t for e, t in zip(self._ended[last:], self._took[last:], strict=True) if e - t <= end),
            ]
        )
        if not took:
            raise ValueError("no transaction was logged in that time")
        moments = [start, *self._ended[first:last], end]
        return Latency(
            transactions=len(took),
            per_second=(last - first) / (end_s - start_s),
            p50_ms=took[len(took) // 2] / 1000,
            p99_ms=took[len(took) * 99 // 100] / 1000,
            worst_ms=took[-1] / 1000,
            silence_ms=max(b - a for a, b in itertools.pairwise(moments)) / 1000,
        )


class Load:
    """pgbench, running from entry to `stop`; killed if left before that."""

    def __init__(self, ground: Ground, workload: Workload, rows: int, access: str, *, rate: int | None) -> None:
        """`rows`: of the table before half of them were deleted. `rate`: transactions per second; None for no limit."""
        self._ground, self._rate = ground, rate
        self._script, self._rows = workload.script(access), rows
        # A generic plan has every partition locked before it is known which one is meant.
        self._protocol = "extended" if workload.partitions else "prepared"
        self._directory = tempfile.TemporaryDirectory(prefix="pglean-bench-")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        directory = Path(self._directory.name)
        (directory / "script.sql").write_text(self._script)
        command = [
            *(str(self._ground.program("pgbench")), "--no-vacuum", f"--protocol={self._protocol}"),
            *(f"--client={CLIENTS}", f"--jobs={THREADS}", f"--time={_DAYS_S}"),
            *("--log", f"--log-prefix={directory / 'transactions'}"),
            *(f"--define=rows={self._rows}", f"--define=pairs={self._rows // 2}"),
            *(f"--file={directory / 'script.sql'}", *([f"--rate={self._rate}"] if self._rate else [])),
        ]
        with (directory / "output").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._ground.environment(),
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()

    def stop(self) -> tuple[Transactions, str]:
        """Let transactions in progress end; all that were logged, and what pgbench had to complain about."""
        assert self._process is not None
        complaints = []
        if self._process.poll() is None:
            # The signal is that of pgbench's own timer: no transaction begins any more.
            self._process.send_signal(signal.SIGALRM)
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                complaints.append(f"pgbench did not end within {_STOP_TIMEOUT_S:.0f} s")
                self._process.kill()
                self._process.wait()
        directory = Path(self._directory.name)
        output = (directory / "output").read_text(errors="replace").splitlines()
        complaints += [line for line in output if "error:" in line or "abort" in line]
        if self._process.returncode != 0 and not complaints:
            complaints.append(f"pgbench ended with status {self._process.returncode}: {' / '.join(output[-3:])}")
        transactions = Transactions(sorted(directory.glob("transactions.*")))
        if transactions.failed:
            complaints.append(f"{transactions.failed} transactions failed")
        return transactions, "; ".join(complaints)
