"""The layout of the new files: where they lie, how full their pages are, how long values are stored in them.

What the table itself says holds, but for what the options ask for. Where these go on to hold for what is written later
(fillfactor, compression, access method), the swap tells the table, in its own transaction.

Values that are compressed are copied by the server as they are, whatever their column says by now. So where a column's
settings ask for something else, the copy unpacks the value on its way, by functions of the server's own that neither
look into it nor know its type: an array of one element holds it unpacked, and so does an array that another, empty
one is appended to. (Casts to text and back were rejected: slow, code of the type's owner, and not exact for each type.)
Values that are stored as their column says are not touched; nor are those of a column that was set to PLAIN, for which
a page might have no room.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from pglean.options import Compression, Options
from pglean.parameters import parameters
from pglean.table import Column, Index, Table, quote_name

_STORAGE = {"p": "PLAIN", "e": "EXTERNAL", "m": "MAIN", "x": "EXTENDED"}
_COMPRESSION = {"p": Compression.PGLZ, "l": Compression.LZ4}
#: Storage parameters that decide how tuples are laid out.
_PARAMETERS = ("fillfactor", "toast_tuple_target")


@dataclass(frozen=True, slots=True)
class Layout:
    """What `options` make of the table's own layout."""

    table: Table
    options: Options
    #: The database's default tablespace, by name.
    default_tablespace: str | None = None

    # ---- where

    @property
    def tablespace(self) -> str | None:
        """Of the heap and the TOAST table; None for the database's default."""
        return self._space(self.options.tablespace or self.table.tablespace)

    def index_tablespace(self, index: Index) -> str | None:
        """Of an index: where it is, unless the indexes are to be moved too; None for the database's default."""
        moved = self.options.tablespace if self.options.move_indexes else None
        return self._space(moved or index.tablespace)

    def _space(self, name: str | None) -> str | None:
        return None if name == self.default_tablespace else name

    # ---- how

    @property
    def method(self) -> str:
        """Table access method."""
        return self.options.access_method or self.table.method or "heap"

    @property
    def parameters(self) -> dict[str, str]:
        """Storage parameters of the copy, by name."""
        kept = {name: value for name, value in parameters(self.table.options).items() if name in _PARAMETERS}
        if self.options.fillfactor is not None:
            kept["fillfactor"] = str(self.options.fillfactor)
        return kept

    def compression(self, column: Column) -> Compression | None:
        """What the column's values are compressed by; None where that is left to the server's default."""
        if self.options.compression is not None and compressible(column):
            return self.options.compression
        return _COMPRESSION.get(column.compression)

    def storage(self, column: Column) -> str | None:
        """The column's storage as ALTER TABLE spells it; None where it is what its type brings."""
        return None if column.storage == column.type_storage else _STORAGE[column.storage]

    def values(self, alias: str = "t") -> sql.Composed:
        """The stored columns of `alias` as the copy is to hold them, as a list of expressions."""
        return sql.SQL(", ").join(self._value(column, alias) for column in self.table.columns if column.stored)

    def _value(self, column: Column, alias: str) -> sql.Composable:
        value = sql.Identifier(alias, column.name)
        if not compressible(column) or column.storage == "p":
            return value
        compression = self.compression(column)
        if column.storage == "e":
            other: sql.Composable = sql.SQL("IS NOT NULL")
        elif compression is not None:
            other = sql.SQL("OPERATOR(pg_catalog.<>) {}").format(sql.Literal(compression.value))
        else:
            return value
        unpacked = "pg_catalog.array_cat({value}, NULL)" if column.is_array else "(ARRAY[{value}])[1]"
        return sql.SQL(
            "CASE WHEN pg_catalog.pg_column_compression({value}) {other} THEN {unpacked} ELSE {value} END"
        ).format(value=value, other=other, unpacked=sql.SQL(unpacked).format(value=value))

    @property
    def description(self) -> str:
        """What is asked for beside the table's own layout, in words; empty where nothing is."""
        options = self.options
        parts = []
        if options.tablespace is not None:
            what = "and indexes " if options.move_indexes else ""
            parts.append(f"heap {what}in tablespace {quote_name(options.tablespace)}")
        if options.fillfactor is not None:
            parts.append(f"pages filled to {options.fillfactor} %")
        if options.compression is not None:
            parts.append(f"long values compressed by {options.compression}")
        if options.access_method is not None:
            parts.append(f"access method {quote_name(options.access_method)}")
        return "; ".join(parts)


def compressible(column: Column) -> bool:
    """Whether its values can be stored compressed at all: long ones of a type that may be TOASTed."""
    return column.stored and column.type_storage != "p"
