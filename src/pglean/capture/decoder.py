"""The decoder: writes the keys that a slot sends to the change table, in a thread and sessions of its own.

What is recorded is committed before the slot is told that it was: nothing is lost whoever is killed. Of what is sent
again after that, keys are recorded twice, which does no harm. Images of rows must not be: a transaction is recorded as
a whole, together with the place in the WAL at which it ends, from where the slot is read on.

A *fence* is a message that a session of ours commits. The WAL is one sequence, and what is committed is sent in its
order: once the fence has come back, all that was committed before it has been recorded, also with asynchronous commit,
for its own commit flushes what precedes it.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from copy import copy

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean import pausepoint
from pglean.capture import changes
from pglean.capture.pgoutput import PREFIX, Keys, Shape
from pglean.capture.stream import Stream
from pglean.disk import bytes_text
from pglean.errors import CaptureGap, ConnectionLost, PgleanError, WalRetained
from pglean.locks import OverBudget
from pglean.server import Server
from pglean.session import Connection, scalar, transaction
from pglean.sql import query

#: How long something may lie here before it is recorded, and how much of it, so that no transaction of ours is long.
_AGE_S, _BATCH_BYTES = 0.1, 1 << 20
#: How often what the slot retains is looked at, and what was told without any change is confirmed.
_LOOK_S = 1.0
#: Without any sign of life for so long while it is waited for, the stream is given up.
_STALL_S = 300.0
#: After so long whoever waits for the decoder says so.
_PATIENCE_S = 1.0
#: How much WAL a slot may retain that ends with its session, if nobody has said it.
TEMPORARY_LIMIT_BYTES = 16 << 30


class Decoder:
    """The thread, from `start` to `close`."""

    def __init__(
        self,
        server: Server,
        writer: Connection,
        stream: Stream,
        shape: Shape,
        job_id: int,
        slot: str,
        decoded_lsn: int,
        limit_bytes: int | None,
    ) -> None:
        """`limit_bytes`: of the WAL that a slot which outlives its session may retain; None for one that does not."""
        self._server, self._writer, self._stream = server, writer, stream
        self._job_id, self._slot, self._limit_bytes = job_id, slot, limit_bytes
        self._changes = changes.name(job_id)
        self._whole = shape.whole
        #: That of the change table which is open: of a large transaction, if it must be recorded as a whole.
        self._transaction: contextlib.ExitStack | None = None
        self._keys = Keys(shape, int(scalar(writer, query("capture.next_xid"))))
        self._decoded_lsn = decoded_lsn
        #: One thread at a time uses the session `writer`.
        self._mutex = threading.Lock()
        self._changed = threading.Condition()
        #: Tokens that are waited for, and those of them that have come back.
        self._awaited: set[bytes] = set()
        self._fences: set[bytes] = set()
        self._error: PgleanError | None = None
        self._pending_since: float | None = None
        self._looked_at = self._persisted_at = 0.0
        self._stop = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="pglean decoder", daemon=True)

    def start(self) -> None:
        """Begin to record. From here on the session `stream` belongs to the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and forget what has not been recorded; the sessions are the caller's."""
        self._stop.set()
        while self._thread.is_alive():
            self._thread.join(0.2)
            if self._thread.is_alive():
                with contextlib.suppress(psycopg.Error):
                    self._writer.cancel_safe(timeout=2)

    def expect_end(self) -> None:
        """From now on the stream may end with an error, once a transaction that drops the publication is committed."""
        self._ending = True

    def quit(self) -> None:
        """From now on, whatever becomes of the stream is of no matter."""
        self._stop.set()

    def check(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if self._error is not None:
            raise copy(self._error)

    # ---- the run's threads

    def pull(self, within_ms: float | None, waiting: Callable[[str], None]) -> None:
        """Wait until everything is recorded that was committed before this call.

        `waiting` is told, and may raise, where that takes long. Raises `OverBudget` where it takes longer than
        `within_ms`, `ConnectionLost` where nothing moves any more.
        """
        deadline = float("inf") if within_ms is None else time.monotonic() + within_ms / 1000
        token = f"{self._job_id} {secrets.token_hex(8)}".encode()
        with self._changed:
            self._awaited.add(token)
        try:
            self._fence(token, deadline, waiting)
            self._await(token, deadline, waiting)
        finally:
            with self._changed:
                self._awaited.discard(token)
                self._fences.discard(token)

    def _fence(self, token: bytes, deadline: float, waiting: Callable[[str], None]) -> None:
        while not self._mutex.acquire(timeout=max(min(_PATIENCE_S, deadline - time.monotonic()), 0)):
            self._wait_on(deadline, waiting)
        try:
            with transaction(self._writer):
                if (left_s := deadline - time.monotonic()) != float("inf"):
                    # The disk may be slow, too.
                    limit = sql.Literal(max(int(left_s * 1000), 1))
                    self._writer.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(limit))
                self._writer.execute("SET LOCAL synchronous_commit = local")
                self._writer.execute(query("capture.fence"), {"prefix": PREFIX.decode(), "token": token.decode()})
        except pg.QueryCanceled as error:
            self._server.check()
            raise _late() from error
        finally:
            self._mutex.release()

    def _await(self, token: bytes, deadline: float, waiting: Callable[[str], None]) -> None:
        began = quiet_since = time.monotonic()
        sent = ""
        while not self._come_back(token, max(min(0.1, deadline - time.monotonic()), 0.001)):
            self._wait_on(deadline, waiting if time.monotonic() - began > _PATIENCE_S else None)
            now = time.monotonic()
            if now - max(self._stream.heard_at, quiet_since) > _STALL_S:
                # A large transaction of others is decoded for long, and nothing comes of it.
                quiet_since, before, sent = now, sent, self._sent()
                if sent == before:
                    raise _stalled()

    def _wait_on(self, deadline: float, waiting: Callable[[str], None] | None) -> None:
        self.check()
        self._server.check()
        if time.monotonic() >= deadline:
            raise _late()
        if waiting is not None:
            waiting("the WAL to be decoded")

    def _come_back(self, token: bytes, wait_s: float) -> bool:
        with self._changed:
            if token not in self._fences:
                self._changed.wait(wait_s)
            return token in self._fences

    def _sent(self) -> str:
        """How far the server has decoded, and when it was last found at work."""
        with self._mutex:
            return str(scalar(self._writer, query("capture.sent"), {"slot": self._slot}))

    def complete(self, conn: Connection, within_ms: float) -> None:
        """Put into the open transaction what its snapshot sees of the changes, but not of the change table.

        On entry: REPEATABLE READ, with its snapshot taken. Raises `OverBudget` where it would wait longer than that.
        """
        snapshot = scalar(conn, "SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text")
        self.pull(within_ms, lambda _: None)
        names = sql.SQL(", ").join(
            sql.Identifier(name)
            for (name,) in self._fetch(query("capture.change_columns"), {"changes": f"pglean.changes_{self._job_id}"})
        )
        missing = sql.SQL(
            "COPY (SELECT {names} FROM {changes} AS c,"
            " (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS m) AS now"
            # The ids in rows have 32 bits; they are at most 2^31 from those of now.
            " WHERE NOT pg_visible_in_snapshot("
            "(m + ((c.xmin::text::bigint - m + 2147483648) & 4294967295) - 2147483648)::text::xid8, {snapshot})"
            " AND pg_visible_in_snapshot(c.x, {snapshot})) TO STDOUT (ENCODING 'SQL_ASCII')"
        ).format(names=names, changes=self._changes, snapshot=sql.SQL("{}::pg_snapshot").format(sql.Literal(snapshot)))
        with (
            self._mutex,
            self._writer.cursor().copy(missing) as source,
            conn.cursor().copy(self._into(names)) as target,
        ):
            for block in source:
                target.write(block)

    def _fetch(self, statement: sql.SQL, parameters: dict[str, str]) -> list[tuple[str, ...]]:
        with self._mutex:
            return self._writer.execute(statement, parameters).fetchall()

    def _into(self, names: sql.Composed | None = None) -> sql.Composed:
        # Bytes as they are in the server's own encoding.
        columns = sql.SQL("") if names is None else sql.SQL("({})").format(names)
        return sql.SQL("COPY {} {} FROM STDIN (ENCODING 'SQL_ASCII')").format(self._changes, columns)

    # ---- the thread

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                for message in self._stream.messages(_AGE_S / 2):
                    self._keys.read(message)
                    if self._keys.size_bytes >= _BATCH_BYTES:
                        self._record()
                        if self._stop.is_set():
                            return
                self._look()
        except Exception as error:
            self._fail(error)
        finally:
            if self._transaction is not None:
                with contextlib.suppress(Exception):
                    self._transaction.__exit__(PgleanError, PgleanError("given up"), None)

    def _look(self) -> None:
        """Record what is due; now and then see to the slot."""
        now = time.monotonic()
        if self._keys.lines and self._pending_since is None:
            self._pending_since = now
        due = self._pending_since is not None and now - self._pending_since >= _AGE_S
        look = now - self._looked_at >= _LOOK_S
        if look:
            self._looked_at = now
        if due or look or self._keys.fences:
            self._record()
            if look and self._transaction is None:
                self._check_retained()
        elif self._stream.asked:
            self._stream.confirm(self._decoded_lsn)

    def _record(self) -> None:
        """Commit what has come, then confirm it; of what is recorded as a whole, once all of it has come."""
        if self._whole and self._keys.inside:
            if self._keys.size_bytes >= _BATCH_BYTES:
                self._begin()
                self._copy(self._keys.take())
                pausepoint.reach("decoder: a part is written")
            self._stream.confirm(self._decoded_lsn)
            return
        lines, fences = self._keys.take(), self._keys.fences
        self._keys.fences, self._pending_since = [], None
        lsn = max(self._keys.end_lsn, self._stream.told_lsn if not self._keys.inside else 0, self._decoded_lsn)
        lasting = self._limit_bytes is not None
        now = time.monotonic()
        # Not each time, of keys: the row would get versions faster than a long transaction lets them be cleaned up.
        persist = lasting and lsn > self._decoded_lsn and (self._whole or now - self._persisted_at >= _LOOK_S)
        if lines or self._transaction is not None or persist:
            opened = self._begin()
            if lines:
                self._copy(lines)
            if persist:
                self._writer.execute(
                    query("capture.decoded"), {"job": self._job_id, "lsn": f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"}
                )
            self._transaction = None
            opened.close()
        if persist or not lasting:
            # Of a slot that ends with its session nobody will ask where it was.
            self._decoded_lsn, self._persisted_at = lsn, now
        self._stream.confirm(self._decoded_lsn)
        with self._changed:
            # Others may send messages of this kind, too.
            self._fences.update(self._awaited.intersection(fences))
            self._changed.notify_all()

    def _begin(self) -> contextlib.ExitStack:
        """The transaction that is open, or a new one. It has the mutex until its end."""
        if self._transaction is None:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._mutex)
                stack.enter_context(transaction(self._writer))
                if self._limit_bytes is not None:
                    # The slot's own position may be on the disk at once.
                    self._writer.execute("SET LOCAL synchronous_commit = local")
                self._transaction = stack.pop_all()
        return self._transaction

    def _copy(self, lines: list[bytes]) -> None:
        try:
            with self._writer.cursor().copy(self._into()) as target:
                target.write(b"".join(lines))
        except (pg.DataError, pg.UndefinedObject) as error:
            raise CaptureGap(
                "a value that was written cannot be read any more",
                detail=error.diag.message_primary,
                hint="A label of an enum was renamed, perhaps.",
            ) from error

    def _check_retained(self) -> None:
        with self._mutex:
            retained = scalar(self._writer, query("capture.retained"), {"slot": self._slot})
        limit_bytes = self._limit_bytes or TEMPORARY_LIMIT_BYTES
        if retained is not None and retained > limit_bytes:
            limit = "the limit of --max-slot-wal" if self._limit_bytes else "the limit without --max-slot-wal"
            raise WalRetained(
                f"the replication slot of the run retains {bytes_text(retained)} of WAL, {limit} is"
                f" {bytes_text(limit_bytes)}",
                detail="A slot retains what was written since the oldest transaction began that is still open; the"
                " build of an index is one.",
                hint="End long transactions, raise --max-slot-wal, or let triggers capture the changes.",
            )

    def _fail(self, error: Exception) -> None:
        if self._stop.is_set():
            return
        told = self._server.translate(error)
        if isinstance(error, psycopg.Error) and not self._server.cancelled and type(told) is PgleanError:
            told = CaptureGap("logical decoding was ended by an error", detail=told.message)
        with self._changed:
            self._error = told
            self._changed.notify_all()
        if not self._ending:
            self._server.abort(told)


def _stalled() -> ConnectionLost:
    return ConnectionLost(
        "logical decoding does not get on",
        detail=f"The server has neither sent nor decoded anything for {_STALL_S:g} s.",
        hint="Look at pg_stat_replication and at the server's log.",
    )


def _late() -> OverBudget:
    return OverBudget("The last changes were not decoded in time.")
