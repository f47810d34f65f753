"""Who holds the vacuum horizon: how far back anybody can see, and so what is dead and may not go yet.

VACUUM removes a dead row version only if no transaction is left that could see it. Sessions with an open transaction,
prepared transactions, replication slots and standbys with `hot_standby_feedback` hold back what died since they began.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from enum import StrEnum

from psycopg import sql

from pglean.foreign import rows
from pglean.session import Connection, scalar
from pglean.sql import query
from pglean.table import quote_name

#: From when on somebody is told to hold it, by age in seconds or in transactions.
LONG_S, LONG_TRANSACTIONS = 300.0, 100_000

#: From these versions on, each within its major version, a slot that the server has invalidated holds nothing any more.
_INVALID_SLOTS_LET_GO = {14: 140007, 15: 150002}
_BUILDS_INDEX = re.compile(r"\s*(CREATE\s+(UNIQUE\s+)?INDEX|REINDEX\b.*)\s+CONCURRENTLY\b", re.IGNORECASE | re.DOTALL)


class Holding(StrEnum):
    """What holds it."""

    SESSION = "session"
    PREPARED = "prepared transaction"
    SLOT = "replication slot"
    #: One that tells its oldest snapshot (`hot_standby_feedback`), and uses no slot.
    STANDBY = "standby"


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who holds the horizon, for longer or shorter."""

    kind: Holding
    #: Of its session; of a slot, where somebody uses it; None where there is none.
    pid: int | None
    #: Of a prepared transaction or a slot; else empty.
    name: str
    #: Whom it belongs to; the kind of process where it is none of a role; None for slots.
    role: str | None
    application_name: str
    database: str | None
    #: Of a session as in pg_stat_activity (``idle in transaction``); of a slot ``physical`` or ``logical``.
    state: str
    #: What a session runs, or ran last.
    query: str | None
    #: How many transactions were begun since.
    age_transactions: int
    #: When it held already; None where that is not known, as of most slots. It may have begun earlier.
    since: datetime.datetime | None
    open_s: float | None
    #: Of a slot: whether somebody uses it.
    active: bool
    #: Of a logical slot: only rows of the system catalogs are held.
    catalogs_only: bool
    #: Of a session: the kind of process, as in pg_stat_activity.
    backend_type: str = ""

    @property
    def phrase(self) -> str:
        """Who it is, for people."""
        behind = f"{self.age_transactions} transactions behind"
        if self.kind is Holding.PREPARED:
            return f"prepared transaction {_literal(self.name)} of {self.role}, prepared {self._open} ago"
        if self.kind is Holding.SLOT:
            what = f"{'system catalogs only, ' if self.catalogs_only else ''}{behind}"
            return f"replication slot {quote_name(self.name)} ({what})"
        if self.kind is Holding.STANDBY:
            named = f" {quote_name(self.application_name)}" if self.application_name else ""
            return f"standby{named} (hot_standby_feedback, pid {self.pid}, {behind})"
        parts = [self.role or "?", self.application_name, self.state, f"transaction open for {self._open}"]
        return f"pid {self.pid} ({', '.join(part for part in parts if part)})"

    @property
    def _open(self) -> str:
        return str(datetime.timedelta(seconds=int(self.open_s or 0)))

    def end(self, database: str) -> str:
        """What ends it, for people in this database: a statement, or a sentence with the choices there are."""
        if self.kind is Holding.PREPARED:
            gid = _literal(self.name)
            return f"COMMIT PREPARED {gid} or ROLLBACK PREPARED {gid}{self._elsewhere(database)}"
        if self.kind is Holding.SESSION:
            return self.command(database) or self._patience or f"end its transaction{self._elsewhere(database)}"
        there = "end what has long been open on the standby, or set hot_standby_feedback = off there"
        if self.kind is Holding.STANDBY:
            return there
        if not self.active:
            return f"start the {self.reader} that uses it, or SELECT pg_drop_replication_slot({_literal(self.name)})"
        if self.state == "physical":
            return there.replace("the standby", "the standby that uses it", 1)
        return "let the subscriber that uses it confirm what it has received"

    def command(self, database: str) -> str:
        """The statement that ends it; empty where it is to be decided which, or that is to be done elsewhere."""
        ours = self.kind is Holding.SESSION and self.database in (None, database)
        return f"SELECT pg_terminate_backend({self.pid});" if ours and not self._patience else ""

    @property
    def caution(self) -> str:
        """What should be known before it is ended; empty where that is all in `end`."""
        if self.kind is Holding.PREPARED:
            return (
                "ask the transaction manager first whether it commits: it has prepared the transaction in other"
                " databases as well, perhaps, and in all of them it must end in the same way"
            )
        if self.kind is Holding.SLOT and not self.active:
            return f"the {self.reader} of a slot that is dropped has to be built anew"
        ends = self.kind is Holding.SESSION and not self._patience
        return "look first whose it is: what was not committed is lost" if ends else ""

    @property
    def reader(self) -> str:
        """Who uses a slot."""
        return "standby" if self.state == "physical" else "subscriber"

    @property
    def _patience(self) -> str:
        """Of sessions that are better waited for: what to do."""
        if self.kind is not Holding.SESSION:
            return ""
        if self.backend_type == "autovacuum worker":
            return "wait until autovacuum is done there: it would come again"
        if self.application_name.startswith("pglean "):
            return "wait until that run of pglean is done; pglean status tells how far it is"
        if self.application_name in ("pg_dump", "pg_dumpall"):
            return "wait until the dump is done: what there is of it is of no use"
        if self.state == "active" and _BUILDS_INDEX.match(self.query or ""):
            return "wait until the index is built: what has been built would be left invalid, and cost each write"
        return ""

    def _elsewhere(self, database: str) -> str:
        return "" if self.database in (None, database) else f" in database {quote_name(self.database or '')}"

    def lasts(self, long_s: float | None = None) -> bool:
        """Whether it has lasted for long, or for so many seconds."""
        return (
            self.age_transactions > LONG_TRANSACTIONS
            if self.open_s is None
            else self.open_s > (LONG_S if long_s is None else long_s)
        )


def holders(conn: Connection) -> list[Holder]:
    """All who hold it now, the oldest first; this session is not among them. Takes no lock.

    Of sessions that the role may not look at there is none; see `hidden`.
    """
    version = conn.info.server_version
    lost_count = version < _INVALID_SLOTS_LET_GO.get(version // 10000, 0)
    found = [
        Holder(Holding(kind), *others)
        for kind, *others, lost in rows(conn, query("horizon.holders"))
        if lost_count or not lost
    ]
    return sorted(found, key=lambda holder: (holder.catalogs_only, -holder.age_transactions, -(holder.open_s or 0)))


def hidden(conn: Connection) -> int:
    """How many sessions the role may not look at."""
    return int(scalar(conn, query("horizon.hidden")) or 0)


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None)
