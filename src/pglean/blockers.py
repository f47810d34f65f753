"""The modes in which tables are locked, and who stands in the way of them.

Who waits ahead counts as well: the server's queue lets nobody pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pglean.session import Connection
from pglean.sql import query


class Mode(StrEnum):
    """The locks that a run takes on the user's table, with what they keep away."""

    #: Readers' lock: keeps TRUNCATE, rewrites and column changes away.
    ACCESS_SHARE = "ACCESS SHARE"
    #: Keeps DDL, VACUUM and index builds away; readers and writers go on.
    SHARE_UPDATE_EXCLUSIVE = "SHARE UPDATE EXCLUSIVE"
    #: Keeps writers and other DDL away; readers go on.
    SHARE_ROW_EXCLUSIVE = "SHARE ROW EXCLUSIVE"
    #: Keeps everybody away.
    ACCESS_EXCLUSIVE = "ACCESS EXCLUSIVE"


#: Modes that conflict with each of ours, as the server's documentation has them.
CONFLICTS: dict[Mode, list[str]] = {
    Mode.ACCESS_SHARE: ["AccessExclusiveLock"],
    Mode.SHARE_UPDATE_EXCLUSIVE: [
        "ShareUpdateExclusiveLock",
        "ShareLock",
        "ShareRowExclusiveLock",
        "ExclusiveLock",
        "AccessExclusiveLock",
    ],
    Mode.SHARE_ROW_EXCLUSIVE: [
        "RowExclusiveLock",
        "ShareUpdateExclusiveLock",
        "ShareLock",
        "ShareRowExclusiveLock",
        "ExclusiveLock",
        "AccessExclusiveLock",
    ],
    Mode.ACCESS_EXCLUSIVE: [
        "AccessShareLock",
        "RowShareLock",
        "RowExclusiveLock",
        "ShareUpdateExclusiveLock",
        "ShareLock",
        "ShareRowExclusiveLock",
        "ExclusiveLock",
        "AccessExclusiveLock",
    ],
}


@dataclass(frozen=True, slots=True)
class Blocker:
    """Who holds, or waits ahead for, a conflicting lock."""

    #: One phrase: who it is, and for how long.
    phrase: str
    #: The name of a prepared transaction, as SQL writes it; None for a session.
    gid: str | None = None
    #: Whether --kill-backend would cancel and terminate it.
    killable: bool = False


def blockers_of(conn: Connection, oid: int, mode: Mode) -> tuple[str, ...]:
    """Who holds, or waits ahead for, a lock on the relation that conflicts with `mode`: one phrase each."""
    return tuple(blocker.phrase for blocker in find_blockers(conn, oid, mode))


def find_blockers(conn: Connection, oid: int, mode: Mode) -> tuple[Blocker, ...]:
    """The same, with what can be done about each."""
    rows = conn.execute(query("locks.blockers"), {"oid": oid, "modes": CONFLICTS[mode]})
    return tuple(Blocker(*row) for row in rows)
