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

What is seen of a snapshot is its xmin, which its session publishes while it excludes commits: there is none that is
taken and not yet to be seen. Three cases:

* Its xmin is not below the next transaction id of the moment: it sees everything; whose it is, is of no matter.
* It is below, and the transaction (by its virtual id) was there at that moment: it is waited for, until it has ended,
  or let go: READ COMMITTED does with each statement, and its session shows none in between.
* It is below, and the transaction came later. A long writer anywhere makes the xmin of all snapshots old, also of those
  that see everything. Of these nobody need wait for any, unless it was not taken but given (SET TRANSACTION SNAPSHOT:
  pg_dump -j, subscriptions): it is older than any that can be taken now, or somebody waited for has given his away.

Snapshots on a standby are not seen here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pglean.rewrite.run import Run
from pglean.session import Connection, scalar
from pglean.sql import query


@dataclass(frozen=True, slots=True)
class Holder:
    """A transaction that holds a snapshot."""

    pid: int
    #: Identifies the transaction as long as it lasts.
    virtual_id: str


class Older:
    """The snapshots that may not see what was committed when this object was made. Takes no lock."""

    def __init__(self, run: Run, conn: Connection) -> None:
        """`conn`: idle, or in a READ COMMITTED transaction."""
        self._run, self._conn = run, conn
        self._xmin, self._xmax = conn.execute(query("snapshots.bounds")).fetchone() or ("", "")
        self._given = False
        self._left: set[Holder] | None = None

    def left(self) -> dict[Holder, str]:
        """The transactions that hold one still, each with a phrase for people."""
        self._conn.execute(query("snapshots.fresh"))
        parameters = {
            "xmin": self._xmin,
            "xmax": self._xmax,
            "ours": [each.info.backend_pid for each in self._run.server.connections],
        }
        found: dict[Holder, str] = {}
        given = False
        for pid, virtual_id, phrase, before, gives in self._conn.execute(query("snapshots.holders"), parameters):
            holder = Holder(pid, virtual_id)
            if self._left is None or holder in self._left or before or self._given:
                found[holder] = phrase
                given = given or gives
        # Who gives his away may have ended before the next look, at which the other one is new.
        self._given = self._given or given
        self._left = set(found)
        return found


def pressing(run: Run, conn: Connection, among: dict[Holder, str]) -> bool:
    """Whether one of these waits for a lock on the table, that is, for us; or DDL, which readers then wait behind."""
    pids = [holder.pid for holder in among]
    return bool(scalar(conn, query("snapshots.pressing"), {"oid": run.table.oid, "pids": pids}))


def circle(run: Run, conn: Connection) -> bool:
    """Whether somebody whom a stronger lock would have to wait for waits for this session."""
    return bool(scalar(conn, query("snapshots.circle"), {"oid": run.table.oid}))


def undecided(run: Run, conn: Connection) -> bool:
    """Whether somebody has a lock on the table whose transaction is of more than one statement: he may yet write.

    Single statements must be told from them: on a table that is read all the time only the lock's queue stops readers.
    """
    conn.execute(query("snapshots.fresh"))
    return bool(scalar(conn, query("snapshots.undecided"), {"oid": run.table.oid}))
