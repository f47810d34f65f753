"""Which tables are looked at, and what is told of them."""

from __future__ import annotations

import datetime
import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pglean import horizon
from pglean.advice import cost, dropping, rewriting, statistics, vacuuming
from pglean.advice.advice import Action, ActionKind, Advice, Hold
from pglean.advice.figures import Case, Settings, Vacuum
from pglean.advice.statistics import Figures
from pglean.bloat import survey as bloat
from pglean.bloat.finding import Bloat
from pglean.disk import bytes_text
from pglean.errors import Finding, UsageError
from pglean.horizon import Holder, Holding
from pglean.server import Server
from pglean.session import Connection

#: Gains that are smaller are not worth an action, where nothing else is said.
MIN_GAIN_BYTES = 8 << 20
#: What a VACUUM might not remove is told of transactions that have been open for so long.
_OPEN_S = 60.0
_ELSEWHERE = "this server is a standby, where nothing can be done: ask pglean advise on the primary"
_ALWAYS = datetime.datetime.min.replace(tzinfo=datetime.UTC)

#: Notes of a heap of which ANALYZE would tell more; until it has, these are not advised.
_MISSING = ("no statistics: ", "no statistics of ")
_BY_STATISTICS = (ActionKind.REPACK, ActionKind.REPACK_ORDER, ActionKind.REINDEX, ActionKind.DROP_INDEX)

_RULES: tuple[Callable[[Case], Iterator[Action]], ...] = (
    vacuuming.vacuum,
    vacuuming.memory,
    vacuuming.autovacuum,
    rewriting.repack,
    rewriting.reindex,
    rewriting.fillfactor,
    dropping.invalid,
    dropping.drop,
)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. Raises `UsageError` where a value makes no sense."""

    #: How tables are looked at, and which ones; `min_bytes` leaves out smaller ones.
    bloat: bloat.Request
    #: Gains that are smaller are not worth an action.
    min_gain_bytes: int = MIN_GAIN_BYTES
    #: So many actions at the most.
    top: int | None = None

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise UsageError(f"invalid value for option --top: {self.top}", hint="Give a number from 1 on.")
        if self.min_gain_bytes < 0:
            raise UsageError("invalid value for option --min-gain: it is negative")

    @property
    def restricted(self) -> bool:
        """Whether tables or schemas are named."""
        return bool(self.bloat.tables or self.bloat.schemas)


def look(server: Server, conn: Connection, request: Request, on_table: bloat.Callback) -> Advice:
    """Look at the tables that are meant, and at what stands in the way.

    Locks: those of `bloat.survey.look`, no others. Raises what that raises.
    """
    found = bloat.look(server, conn, request.bloat, on_table)
    server.check()
    settings = statistics.settings(server, conn)
    figures = statistics.read(server, conn, found.tables)
    vacuums = statistics.vacuums(conn, settings.block_bytes)
    ages = statistics.ages(conn, [table.oid for table in found] if request.restricted else None, vacuums)
    standby = server.capabilities.in_recovery
    holders = [] if standby else [holder for holder in horizon.holders(conn) if holder.age_transactions > 0]
    cases = _cases(found, figures, settings, holders, vacuums, request.min_gain_bytes)
    holds = _holds(cases, holders, request.min_gain_bytes)
    actions = [*_of_all(settings), *_of_holds(holds, cases, settings, request.min_gain_bytes)]
    oldest = next((hold for hold in holds if not hold.holder.catalogs_only), None)
    actions += vacuuming.freezing(ages, oldest)
    freezing = {action.table for action in actions}
    held = [hold.holder for hold in holds]
    telling = [holder for holder in holders if holder in held or holder.lasts(_OPEN_S)]
    fine = unknown = 0
    for case in cases:
        own = list(_of_table(case, vacuums, telling))
        if not own and case.name not in freezing:
            nothing = _nothing(case)
            fine += nothing.kind is ActionKind.NOTHING and case.bloat.heap.known
            unknown += not case.bloat.heap.known
            own = [nothing] if request.bloat.tables else []
        actions += own
    if standby:
        actions = [replace(action, command="", steps=(), notes=(*action.notes, _ELSEWHERE)) for action in actions]
    actions.sort(key=lambda action: action.rank)
    return Advice(
        database=settings.database,
        actions=tuple(actions[: request.top]),
        holds=tuple(holds),
        ages=ages,
        vacuums=vacuums,
        looked_at=len(cases),
        fine=fine,
        unknown=unknown,
        warnings=tuple(_warnings(server, conn, found, holders)),
    )


# ---- cases


def _cases(
    found: Bloat,
    figures: Figures,
    settings: Settings,
    holders: Sequence[Holder],
    vacuums: Sequence[Vacuum],
    min_gain_bytes: int,
) -> list[Case]:
    running = {vacuum.oid for vacuum in vacuums}
    keepers = _keepers(holders)
    cases = []
    for table in found:
        # What was dropped meanwhile has none.
        if (activity := figures.activities.get(table.oid)) is None:
            continue
        case = Case(
            bloat=table,
            activity=activity.within(table.heap.bytes),
            indexes=figures.indexes.get(table.oid, ()),
            settings=settings,
            min_gain_bytes=min_gain_bytes,
            in_vacuum=table.oid in running,
        )
        began = vacuuming.began(case) if activity.dead_rows else None
        keeper = None if began is None else next((holder for since, holder in keepers if since <= began), None)
        cases.append(case if keeper is None else replace(case, kept_by=keeper.phrase))
    return cases


def _since(holder: Holder) -> datetime.datetime | None:
    """From when on this one certainly keeps what a VACUUM that began then has left; None where nothing is certain.

    What VACUUM has left since, it could not remove; and what has died afterwards, he can see, too. Where it is not
    known since when he holds, as of most slots, then only of those that are far behind, or of slots that nobody uses.
    """
    if holder.catalogs_only:
        return None
    if holder.since is not None:
        return holder.since
    far = holder.age_transactions > horizon.LONG_TRANSACTIONS
    return _ALWAYS if far or (holder.kind is Holding.SLOT and not holder.active) else None


def _keepers(holders: Sequence[Holder]) -> list[tuple[datetime.datetime, Holder]]:
    """Those that can be the first to keep the rows of a table: each has held for longer than all before."""
    keepers: list[tuple[datetime.datetime, Holder]] = []
    for holder in holders:
        since = _since(holder)
        if since is not None and (not keepers or since < keepers[-1][0]):
            keepers.append((since, holder))
    return keepers


def _holds(cases: Sequence[Case], holders: Sequence[Holder], min_gain_bytes: int) -> list[Hold]:
    # The last vacuumed first: each holder keeps the dead rows of the first few. There may be many of both.
    dead = [(began, case) for case in cases if case.activity.dead_rows and (began := vacuuming.began(case))]
    dead.sort(key=lambda one: one[0], reverse=True)
    times = [-began.timestamp() for began, _ in dead]
    sums = list(itertools.accumulate((case.dead_bytes for _, case in dead), initial=0))
    holds = []
    for holder in holders:
        since = _since(holder)
        count = 0 if since is None else len(dead) if since == _ALWAYS else bisect_right(times, -since.timestamp())
        if holder.lasts() or (count and sums[count] >= min_gain_bytes):
            kept = sorted((case for _, case in dead[:count]), key=lambda case: -case.activity.dead_rows)
            holds.append(Hold(holder, tuple((case.name, int(case.activity.dead_rows)) for case in kept)))
    return holds


# ---- actions


def _of_all(settings: Settings) -> Iterator[Action]:
    if not settings.autovacuum:
        yield Action(
            ActionKind.AUTOVACUUM,
            "",
            "autovacuum does not run on this server: dead rows stay, and statistics get old"
            " (it needs the settings autovacuum and track_counts)",
            gain="tables are vacuumed and analyzed by themselves",
            urgent=True,
            steps=("ALTER SYSTEM SET autovacuum = on;", "ALTER SYSTEM SET track_counts = on;", vacuuming.RELOAD),
        )


def _of_holds(
    holds: Sequence[Hold], cases: Sequence[Case], settings: Settings, min_gain_bytes: int
) -> Iterator[Action]:
    sizes = {case.name: case.dead_bytes for case in cases}
    for hold in holds:
        kept = sum(sizes[name] for name, _ in hold.keeps)
        # The snapshot of whoever has just begun is as old as the oldest transaction: that one is to be ended.
        far = hold.holder.lasts() and hold.holder.age_transactions > horizon.LONG_TRANSACTIONS
        if kept >= max(min_gain_bytes, 1) or far:
            yield vacuuming.ended(hold, settings.database, kept)


def _of_table(case: Case, vacuums: Sequence[Vacuum], holders: Sequence[Holder]) -> Iterator[Action]:
    for running in vacuums:
        if running.oid == case.bloat.oid:
            yield from vacuuming.seen(case, running)
    heap = case.bloat.heap
    missing = [note for note in heap.notes if note.startswith(_MISSING)]
    for rule in _RULES:
        for action in rule(case):
            if not (missing and action.kind in _BY_STATISTICS):
                yield _noting(action, holders) if action.kind is ActionKind.VACUUM else action
    if missing and case.bloat.bytes >= case.min_gain_bytes:
        yield Action(
            ActionKind.ANALYZE,
            case.name,
            f"nothing is known of its {bytes_text(case.bloat.bytes)}: {missing[0]}",
            f"ANALYZE {case.name};",
            cost.of_analyze(heap.bytes, case.settings.block_bytes),
            "then pglean advise can tell",
            at_issue_bytes=case.bloat.bytes,
        )


def _noting(action: Action, holders: Sequence[Holder]) -> Action:
    """What of the dead rows may have to stay, by those who have held the horizon for a while."""
    oldest = next((holder for holder in holders if not holder.catalogs_only), None)
    if oldest is None:
        return action
    note = f"what has died since the horizon is held by {oldest.phrase} stays until that ends"
    return replace(action, notes=(*action.notes, note))


def _nothing(case: Case) -> Action:
    table, activity = case.bloat, case.activity
    if not table.heap.known:
        return Action(ActionKind.NOTHING, case.name, f"nothing is known: {'; '.join(table.heap.notes)}")
    reason = (
        f"of {bytes_text(table.bytes)} a repack would give back {bytes_text(table.gain_bytes)} ({table.bloat:.0%},"
        f" method: {table.method})"
    )
    if used_again := min(case.churn_bytes, table.gain_bytes):
        reason += f", and {bytes_text(used_again)} of it are what dies between two autovacuums and is used again"
    reason += f"; {activity.dead_rows:,.0f} rows are dead"
    if case.kept_by is not None:
        reason += f", which cannot be removed yet: the horizon is held by {case.kept_by}"
    waits = case.kept_by is not None and case.dead_bytes >= max(case.min_gain_bytes, 1)
    return Action(ActionKind.WAIT if waits else ActionKind.NOTHING, case.name, reason)


def _warnings(server: Server, conn: Connection, found: Bloat, holders: Sequence[Holder]) -> Iterator[Finding]:
    yield from found.warnings
    if server.capabilities.in_recovery:
        yield Finding(
            "standby",
            "the server is a standby: it counts nothing of what is written, and only its own use of indexes",
            None,
            "Ask the primary, and here about indexes only.",
            fatal=False,
        )
    if hidden := horizon.hidden(conn):
        yield Finding(
            "hidden-sessions",
            f"{hidden:,} session{'s' if hidden > 1 else ''} of other roles cannot be seen: whether the vacuum horizon"
            " is held there is not known",
            None,
            f"GRANT pg_read_all_stats TO {server.capabilities.role}; lets the role see them.",
            fatal=False,
        )
