"""Who holds the vacuum horizon: how far back anybody can see, and so what is dead and may not go yet.

VACUUM removes a dead row version only if no transaction is left that could see it. Sessions with an open transaction,
prepared transactions, replication slots and standbys with `hot_standby_feedback` hold back what died since they began.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import StrEnum

from psycopg import sql

from pglean.foreign import rows
from pglean.server import Connection, scalar
from pglean.sql import query
from pglean.table import quote_name

#: From when on somebody is told to hold it, by age in seconds or in transactions.
LONG_S, LONG_TRANSACTIONS = 300.0, 100_000

#: From these versions on, each within its major version, a slot that the server has invalidated holds nothing any more.
_INVALID_SLOTS_LET_GO = {14: 140007, 15: 150002}


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

    @property
    def end(self) -> str:
        """What ends it: a statement, or a sentence with one."""
        if self.kind is Holding.PREPARED:
            gid = _literal(self.name)
            return f"COMMIT PREPARED {gid}; or ROLLBACK PREPARED {gid};"
        if self.kind is Holding.SESSION:
            return f"SELECT pg_terminate_backend({self.pid});"
        there = "end what has long been open on the standby, or set hot_standby_feedback = off there"
        if self.kind is Holding.STANDBY:
            return there
        reader = "standby" if self.state == "physical" else "subscriber"
        if not self.active:
            return f"start the {reader} that uses it, or SELECT pg_drop_replication_slot({_literal(self.name)});"
        if self.state == "physical":
            return there.replace("the standby", "the standby that uses it", 1)
        return "let the subscriber that uses it confirm what it has received"

    def ends(self, database: str) -> str:
        """`end`, with where that must be done, if not in this database."""
        elsewhere = self.kind is Holding.PREPARED and self.database not in (None, database)
        return f"{self.end} in database {quote_name(self.database or '')}" if elsewhere else self.end

    def lasts(self, long_s: float = LONG_S) -> bool:
        """Whether it has lasted for long."""
        return self.age_transactions > LONG_TRANSACTIONS if self.open_s is None else self.open_s > long_s


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
