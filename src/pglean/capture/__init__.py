"""Change capture: from a moment on, the key of every row written is recorded with the transaction that writes it.

The pipeline knows only this protocol; `trigger` is the one implementation so far.
"""

from __future__ import annotations

from typing import Any, Protocol

from pglean.server import Connection


class ChangeCapture(Protocol):
    """One way of recording keys in the run's change table."""

    def prepare(self, conn: Connection) -> None:
        """Make what is needed without touching the table. On entry: an open transaction. No lock on the table."""

    def switch_on(self, conn: Connection) -> Any:
        """Begin to record; returns the identity of the capture, as JSON.

        On entry: an open transaction with SHARE ROW EXCLUSIVE on the table, so no writer is under way; what they
        write after its commit is recorded.
        """

    def check(self, conn: Connection, identity: Any) -> None:
        """Raise `CaptureGap` where the capture is not, or was at any moment not, what `switch_on` made.

        On entry: an open transaction with a lock on the table. Under ACCESS EXCLUSIVE the answer is final.
        """

    def switch_off(self, conn: Connection) -> None:
        """Stop recording; nothing to do where it does not record.

        On entry: an open transaction with ACCESS EXCLUSIVE on the table.
        """

    def is_on(self, conn: Connection) -> bool:
        """Whether there is anything for `switch_off` to do."""

    def fits(self, conn: Connection) -> bool:
        """Whether what was recorded so far is the key that the table is now said to have. Takes no lock."""

    def silence(self, conn: Connection) -> None:
        """Make the capture harmless without any lock on the table: nothing is recorded from now on."""
