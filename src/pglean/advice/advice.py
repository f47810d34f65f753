"""What is told: actions with reason, command, cost and gain, the most urgent first; and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pglean.advice.cost import Cost
from pglean.advice.figures import Vacuum
from pglean.errors import Finding
from pglean.horizon import Holder


class ActionKind(StrEnum):
    """What an action is. Names are stable; scripts may rely on them."""

    FREEZE = "freeze"
    END_HOLDER = "end-holder"
    VACUUM = "vacuum"
    VACUUM_MEMORY = "vacuum-memory"
    AUTOVACUUM = "autovacuum"
    ANALYZE = "analyze"
    REPACK = "repack"
    REPACK_ORDER = "repack-order"
    REINDEX = "reindex"
    #: One that was not built to its end: nobody may use it, and each write has to enter rows.
    INVALID_INDEX = "invalid-index"
    FILLFACTOR = "fillfactor"
    #: Only a hint: whether an index is needed is known by those who made it.
    DROP_INDEX = "drop-index"
    #: Nothing before somebody lets go of the vacuum horizon.
    WAIT = "wait"
    NOTHING = "nothing"


_RANKS = {ActionKind.END_HOLDER: 1, ActionKind.DROP_INDEX: 3, ActionKind.WAIT: 4, ActionKind.NOTHING: 5}
_RANK, _URGENT = 2, 0


@dataclass(frozen=True, slots=True)
class Action:
    """Something that helps; or, of `ActionKind.WAIT` and `ActionKind.NOTHING`, that nothing would, yet or at all."""

    kind: ActionKind
    #: Qualified, quoted where psql would; empty where it is about no table.
    table: str
    #: Why, in figures.
    reason: str
    #: One statement, for psql, where it ends with a semicolon, else a command for a shell; empty where there is none
    #: that may be run as it stands, or it takes several, see `steps`.
    command: str = ""
    cost: Cost = field(default_factory=Cost)
    #: What it gives, in words.
    gain: str = ""
    #: Bytes that it gives back, to the disk or, as VACUUM does, to new rows.
    gain_bytes: int = 0
    #: What should be known beforehand.
    notes: tuple[str, ...] = ()
    #: Bytes at issue: of equally urgent actions those with more come first.
    at_issue_bytes: int = 0
    urgent: bool = False
    #: Where it takes several statements: each of them, to be sent by itself, in this order and in one session.
    steps: tuple[str, ...] = ()

    @property
    def commands(self) -> tuple[str, ...]:
        """What to run, one after the other; empty for nothing."""
        return (self.command,) if self.command else self.steps

    @property
    def rank(self) -> tuple[int, int]:
        """The most urgent first."""
        return _URGENT if self.urgent else _RANKS.get(self.kind, _RANK), -max(self.at_issue_bytes, self.gain_bytes)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "kind": self.kind.value,
            "table": self.table or None,
            "urgent": self.urgent,
            "reason": self.reason,
            "command": self.command or None,
            "commands": list(self.commands),
            "seconds": None if self.cost.seconds is None else round(self.cost.seconds, 1),
            "disk_bytes": self.cost.disk_bytes,
            "locks": self.cost.locks or None,
            "gain": self.gain or None,
            "gain_bytes": self.gain_bytes,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Hold:
    """Who holds the vacuum horizon, and the tables whose dead rows that keeps."""

    holder: Holder
    #: Qualified names with their dead rows, most of them first: of tables that were vacuumed since, to no avail.
    keeps: tuple[tuple[str, int], ...] = ()

    @property
    def dead_rows(self) -> int:
        """Of all these tables."""
        return sum(rows for _, rows in self.keeps)

    def as_json(self, database: str) -> dict[str, Any]:
        """For machines."""
        holder = asdict(self.holder)
        since = self.holder.since
        return {
            **holder,
            "kind": self.holder.kind.value,
            "since": None if since is None else since.isoformat(),
            "phrase": self.holder.phrase,
            "end": self.holder.end(database),
            "command": self.holder.command(database) or None,
            "lasts": self.holder.lasts(),
            "keeps": [{"table": table, "dead_rows": rows} for table, rows in self.keeps],
        }


@dataclass(frozen=True, slots=True)
class Age:
    """A relation, or another database, of which the oldest rows are near the limit of transactions or multixacts."""

    #: Qualified name of the table; of another database ``database …``.
    name: str
    oid: int | None
    #: Whether it is the TOAST table of that.
    toast: bool
    #: transactions or multixacts.
    of: str
    age: int
    #: From this age on autovacuum comes, also where it is switched off.
    limit: int
    #: From this age on VACUUM leaves everything else aside (vacuum_failsafe_age).
    failsafe: int
    bytes: int
    #: Whether a VACUUM of it is running.
    in_vacuum: bool = False
    #: Whether it is temporary: nobody but its session can vacuum it; whose that is, where it is known.
    temporary: bool = False
    pid: int | None = None

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.age / self.limit

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "share": round(self.share, 3)}


@dataclass(frozen=True, slots=True)
class Advice:
    """What was found in a database."""

    database: str
    #: The most urgent first; for tables that were named also that there is nothing to do.
    actions: tuple[Action, ...]
    #: Who holds the vacuum horizon for long, or keeps dead rows; the oldest first.
    holds: tuple[Hold, ...]
    #: From 80 % of their limit on, the oldest first.
    ages: tuple[Age, ...]
    #: Those that are running, of all databases.
    vacuums: tuple[Vacuum, ...]
    #: How many tables were looked at, for how many of them there is nothing to do, and how many nothing is known of.
    looked_at: int
    fine: int
    unknown: int
    #: What is to be said of all of it.
    warnings: tuple[Finding, ...] = ()

    def __iter__(self) -> Iterator[Action]:
        return iter(self.actions)

    def __len__(self) -> int:
        return len(self.actions)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "database": self.database,
            "actions": [action.as_json() for action in self.actions],
            "horizon": [hold.as_json(self.database) for hold in self.holds],
            "ages": [age.as_json() for age in self.ages],
            "vacuums": [
                {**asdict(vacuum), "expected_passes": vacuum.expected_passes, "words": words(vacuum)}
                for vacuum in self.vacuums
            ],
            "looked_at": self.looked_at,
            "nothing_to_do": self.fine,
            "unknown": self.unknown,
            "warnings": [
                {"code": finding.code, "message": finding.message, "hint": finding.hint} for finding in self.warnings
            ],
        }


def words(vacuum: Vacuum) -> str:
    """What a running VACUUM does, for people."""
    who = "autovacuum" if vacuum.automatic else "VACUUM"
    what = vacuum.table or f"a table of database {vacuum.database or '?'}"
    text = f"{who} of {what} (pid {vacuum.pid})"
    if vacuum.to_prevent_wraparound:
        text += ", to prevent wraparound"
    if not vacuum.phase:
        return f"{text}: what it does the role may not see"
    text += f": {vacuum.phase}, {vacuum.scanned:.0%} of the heap scanned"
    if vacuum.phase == "vacuuming indexes" and vacuum.indexes:
        text += f", {vacuum.indexes_done} of {vacuum.indexes} indexes done"
    if vacuum.begun_passes:
        again = f"pass {vacuum.begun_passes} over the indexes"
        text += f"; in {again}" if vacuum.begun_passes > vacuum.passes else f"; {again} done"
    if (share := vacuum.memory_share) is not None and vacuum.phase == "scanning heap":
        text += f"; its memory for dead rows is {share:.0%} full"
    if vacuum.expected_passes > max(vacuum.begun_passes, 1):
        text += f"; {vacuum.expected_passes} passes are to be expected"
    if vacuum.too_little_memory:
        text += "; each pass reads all indexes: with more memory one would do"
    return text
