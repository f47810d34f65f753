"""From figures to findings: what the relations of a table hold, and what a repack would leave of them.

Pure: by the statistics alone (`table`), or with what was measured of a relation in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pglean.bloat import estimate
from pglean.bloat.estimate import Needed, Width
from pglean.bloat.figures import Btree, Index, Table
from pglean.bloat.finding import Method, RelationBloat, TableBloat

_LOCKED_SIZE = "locked by somebody: its size is that of the last VACUUM or ANALYZE"
_LINE_POINTER = 4
_PAGE_HEADER = 24
#: Up to so many entries for each that is to be expected equal keys are put together; unless there is so much more of
#: them that many must be of dead rows.
_TOGETHER, _MUCH_MORE = 1.1, 1.25
#: Bytes of a pointer to a value in the TOAST table.
_POINTER_BYTES = 18
#: So near to a whole number is the mean number of chunks of values that are equally long.
_ALIKE = 0.02
#: What values of a column that are not in the TOAST table may take in the mean, where others are.
_INLINE_BYTES = 1200


@dataclass(frozen=True, slots=True)
class Content:
    """What was measured of a heap, a TOAST table or an index."""

    method: Method
    #: Live rows, chunks or entries; None where they were not counted.
    items: float | None
    #: What they take; of a heap without line pointers and padding, of an index with dead ones.
    bytes: float
    dead_bytes: int | None
    #: Pages of which the content was not read: there `bytes` has their headers, line pointers and padding.
    unread_pages: float = 0.0


def table(figures: Table, block_bytes: int) -> TableBloat:
    """By the statistics."""
    return TableBloat(
        oid=figures.oid,
        schema=figures.schema,
        name=figures.name,
        heap=heap(figures, block_bytes, Method.ESTIMATE),
        toast=None if figures.toast is None else toast(figures, block_bytes),
        indexes=tuple(index(one, figures.present_rows, block_bytes, Method.ESTIMATE) for one in figures.indexes),
        root=figures.root,
        family=figures.family,
    )


def unreckoned(figures: Table, why: str) -> TableBloat:
    """Nothing but the sizes."""
    toast = None if figures.toast is None else _toast_relation(figures, figures.toast.size_is_present)
    return TableBloat(
        oid=figures.oid,
        schema=figures.schema,
        name=figures.name,
        heap=_relation("heap", figures.name, figures.bytes, figures.size_is_present).noting(why),
        toast=toast,
        indexes=tuple(_relation("index", one.name, one.bytes, one.size_is_present) for one in figures.indexes),
        root=figures.root,
        family=figures.family,
    )


# ---- heap


def heap(figures: Table, block_bytes: int, method: Method) -> RelationBloat:
    """By mean widths of columns and a number of rows."""
    found = _relation("heap", figures.name, figures.bytes, figures.size_is_present)
    if (why := _unknown(figures)) is not None:
        return found.noting(why)
    width = estimate.row_width(figures.columns, figures.width)
    rows = figures.present_rows or 0.0
    if method is Method.ESTIMATE and figures.stale:
        found = found.noting(f"old statistics: {figures.changed_rows:,.0f} rows were written since the last ANALYZE")
    needed = estimate.heap(rows, width, figures.fillfactor, block_bytes)
    dead = None if figures.dead_rows is None else int(figures.dead_rows * (width.mean_bytes + _LINE_POINTER))
    return _filled(found, method, needed, dead, figures.fillfactor)


def measured_heap(figures: Table, content: Content, block_bytes: int) -> RelationBloat:
    """By what was measured."""
    found = _relation("heap", figures.name, figures.bytes, True)
    rows = content.items or 0.0
    if rows < 1:
        return _filled(found, content.method, Needed(0, 0), content.dead_bytes, figures.fillfactor)
    width = _measured_width(figures, content, rows, block_bytes)
    needed = estimate.heap(rows, width, figures.fillfactor, block_bytes)
    if figures.reshaped:
        if _unknown(figures) is None:
            # Rows that were written before are laid out otherwise than they would be now.
            now = estimate.row_width(figures.columns, figures.width)
            needed = replace(needed, bytes=estimate.heap(rows, now, figures.fillfactor, block_bytes).bytes)
            found = found.noting("columns were dropped or added: widths of rows by the statistics")
        else:
            found = found.noting("columns were dropped or added: old rows may become shorter or longer")
    return _filled(found, content.method, needed, content.dead_bytes, figures.fillfactor)


def _measured_width(figures: Table, content: Content, rows: float, block_bytes: int) -> Width:
    pages = max(figures.bytes / block_bytes, 1.0)
    unread = min(content.unread_pages / pages, 1.0)
    mean = (content.bytes - content.unread_pages * _PAGE_HEADER) / rows - unread * _LINE_POINTER
    read = estimate.measured_width(rows, mean, figures.columns)
    if unread == 0:
        return read
    by_pages = Width(mean + (1 - unread) * (read.mean_bytes - mean), False)
    if figures.reshaped or _unknown(figures) is not None:
        return by_pages
    # What the free-space map calls used may be line pointers of rows that are gone.
    by_columns = estimate.row_width(figures.columns, figures.width)
    return by_columns if by_columns.uniform or by_columns.mean_bytes < by_pages.mean_bytes else by_pages


def _unknown(figures: Table) -> str | None:
    """Why nothing can be told of the rows; None where it can."""
    if not figures.is_heap:
        return "its access method is not heap: only its size is known"
    if figures.rows is None:
        return "no statistics: neither VACUUM nor ANALYZE has counted its rows"
    if figures.outdated:
        return f"no statistics of most rows: {figures.changed_rows:,.0f} were written since the last ANALYZE"
    missing = figures.unknown_columns
    if figures.present_rows == 0 or not missing:
        return None
    if not figures.readable or figures.row_security:
        why = "row security is in the way" if figures.readable else "the role may not read the table"
        return f"no statistics to be seen: {why}"
    names = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
    return f"no statistics of column{'s' if len(missing) > 1 else ''} {names}: ANALYZE makes them"


# ---- TOAST


def toast(figures: Table, block_bytes: int) -> RelationBloat:
    """By the number of chunks; how many values they are of is told by the widths of the columns."""
    assert figures.toast is not None
    part = figures.toast
    found = _toast_relation(figures, part.size_is_present)
    if part.bytes == 0:
        return _filled(found, Method.ESTIMATE, _with_index(Needed(0, 0), 0.0, block_bytes), 0, 100)
    if part.chunks is None:
        return found.noting("no statistics of the TOAST table: VACUUM makes them")
    if figures.outdated and (why := _unknown(figures)) is not None:
        return found.noting(why)
    dead_chunks = part.dead_chunks or 0.0
    if part.chunks < 1:
        if figures.rows is None or figures.rows >= 1:
            # Rows with short values only, or a counter that has lost some: which of both it is, it does not tell.
            return found.noting("no live value is counted in the TOAST table, but rows of the table: VACUUM counts")
        return _filled(found, Method.ESTIMATE, _with_index(Needed(0, 0), 0.0, block_bytes), None, 100)
    values = _toasted_values(figures)
    last = None
    if abs(part.chunks / max(values, 1.0) - max(round(part.chunks / max(values, 1.0)), 1)) < _ALIKE:
        # As many chunks of each: they are equally long, and so are their last chunks, but how long these are is not
        # known. They count as full, so that a table just written is not told to be bloated.
        last = float(estimate.chunk_bytes(block_bytes))
        found = found.noting("long values seem to be equally long: they count as long as their chunks can be")
    needed = estimate.toast(part.chunks, values, last, block_bytes)
    # All of them lie in the file: they cannot be wider than that allows.
    room = part.bytes * part.chunks / (part.chunks + dead_chunks)
    if needed.bytes > room:
        needed = Needed(int(room), min(needed.content_bytes, int(room)))
    dead = int(dead_chunks * needed.content_bytes / part.chunks)
    return _filled(found, Method.ESTIMATE, _with_index(needed, part.chunks, block_bytes), dead, 100)


def sampled_toast(figures: Table, values: float, chunks: float, data_bytes: float, block_bytes: int) -> RelationBloat:
    """By values that were met in a sample of the heap: their number, chunks and bytes."""
    needed = _of_chunks(values, chunks, data_bytes, block_bytes)
    return _filled(_toast_relation(figures, True), Method.SAMPLE, needed, None, 100)


def measured_toast(figures: Table, content: Content, block_bytes: int) -> RelationBloat:
    """By what was measured."""
    chunks = content.items or 0.0
    assert figures.toast is not None
    share = max(1 - content.unread_pages / max(figures.toast.bytes / block_bytes, 1.0), 0.0)
    headers = content.unread_pages * _PAGE_HEADER + (1 - share) * chunks * _LINE_POINTER
    data = content.bytes - headers - chunks * estimate.chunk_width(0)
    needed = _of_chunks(min(_toasted_values(figures), chunks), chunks, data, block_bytes)
    return _filled(_toast_relation(figures, True), content.method, needed, content.dead_bytes, 100)


def _of_chunks(values: float, chunks: float, data_bytes: float, block_bytes: int) -> Needed:
    """What a TOAST table and its index need for values of so many bytes."""
    most = estimate.chunk_bytes(block_bytes)
    # Were there more values, their last chunks would hold less than nothing.
    values = max(values, chunks - data_bytes / most, 1.0)
    last = (data_bytes - (chunks - values) * most) / values
    return _with_index(estimate.toast(chunks, values, last, block_bytes), chunks, block_bytes)


def _toast_relation(figures: Table, present: bool) -> RelationBloat:
    assert figures.toast is not None
    return _relation("toast", "", figures.toast.bytes + figures.toast.index_bytes, present)


def _with_index(needed: Needed, chunks: float, block_bytes: int) -> Needed:
    own = estimate.toast_index(chunks, block_bytes)
    return Needed(needed.bytes + own.bytes, needed.content_bytes + own.content_bytes)


def _toasted_values(figures: Table) -> float:
    """How many values are in the TOAST table: those of columns that are as wide as a pointer, or of the widest one."""
    rows = figures.present_rows or 0.0
    variable = [column for column in figures.columns if column.length == -1 and column.packed and column.known]
    pointers = [c for c in variable if abs((c.mean_bytes or 0.0) - _POINTER_BYTES) < 0.5]
    if pointers:
        return rows * sum(1 - (column.null_share or 0.0) for column in pointers)
    widest = max(variable, key=lambda column: column.mean_bytes or 0.0, default=None)
    if widest is None:
        return rows
    share = (_INLINE_BYTES - (widest.mean_bytes or 0.0)) / _INLINE_BYTES
    return rows * (1 - (widest.null_share or 0.0)) * min(max(share, 0.1), 1.0)


# ---- indexes


def index(
    figures: Index, rows: float | None, block_bytes: int, method: Method, content: Content | None = None
) -> RelationBloat:
    """An index of a table with so many rows; by its own content where that was measured."""
    found = _relation("index", figures.name, figures.bytes, content is not None or figures.size_is_present)
    btree = figures.btree
    if btree is None:
        return found.noting(f"{figures.method}: only the size is known")
    entries = _entries(figures, rows, content)
    if entries is None:
        return found.noting("no statistics of the number of rows")
    if entries < 1:
        return _filled(found, method, Needed(block_bytes, 0), None, figures.fillfactor)
    if content is not None:
        return _measured_index(found, figures, btree, entries, content, block_bytes)
    if not btree.known:
        return found.noting(f"{'old' if btree.outdated else 'no'} statistics of its columns")
    needed = estimate.btree(entries, btree, estimate.key_width(btree), figures.fillfactor, block_bytes)
    return _filled(found, method, needed, None, figures.fillfactor)


def _entries(figures: Index, rows: float | None, content: Content | None) -> float | None:
    btree = figures.btree
    counted = content.items if content is not None and btree is not None and not btree.deduplicated else None
    if figures.share == 1 and rows is not None:
        # Entries that no VACUUM has removed yet are gone after a repack.
        return rows if counted is None else min(counted, rows)
    if counted is not None:
        return counted
    return None if rows is None or figures.share is None else rows * figures.share


def _measured_index(
    found: RelationBloat, figures: Index, btree: Btree, entries: float, content: Content, block_bytes: int
) -> RelationBloat:
    """Widths by what was measured; how far equal keys can be put together is told by the statistics only."""
    width = estimate.key_width(btree) if btree.known else None
    if not btree.deduplicated and content.items and (width is None or not width.uniform):
        # Unique indexes have posting lists too, of versions of a row, until a repack.
        mean = content.bytes / content.items
        if width is None or content.items >= entries:
            width = Width(mean, abs(mean - round(mean)) < 0.001)
    if width is None:
        return found.noting("no statistics of its columns")
    needed = estimate.btree(entries, btree, width, figures.fillfactor, block_bytes)
    live = Needed(needed.bytes, int(min(needed.content_bytes, content.bytes + _LINE_POINTER * (content.items or 0))))
    if btree.deduplicated:
        # An item that was measured by itself has a line pointer, of which it knows nothing.
        measured = content.bytes + _LINE_POINTER * (content.items or 0)
        together = content.items is not None and content.items <= _TOGETHER * needed.items
        if measured < needed.content_bytes or (together and measured < _MUCH_MORE * needed.content_bytes):
            # CREATE INDEX only puts more together than is so already; where equal keys are together, nothing more.
            live = replace(live, bytes=int(needed.bytes * measured / needed.content_bytes))
    return _filled(found, content.method, live, content.dead_bytes, figures.fillfactor)


# ---- what they have in common


def _relation(kind: str, name: str, size: int, present: bool) -> RelationBloat:
    return RelationBloat(kind=kind, name=name, bytes=size, notes=() if present else (_LOCKED_SIZE,))


def _filled(found: RelationBloat, method: Method, needed: Needed, dead: int | None, fillfactor: int) -> RelationBloat:
    live = min(needed.content_bytes, found.bytes)
    dead = None if dead is None else min(dead, found.bytes - live)
    free = found.bytes - live - (dead or 0)
    reserved = found.bytes * (100 - fillfactor) // 100
    return replace(
        found,
        method=method,
        live_bytes=live,
        dead_bytes=dead,
        free_bytes=free,
        reusable_bytes=max(free - reserved, 0),
        after_bytes=needed.bytes,
    )
