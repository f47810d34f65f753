"""Rules about indexes that could go. Only hints: the server does not know for what somebody has made them."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterator

from pglean.advice import cost
from pglean.advice.advice import Action, ActionKind
from pglean.advice.cost import Cost
from pglean.advice.figures import Case, IndexUse
from pglean.disk import bytes_text
from pglean.table import quote_name

#: That nobody uses an index is told only of counters that are so old: there are jobs that run once a month.
_COUNTED = datetime.timedelta(days=35)
#: And of an index only that was not made just now, by the transactions since: when that was, nobody has written down.
_MADE_TRANSACTIONS = 10_000
#: An index costs with each write, so it need not be as large as what is rebuilt: this share of it.
_SMALLER = 8


def drop(case: Case) -> Iterator[Action]:
    """Indexes that are there twice, whose columns another begins with, or that were never used."""
    sizes = {index.name: index.bytes for index in case.bloat.indexes}
    large = [index for index in case.indexes if sizes.get(index.name, 0) * _SMALLER >= case.min_gain_bytes]
    # What stays because another one goes, does not go itself.
    told, stays = set[int](), set[int]()
    for index, other, why in (*_twice(case.indexes), *_begun(case.indexes)):
        if index in large and index.oid not in told:
            told.add(index.oid)
            stays.add(other.oid)
            yield _action(case, index, sizes[index.name], f"{why} {quote_name(other.name)}", ())
    since = case.settings.counted_since
    counted = case.settings.now - since >= _COUNTED
    used = case.activity.scans or any(index.scans for index in case.indexes)
    for index in large:
        if counted and used and not index.scans and not index.needed and _old(index) and index.oid not in told | stays:
            notes = ["jobs that run once a year may need it"]
            if case.settings.standbys:
                notes.append("standbys have counters of their own: look there as well")
            yield _action(case, index, sizes[index.name], f"was not used once since {since:%Y-%m-%d}", tuple(notes))


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
        first, *others = sorted(group, key=lambda i: (not _bound(i), not i.unique, -i.scans, i.name))
        for other in others:
            if not _bound(other) and (not other.unique or other.promise == first.promise):
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


def _old(index: IndexUse) -> bool:
    # What was made longer ago than ages can tell seems to come from the future.
    return index.age_transactions >= _MADE_TRANSACTIONS or index.age_transactions < 0


def _bound(index: IndexUse) -> bool:
    """Whether it cannot be dropped by itself, or identifies rows."""
    return index.exclusion or index.constraint or index.replica_identity or index.clustered or index.owned
