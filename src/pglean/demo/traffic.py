"""The demo's live traffic: several clients, each a process with one connection, that read and write all the time.

Processes and not threads, because what is measured are latencies: among threads that share Python's lock with the
rewrite's own, a client would wait for its turn in this process and blame the server. A client is a fresh interpreter
rather than a fork, for a fork would keep the pipe open by whose end the server's warden notices that we are gone.

Each client owns a share of the orders, and nobody else writes to these. For each it keeps the digest of the row as the
server returned it with the last write that was committed; a row that it reads through the view must have just that one.
At the end all records together say what the table must hold, row by row.

The protocol, over the client's standard input and output: we send a `_Task`; it answers with a line once it is
connected and knows its rows; a second line from us starts it, a third stops it, upon which it answers with its `Log`.
The end of its input means that we are gone, and it goes too.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Final

import psycopg
from psycopg.rows import TupleRow

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


def _input(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


# ---- in a process of its own


def client() -> None:
    """The whole life of a client; the main program of its process."""
    # Unbuffered: the interpreter cannot end while a thread of it waits inside a buffered read.
    answers = sys.stdout.buffer
    with open(0, "rb", buffering=0, closefd=False) as orders:
        task = pickle.load(orders)
        assert isinstance(task, _Task)
        if (log := _serve(task, orders, answers)) is not None:
            pickle.dump(log, answers)
            answers.flush()


def _serve(task: _Task, orders: IO[bytes], answers: IO[bytes]) -> Log | None:
    """Connect, work from the first line of `orders` to the second; None where nobody is there any more to be told."""
    with psycopg.connect(task.conninfo, autocommit=True, application_name=f"shop client {task.number + 1}") as conn:
        customer = _Client(conn, task)
        answers.write(b"ready\n")
        answers.flush()
        if not orders.readline():
            return None
        stop = threading.Event()
        last_word: list[bytes] = []

        def listen() -> None:
            last_word.append(orders.readline())
            stop.set()

        threading.Thread(target=listen, name="listen", daemon=True).start()
        customer.work(stop)
        # Where the connection was lost, the log will yet be asked for.
        stop.wait()
    return customer.log if last_word[0] else None


class _Client:
    """One customer of the database, with its share of the orders."""

    def __init__(self, conn: psycopg.Connection[TupleRow], task: _Task) -> None:
        self._conn, self._task = conn, task
        self._random = random.Random(task.number)
        self.log = Log()
        # Halved, because only odd ones are alive.
        share = conn.execute(
            f"SELECT o.id, {DIGEST} FROM shop.orders o WHERE o.id / 2 %% %s = %s",
            (task.clients, task.number),
            binary=True,
        )
        self.log.record.update(share.fetchall())
        #: The keys of the record, to draw from.
        self._ids = list(self.log.record)
        self._kinds: tuple[tuple[str, Callable[[], None], int], ...] = (
            ("update", self._update, 50),
            ("insert", self._insert, 12),
            ("delete", self._delete, 8),
            ("select", self._select, 30),
        )

    def work(self, stop: threading.Event) -> None:
        """One transaction after the other until told to stop, or until the connection is lost."""
        weights = [weight for _, _, weight in self._kinds]
        interval_s = 1 / self._task.rate if self._task.rate else 0.0
        # The clients' transactions are spread evenly over the interval.
        due_s = time.monotonic() + interval_s * self._task.number / self._task.clients
        while not stop.is_set() and not self._conn.closed:
            now_s = time.monotonic()
            if interval_s and now_s < due_s:
                stop.wait(due_s - now_s)
                now_s = time.monotonic()
                # That a sleep lasts a bit longer than asked for is no fault of the server.
                begun_s = now_s
            else:
                # One that had to wait for its predecessor has waited since it was due: whoever leaves that out
                # sees a blocked second as a single slow transaction instead of hundreds.
                begun_s = due_s if interval_s else now_s
            due_s += interval_s
            ((kind, act, _),) = self._random.choices(self._kinds, weights)
            if not self._ids:
                kind, act = "insert", self._insert
            self._transact(kind, act)
            self.log.begun_s.append(begun_s)
            self.log.ended_s.append(time.monotonic())

    def _transact(self, kind: str, act: Callable[[], None]) -> None:
        self.log.kinds[kind] += 1
        try:
            act()
        except psycopg.Error as error:
            if len(self.log.errors) < _MAX_ERRORS:
                self.log.errors.append(f"{kind}: {str(error).strip()}")

    def _update(self) -> None:
        order_id = self._random.choice(self._ids)
        change = json.dumps({"visits": self._random.randrange(1000)})
        (digest,) = self._conn.execute(
            "UPDATE shop.orders AS o SET status = %s, total = %s, attributes = o.attributes || %s::jsonb,"
            f" note = coalesce(%s, o.note) WHERE o.id = %s RETURNING {DIGEST}",
            (self._random.choice(_STATUSES), self._total(), change, self._note(), order_id),
        ).fetchone() or (None,)
        self._remember(order_id, digest)

    def _insert(self) -> None:
        with self._conn.transaction():
            row = self._conn.execute(
                "INSERT INTO shop.orders AS o (customer_id, status, total, note, attributes)"
                f" VALUES (%s, 'new', %s, %s, %s::jsonb) RETURNING o.id, {DIGEST}",
                (
                    1 + self._random.randrange(self._task.customers),
                    self._total(),
                    self._note(),
                    json.dumps({"channel": "web", "coupon": f"C{self._random.randrange(5000)}"}),
                ),
            ).fetchone()
            assert row is not None
            self._conn.execute(
                "INSERT INTO shop.order_items (order_id, article, quantity)"
                " VALUES (%s, 'Article 1', 1), (%s, 'Article 2', 2)",
                (row[0], row[0]),
            )
        # Only here is it committed.
        self.log.record[row[0]] = row[1]
        self._ids.append(row[0])

    def _delete(self) -> None:
        place = self._random.randrange(len(self._ids))
        order_id = self._ids[place]
        deleted = self._conn.execute("DELETE FROM shop.orders WHERE id = %s", (order_id,)).rowcount
        self.log.stale += deleted != 1
        del self.log.record[order_id]
        self._ids[place] = self._ids[-1]
        self._ids.pop()

    def _select(self) -> None:
        order_id = self._random.choice(self._ids)
        (digest,) = self._conn.execute(
            f"SELECT {DIGEST} FROM shop.order_overview AS o WHERE o.id = %s", (order_id,)
        ).fetchone() or (None,)
        self.log.stale += digest != self.log.record[order_id]

    def _remember(self, order_id: int, digest: int | None) -> None:
        if digest is None:
            # The row that was to be written is gone; the record keeps it, so that the end tells as well.
            self.log.stale += 1
        else:
            self.log.record[order_id] = digest

    def _total(self) -> str:
        return f"{self._random.randrange(1, 100_000) / 100:.2f}"

    def _note(self) -> str | None:
        """Mostly none, sometimes a short one, now and then one for TOAST."""
        drawn = self._random.random()
        if drawn < 0.8:
            return None
        text = f"{self._random.getrandbits(64):016x}"
        return text if drawn < 0.97 else text * (LONG_NOTE_CHARS // len(text))
