"""Rules about indexes that could go. Only hints: the server does not know for what somebody has made them."""

from __future__ import annotations

import datetime
import math
import re
from collections import defaultdict
from collections.abc import Iterator

from pglean.advice import cost
from pglean.advice.advice import Action, ActionKind
from pglean.advice.cost import Cost
from pglean.advice.figures import Case, IndexUse, Settings
from pglean.disk import bytes_text
from pglean.table import quote_name

#: That nobody uses an index is told only of counters that are so old: there are jobs that run once a month.
_COUNTED = datetime.timedelta(days=35)
#: And of an index only that was not made just now, by the transactions since: when that was, nobody has written down.
_MADE_TRANSACTIONS = 10_000
#: As REINDEX CONCURRENTLY names what it makes, and what it has replaced.
_LEFT = re.compile(r"(.*)_cc(?:new|old)\d*", re.DOTALL)
#: An index costs with each write, so it need not be as large as what is rebuilt: this share of it.
_SMALLER = 8


def drop(case: Case) -> Iterator[Action]:
    """Indexes that are there twice, whose columns another begins with, or that were never used."""
    if case.system:
        return
    sizes = {index.name: index.bytes for index in case.bloat.indexes}
    large = [index for index in case.indexes if sizes.get(index.name, 0) * _SMALLER >= case.min_gain_bytes]
    # What stays because another one goes, does not go itself.
    told, stays = set[int](), set[int]()
    for index, other, why in (*_twice(case.indexes), *_begun(case.indexes)):
        if index in large and index.oid not in told:
            told.add(index.oid)
            stays.add(other.oid)
            yield _action(case, index, sizes[index.name], f"{why} {quote_name(other.name)}", ())
    used = case.activity.scans or any(index.scans for index in case.indexes)
    for index in large:
        since = _unused_since(case.settings, index)
        if used and since and not index.scans and not index.needed and index.oid not in told | stays:
            why = f"was not used once since {since}"
            yield _action(case, index, sizes[index.name], why, tuple(_of_counters(case.settings)))


def invalid(case: Case) -> Iterator[Action]:
    """Indexes that were not built to their end, or not dropped to it: none reads them, each write pays for them."""
    sizes = {index.name: index.bytes for index in case.bloat.indexes}
    for index in case.indexes:
        if not index.valid and not index.in_build:
            yield _invalid(case, index, sizes.get(index.name, 0))


def _invalid(case: Case, index: IndexUse, size: int) -> Action:
    name = f"{quote_name(index.schema)}.{quote_name(index.name)}"
    left = _LEFT.fullmatch(index.name)
    original = left and next((other for other in case.indexes if other.valid and other.name == left[1]), None)
    notes, locks = [], cost.REINDEX_LOCKS
    if original and not index.needed_by_others:
        command, locks = f"DROP INDEX CONCURRENTLY {name};", cost.DROP_LOCKS
        notes.append(f"REINDEX CONCURRENTLY has left it when it failed; {quote_name(original.name)} is there")
    else:
        online = not (case.system or index.exclusion)
        command = f"REINDEX INDEX {'CONCURRENTLY ' if online else ''}{name};"
        if not online:
            locks = cost.OFFLINE_INDEX_LOCKS
        if index.unique:
            notes.append("that fails as long as rows contradict it")
        if not index.needed_by_others and not case.system:
            notes.append(f"if nobody needs it: DROP INDEX CONCURRENTLY {name}")
    return Action(
        ActionKind.INVALID_INDEX,
        case.name,
        f"index {quote_name(index.name)} ({bytes_text(size)}) is invalid: no query uses it, but each write has to enter"
        " rows there, and pglean repack refuses the table",
        command,
        Cost(locks=locks),
        "less to do for each write" if command.startswith("DROP") else "an index that is used",
        notes=tuple(notes),
        at_issue_bytes=size,
    )


def _unused_since(settings: Settings, index: IndexUse) -> str:
    """From when on its use was counted, in words; empty where that is not long ago, or it was made just now."""
    since, now = settings.counted_since, settings.now
    if index.made is not None:
        since = max(since, index.made)
        return f"{since:%Y-%m-%d}" if now - since >= _COUNTED else ""
    # What was made longer ago than ages can tell seems to come from the future.
    age = math.inf if index.age_transactions < 0 else index.age_transactions
    if now - since < _COUNTED or age < _MADE_TRANSACTIONS:
        return ""
    old = age >= settings.transactions_per_s * _COUNTED.total_seconds()
    return f"{since:%Y-%m-%d}" if old else f"it was made, or since {since:%Y-%m-%d}: when it was made is not known"


def _of_counters(settings: Settings) -> Iterator[str]:
    yield "jobs that run once a year may need it"
    if settings.in_recovery:
        yield "this is what was read on this standby alone: the primary and other standbys have counters of their own"
    elif settings.standbys:
        yield "standbys have counters of their own: look there as well"
    if settings.timeline is not None and settings.timeline > 1:
        yield (
            f"the server was promoted or restored (timeline {settings.timeline}): what was read on its predecessor was"
            " not counted here"
        )


def _action(case: Case, index: IndexUse, size: int, why: str, notes: tuple[str, ...]) -> Action:
    name = f"{quote_name(index.schema)}.{quote_name(index.name)}"
    return Action(
        ActionKind.DROP_INDEX,
        case.name,
        f"index {quote_name(index.name)} ({bytes_text(size)}) {why}",
        f"DROP INDEX CONCURRENTLY {name};",
        Cost(locks=cost.DROP_LOCKS),
        f"{bytes_text(size)} of disk space, and less to do for each write",
        size,
        ("only a hint: ask who made it", *notes),
    )


def _twice(indexes: tuple[IndexUse, ...]) -> Iterator[tuple[IndexUse, IndexUse, str]]:
    """Indexes like another one, with that; of each kind one is kept."""
    alike: dict[object, list[IndexUse]] = defaultdict(list)
    for index in indexes:
        if index.valid:
            alike[index.method, index.keys, len(index.columns), index.expressions, index.predicate].append(index)
    for group in alike.values():
        # What does more than be searched stays; then what is used most.
        first, *others = sorted(group, key=lambda i: (not i.needed_by_others, not i.unique, -i.scans, i.name))
        for other in others:
            if not other.needed_by_others and (not other.unique or other.promise == first.promise):
                yield other, first, "is the same as"


def _begun(indexes: tuple[IndexUse, ...]) -> Iterator[tuple[IndexUse, IndexUse, str]]:
    """B-trees whose columns another one begins with, which is used, or they are not either."""
    for index in indexes:
        longer = [other for other in indexes if _begins(index, other) and (other.scans or not index.scans)]
        if longer and not index.needed:
            yield index, max(longer, key=lambda other: other.scans), "has the columns that begin those of"


def _begins(index: IndexUse, other: IndexUse) -> bool:
    return (
        index.method == other.method == "btree"
        and other.valid
        and not index.expressions + other.expressions
        and index.predicate == other.predicate
        and len(index.keys) == len(index.columns) < len(other.columns)
        and other.keys[: len(index.keys)] == index.keys
    )
