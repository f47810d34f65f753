"""A server, a table, and statements as pglean would send them, timed: in sessions of its own kind, with its flush."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from ground import DATABASE, Ground
from pglean.embedded import EmbeddedServer
from pglean.rewrite import schema
from pglean.rewrite.courtesy import Courtesy
from pglean.rewrite.flush import Flush
from pglean.server import Server
from pglean.session import Connection
from template import Template
from workload import WORKLOADS

#: What one session does while it is timed.
Job = Callable[[Connection], object]

#: How pglean would find them, with other names.
SHADOW: Final = "pglean.shadow"
INDEXES: Final = ("orders_customer_id_idx (customer_id)", "orders_created_at_idx (created_at)", "orders_pkey (id)")
COLUMNS: Final = "id, customer_id, created_at, updated_at, status, amount, note"

DELETED, ORDERS, COPIED, RECORDED = "deleted", "orders", "copied", "recorded"
FROZEN, INDEXED, CHANGED = "frozen", "indexed", "changed"
DOUBLED, OLD = "doubled", "old"
#: Not by the hash by which workers share keys.
_TENTH: Final = "hashint8extended(id, 7) % 10 = 0"
_CHANGE: Final = (
    f"UPDATE public.orders SET status = 'sent', updated_at = now() WHERE {_TENTH}",
    f"INSERT INTO pglean.changes SELECT id FROM public.orders WHERE {_TENTH} ORDER BY hashint8(id)",
)
_COPY: Final = f"INSERT INTO {SHADOW} SELECT {COLUMNS} FROM public.orders"


def build(index: str, *, unique: bool = True) -> str:
    """The statement that builds one of `INDEXES` on the shadow."""
    name, _, columns = index.partition(" ")
    return f"CREATE {'UNIQUE ' if unique and name.endswith('pkey') else ''}INDEX {name} ON {SHADOW} {columns}"


def drop(index: str) -> str:
    """The statement that drops it."""
    return f"DROP INDEX IF EXISTS pglean.{index.split(maxsplit=1)[0]}"


#: What a database holds: the state it is made from, and what is done to that.
STATES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    # Half of all rows are deleted, and nobody has cleaned up; the shadow and the change table are empty.
    DELETED: (
        "",
        (
            f"CREATE TABLE {SHADOW} AS SELECT {COLUMNS} FROM public.orders WITH NO DATA",
            "CREATE TABLE pglean.changes (k1 bigint)",
            "CREATE TABLE pglean.chunks (first_block bigint, end_block bigint, rows bigint)",
        ),
    ),
    ORDERS: (DELETED, ("VACUUM public.orders",)),
    # The shadow has all rows.
    COPIED: (ORDERS, (_COPY,)),
    # A tenth of the keys was updated since, which is recorded.
    RECORDED: (COPIED, _CHANGE),
    # The shadow has all rows, frozen.
    FROZEN: (COPIED, (f"VACUUM (FREEZE) {SHADOW}",)),
    # And it has its indexes.
    INDEXED: (FROZEN, tuple(map(build, INDEXES))),
    # And then the tenth was updated.
    CHANGED: (INDEXED, _CHANGE),
    # The shadow has all rows twice, as many as there were.
    DOUBLED: (FROZEN, (_COPY, f"VACUUM (FREEZE) {SHADOW}")),
    # Twice as many again, and indexes: as large as what `orders` was at 4x.
    OLD: (DOUBLED, (_COPY, _COPY, f"VACUUM (FREEZE) {SHADOW}", *(build(i, unique=False) for i in INDEXES))),
}
_DROP: Final = tuple(map(drop, INDEXES))
#: Makes such a state again what it was, when rows were copied or indexes were built.
_UNDO: Final = {ORDERS: (*_DROP, f"TRUNCATE {SHADOW}, pglean.chunks"), COPIED: _DROP, FROZEN: _DROP}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a measurement took."""

    seconds: float
    wal_bytes: int
    #: Processor time of this process.
    client_s: float

    @property
    def figures(self) -> dict[str, float]:
        """Time and WAL, as most levers show them."""
        return {"seconds": self.seconds, "wal_mb": self.wal_bytes / 1e6}


def statements(*texts: str) -> Job:
    """One after the other, each in a transaction of its own unless they say otherwise."""

    def job(conn: Connection) -> None:
        for text in texts:
            conn.execute(text)

    return job


def value(conn: psycopg.Connection, text: str) -> Any:
    """The one value that a query returns."""
    row = conn.execute(text).fetchone()
    assert row is not None
    return row[0]


class Workbench:
    """One server; the database is brought into a state, and jobs on it are timed."""

    def __init__(self, server: EmbeddedServer, rows: int) -> None:
        """`rows` of the table before half of them are deleted."""
        self._server = server
        self.ground = Ground.private(server)
        self._orders = Template(self.ground, WORKLOADS["orders"], rows)
        self._made: set[str] = set()
        #: What the database is in, as long as nobody has changed it.
        self._state = ""

    @property
    def rows(self) -> int:
        """How many there are, after half of them were deleted."""
        return self._orders.rows // 2

    @property
    def directory(self) -> Path:
        """On the file system of the server's data."""
        return self._server.datadir.parent

    def connect(self) -> contextlib.AbstractContextManager[Connection]:
        """A session with the settings that pglean's have."""
        return Server(self._server.conninfo(DATABASE)).connect("bench")

    def courtesy(self) -> Courtesy:
        """Lets queues of commits pass, as pglean does between long steps."""
        return Courtesy(Server(self._server.conninfo(DATABASE)))

    def fresh(self, state: str, *, cold: bool = False) -> None:
        """Replace the database by a copy of a state, in the shared buffers; `cold`: in no memory at all.

        On exit: the last checkpoint was just now.
        """
        self._make(state)
        self._copy(DATABASE, _template(state))
        self._state = state
        with self._plain(DATABASE) as conn:
            if cold:
                oid = value(conn, "SELECT oid FROM pg_database WHERE datname = current_database()")
                conn.execute("CHECKPOINT")
                _forget(self._server.datadir / "base" / str(oid))
            else:
                conn.execute(
                    "SELECT count(pg_prewarm(oid)) FROM pg_class WHERE relkind IN ('r', 'i')"
                    " AND relnamespace IN ('public'::regnamespace, 'pglean'::regnamespace)"
                )
                conn.execute("CHECKPOINT")

    def again(self, state: str) -> None:
        """The same where copies and index builds alone have changed it, by undoing these."""
        if self._state != state:
            self.fresh(state)
        with self._plain(DATABASE) as conn:
            for text in _UNDO[state]:
                conn.execute(text)
            conn.execute("CHECKPOINT")

    def checkpoint(self) -> None:
        """One at once."""
        with self._plain("postgres") as conn:
            conn.execute("CHECKPOINT")

    @contextlib.contextmanager
    def full_pages(self) -> Iterator[None]:
        """With full_page_writes, as every server has it; otherwise here it is off.

        A page that is written again is one that a run has written since the last checkpoint, as a rule, and pages of a
        database that was copied are not.
        """
        self._write_full_pages(True)
        try:
            yield
        finally:
            self._write_full_pages(False)

    def _write_full_pages(self, on: bool) -> None:
        with self._plain("postgres") as conn:
            conn.execute(f"ALTER SYSTEM SET full_page_writes = {'on' if on else 'off'}")
            conn.execute("SELECT pg_reload_conf()")
            # It counts from when the checkpointer has noticed.
            while value(conn, "SELECT full_page_writes FROM pg_control_checkpoint()") != on:
                conn.execute("CHECKPOINT")

    def timed(
        self, *jobs: Job, flushed: bool = True, settings: Mapping[str, str] | None = None, beside: Job | None = None
    ) -> Cost:
        """Do all jobs at once, each in a session of its own; `beside` is not waited for when they are done.

        `flushed`: with the WAL brought to the disk as it gathers, as pglean does.
        Raises psycopg.errors.InvalidParameterValue where the server does not know a setting.
        """
        server = Server(self._server.conninfo(DATABASE))
        with contextlib.ExitStack() as stack:
            conns = [stack.enter_context(server.connect("bench")) for _ in (*jobs, *([beside] if beside else []))]
            for conn in conns:
                for name, setting in (settings or {}).items():
                    conn.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, setting))
            if flushed:
                flush = stack.enter_context(Flush(server, "bench flush"))
                flush.busy.set()
            pool = stack.enter_context(ThreadPoolExecutor(len(conns)))
            wal, client_s, began = self._wal_bytes(), _client_s(), time.perf_counter()
            futures = [pool.submit(job, conn) for job, conn in zip(jobs, conns, strict=False)]
            other = pool.submit(beside, conns[-1]) if beside else None
            for future in futures:
                future.result()
            seconds = time.perf_counter() - began
            cost = Cost(seconds, self._wal_bytes() - wal, _client_s() - client_s)
            if other is not None:
                other.result()
        return cost

    def _wal_bytes(self) -> int:
        return int(self.ground.value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn", None))

    def _make(self, state: str) -> None:
        """Make the template of a state, and of all that it is made from."""
        if state in self._made:
            return
        before, texts = STATES[state]
        if before:
            self._make(before)
            self._copy(DATABASE, _template(before))
        else:
            self._orders.refresh()
            with self.connect() as conn:
                schema.ensure(conn)
        with self.connect() as conn:
            for text in texts:
                conn.execute(text)
        self._copy(_template(state), DATABASE)
        self._made.add(state)

    def _copy(self, name: str, template: str) -> None:
        # Files, not their pages: what is dead, and what no hint tells of, comes along.
        with self._plain("postgres") as conn:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")

    def _plain(self, dbname: str) -> psycopg.Connection:
        return psycopg.connect(self._server.conninfo(dbname), autocommit=True)


def _template(state: str) -> str:
    return f"state_{state}"


def _client_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _forget(directory: Path) -> None:
    """Have the operating system forget what it has in memory of files that are on the disk."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
