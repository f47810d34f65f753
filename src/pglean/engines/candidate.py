"""Indexes and their tables as REINDEX CONCURRENTLY sees them, and what it cannot do to them.

No function here takes a lock but ACCESS SHARE on an index, for its size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pglean.errors import Finding
from pglean.session import Connection, scalar
from pglean.sql import query
from pglean.table import quote_name

#: How REINDEX CONCURRENTLY calls an index that it has not finished, or not dropped yet.
_SUFFIX = re.compile(r"_cc(?:new|old)\d*$")


@dataclass(frozen=True, slots=True)
class Relation:
    """A table whose indexes are to be rebuilt."""

    oid: int
    schema: str
    name: str
    #: pg_class.relkind.
    kind: str
    #: pg_class.relpersistence: p(ermanent), u(nlogged), t(emporary).
    persistence: str
    is_catalog: bool
    #: Whether our role has the rights of its owner.
    owned: bool
    #: Whether it has MAINTAIN on it (17 and later).
    maintained: bool
    #: Whether it may name what stands in the schema.
    schema_usage: bool
    owner: str
    #: Of the table whose run this is: its own, or, of a TOAST table, that of the table it belongs to.
    main_oid: int
    #: OID of its TOAST table.
    toast_oid: int | None

    @property
    def qualified_name(self) -> str:
        """For messages."""
        return f"{quote_name(self.schema)}.{quote_name(self.name)}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An index of such a table."""

    oid: int
    schema: str
    name: str
    table_oid: int
    #: indisvalid and indisready and indislive.
    valid: bool
    #: Backs an exclusion or a temporal (WITHOUT OVERLAPS) constraint.
    exclusion: bool
    #: Name of the constraint that it backs.
    constraint: str | None
    #: Qualified name of the partitioned index that it is a part of.
    parent: str | None
    #: Qualified name of the index of which a failed REINDEX CONCURRENTLY has left this one.
    original: str | None
    bytes: int
    #: Who builds or drops it just now; None for nobody, and for a valid one.
    builder: str | None = None

    @property
    def qualified_name(self) -> str:
        """For messages."""
        return f"{quote_name(self.schema)}.{quote_name(self.name)}"

    @property
    def leftover(self) -> bool:
        """Whether nothing needs it: the index that it was to replace, or was replaced by, is there."""
        return self.original is not None

    @property
    def named_as_leftover(self) -> bool:
        """Whether it has the name that REINDEX CONCURRENTLY gives to what it leaves when it fails."""
        return _SUFFIX.search(self.name) is not None

    @property
    def story(self) -> str:
        """Where it comes from, as a sentence; for an invalid one."""
        if self.builder is not None:
            return f"It is being built or dropped by {self.builder}."
        if self.original is not None:
            return (
                f"A REINDEX CONCURRENTLY of {self.original} that failed or was cancelled has left it; nothing needs it."
            )
        return "It was left by a failed CREATE INDEX CONCURRENTLY or REINDEX CONCURRENTLY."


def relations(conn: Connection, oids: Iterable[int]) -> dict[int, Relation]:
    """By OID, those that there are."""
    rows = conn.execute(query("reindex.relations"), {"oids": list(oids)})
    return {row[0]: Relation(*row) for row in rows}


def table_of(conn: Connection, oid: int) -> int | None:
    """The table of an index; None for what is none."""
    found: int | None = scalar(conn, query("reindex.table_of"), {"oid": oid})
    return found


def candidates(conn: Connection, table: int) -> list[Candidate]:
    """All indexes of a table. Waits for whoever has the table, or one of them, locked against readers."""
    rows = conn.execute(query("reindex.indexes"), {"table": table}).fetchall()
    # What has no size any more has been dropped since the statement began.
    found = [Candidate(*row) for row in rows if row[-1] is not None]
    return [
        index if index.valid else replace(index, builder=builder(conn, index.oid, index.table_oid)) for index in found
    ]


def builder(conn: Connection, index: int, table: int) -> str | None:
    """Who builds or drops the index just now, as a phrase; None for nobody."""
    found: str | None = scalar(conn, query("reindex.builder"), {"index": index, "table": table})
    return found


def invalid_oids(conn: Connection, table: int) -> frozenset[int]:
    """The invalid indexes of a table."""
    return frozenset(row[0] for row in conn.execute(query("reindex.invalid"), {"table": table}))


_KINDS = {
    "v": "a view",
    "f": "a foreign table",
    "i": "an index",
    "I": "a partitioned index",
    "S": "a sequence",
    "c": "a composite type",
}


def of_relation(relation: Relation, *, busy: bool) -> Iterator[Finding]:
    """What keeps all indexes of the table from being rebuilt."""
    name = relation.qualified_name
    if relation.kind == "p":
        yield Finding(
            "partitioned",
            f"{name} is a partitioned table",
            "Its indexes hold nothing themselves: those of its partitions do.",
            f"Name it as a parent: -I {name}; or name its partitions.",
        )
        return
    if relation.kind not in ("r", "m", "t"):
        what = _KINDS.get(relation.kind, f'a relation of kind "{relation.kind}"')
        hint = f"Name indexes by -i {name}." if relation.kind in "iI" else None
        yield Finding("kind", f"{name} is {what}, not a table", "It has no indexes.", hint)
        return
    if relation.is_catalog or relation.schema == "pglean":
        what = "a system catalog" if relation.is_catalog else "a table of pglean itself"
        yield Finding(
            "system",
            f"{name} is {what}",
            "The server cannot rebuild the indexes of its catalogs while they are used."
            if relation.is_catalog
            else "A run relies on its indexes.",
            "REINDEX it without CONCURRENTLY in a quiet moment, while no run is in progress.",
        )
    if relation.persistence == "t":
        yield Finding(
            "temporary",
            f"{name} is a temporary table",
            "Only the session that made it can use it.",
            "REINDEX it in that session.",
        )
    yield from _rights(relation)
    if busy:
        yield Finding(
            "busy",
            f"another run of pglean works on {name}",
            "Two runs on one table exclude each other.",
            "See `pglean status`.",
        )


def _rights(relation: Relation) -> Iterator[Finding]:
    name = relation.qualified_name
    if not (relation.owned or relation.maintained):
        yield Finding(
            "rights",
            f"{name} belongs to {quote_name(relation.owner)}, whose rights you have not",
            "Who rebuilds indexes must own their table (from PostgreSQL 17 on: or have MAINTAIN on it).",
            f"Connect as {quote_name(relation.owner)} (-U), as a member of that role, or as a superuser.",
        )
    elif not relation.schema_usage:
        yield Finding(
            "rights",
            f"you may not use schema {quote_name(relation.schema)}",
            f"So the indexes of {name} cannot be named.",
            f"GRANT USAGE ON SCHEMA {quote_name(relation.schema)} TO your role;",
        )


#: Codes of findings that are true of an index as long as it is what it is.
BY_NATURE = frozenset({"exclusion"})


def of_index(index: Candidate, relation: Relation, *, moved: bool = False) -> Iterator[Finding]:
    """What keeps this index from being rebuilt, or moved to another tablespace, where the table does not."""
    name = index.qualified_name
    if index.builder is not None:
        yield Finding(
            "under-construction",
            f"index {name} is being built or dropped by another session",
            f"By {index.builder}.",
            "Wait until it is done.",
        )
    elif index.exclusion:
        yield Finding(
            "exclusion",
            f"index {name} backs exclusion constraint {quote_name(index.constraint or index.name)}",
            "The server cannot build such an index while the table is written.",
            f"In a quiet moment, for writers wait meanwhile: REINDEX INDEX {name};",
        )
    elif not index.valid and not index.leftover and relation.kind == "t":
        yield Finding(
            "invalid-toast-index",
            f"index {name} of a TOAST table is invalid",
            "The server neither reads such an index nor rebuilds it. Only who changes the catalog by hand makes one.",
            f"As a superuser: BEGIN; UPDATE pg_index SET indisvalid = true WHERE indexrelid = '{name}'::regclass;"
            f" REINDEX INDEX {name}; COMMIT;",
        )
    elif moved and not index.leftover and relation.kind == "t":
        yield Finding(
            "toast-tablespace",
            f"index {name} of a TOAST table cannot be moved to another tablespace",
            "The server moves it only with its table.",
            "Rebuild it where it is, without -s; or move the table: pglean repack -s.",
        )
