"""Rules about new files: repack, with an order perhaps, new indexes, and room for updates."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

from pglean.advice import cost
from pglean.advice.advice import Action, ActionKind
from pglean.advice.cost import Cost
from pglean.advice.figures import Case, IndexUse
from pglean.bloat.finding import RelationBloat
from pglean.disk import bytes_text
from pglean.table import quote_name

#: From this share on, beyond what churn and dead rows explain, new files are advised; a B-tree into which rows come in
#: no order is two thirds full, and 90 % when it is new: a quarter of it is normal.
_HEAP_SHARE, _INDEX_SHARE = 0.2, 0.4
#: Range scans: so many, with so many rows each in the mean; in such an order; from this gain in pages on.
_SCANS, _ROWS_EACH, _CORRELATION, _FEWER_PAGES = 10, 50, 0.5, 3.0
#: Updates: so many, and such a share of the rows; such a share of them not HOT, or moved to another page.
_UPDATES, _UPDATED_SHARE, _NOT_HOT, _MOVED = 1000, 0.2, 0.5, 0.25
#: And where it is counted which ones were moved, such a share of the others HOT: else they change indexed columns.
_HOT = 0.5
_FULL_FROM, _FILLFACTOR = 90, 85


def excess(case: Case) -> int:
    """What of heap and TOAST a repack would give back, beyond what VACUUM would free and what churn uses again."""
    heap, toast = case.bloat.heap, case.bloat.toast
    gain = heap.gain_bytes + (toast.gain_bytes if toast else 0)
    return max(gain - case.dead_bytes - case.churn_bytes, 0)


def bloated(case: Case) -> bool:
    """Whether a repack is worth it."""
    size = case.bloat.heap.bytes + (case.bloat.toast.bytes if case.bloat.toast else 0)
    return case.bloat.heap.known and excess(case) >= max(_HEAP_SHARE * size, case.min_gain_bytes)


def repack(case: Case) -> Iterator[Action]:
    """The heap is bloated; or its rows lie in another order than they are read in; or both."""
    table, best = case.bloat, _order(case)
    if not bloated(case):
        if best is not None:
            yield _repack(case, ActionKind.REPACK_ORDER, _order_reason(case, best), _columns(best))
        return
    heap = table.heap
    reason = (
        f"{bytes_text(table.gain_bytes)} of {bytes_text(table.bytes)} would be given back (method: {table.method});"
        f" of {bytes_text(heap.bytes)} in the heap {bytes_text(excess(case))} are bloat, beyond"
        f" {bytes_text(case.dead_bytes)} of dead rows and {bytes_text(case.churn_bytes)} that are free between two"
        " autovacuums"
    )
    if best is None:
        yield _repack(case, ActionKind.REPACK, reason, None)
    else:
        yield _repack(case, ActionKind.REPACK_ORDER, f"{reason}; {_order_reason(case, best)}", _columns(best))


def _repack(case: Case, kind: ActionKind, reason: str, order: str | None) -> Action:
    table = case.bloat
    indexes = sum(index.bytes - index.gain_bytes for index in table.indexes)
    after = table.bytes - table.gain_bytes
    notes = []
    if case.kept_by is not None:
        notes.append(
            f"the horizon is held by {case.kept_by}: dead rows are not copied, but what dies from then on stays,"
            " and the table bloats again; end that first"
        )
    if case.activity.kind == "m":
        notes.append(
            f"REFRESH MATERIALIZED VIEW {case.name} does it as well (not CONCURRENTLY), but runs its query: that"
            " changes what it contains, and may take long"
        )
    invalid = ", ".join(quote_name(index.name) for index in case.indexes if not index.valid)
    if _online(case):
        if not case.settings.superuser:
            notes.append("pglean repack needs a superuser, which the role is not")
        if invalid:
            notes.append(
                f"invalid: {invalid}; see to that first, for such a table is repacked only with --invalid-indexes"
                " rebuild or drop"
            )
    elif case.system:
        notes.append("in a quiet moment: sessions that need the catalog wait, and so does all that they do")
    spent = cost.of_repack(after - indexes, indexes)
    return Action(
        kind,
        case.name,
        reason,
        "" if invalid and _online(case) else _command(case, order),
        spent if _online(case) else replace(spent, locks=cost.OFFLINE_LOCKS),
        f"{bytes_text(table.gain_bytes)} of disk space"
        if order is None
        else f"{bytes_text(table.gain_bytes)} of disk space; a range of rows lies together",
        table.gain_bytes,
        tuple(notes),
        0 if bloated(case) else table.heap.bytes // 10,
    )


def _online(case: Case) -> bool:
    """Whether pglean repacks it: neither materialized views, unlogged tables nor system catalogs."""
    return not case.system and case.activity.kind == "r" and case.activity.persistence == "p"


def _command(case: Case, order: str | None) -> str:
    if not _online(case):
        return f"VACUUM FULL {case.name};"
    sorting = "" if order is None else f" -o {shlex.quote(order)}"
    return f"pglean repack {case.settings.connection} -t {shlex.quote(case.name)}{sorting}"


def reindex(case: Case) -> Iterator[Action]:
    """Only indexes are bloated."""
    if bloated(case):
        return
    # Of dead rows there are entries as well, which VACUUM removes.
    dead = case.activity.dead_rows / max(case.live_rows, 1.0)
    left_out = {index.name for index in case.indexes if index.exclusion or not index.valid}
    chosen = [
        index
        for index in case.bloat.indexes
        if index.known and index.name not in left_out and _beyond(index, dead) >= _INDEX_SHARE * index.bytes
    ]
    gain = sum(index.gain_bytes for index in chosen)
    if not chosen or gain < case.min_gain_bytes:
        return
    chosen.sort(key=lambda index: -index.gain_bytes)
    names = [f"{quote_name(case.bloat.schema)}.{quote_name(index.name)}" for index in chosen]
    each = ", ".join(
        f"{quote_name(index.name)} {bytes_text(index.bytes)}, {bytes_text(index.bytes - index.gain_bytes)} if new"
        for index in chosen
    )
    after = sum(index.bytes - index.gain_bytes for index in chosen)
    spent = cost.of_reindex(case.bloat.heap.bytes, after, len(chosen))
    command = " ".join(["pglean reindex", case.settings.connection, *(f"-i {shlex.quote(name)}" for name in names)])
    steps: tuple[str, ...] = ()
    note = f"the server's own command: REINDEX INDEX CONCURRENTLY {names[0]};"
    if case.system:
        # It knows no CONCURRENTLY there.
        statements = tuple(f"REINDEX INDEX {name};" for name in names)
        command, steps = (statements[0], ()) if len(statements) == 1 else ("", statements)
        spent = replace(spent, locks=cost.OFFLINE_INDEX_LOCKS)
        note = "in a quiet moment: sessions that need the catalog wait, and so does all that they do"
    yield Action(
        ActionKind.REINDEX,
        case.name,
        f"its heap is not bloated, but {len(chosen)} of {len(case.bloat.indexes)} indexes: {each}",
        command,
        spent,
        f"{bytes_text(gain)} of disk space",
        gain,
        (note,),
        steps=steps,
    )


def _beyond(index: RelationBloat, dead: float) -> float:
    after = index.bytes - index.gain_bytes
    return index.bytes - after * (1 + dead)


def fillfactor(case: Case) -> Iterator[Action]:
    """Updates find no room in their page, so that all indexes get an entry more."""
    activity, heap = case.activity, case.bloat.heap
    updated, hot = activity.updated, activity.hot_updated
    many = updated >= max(_UPDATES, _UPDATED_SHARE * case.rows)
    if not many or case.system or not case.bloat.indexes:
        return
    if activity.fillfactor < _FULL_FROM or heap.bytes < case.min_gain_bytes:
        return
    if activity.moved is None:
        if (updated - hot) / updated < _NOT_HOT:
            return
        figures = f"{updated - hot:,} of {updated:,} updates were not heap-only (HOT)"
        notes: tuple[str, ...] = (
            "where these change indexed columns it does not help: this server does not tell them apart",
        )
    else:
        # Of those that have stayed in their page, whether they are HOT tells whether they change indexed columns.
        stayed = updated - activity.moved
        if activity.moved / updated < _MOVED or hot < _HOT * stayed:
            return
        figures = f"{activity.moved:,} of {updated:,} updates found no room in their page ({hot:,} were heap-only, HOT)"
        notes = () if stayed else ("where these change indexed columns it does not help: none tells",)
    yield Action(
        ActionKind.FILLFACTOR,
        case.name,
        f"{figures}; its fillfactor is {activity.fillfactor}, so pages are filled to the brim;"
        f" each of these updates writes to all {len(case.bloat.indexes)} indexes",
        f"ALTER TABLE {case.name} SET (fillfactor = {_FILLFACTOR});",
        Cost(None, int(heap.bytes * (100 / _FILLFACTOR - 1)), cost.SET_LOCKS),
        "more updates stay in their page, and indexes bloat less",
        0,
        (*notes, "it holds for pages that are written from then on; pglean repack writes all of them anew"),
        heap.bytes // 10,
    )


# ---- order


def _ranged(case: Case) -> list[IndexUse]:
    """B-trees by which ranges of rows are read, the most used first."""
    found = [
        index
        for index in case.indexes
        if index.method == "btree"
        and index.valid
        and not index.predicate
        and None not in index.columns
        and index.scans >= _SCANS
        and index.tuples_read / index.scans >= _ROWS_EACH
    ]
    return sorted(found, key=lambda index: -index.tuples_read)


def _order(case: Case) -> IndexUse | None:
    """The index in whose order rows should lie, and do not; None where they do, or nobody reads ranges."""
    ranged = _ranged(case)
    if not ranged or not _online(case) or case.bloat.heap.bytes < case.min_gain_bytes or not case.rows:
        return None
    best = ranged[0]
    # What is read from an index alone does not care where rows lie.
    from_heap = case.activity.fetched_by_index >= best.tuples_read / 2
    apart = best.correlation is not None and abs(best.correlation) < _CORRELATION
    return best if from_heap and apart and _pages(case, best)[0] >= _FEWER_PAGES * _pages(case, best)[1] else None


def _pages(case: Case, index: IndexUse) -> tuple[float, float]:
    """What a scan of this index reads of the heap in the mean: now, with rows at random, and in order."""
    pages = max(case.bloat.heap.bytes / case.settings.block_bytes, 1.0)
    rows = index.tuples_read / index.scans
    now = pages * (1 - (1 - 1 / pages) ** rows)
    return now, min(rows / max(case.rows / pages, 1.0) + 1, pages)


def _order_reason(case: Case, index: IndexUse) -> str:
    now, then = _pages(case, index)
    each = index.tuples_read / index.scans
    return (
        f"index {quote_name(index.name)} was read {index.scans:,} times, {each:,.0f} rows each time, which lie"
        f" scattered (correlation {index.correlation:.2f}): about {now:,.0f} pages of the heap each time,"
        f" {then:,.0f} if rows lay in its order"
    )


def _columns(index: IndexUse) -> str:
    return ", ".join(quote_name(column) for column in index.columns if column is not None)
