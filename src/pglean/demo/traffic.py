"""The demo's live traffic: several clients, each a process with one connection, that read and write all the time.

Processes and not threads, because what is measured are latencies: among threads that share Python's lock with the
rewrite's own, a client would wait for its turn in this process and blame the server. A client is a fresh interpreter
rather than a fork, for a fork would keep the pipe open by whose end the server's warden notices that we are gone.

Each client owns a share of the orders, and nobody else writes to these. For each it keeps the digest of the row as the
server returned it with the last write that was committed; a row that it reads through the view must have just that one.
At the end all records together say what the table must hold, row by row.

The protocol, over the client's standard input and output: we send a `_Task`; it answers with a line once it is
connected and knows its rows; a second line from us starts it, a third stops it, upon which it answers with its `Log`. The
end of its input means that we are gone, and it goes too.
"""

from __future__ import annotations

import contextlib
import pickle
import random
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import psycopg

from pglean.demo.shop import DIGEST, LONG_NOTE_CHARS
from pglean.errors import PgleanError

_CLIENT: Final = "from pglean.demo.traffic import client; client()"
_STATUSES: Final = ("new", "paid", "shipped", "returned")
_LEAVE_S: Final = 2.0
#: More errors than this are more of the same.
_MAX_ERRORS: Final = 20


@dataclass(frozen=True, slots=True)
class _Task:
    """What a client is told."""

    conninfo: str
    number: int
    clients: int
    customers: int
    #: Transactions per second that this client begins; 0 for one after the other.
    rate: float


@dataclass(slots=True)
class Log:
    """What a client has done, as seen by itself."""

    #: Digest of each row it owns, as last committed.
    record: dict[int, int] = field(default_factory=dict)
    #: Begin and end of each transaction, in seconds of the monotonic clock, which all processes share.
    begun_s: array[float] = field(default_factory=lambda: array("d"))
    ended_s: array[float] = field(default_factory=lambda: array("d"))
    #: Transactions by kind.
    kinds: Counter[str] = field(default_factory=Counter)
    #: Rows that were not what their owner had last written when he read or wrote them again.
    stale: int = 0
    errors: list[str] = field(default_factory=list)

    def transactions(self) -> Iterator[tuple[float, float]]:
        """Begin and end of each."""
        return zip(self.begun_s, self.ended_s, strict=True)


# ---- here


class Traffic:
    """All clients, seen from the process that runs the demo."""

    def __init__(self, conninfo: str, *, clients: int, rate: float, customers: int) -> None:
        """Start the clients and wait until each knows its rows; nothing is written yet.

        rate: transactions per second of all clients together; 0 for as many as they can.
        """
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(clients):
                self._processes.append(_spawn())
                self._send(number, pickle.dumps(_Task(conninfo, number, clients, customers, rate / clients)))
            for number in range(clients):
                self._expect_ready(number)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Let them go."""
        for number in range(len(self._processes)):
            self._send(number, b"go\n")

    def finish(self) -> list[Log]:
        """Stop all clients after the transaction each is in, and collect their logs."""
        for number in range(len(self._processes)):
            self._send(number, b"stop\n")
        return [self._collect(number) for number in range(len(self._processes))]

    def close(self) -> None:
        """End whatever still runs. May be called at any time."""
        for process in self._processes:
            # A client that is gone has left its end of the pipe closed.
            with contextlib.suppress(OSError):
                _input(process).close()
        for process in self._processes:
            try:
                process.wait(_LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._processes.clear()

    def _send(self, number: int, message: bytes) -> None:
        pipe = _input(self._processes[number])
        try:
            pipe.write(message)
            pipe.flush()
        except BrokenPipeError:
            self._fail(number)

    def _expect_ready(self, number: int) -> None:
        stdout = self._processes[number].stdout
        assert stdout is not None
        if stdout.readline() != b"ready\n":
            self._fail(number)

    def _collect(self, number: int) -> Log:
        process = self._processes[number]
        assert process.stdout is not None
        answer = process.stdout.read()
        if process.wait() != 0:
            self._fail(number)
        # From a child of ours that runs this very module: nobody else can have written it.
        log = pickle.loads(answer)
        assert isinstance(log, Log)
        return log

    def _fail(self, number: int) -> None:
        process = self._processes[number]
        process.wait()
        assert process.stderr is not None
        lines = process.stderr.read().decode(errors="replace").strip().splitlines()
        raise PgleanError(
            f"client {number + 1} of the demo's traffic ended with exit status {process.returncode}",
            detail="\n".join(lines[-5:]) or None,
        )


def _spawn() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # An interrupt typed at the terminal is for us; we then stop the clients.
        start_new_session=True,
    )


def _input(process: subprocess.Popen[bytes]) -> contextlib.closing[bytes] | any:  # type: ignore
    return process.stdin


# ---- in a process of its own


def client() -> None:
    """The whole life of a client; the main program of its process."""
