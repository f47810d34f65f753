"""Sessions that have done their work, kept for the next that is asked for.

Only within `kept`: whoever has nothing to do holds no connection. What they were used for must not be seen of them: one
that is put here has been reset by whoever puts it, and has neither transaction nor lock.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import psycopg

from pglean.session import Connection

#: A session remembers each relation that it has ever met, some kB of each: after so many uses another takes its place.
_MOST_USES = 200


class Spares:
    """Those of one database. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keepers = 0
        self._enough = False
        self._conns: list[Connection] = []
        #: How often each was used, those that are in use among them.
        self._uses: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """In the block they are kept; all are closed at the end of the last of several such blocks."""
        with self._lock:
            self._keepers += 1
        try:
            yield
        finally:
            with self._lock:
                self._keepers -= 1
                last = not self._keepers
                self._enough = self._enough and not last
            if last:
                self.drop()

    def enough(self) -> None:
        """Nobody will want one any more: close them, and keep none until the last block has ended."""
        with self._lock:
            self._enough = True
        self.drop()

    def drop(self) -> None:
        """Close those that are here."""
        with self._lock:
            left, self._conns = self._conns, []
        for conn in left:
            conn.close()

    @property
    def pids(self) -> list[int]:
        """Of their server processes."""
        with self._lock:
            return [conn.info.backend_pid for conn in self._conns]

    def take(self) -> Connection | None:
        """The one that was used last, which knows most of what it will meet; None where none is left."""
        with self._lock:
            return self._conns.pop() if self._conns else None

    def wants(self, conn: Connection) -> bool:
        """Whether it would be kept: asked before it is reset for that."""
        idle = conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with self._lock:
            uses = self._uses[conn] = self._uses.get(conn, 0) + 1
            return idle and self._wanted and uses < _MOST_USES

    def put(self, conn: Connection) -> bool:
        """Keep it; False where nobody wants it any more."""
        with self._lock:
            if self._wanted:
                self._conns.append(conn)
            return self._wanted

    @property
    def _wanted(self) -> bool:
        return self._keepers > 0 and not self._enough
