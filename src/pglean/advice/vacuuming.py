"""Rules about VACUUM: what it could remove now, with which memory, when autovacuum comes, and freezing."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence

from pglean.advice import cost
from pglean.advice.advice import Action, ActionKind, Age, Hold
from pglean.advice.cost import Cost
from pglean.advice.figures import DEAD_ROW_BYTES, LAST_WITH_ARRAY, MOST_MEMORY_BYTES, Case, Vacuum
from pglean.disk import bytes_text

#: From this share of dead rows on VACUUM is advised, whether autovacuum is due or not.
_DEAD_SHARE = 0.2
#: What a table that grows is set to, and from how many dead rows on autovacuum is taken to come late.
_SCALE_FACTOR, _LATE_ROWS = 0.02, 100_000
#: From this share of free and dead bytes on autovacuum came too late, if it could have come earlier.
_LATE_SHARE = 0.2
#: Transactions in units of its limit, from which on autovacuum evidently does not manage.
_OVERDUE = 1.5
#: What comes in the end, three million before the numbers would mean something else.
_END = {
    "transactions": "at 2,144,000,000 the server takes no writes",
    "multixacts": "at 2,144,000,000 the server makes no new ones: row locks that several share fail",
}
_MB = 1 << 20
#: More memory than that is not advised from 17 on; before that the server itself uses no more than it does.
_MOST_ADVISED_BYTES = 4 << 30
#: Ten times what the server comes with: 400 MB/s of pages that are written, at a delay of 2 ms.
_COST_LIMIT = 2000
#: By which settings of the server take effect.
RELOAD = "SELECT pg_reload_conf();"
_EACH = "each of autovacuum's {} workers may take as much"


def vacuum(case: Case) -> Iterator[Action]:
    """Dead rows that can go now."""
    activity, dead = case.activity, case.dead_bytes
    much = activity.dead_rows > case.threshold or case.dead_share >= _DEAD_SHARE
    if not much or dead < case.min_gain_bytes or case.kept_by is not None or case.in_vacuum:
        return
    passes = _passes(case, case.settings.maintenance_bytes)
    notes = []
    if case.autovacuumed and activity.dead_rows > case.threshold:
        notes.append("autovacuum is due, and will do it by itself, with rests, when a worker is free")
    yield Action(
        ActionKind.VACUUM,
        case.name,
        f"{_dead(case)}, {bytes_text(dead)}; {_last(case)}",
        f"VACUUM {case.name};",
        cost.of_vacuum(_unseen_bytes(case), _indexes_bytes(case), passes),
        f"{bytes_text(dead)} for new rows; the file stays as large",
        dead,
        tuple(notes),
    )


def memory(case: Case) -> Iterator[Action]:
    """More than one pass over the indexes, predicted from the dead rows.

    Up to PostgreSQL 16 each takes six bytes. From 17 on a compressed set is used, of which so much is known that it is
    a fraction of that, but not which: there more than one pass is told only where it is seen (`seen`).
    """
    needed = int(case.activity.dead_rows * DEAD_ROW_BYTES)
    by_hand, by_itself = case.settings.maintenance_bytes, case.settings.autovacuum_bytes
    if case.settings.version > LAST_WITH_ARRAY or not case.bloat.indexes:
        return
    smaller = min(by_hand, by_itself) if case.autovacuumed else by_hand
    passes, wanted = _passes(case, smaller), min(_memory(needed), MOST_MEMORY_BYTES)
    fewer = _passes(case, wanted)
    if fewer >= passes:
        return
    notes = []
    if _passes(case, by_hand) > fewer:
        steps = _with_memory(case, wanted)
        notes.append("for autovacuum: autovacuum_work_mem")
    else:
        # By hand it is enough.
        steps = _for_autovacuum(wanted)
        notes.append(_EACH.format(case.settings.autovacuum_workers))
    yield Action(
        ActionKind.VACUUM_MEMORY,
        case.name,
        f"{case.activity.dead_rows:,.0f} dead rows need {bytes_text(needed)} of memory (six bytes each):"
        f" with maintenance_work_mem = {bytes_text(by_hand)}, and {bytes_text(by_itself)} for autovacuum,"
        f" up to {passes} passes over {bytes_text(_indexes_bytes(case))} of indexes",
        cost=cost.of_vacuum(_unseen_bytes(case), _indexes_bytes(case), fewer),
        gain=f"{passes - fewer} passes less",
        notes=tuple(notes),
        at_issue_bytes=_indexes_bytes(case),
        steps=steps,
    )


def seen(case: Case, running: Vacuum) -> Iterator[Action]:
    """More than one pass over the indexes, seen of a VACUUM that is running: by the memory that it has itself."""
    if not running.too_little_memory:
        return
    setting = "autovacuum_work_mem" if running.automatic else "maintenance_work_mem"
    configured = case.settings.autovacuum_bytes if running.automatic else case.settings.maintenance_bytes
    has = running.memory_bytes or configured
    passes = max(running.expected_passes, running.begun_passes, 2)
    most = MOST_MEMORY_BYTES if case.settings.version <= LAST_WITH_ARRAY else _MOST_ADVISED_BYTES
    wanted = min(_memory(has * passes), most)
    fewer = math.ceil(passes * has / wanted)
    if fewer >= passes:
        return
    notes = ["it takes effect with the next VACUUM"]
    command, steps = "", _for_autovacuum(wanted) if running.automatic else _with_memory(case, wanted)
    if running.automatic:
        notes.append(_EACH.format(case.settings.autovacuum_workers))
    if configured >= wanted:
        # Nothing is to be raised here: its session has set less, or it began before.
        command, steps = ("", ()) if running.automatic else (f"VACUUM {case.name};", ())
        notes.append(f"{setting} is {bytes_text(configured)} by now: that session has less, or it began before")
    yield Action(
        ActionKind.VACUUM_MEMORY,
        case.name,
        f"the VACUUM that is running (pid {running.pid}) is at pass {max(running.begun_passes, 2)} over"
        f" {bytes_text(_indexes_bytes(case))} of indexes, with {bytes_text(has)} of memory for dead rows ({setting})",
        command,
        gain="one pass is enough" if fewer == 1 else f"about {fewer} passes instead of {passes}",
        notes=tuple(notes),
        at_issue_bytes=_indexes_bytes(case),
        steps=steps,
    )


def _with_memory(case: Case, wanted: int) -> tuple[str, ...]:
    return f"SET maintenance_work_mem = '{wanted // _MB}MB';", f"VACUUM {case.name};"


def _for_autovacuum(wanted: int) -> tuple[str, ...]:
    return f"ALTER SYSTEM SET autovacuum_work_mem = '{wanted // _MB}MB';", RELOAD


def autovacuum(case: Case) -> Iterator[Action]:
    """It is off, it came too late, or no worker is free."""
    activity, heap = case.activity, case.bloat.heap
    # Those of the server cannot be altered.
    if case.system or heap.bytes < case.min_gain_bytes or not activity.updated + activity.deleted:
        return
    if case.switched_off:
        yield Action(
            ActionKind.AUTOVACUUM,
            case.name,
            f"autovacuum is switched off for this table; {_dead(case)}; {_last(case)}",
            f"ALTER TABLE {case.name} RESET (autovacuum_enabled);",
            Cost(locks=cost.SET_LOCKS),
            "dead rows are removed by themselves",
            at_issue_bytes=case.dead_bytes,
        )
        return
    free = heap.free_bytes or 0
    late = free + case.dead_bytes >= _LATE_SHARE * heap.bytes and free + case.dead_bytes >= case.min_gain_bytes
    if not case.settings.autovacuum or case.kept_by is not None or not late:
        # That it is off for all is told once, for all.
        return
    if case.threshold >= _LATE_ROWS and case.scale_factor > _SCALE_FACTOR and activity.dead_rows <= case.threshold:
        yield Action(
            ActionKind.AUTOVACUUM,
            case.name,
            f"autovacuum comes only when {case.base_threshold:,.0f} + {case.scale_factor:g} * {case.rows:,.0f} rows,"
            f" {case.threshold:,.0f} ({bytes_text(case.churn_bytes)}), are dead; {activity.dead_rows:,.0f} are,"
            f" {bytes_text(free)} are free; {_last(case)}",
            f"ALTER TABLE {case.name} SET (autovacuum_vacuum_scale_factor = {_SCALE_FACTOR});",
            Cost(locks=cost.SET_LOCKS),
            f"it comes after {case.base_threshold + _SCALE_FACTOR * case.rows:,.0f} dead rows, more often and for a"
            " shorter time",
            at_issue_bytes=case.churn_bytes,
        )
    workers = case.settings.autovacuum_workers
    if activity.dead_rows > case.threshold and not case.in_vacuum and case.settings.busy_workers >= workers:
        yield _workers_are_busy(case)


def _workers_are_busy(case: Case) -> Action:
    settings, dead = case.settings, case.activity.dead_rows
    raises = settings.cost_delay_ms > 0 and settings.cost_limit < _COST_LIMIT
    if settings.cost_delay_ms <= 0:
        note = "they do not rest: more of them (autovacuum_max_workers) get more done, if the disks can bear it"
    elif raises:
        note = "more workers (autovacuum_max_workers) share the same limit, and do not work faster in all"
    else:
        note = (
            f"they may do {settings.cost_limit:,} all together (autovacuum_vacuum_cost_limit) before they rest for"
            f" {settings.cost_delay_ms:g} ms: see whether the disks can bear more"
        )
    return Action(
        ActionKind.AUTOVACUUM,
        case.name,
        f"autovacuum is due since {case.threshold:,.0f} dead rows, {dead:,.0f} are dead, and all of"
        f" its {settings.autovacuum_workers} workers are busy elsewhere; {_last(case)}",
        gain="workers rest less and are done sooner" if raises else "",
        notes=(note,),
        at_issue_bytes=case.dead_bytes,
        steps=(f"ALTER SYSTEM SET autovacuum_vacuum_cost_limit = {_COST_LIMIT};", RELOAD) if raises else (),
    )


def ended(hold: Hold, database: str, row_bytes: int) -> Action:
    """Somebody holds the horizon: what that keeps, and how it is ended. `row_bytes`: what the dead rows take."""
    holder = hold.holder
    reason = f"the vacuum horizon is held by {holder.phrase}"
    if holder.database not in (None, database):
        reason += f", of database {holder.database}"
    if hold.keeps:
        most = ", ".join(f"{table} ({rows:,})" for table, rows in hold.keeps[:3])
        reason += f"; VACUUM has been at {len(hold.keeps):,} table{'s' if len(hold.keeps) > 1 else ''} since,"
        reason += f" and their dead rows are still there: {most}{' …' if len(hold.keeps) > 3 else ''}"
    elif not holder.catalogs_only:
        reason += f"; what has died in the last {holder.age_transactions:,} transactions may have to stay"
    command = holder.command(database)
    if not command:
        reason += f"; to end it: {holder.end(database)}"
    if holder.query:
        reason += f"; its query: {' '.join(holder.query.split())[:200]}"
    return Action(
        ActionKind.END_HOLDER,
        "",
        reason,
        command,
        Cost(),
        f"up to {hold.dead_rows:,} dead rows can be removed, by the next VACUUM" if hold.keeps else "",
        row_bytes,
        (holder.caution,) if holder.caution else (),
        row_bytes,
    )


def freezing(ages: Sequence[Age], oldest: Hold | None) -> Iterator[Action]:
    """Tables whose oldest rows have passed the limit from which on autovacuum comes to freeze them."""
    for age in ages:
        if age.oid is None or age.share < 1 or age.in_vacuum:
            continue
        if age.temporary:
            yield _of_session(age)
            continue
        notes = []
        # Whom they are newer than, multixacts do not tell.
        if age.of == "transactions" and oldest is not None and oldest.holder.age_transactions >= age.limit:
            notes.append(f"nothing newer can be frozen while the horizon is held by {oldest.holder.phrase}")
        part = "its TOAST table" if age.toast else "it"
        yield Action(
            ActionKind.FREEZE,
            age.name,
            f"the oldest row of {part} is {age.age:,} {age.of} old; from {age.limit:,} on autovacuum comes to freeze,"
            f" from {age.failsafe:,} on it leaves all else aside, and {_END[age.of]}",
            f"VACUUM (FREEZE) {age.name};",
            cost.of_vacuum(age.bytes, 0, 0),
            "no VACUUM that comes at a bad time",
            notes=tuple(notes),
            at_issue_bytes=age.bytes,
            urgent=_overdue(age),
        )


def _of_session(age: Age) -> Action:
    who = "the session that has made it" if age.pid is None else f"the session that has made it, pid {age.pid}"
    return Action(
        ActionKind.END_HOLDER,
        age.name,
        f"the oldest row of {'its TOAST table' if age.toast else 'it'} is {age.age:,} {age.of} old, past"
        f" {age.limit:,}; as it is temporary, only {who} can freeze it, and until then the database stays as old,"
        f" and {_END[age.of]}",
        "" if age.pid is None else f"SELECT pg_terminate_backend({age.pid});",
        gain="the table goes with its session",
        notes=("look first whose it is: what the session has in temporary tables is lost",),
        at_issue_bytes=age.bytes,
        urgent=_overdue(age),
    )


def _overdue(age: Age) -> bool:
    return age.share >= _OVERDUE or age.age >= age.failsafe


def began(case: Case) -> datetime.datetime | None:
    """When the last VACUUM had not begun yet, as far as can be told; None where there was none.

    The server tells when it ended, and not what it took: three times what it is estimated to take, of a table that has
    to be read as a whole, and for autovacuum, which rests, thirty times.
    """
    activity = case.activity
    if activity.vacuumed is None:
        return None
    took = cost.of_vacuum(case.bloat.bytes, 0, 0).seconds or 0.0
    factor = 30 if activity.vacuumed == activity.autovacuumed else 3
    return activity.vacuumed - datetime.timedelta(seconds=factor * took)


# ---- figures in words


def _dead(case: Case) -> str:
    dead, rows = case.activity.dead_rows, case.live_rows
    text = f"{dead:,.0f} of {rows + dead:,.0f} rows are dead ({case.dead_share:.0%})"
    if case.autovacuumed:
        text += f", autovacuum comes from {case.threshold:,.0f} on"
    return text


def _last(case: Case) -> str:
    vacuumed, by_itself = case.activity.vacuumed, case.activity.autovacuumed
    if vacuumed is None:
        return "never vacuumed, as far as is known"
    who = "autovacuum" if vacuumed == by_itself else "VACUUM by hand"
    return f"last vacuumed {_ago(case.settings.now - vacuumed)} ago ({who})"


def _ago(time: datetime.timedelta) -> str:
    seconds = max(int(time.total_seconds()), 0)
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}s"
    return f"{seconds} s"


def _passes(case: Case, memory_bytes: int) -> int:
    """Over the indexes."""
    if not case.bloat.indexes or not case.activity.dead_rows:
        return 0
    if case.settings.version > LAST_WITH_ARRAY:
        return 1
    return max(math.ceil(case.activity.dead_rows * DEAD_ROW_BYTES / min(memory_bytes, MOST_MEMORY_BYTES)), 1)


def _memory(needed_bytes: int) -> int:
    """In whole MB, with a fifth more for what dies meanwhile."""
    return math.ceil(needed_bytes * 1.2 / _MB) * _MB


def _indexes_bytes(case: Case) -> int:
    return sum(index.bytes for index in case.bloat.indexes)


def _unseen_bytes(case: Case) -> float:
    toast = case.bloat.toast.bytes if case.bloat.toast else 0
    return (case.bloat.heap.bytes + toast) * (1 - case.activity.visible_share)
