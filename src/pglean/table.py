"""What pglean knows of a table: frozen values, read from the catalog once by `catalog`, no I/O here.

Attributes that end in ``_sql`` hold SQL text which the *server* produced (format_type, quote_ident, pg_get_indexdef
under an empty search path): qualified, quoted, fit to be sent back. All other names are raw and are quoted by the
driver.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One row of pg_attribute, dropped ones included: tuples are read by position."""

    number: int
    name: str
    #: Type with modifier, as format_type writes it; of no meaning for a dropped column.
    type_sql: str
    #: Qualified collation, or None where the type has none.
    collation_sql: str | None
    #: attstorage: p(lain), e(xternal), m(ain) or (e)x(tended).
    storage: str
    #: The storage that the type itself brings, which CREATE TABLE gives.
    type_storage: str
    #: attcompression: p(glz), l(z4), or "" for the server's default at the time of writing.
    compression: str
    dropped: bool
    #: attgenerated: "", s(tored) or v(irtual, PostgreSQL 18).
    generated: str
    not_null: bool
    #: An array proper: neither a domain over one, nor what only looks like one (int2vector).
    is_array: bool
    #: The declared type, a domain perhaps; and how it is written without its modifier.
    type_oid: int
    bare_type_sql: str
    #: attlen: bytes of each value, negative where it varies.
    width: int

    @property
    def stored(self) -> bool:
        """Whether the heap holds a value of it: not so for dropped and for virtual generated columns."""
        return not self.dropped and self.generated != "v"


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of the key, and how two values of it are compared."""

    number: int
    name: str
    #: The declared type, a domain perhaps, and the type that this domain is over.
    type_oid: int
    base_oid: int
    #: The type without its domain and its modifier, so that recording a key never runs a domain's checks, never pins
    #: the domain, and never finds a value too long.
    type_sql: str
    #: The collation *of the index*: under a nondeterministic one, unequal strings are the same key.
    collation_sql: str | None
    #: The equality operator of the index's operator class, e.g. ``OPERATOR(pg_catalog.=)``.
    equality_sql: str
    #: Whether equal values have equal hashes under the type's default hash function.
    hashable: bool
    #: Whether the operator and the type are the server's own, so that calling it runs nobody's code.
    builtin: bool


@dataclass(frozen=True, slots=True)
class Key:
    """The columns that tell each row from every other: by these, changes are recorded and rows refreshed."""

    index_oid: int
    index_name: str
    columns: tuple[KeyColumn, ...]

    @property
    def hashable(self) -> bool:
        """Whether the keys can be divided among workers by their hash."""
        return all(column.hashable for column in self.columns)


@dataclass(frozen=True, slots=True)
class Index:
    """One index of the table."""

    oid: int
    name: str
    schema: str
    method: str
    unique: bool
    primary: bool
    #: Backs an exclusion or a temporal (WITHOUT OVERLAPS) constraint.
    exclusion: bool
    #: indisvalid and indisready and indislive.
    valid: bool
    #: An expression or predicate uses the row as a whole, e.g. ``f(t.*)`` or ``t IS NOT NULL``.
    whole_row: bool
    #: Types of literals in expressions and predicate that may hold a domain's check: arrays of domains, ranges, rows.
    foreign_literals: tuple[str, ...]
    #: Tablespace by name; None for the database's default.
    tablespace: str | None
    bytes: int


@dataclass(frozen=True, slots=True)
class Toast:
    """The TOAST table."""

    oid: int
    index_oid: int
    #: pg_class.reloptions of the TOAST table, without the ``toast.`` prefix.
    options: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Table:
    """A relation that somebody asked to have repacked; `rewrite.checks` says whether that is possible."""

    oid: int
    schema: str
    name: str
    #: pg_class.relkind.
    kind: str
    #: pg_class.relpersistence: p(ermanent), u(nlogged), t(emporary).
    persistence: str
    owner: str
    owner_is_superuser: bool
    #: Access method; None for kinds that have none.
    method: str | None
    #: Whether that is the server's own heap, under whatever name.
    is_heap: bool
    #: Tablespace by name; None for the database's default.
    tablespace: str | None
    #: pg_class.reloptions, e.g. ``fillfactor=70``.
    options: tuple[str, ...]
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...]
    #: None: changes are recorded, and rows found, by images of whole rows.
    key: Key | None
    toast: Toast | None
    #: Size of the main fork and the other forks of the heap, without TOAST and indexes.
    heap_bytes: int
    #: pg_class.reltuples; None where neither VACUUM nor ANALYZE has run yet.
    estimated_rows: int | None
    is_system: bool

    @property
    def stored_columns(self) -> tuple[Column, ...]:
        """Those that make up a row's image: all that the heap holds, generated stored ones too."""
        return tuple(column for column in self.columns if column.stored)

    @property
    def qualified_name(self) -> str:
        """For messages only, quoted where psql would; statements use the driver's quoting."""
        return f"{quote_name(self.schema)}.{quote_name(self.name)}"

    @property
    def total_bytes(self) -> int:
        """Heap, TOAST with its index, and all indexes."""
        toast = self.toast.bytes if self.toast else 0
        return self.heap_bytes + toast + sum(index.bytes for index in self.indexes)


#: Words that mean something to SQL, of PostgreSQL 14 to 19: those that quote_ident puts in quotes.
_WORDS = """
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both case
    cast char character check coalesce collate collation column concurrently constraint create cross
    current_catalog current_date current_role current_schema current_time current_timestamp current_user dec
    decimal default deferrable desc distinct do else end except exists extract false fetch float for foreign
    freeze from full grant greatest group grouping having ilike in initially inner inout int integer intersect
    interval into is isnull join json json_array json_arrayagg json_exists json_object json_objectagg json_query
    json_scalar json_serialize json_table json_value lateral leading least left like limit localtime
    localtimestamp merge_action national natural nchar none normalize not notnull null nullif numeric offset on
    only or order out outer overlaps overlay placing position precision primary real references returning right
    row select session_user setof similar smallint some substring symmetric system_user table tablesample then
    time timestamp to trailing treat trim true union unique user using values varchar variadic verbose when where
    window with xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot
    xmlserialize xmltable
"""
_KEYWORDS = frozenset(_WORDS.split())


def quote_name(name: str) -> str:
    """As quote_ident: bare where it is a plain word that means nothing else, otherwise in double quotes."""
    plain = name.isidentifier() and name.isascii() and name == name.lower() and name not in _KEYWORDS
    return name if plain else '"' + name.replace('"', '""') + '"'
