"""What is told of a table: sizes in bytes, by which method each was found, and what is not known and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from pglean.errors import Finding
from pglean.table import quote_name


class Method(StrEnum):
    """How figures were found."""

    #: From the server's statistics; the table is not read.
    ESTIMATE = "estimate"
    #: From some blocks of the table, with an error bound.
    SAMPLE = "sample"
    #: By pgstattuple_approx, which reads what the visibility map does not vouch for, and pgstatindex.
    APPROX = "approx"
    #: By pgstattuple: all of it is read.
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class RelationBloat:
    """The heap of a table, its TOAST table with the index of that, or an index. None is what is not known."""

    #: heap, toast or index.
    kind: str
    #: Of the relation; empty for the TOAST table.
    name: str
    #: Size of the file (main fork).
    bytes: int
    #: None where nothing but the size is known; `notes` say why.
    method: Method | None = None
    #: What the live rows or entries take, with their line pointers.
    live_bytes: int | None = None
    #: What dead row versions take that no VACUUM has removed yet.
    dead_bytes: int | None = None
    #: All the rest of the file.
    free_bytes: int | None = None
    #: What of it new rows can use, without what the fillfactor keeps for updates.
    reusable_bytes: int | None = None
    #: What a repack would leave.
    after_bytes: int | None = None
    #: Of a sample: so far `after_bytes` may be off, in 19 cases of 20.
    error_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def gain_bytes(self) -> int:
        """What a repack would give back; 0 where that is not known."""
        return 0 if self.after_bytes is None else max(self.bytes - self.after_bytes, 0)

    @property
    def known(self) -> bool:
        """Whether it is known what a repack would leave."""
        return self.after_bytes is not None

    def noting(self, *notes: str) -> RelationBloat:
        """The same with more to be said."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True, slots=True)
class TableBloat:
    """A table, or with `partitions` a partitioned table as the sum of them."""

    oid: int
    schema: str
    name: str
    heap: RelationBloat
    toast: RelationBloat | None
    indexes: tuple[RelationBloat, ...]
    #: Partitioned table at the top, of which it is a part: schema and name.
    root: tuple[str, str] | None = None
    #: Partitioned table under which it is added up: `root`, or where names are asked for, the one that was named; None
    #: where it is meant by itself.
    family: tuple[str, str] | None = None
    #: How many partitions are summed up here; 0 for a table.
    partitions: int = 0

    @property
    def qualified_name(self) -> str:
        """Quoted where psql would; as `Database.repack` takes it."""
        return f"{quote_name(self.schema)}.{quote_name(self.name)}"

    @property
    def relations(self) -> tuple[RelationBloat, ...]:
        """Heap, TOAST table, indexes."""
        return (self.heap, *(() if self.toast is None else (self.toast,)), *self.indexes)

    @property
    def bytes(self) -> int:
        """Size of all of it."""
        return sum(relation.bytes for relation in self.relations)

    @property
    def after_bytes(self) -> int | None:
        """What a repack would leave, where what is not known stays as it is; None where the heap is not known."""
        return self.bytes - self.gain_bytes if self.heap.known else None

    @property
    def gain_bytes(self) -> int:
        """What a repack would give back, as far as that is known."""
        return sum(relation.gain_bytes for relation in self.relations)

    @property
    def bloat(self) -> float | None:
        """`gain_bytes` as a share of the size; None where the heap is not known."""
        if not self.heap.known:
            return None
        return self.gain_bytes / self.bytes if self.bytes else 0.0

    @property
    def method(self) -> str:
        """How the heap was looked at, with ``+`` where other parts of it were otherwise; ``none`` where it was not."""
        methods = {relation.method for relation in self.relations if relation.method is not None}
        first = self.heap.method
        return "none" if first is None else f"{first}{'+' if methods - {first} else ''}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of it and its parts, each once."""
        told: dict[str, None] = {}
        for relation in self.relations:
            for note in relation.notes:
                told[f"index {relation.name}: {note}" if relation.kind == "index" else note] = None
        return tuple(told)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "table": self.qualified_name,
            "partition_of": None if self.root is None else ".".join(map(quote_name, self.root)),
            "partitions": self.partitions,
            "method": self.method,
            "bytes": self.bytes,
            "after_bytes": self.after_bytes,
            "gain_bytes": self.gain_bytes,
            "bloat": None if self.bloat is None else round(self.bloat, 4),
            "notes": list(self.notes),
            "relations": [{**asdict(relation), "gain_bytes": relation.gain_bytes} for relation in self.relations],
        }


@dataclass(frozen=True, slots=True)
class Bloat:
    """What was found in a database."""

    #: The largest gain first; those of which nothing is known at the end.
    tables: tuple[TableBloat, ...]
    #: How many tables were looked at; of these some may have been filtered out.
    looked_at: int
    #: What is to be said of all of it.
    warnings: tuple[Finding, ...] = ()

    def __iter__(self) -> Iterator[TableBloat]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "tables": [table.as_json() for table in self.tables],
            "looked_at": self.looked_at,
            "warnings": [{"code": warning.code, "message": warning.message} for warning in self.warnings],
        }


def families(tables: Iterable[TableBloat]) -> list[tuple[TableBloat, Sequence[TableBloat]]]:
    """Partitions added up to their partitioned tables, with what was added up; other tables as they are."""
    found: dict[tuple[str, str], list[TableBloat]] = {}
    result: list[tuple[TableBloat, Sequence[TableBloat]]] = []
    for table in tables:
        if table.family is None:
            result.append((table, (table,)))
        else:
            found.setdefault(table.family, []).append(table)
    return result + [(_family(top, members), members) for top, members in found.items()]


def summed(tables: Iterable[TableBloat]) -> list[TableBloat]:
    """The same without what was added up."""
    return [table for table, _ in families(tables)]


def _family(top: tuple[str, str], members: Sequence[TableBloat]) -> TableBloat:
    toasts = [member.toast for member in members if member.toast is not None]
    indexes = [index for member in members for index in member.indexes]
    return TableBloat(
        oid=0,
        schema=top[0],
        name=top[1],
        heap=_sum("heap", top[1], [member.heap for member in members]),
        toast=_sum("toast", "", toasts) if toasts else None,
        indexes=(_sum("index", f"of {len(members)} partitions", indexes),) if indexes else (),
        partitions=len(members),
    )


def _sum(kind: str, name: str, parts: Sequence[RelationBloat]) -> RelationBloat:
    """What is known of all is the sum; of what is known of some, the rest counts as it is, which is said."""
    known = [part for part in parts if part.known]
    methods = {part.method for part in known}
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    if known and len(known) < len(parts):
        notes[f"{len(parts) - len(known)} of {len(parts)} are not known, and counted with their size"] = None
    if len(methods) > 1:
        notes[f"methods: {', '.join(sorted(str(method) for method in methods))}"] = None

    def total(values: Iterable[int | None]) -> int | None:
        given = list(values)
        return None if not given or None in given else sum(value or 0 for value in given)

    errors = [part.error_bytes for part in known if part.error_bytes is not None]
    return RelationBloat(
        kind=kind,
        name=name,
        bytes=sum(part.bytes for part in parts),
        method=max(methods, key=lambda m: sum(p.bytes for p in known if p.method is m)) if methods else None,
        live_bytes=total(part.live_bytes for part in parts),
        dead_bytes=total(part.dead_bytes for part in parts),
        free_bytes=total(part.free_bytes for part in parts),
        reusable_bytes=total(part.reusable_bytes for part in parts),
        after_bytes=sum(part.bytes - part.gain_bytes for part in parts) if known else None,
        # Errors of tables that have nothing to do with each other.
        error_bytes=int(sum(error**2 for error in errors) ** 0.5) if errors else None,
        notes=tuple(notes),
    )
