"""Lets others' commits go first.

Each has to wait until the disk has all of the WAL before it, ours too; and for the disk itself, while the server
synchronizes a new index or truncates an old file, which no statement does in pieces. Where a queue has formed
meanwhile, it may pass before we do the next thing. A queue that does not pass is not of our making: an application
writes as fast as it can.

Tried at 4,000 updates a second on two processors: between chunks of the copy, p99 60 ms instead of 200 ms; with updates
flat out waiting only made the copy twice as long.
"""

from __future__ import annotations

import time

from pglean.server import Server
from pglean.session import Connection, scalar
from pglean.sql import query

#: So many commits of others that wait for the disk are a queue; how often it is looked at; how often in vain.
_QUEUE, _LOOK_S, _IN_VAIN = 2, 0.01, 2
#: How long it may take to pass. Half a second took a sixth of a run beside an application that writes flat out.
_PASSES_S = 0.2


class Courtesy:
    """Of one that does one thing after the other; of a run, in one phase: what waited in vain then may pass later."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._in_vain = 0

    def give_way(self, conn: Connection, limit_s: float = _PASSES_S) -> bool:
        """Wait for a queue to pass, so long at most; whether there was one that is our making.

        On entry and exit: no transaction. Raises `Interrupted`.
        """
        if self._in_vain >= _IN_VAIN:
            return False
        deadline = time.monotonic() + limit_s
        queued = False
        while int(scalar(conn, query("report.wal_waiters"))) >= _QUEUE:
            queued = True
            if time.monotonic() > deadline:
                self._in_vain += 1
                return False
            self._server.rest(_LOOK_S)
        self._in_vain = 0
        return queued
