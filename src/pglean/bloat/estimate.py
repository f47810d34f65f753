"""What tables, TOAST tables and B-trees need at the least: the page layouts of the server, as formulas.

What is laid out here is what a repack leaves: rows copied into new pages up to the fillfactor, and indexes as
CREATE INDEX builds them. A *heap page* has a header of 24 bytes, and four for each row's line pointer. A *row* has a
header of 23 bytes, a bit for each column where at least one is NULL, and is padded to eight bytes; so is each value
to the alignment of its type, but for short ones of varying length. A *TOAST table* holds chunks of 1996 bytes.

A *B-tree page* has 16 bytes more at its end. CREATE INDEX fills a leaf until less than 10 % of it are free (leaf pages:
fillfactor 90), then moves the last item to the next leaf and leaves a shortened copy as the high key; pages above are
filled to 70 %. Equal keys become *posting lists*: the key once, then six bytes for each row, at most a tenth of a page.

How many different keys there are is the guess of ANALYZE. It is right where all occur equally often; where chance
decides how often (as with most keys that refer to another table), its sample makes it too small, by up to a third.
Which of both it is cannot be told, and posting lists of few rows differ much in what they save: so each is taken to be
so for half of the rows.

Where not all rows are of the same width, paddings and what is left at the end of a page are taken at their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from pglean.bloat.figures import Btree, Column

_PAGE_HEADER = 24
_LINE_POINTER = 4
_ROW_HEADER = 23
_INDEX_HEADER = 8
#: With the bits of 32 columns, padded.
_INDEX_HEADER_WITH_NULLS = 16
_BTREE_SPECIAL = 16
_TID = 6
_MAX_ALIGN = 8
_LONGEST_SHORT = 126
#: Fill of the pages above the leaves.
_INTERNAL_FILLFACTOR = 70
#: From how many rows with the same key on the spread of their number no longer matters.
_MANY = 100
#: The free-space map tells space in steps of this.
_FSM_STEP = 32
#: With so many chunks it is tried how full the pages of a TOAST table get; from so many of a value on that is alike.
_CHUNKS = 800
_MANY_CHUNKS = 20.0
#: With so many posting lists it is tried how many of them fit into a leaf.
_ITEMS = 300
#: By what share of their mean lengths differ, as a rule.
_SPREAD = 0.3
#: Common values whose shares differ by no more than this factor are taken together.
_ALIKE = 1.5


@dataclass(frozen=True, slots=True)
class Width:
    """Bytes of a row or of an index entry, padded, without its line pointer."""

    mean_bytes: float
    #: Whether all are of this width.
    uniform: bool


@dataclass(frozen=True, slots=True)
class Needed:
    """What a relation needs when it has just been written."""

    #: Its file.
    bytes: int
    #: What of it are rows or entries, with their line pointers.
    content_bytes: int
    #: Of a B-tree: entries, where a posting list is one.
    items: float = 0.0


def aligned(size: float, to: int = _MAX_ALIGN) -> int:
    """The next multiple."""
    return math.ceil(size / to) * to


# ---- rows


def padding(size: float, spread: float, to: int = _MAX_ALIGN) -> float:
    """Mean padding of what is so long in the mean, give or take `spread`."""
    if spread >= to / 2:
        return (to - 1) / 2
    # Lengths that hardly differ have nearly the same padding.
    sizes = range(math.floor(size - spread), math.ceil(size + spread) + 1)
    return sum(aligned(size, to) - size for size in sizes) / len(sizes)


@dataclass(slots=True)
class _End:
    """Where the next value of a row begins: exactly, or as a mean over rows."""

    bytes: float = 0.0
    exact: bool = True
    #: Where it is a mean, each is a multiple of this, and lies about so far from the mean.
    step: int = _MAX_ALIGN
    spread: float = 0.0

    def add(self, column: Column) -> None:
        """One more value; what is not known of it counts as nothing."""
        share = 1 - (column.null_share or 0.0)
        if share <= 0:
            return
        varies = column.length < 0 and not column.constant
        width = (column.mean_bytes or 0.0) if column.length < 0 else float(column.length)
        short = column.length < 0 and column.packed and width <= _LONGEST_SHORT
        alignment = 1 if short else column.alignment
        padding = self._padding(alignment)
        before = _power(self.bytes) if self.exact else self.step
        self.bytes += share * (padding + width)
        if self.exact and not varies and share == 1:
            return
        kept = max(alignment, before) if share == 1 else before
        self.exact, self.step = False, min(kept, 1 if varies else _power(width))
        self.spread += _SPREAD * width if share == 1 and varies else width if share < 1 else 0

    def _padding(self, to: int) -> float:
        if self.exact:
            return aligned(self.bytes, to) - self.bytes
        if self.step >= to or self.spread >= to / 2:
            return max(to - self.step, 0) / 2
        return padding(self.bytes, self.spread, to)

    def width(self, header: float, uniform: bool) -> Width:
        """Padded, behind a header."""
        return Width(header + self.bytes + self._padding(_MAX_ALIGN), uniform and self.exact)


def _power(size: float) -> int:
    """The largest alignment of which it is a multiple."""
    return math.gcd(int(size), _MAX_ALIGN)


def _with_nulls(columns: Iterable[Column]) -> float:
    """Share of rows in which at least one is NULL, were they independent."""
    return 1 - math.prod(1 - (column.null_share or 0.0) for column in columns)


def row_width(columns: Sequence[Column], width: int) -> Width:
    """A row of these columns, of which there are `width` with those that are always NULL."""
    end = _End()
    for column in columns:
        end.add(column)
    nulls = 1.0 if width > len(columns) else _with_nulls(columns)
    without, with_ = aligned(_ROW_HEADER), aligned(_ROW_HEADER + (width + 7) // 8)
    return end.width(without + nulls * (with_ - without), without == with_ or nulls in (0.0, 1.0))


def measured_width(rows: float, row_bytes: float, columns: Sequence[Column]) -> Width:
    """The same where the mean length of rows, with header and without padding, was measured."""
    end = _End()
    for column in columns:
        end.add(column)
    uniform = end.exact and all(column.known for column in columns)
    if rows >= _MANY and row_bytes == int(row_bytes):
        # Were they of different lengths, so round a mean would be an accident.
        return Width(aligned(row_bytes), True)
    end.bytes = row_bytes - aligned(_ROW_HEADER)
    return end.width(aligned(_ROW_HEADER), uniform)


def heap(rows: float, width: Width, fillfactor: int, block_bytes: int) -> Needed:
    """A table of so many rows."""
    usable = block_bytes - _PAGE_HEADER - block_bytes * (100 - fillfactor) // 100
    item = width.mean_bytes + _LINE_POINTER
    per_page = usable // item if width.uniform else usable / item - 0.5
    pages = math.ceil(rows / max(per_page, 1.0))
    return Needed(pages * block_bytes, int(rows * item))


# ---- TOAST


def chunk_bytes(block_bytes: int) -> int:
    """What a chunk holds of a value at most."""
    quarter = (block_bytes - aligned(_PAGE_HEADER + 4 * _LINE_POINTER)) // 4 // _MAX_ALIGN * _MAX_ALIGN
    return quarter - aligned(_ROW_HEADER) - 12


def chunk_width(data_bytes: float) -> float:
    """A row of a TOAST table: the value's OID, the chunk's number, the data with its length."""
    return aligned(_ROW_HEADER) + 8 + 4 + data_bytes


def toast(chunks: float, values: float, last_bytes: float | None, block_bytes: int) -> Needed:
    """A TOAST table with so many chunks of so many values.

    `last_bytes` is what the last chunk of a value holds in the mean; None where that is not known.
    """
    if chunks < 1:
        return Needed(0, 0)
    most = chunk_bytes(block_bytes)
    values = min(max(values, 1.0), chunks)
    last = min(max(most / 2 if last_bytes is None else last_bytes, 1.0), most)
    content = (chunks - values) * _chunk_room(most) + values * _chunk_room(last)
    usable = block_bytes - _PAGE_HEADER
    fill = _chunk_fill(min(round(chunks / values - 1, 1), _MANY_CHUNKS), round(last / 64) * 64, most, usable)
    return Needed(math.ceil(content / usable / fill) * block_bytes, int(content))


def _chunk_room(data_bytes: float) -> float:
    return aligned(chunk_width(data_bytes)) + _LINE_POINTER


@cache
def _chunk_fill(full: float, last_bytes: int, most: int, usable: int) -> float:
    """How full pages get, by putting chunks of values into pages as they come: so many full ones, and a last one.

    As the server does it: into the page of the one before, else into one with enough room, else into a new one.
    """
    left: list[float] = []
    current, content, pages = 0.0, 0.0, 0
    for number in range(int(_CHUNKS / (full + 1))):
        # Spread evenly, and in no order: steps of the golden ratio.
        place = number * 0.618034 % 1
        whole = round(full * (0.4 + 1.2 * (number * 0.414214 % 1)))
        spread = min(last_bytes, most - last_bytes)
        for data in [float(most)] * whole + [last_bytes + spread * (2 * place - 1)]:
            room = _chunk_room(data)
            content += room
            if room > current:
                left.append(current)
                fitting = next((number for number, free in enumerate(left) if free >= room + _FSM_STEP), None)
                pages += fitting is None
                current = usable if fitting is None else left.pop(fitting)
            current -= room
    # The last page is not yet full.
    return content / (pages * usable - current)


def toast_index(chunks: float, block_bytes: int) -> Needed:
    """The index of a TOAST table: an OID and a number."""
    leaves = chunks / _per_page(Width(16, True), 90, 0.0, block_bytes)
    return _tree(leaves, chunks * (16 + _LINE_POINTER), 16, block_bytes)


# ---- B-trees


def key_width(btree: Btree) -> Width:
    """An entry for one row."""
    end = _End()
    for column in btree.columns:
        end.add(column)
    nulls = _with_nulls(btree.columns)
    header = _INDEX_HEADER + nulls * (_INDEX_HEADER_WITH_NULLS - _INDEX_HEADER)
    return end.width(header, nulls in (0.0, 1.0))


def btree(entries: float, index: Btree, width: Width, fillfactor: int, block_bytes: int) -> Needed:
    """A B-tree with so many rows, as CREATE INDEX leaves it; `width` is that of an entry for one row."""
    if not index.deduplicated or entries < 1:
        leaves = entries / _per_page(width, fillfactor, 0.0, block_bytes)
        return _tree(leaves, entries * (width.mean_bytes + _LINE_POINTER), width.mean_bytes, block_bytes)
    lists = _Lists(width.mean_bytes, fillfactor, block_bytes)
    for keys, rows, evenly in _groups(entries, index):
        lists.add(keys, rows, evenly=evenly)
    leaves = lists.leaves
    if lists.items > 0:
        mean = lists.bytes / lists.items - _LINE_POINTER
        uniform = width.uniform and lists.single_bytes > 0.99 * lists.bytes
        spare = max(mean - width.mean_bytes, 0.0)
        leaves += lists.items / _per_page(Width(mean, uniform), fillfactor, spare, block_bytes)
    needed = _tree(leaves, lists.content_bytes, width.mean_bytes, block_bytes)
    return replace(needed, items=lists.items + lists.many_items)


def _groups(entries: float, index: Btree) -> list[tuple[float, float, bool]]:
    """Numbers of keys, the rows that have each of them, and whether that is the same for all, not just in the mean."""
    sampled = min(max(index.sampled_rows, 1.0) / entries, 1.0)
    if index.n_distinct is not None:
        return _runs(min(max(_keys(index.n_distinct, entries), 1.0), entries), entries, sampled)
    if len(index.columns) == 1:
        common, rest, values = _values(index.columns[0], entries)
        runs = _runs(values, rest * entries, sampled) if values else []
        return [(keys, entries * part, False) for keys, part in common] + runs
    groups = [(1.0, 1.0)]
    for column in index.columns:
        common, rest, values = _values(column, entries)
        if values:
            number = _different(values, rest * entries, sampled)
            common.append((number, rest / number))
        groups = [(keys * k, part * s) for keys, part in groups for k, s in common]
    # Columns as if they were independent: of the pairs that there could be some do not occur.
    met = [(keys * -math.expm1(-entries * part), keys * part * entries) for keys, part in groups]
    # There are as many pairs at the least as values of either.
    least = min(max(_keys(column.n_distinct or 0.0, entries) for column in index.columns), entries)
    more = max(least / max(sum(keys for keys, _ in met), 1.0), 1.0)
    return [(keys * more, max(rows / keys / more, 1.0), False) for keys, rows in met if rows > 0 and keys > 0]


def _runs(guess: float, rows: float, sampled: float) -> list[tuple[float, float, bool]]:
    """So many rows of keys whose number ANALYZE has guessed, by a share of them."""
    each = rows / guess
    if sampled == 1 and abs(each - round(each)) < 0.001 * each:
        # It has counted them. Were they not equally many, so round a mean would be an accident.
        return [(guess, each, True)]
    chance = _different(guess, rows, sampled)
    return [(guess / 2, each, True), (chance / 2, rows / chance, False)]


def _different(guess: float, rows: float, share: float) -> float:
    """How many keys so many rows have if chance decides, by the guess that ANALYZE has made of a share of them.

    Its guess is D = n d / (n - f + f q): n rows in the sample, a share q of all, with d different keys, of which f were
    met once. Where each of M keys occurs so often as chance decides, m times in the mean, that is with e = exp(-m q)
    n = M m q, d = M (1 - e), f = M m q e; so rows / D = m (1 - (1 - q) e) / (1 - e). Of the M keys 1 - exp(-m) occur.
    """
    seen = rows / guess
    if seen <= 1.000001:
        return guess

    def of(mean: float) -> float:
        e = math.exp(-mean * share)
        return mean * (1 - (1 - share) * e) / -math.expm1(-mean * share)

    low, high = 1e-9, seen
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) < seen else (low, middle)
    return rows * -math.expm1(-low) / low


def _keys(n_distinct: float, entries: float) -> float:
    return n_distinct if n_distinct >= 0 else -n_distinct * entries


def _values(column: Column, entries: float) -> tuple[list[tuple[float, float]], float, float]:
    """Numbers of common values, NULL among them, with the share of the rows of each; that of the rest; its values."""
    nulls = column.null_share or 0.0
    common = [share for share in column.common_shares if share > 0]
    found = [(1.0, nulls)] if nulls > 0 else []
    for share in sorted(common, reverse=True):
        if found and found[-1][1] / share <= _ALIKE and (len(found) > 1 or not nulls):
            number, mean = found[-1]
            found[-1] = (number + 1, (number * mean + share) / (number + 1))
        else:
            found.append((1.0, share))
    rest = 1 - nulls - sum(common)
    if rest * entries < 1:
        return found, 0.0, 0.0
    return found, rest, min(max(_keys(column.n_distinct or 0.0, entries) - len(common), 1.0), rest * entries)


class _Lists:
    """Posting lists and single entries, added up."""

    def __init__(self, key_bytes: float, fillfactor: int, block_bytes: int) -> None:
        self._key = key_bytes
        self._fillfactor = fillfactor
        self._block_bytes = block_bytes
        most = (block_bytes // 10 // _MAX_ALIGN * _MAX_ALIGN - _LINE_POINTER) // _MAX_ALIGN * _MAX_ALIGN
        self._rows = max(int((most - key_bytes) // _TID), 1)
        #: Of keys with few rows: entries and lists with their line pointers, and what of that are single entries.
        self.items = self.bytes = self.single_bytes = 0.0
        #: Leaves of keys with many rows, and their lists.
        self.leaves = self.many_items = 0.0
        #: All of it.
        self.content_bytes = 0.0

    def _sizes(self, rows: int) -> list[float]:
        """Of the lists of a key with so many rows, with their line pointers."""
        full, rest = divmod(rows, self._rows)
        sizes = [self._key + aligned(self._rows * _TID) + _LINE_POINTER] * full
        if rest:
            sizes.append(self._key + (aligned(rest * _TID) if rest > 1 else 0) + _LINE_POINTER)
        return sizes

    def add(self, keys: float, rows: float, *, evenly: bool) -> None:
        """So many keys with so many rows each; in the mean, where chance decides."""
        if rows >= _MANY:
            self._add_many(keys, rows)
            return
        for number, weight in _spread_evenly(rows) if evenly else _spread_by_chance(rows):
            sizes = self._sizes(number)
            self.items += keys * weight * len(sizes)
            self.bytes += keys * weight * sum(sizes)
            self.content_bytes += keys * weight * sum(sizes)
            self.single_bytes += keys * weight * sizes[0] if number == 1 else 0.0

    def _add_many(self, keys: float, rows: float) -> None:
        """Lists that are so long that it matters how they happen to fit into a page: some keys are tried."""
        tried = min(math.ceil(keys), max(int(_ITEMS * self._rows / rows), 1))
        scatter = math.sqrt(rows) if keys >= 2 else 0.0
        sizes = [
            size
            for number in range(tried)
            # Spread evenly, about as far as chance would.
            for size in self._sizes(max(round(rows + scatter * (3.4 * (number * 0.618034 % 1) - 1.7)), 1))
        ]
        share = keys / tried
        self.content_bytes += share * sum(sizes)
        self.leaves += share * self._leaves(sizes)
        self.many_items += share * len(sizes)

    def _leaves(self, sizes: Sequence[float]) -> float:
        """How many leaves CREATE INDEX makes of these items, the last one in part."""
        room = self._block_bytes - _PAGE_HEADER - _BTREE_SPECIAL - 2 * _LINE_POINTER
        least = self._block_bytes * (100 - self._fillfactor) // 100
        leaves, free, last, count = 0, float(room), 0.0, 0
        for size in sizes:
            # What the last item loses when it becomes the high key counts as free.
            spare = max(last - _LINE_POINTER - self._key, 0.0)
            if count > 1 and (free < size - _LINE_POINTER + _MAX_ALIGN or free + spare < least):
                leaves, free, count = leaves + 1, room - last, 1
            free, last, count = free - size, size, count + 1
        return leaves + min((room - free) / (room - least), 1.0)


def _spread_evenly(mean: float) -> Iterator[tuple[int, float]]:
    """Numbers of rows, and the share of the keys that have so many: of the two next to the mean."""
    low = math.floor(mean)
    yield low, 1 - (mean - low)
    if mean > low:
        yield low + 1, mean - low


def _spread_by_chance(mean: float) -> Iterator[tuple[int, float]]:
    """The same where all values are equally likely, of those that are met: a Poisson distribution without 0."""
    before = _mean_before_truncation(mean)
    weight = math.exp(-before) / -math.expm1(-before) if before > 0 else 0.0
    left = 1.0
    for number in range(1, 4 * _MANY):
        weight = weight * before / number if before > 0 else 1.0
        yield number, weight
        left -= weight
        if left < 1e-6:
            return


def _mean_before_truncation(mean: float) -> float:
    """Of a Poisson distribution whose mean without 0 is this."""
    if mean <= 1.000001:
        return 0.0
    low, high = 0.0, mean
    for _ in range(50):
        middle = (low + high) / 2
        if middle / -math.expm1(-middle) < mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _per_page(width: Width, fillfactor: int, spare: float, block_bytes: int) -> float:
    """Items of a page; `spare` is what the last one of a leaf loses when it becomes the high key."""
    usable = block_bytes - _PAGE_HEADER - _BTREE_SPECIAL - 2 * _LINE_POINTER
    room = (usable - block_bytes * (100 - fillfactor) // 100 + spare) / (width.mean_bytes + _LINE_POINTER)
    return max(float(math.floor(room)) if width.uniform else room - 0.5, 2.0)


def _tree(leaves: float, content: float, pivot_bytes: float, block_bytes: int) -> Needed:
    """A tree with so many leaves."""
    if leaves <= 0:
        return Needed(block_bytes, 0)
    pages = total = math.ceil(leaves)
    while pages > 1:
        pages = math.ceil(pages / _per_page(Width(pivot_bytes, False), _INTERNAL_FILLFACTOR, 0.0, block_bytes))
        total += pages
    # The first page is that which says where the root is.
    return Needed((total + 1) * block_bytes, int(content))
