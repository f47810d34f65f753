"""Old snapshots: what `--mvcc-safe` waits for.

The rows of the shadow bear the transactions that copied them, not those that wrote them. A snapshot from before a copy
or a refresh was committed, still in use after the swap, would see the table without the rows that these brought, or
with such as they replaced. (So it is with every tool of this kind, and with CLUSTER.) A snapshot from after the last
refresh sees what it must see. So the swap is safe when

1. writers are kept away (SHARE ROW EXCLUSIVE; readers go on),
2. the last refresh is done and *committed*, by another session,
3. all transactions that held a snapshot at that moment have ended, or have let go of it, and
4. only then the lock is raised to ACCESS EXCLUSIVE and the files are exchanged.

A writer that came meanwhile waits for our lock with a snapshot of before: he would never be gone. Then everything is
let go at once, and tried again. On a table that is written without a pause there may be no such moment.

A transaction is known by its virtual id. READ COMMITTED lets go of its snapshot with each statement, and its session
shows none in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from pglean.rewrite.run import Run
from pglean.server import Connection
from pglean.sql import query


@dataclass(frozen=True, slots=True)
class Holder:
    """A transaction that holds a snapshot."""

    pid: int
    #: Identifies the transaction as long as it lasts.
    virtual_id: str

    def __str__(self) -> str:
        return f"pid {self.pid}"


def holders(run: Run, conn: Connection) -> dict[Holder, str]:
    """All transactions of others that hold a snapshot now, each with a phrase for people. Takes no lock."""
    ours = [each.info.backend_pid for each in run.server.connections]
    return {
        Holder(pid, virtual_id): phrase
        for pid, virtual_id, phrase in conn.execute(query("snapshots.holders"), {"ours": ours})
    }


def remaining(run: Run, conn: Connection, before: dict[Holder, str]) -> dict[Holder, str]:
    """Those of `before` that hold one still."""
    now = holders(run, conn)
    return {holder: now[holder] for holder in before if holder in now}


def blocked(run: Run, conn: Connection, among: dict[Holder, str]) -> bool:
    """Whether one of these waits for a lock on the table, that is, for us."""
    waiting = {row[0] for row in conn.execute(query("snapshots.waiting_for"), {"oid": run.table.oid})}
    return any(holder.pid in waiting for holder in among)
