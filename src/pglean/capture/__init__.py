"""Change capture: from a moment on, the key of every row written is recorded in the run's change table.

Of a table without a key the row itself is, as it was and as it is.

The pipeline knows only this protocol. `trigger` records in the transaction that writes; `wal` after its commit, from
what a logical replication slot sends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from psycopg import sql

from pglean.capture.trigger import TriggerCapture
from pglean.capture.wal import WalCapture
from pglean.options import Capture, Options
from pglean.patience import Patience
from pglean.server import Server
from pglean.session import Connection
from pglean.table import Table


class ChangeCapture(Protocol):
    """One way of recording keys in the run's change table."""

    def prepare(self, conn: Connection) -> None:
        """Make what is needed without touching the table. On entry: an open transaction. No lock on the table."""

    def start(self, conn: Connection, patience: Patience, ours: Callable[[], None], identity: Any) -> None:
        """Open what sessions it takes, after `prepare` was committed; with the `identity` of a run, to go on with it.

        On entry and exit: no transaction. `ours` raises where the run has been ended by others.
        Locks: capture from the WAL takes SHARE UPDATE EXCLUSIVE on the table for a moment, and then waits, without any
        lock, until all who are writing anywhere have ended. Raises `LockNotObtained`, `CaptureGap`.
        """

    def close(self) -> None:
        """Close these sessions; may be called again."""

    def switch_on(self, conn: Connection) -> Any:
        """Begin to record; returns the identity of the capture, as JSON.

        On entry: an open transaction with SHARE ROW EXCLUSIVE on the table, so no writer is under way; what they
        write after its commit is recorded.
        """

    def check(self, conn: Connection, identity: Any) -> None:
        """Raise `CaptureGap` where the capture is not, or was at any moment not, what `switch_on` made.

        On entry: an open transaction with a lock on the table. Under ACCESS EXCLUSIVE the answer is final.
        """

    def look(self, conn: Connection, identity: Any) -> None:
        """Raise `CaptureGap` where that can be seen without a lock, and writes of others might fail meanwhile.

        `identity`: None as long as it is not switched on.
        """

    @property
    def lags(self) -> bool:
        """Whether something may be committed, and seen, before it is recorded."""

    @property
    def consumable(self) -> sql.Composable:
        """Condition on a record ``c`` that a refresh has seen: it may be deleted."""

    def pull(self, within_ms: float | None = None, waiting: Callable[[str], None] = lambda _: None) -> None:
        """Wait until everything is in the change table that was committed before this call.

        `waiting` is told, and may raise, where that takes long. Raises `OverBudget` where it takes longer than
        `within_ms`.
        """

    def complete(self, conn: Connection, within_ms: float) -> None:
        """Let the open transaction see the records of all changes that its snapshot sees.

        On entry: REPEATABLE READ, with its snapshot taken. Raises `OverBudget` where it would wait longer than that.
        """

    def switch_off(self, conn: Connection) -> None:
        """Stop recording; nothing to do where it does not record.

        On entry: an open transaction with ACCESS EXCLUSIVE on the table.
        """

    def fits(self, conn: Connection) -> bool:
        """Whether what was recorded so far is the key that the table is now said to have. Takes no lock."""

    def silence(self, conn: Connection) -> None:
        """Make the capture harmless without any lock on the table: nothing is recorded from now on."""


def of(server: Server, table: Table, job_id: int, options: Options) -> ChangeCapture:
    """The one that a run's options name."""
    if options.capture is Capture.WAL:
        return WalCapture(server, table, job_id, options.max_slot_wal_bytes)
    return TriggerCapture(table, job_id)
