"""What is known of a table: its rows, columns and indexes, however that was found out."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: From so many rows on, and such a share of all, that were written since, statistics are old, or say nothing any more.
_FEW_ROWS, _STALE, _OUTDATED = 1000, 0.2, 0.5


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table or of an index, as the values of its rows are stored."""

    name: str
    #: pg_attribute.attlen: bytes of a value, or -1 and -2 where they vary.
    length: int
    #: Bytes: 1, 2, 4 or 8.
    alignment: int
    #: Whether short values do without padding and three bytes of header (any storage but PLAIN).
    packed: bool
    #: Share of NULLs; None where there are no statistics.
    null_share: float | None
    #: Mean of the values that are not NULL; a value in the TOAST table counts by its pointer.
    mean_bytes: float | None
    #: Whether all values were seen to be so long, although their type does not say so.
    constant: bool = False
    #: As pg_stats has it: a number, or, negative, a share of the rows.
    n_distinct: float | None = None
    #: Shares of the rows that have its most common values; only of columns of indexes that put equal keys together.
    common_shares: tuple[float, ...] = ()

    @property
    def known(self) -> bool:
        """Whether there are statistics."""
        return self.null_share is not None and self.mean_bytes is not None


@dataclass(frozen=True, slots=True)
class Btree:
    """What is known of the keys of a B-tree."""

    #: Key columns, then those that are only included.
    columns: tuple[Column, ...]
    unique: bool
    #: Whether CREATE INDEX puts equal keys together.
    deduplicated: bool
    #: Number of distinct keys by extended statistics, read as `Column.n_distinct`; None where there are none.
    n_distinct: float | None = None
    #: Rows that ANALYZE looks at; where it is partial, those of them that it holds.
    sampled_rows: float = math.inf
    #: Whether the statistics say nothing of most rows; see `Table.outdated`.
    outdated: bool = False

    @property
    def known(self) -> bool:
        """Whether there are statistics of all that matters."""
        if self.outdated and (self.deduplicated or any(column.length < 0 for column in self.columns)):
            return False
        distinct = not self.deduplicated or self.n_distinct is not None
        return all(column.known and (distinct or column.n_distinct is not None) for column in self.columns)


@dataclass(frozen=True, slots=True)
class Index:
    """An index of a table."""

    oid: int
    name: str
    method: str
    bytes: int
    fillfactor: int
    #: Share of the table's rows that it holds: less than 1 where it is partial. None where that is not known.
    share: float | None
    #: None where it is no B-tree.
    btree: Btree | None
    #: False where its size is that of the last VACUUM or ANALYZE, because somebody has it locked.
    size_is_present: bool = True


@dataclass(frozen=True, slots=True)
class Toast:
    """The TOAST table of a table."""

    oid: int
    bytes: int
    index_bytes: int
    #: Live and dead chunks; None where nobody has counted them.
    chunks: float | None
    dead_chunks: float | None
    size_is_present: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table, a materialized view, or a partition."""

    oid: int
    schema: str
    name: str
    owner: str
    owner_is_superuser: bool
    #: Qualified name of the partitioned table at the top, of which it is a part.
    root: tuple[str, str] | None
    #: The same, but that among those that were named, where names are asked for; None where it was named by itself.
    family: tuple[str, str] | None
    #: Whether its access method is the heap.
    is_heap: bool
    bytes: int
    fillfactor: int
    #: Live and dead rows; None where neither VACUUM nor ANALYZE has counted them.
    rows: float | None
    dead_rows: float | None
    #: Rows written since the last ANALYZE.
    changed_rows: float
    #: Whether the role may read all of it, and row security lets it.
    readable: bool
    row_security: bool
    #: Columns in their order, those that are dropped or virtual left out.
    columns: tuple[Column, ...]
    #: Number of columns in a row, with those that are dropped or virtual: these are NULL in each row that is written.
    width: int
    #: Whether rows that were written long ago are laid out otherwise: columns were dropped or added since.
    reshaped: bool
    toast: Toast | None
    indexes: tuple[Index, ...]
    size_is_present: bool = True
    #: Live rows by the counters, which inserts add to; None where these say nothing.
    counted_rows: float | None = None

    @property
    def present_rows(self) -> float | None:
        """`rows`, with what may have come in since these were counted, where much was written."""
        if self.rows is None or self.counted_rows is None or self.changed_rows <= _STALE * self.rows:
            return self.rows
        return max(self.rows, self.counted_rows)

    @property
    def stale(self) -> bool:
        """Whether much was written since the last ANALYZE."""
        return self.changed_rows > max(_STALE * (self.present_rows or 0.0), _FEW_ROWS)

    @property
    def outdated(self) -> bool:
        """Whether so many rows have come in that statistics say nothing of most."""
        present = self.present_rows or 0.0
        return present - (self.rows or 0.0) > max(_OUTDATED * present, _FEW_ROWS)

    @property
    def unknown_columns(self) -> list[str]:
        """Those of which there are no statistics."""
        return [column.name for column in self.columns if not column.known]
