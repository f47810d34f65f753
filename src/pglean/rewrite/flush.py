"""Has the WAL brought to the disk while we write much.

What is written waits in the WAL buffers (16 MB by default) until somebody brings it to the disk: the server's WAL
writer every 200 ms, or whoever commits and waits for that; our own commits do not. But a chunk, or an index build,
fills the buffers ten times in between. Then each page of WAL that it needs it has to free itself, by a write of 8 kB of
its own, and several sessions of ours stand in a queue for that; and the next commit of an application waits for all
that has gathered.

So a session of its own looks every few milliseconds, and whenever more than 2 MB have gathered it commits a
transaction, and waits for that: one that has locked a row of ours, since only who has written something waits. On 15
with two processors (`bench/levers.py`) two workers then copy 1.1 to 1.4 times as fast, the more the longer a durable
write takes. It takes one transaction id per 2 MB of WAL at most, and none where applications commit so often that
nothing gathers.

Rejected: smaller chunks (each brings a dozen statements with it); pg_logical_emit_message, which is sent to everybody
who decodes messages; asynchronous commits, which wake the WAL writer as well (transactions share what is known of where
their commits are, so that VACUUM would not take the rows of chunks before for safely committed, nor their pages for
all-visible).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean.errors import ConnectionLost
from pglean.server import Server
from pglean.session import Connection
from pglean.sql import query

#: WAL that may gather, in bytes; how often is looked, and how often while nothing gathers.
_GATHERED_BYTES, _OFTEN_S, _SELDOM_S = 2_000_000, 0.005, 0.1
_LOCK_TIMEOUT_MS = 200


class Flush:
    """At work from entry to exit, while `busy` is set and the throttle lets the run work.

    Locks: a row of pglean.version, for a moment, and only where nobody else has locked it. Without its session, which
    may not be had or be ended, the run goes on, slower. On entry: the schema is there.
    """

    def __init__(
        self,
        server: Server,
        purpose: str,
        *,
        throttled: Callable[[], object] = lambda: False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`purpose` of its session; `throttled`: whether what gathers now is not ours."""
        self._server, self._purpose, self._throttled, self._tell = server, purpose, throttled, tell
        self._stack = contextlib.ExitStack()
        self._stop = threading.Event()
        #: Set while we write much.
        self.busy = threading.Event()

    def __enter__(self) -> Self:
        try:
            conn = self._stack.enter_context(self._server.connect(self._purpose))
        except ConnectionLost as error:
            self._tell(f"goes on without the session that flushes the WAL: {error.message}")
            return self
        thread = threading.Thread(target=self._watch, args=(conn,), name="pglean flush", daemon=True)
        # In this order: the session is closed when the thread has ended.
        self._stack.callback(thread.join)
        thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        # It may be waiting for work.
        self.busy.set()
        self._stack.close()

    def _watch(self, conn: Connection) -> None:
        # Not by the connection's own kind of cursor, which tells (-e) all that it sends.
        cursor = psycopg.Cursor(conn)
        pause_s = _OFTEN_S
        with contextlib.suppress(psycopg.Error):
            # The user's own standbys are not waited for, nor is whoever has locked the table of ours.
            cursor.execute("SET synchronous_commit = local")
            cursor.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT_MS)))
            while True:
                self.busy.wait()
                if self._stop.wait(pause_s):
                    return
                pause_s = min(pause_s * 2, _SELDOM_S)
                if self._throttled():
                    continue
                with contextlib.suppress(pg.LockNotAvailable):
                    if cursor.execute(query("job.flush"), {"bytes": _GATHERED_BYTES}).fetchone():
                        pause_s = _OFTEN_S
