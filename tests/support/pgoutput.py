"""What `pgoutput` sends, decoded: protocol versions 1 to 4, with or without streaming of large transactions.

The format is that of "Logical Replication Message Formats" in PostgreSQL's manual.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias


class Unchanged:
    """A value that was not sent, because it is stored out of line and was not changed."""

    def __repr__(self) -> str:
        return "unchanged"


UNCHANGED: Final = Unchanged()
#: A row as text; NULL is None.
Row: TypeAlias = tuple[str | Unchanged | None, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as the subscriber is told of it."""

    oid: int
    schema: str
    name: str
    #: relreplident.
    identity: str
    #: Name, whether it is a part of the key, type, modifier.
    columns: tuple[tuple[str, bool, int, int], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One row, or a truncation."""

    #: I(nsert), U(pdate), D(elete), T(runcate).
    kind: str
    #: OID of the table.
    relation: int
    #: What is sent of the old row: K(ey) or O(ld); empty for nothing.
    old_kind: str = ""
    old: Row = ()
    new: Row = ()


class _Reader:
    """The parts of a message, one after the other."""

    def __init__(self, message: bytes) -> None:
        self._message, self._at = message, 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from(f">{code}", self._message, self._at)
        self._at += struct.calcsize(f">{code}")
        return int(value)

    def take(self, length: int) -> bytes:
        part = self._message[self._at : self._at + length]
        assert len(part) == length, "the message is too short"
        self._at += length
        return part

    def letter(self) -> str:
        return self.take(1).decode("ascii")

    def text(self) -> str:
        end = self._message.index(b"\0", self._at)
        part, self._at = self._message[self._at : end], end + 1
        return part.decode()

    def row(self) -> Row:
        return tuple(self._value() for _ in range(self.number("h")))

    def _value(self) -> str | Unchanged | None:
        match self.letter():
            case "n":
                return None
            case "u":
                return UNCHANGED
            case "t":
                return self.take(self.number("i")).decode()
        raise AssertionError("a value of unknown kind")

    def end(self) -> None:
        assert self._at == len(self._message), "the message is too long"


class Decoded:
    """The messages of one slot: the tables that are told of, and the changes that were committed, in that order."""

    def __init__(self, messages: Iterable[bytes], *, parallel: bool = False) -> None:
        """`parallel`: the option streaming was that, by which the end of an aborted transaction has two more parts."""
        self._parallel = parallel
        #: By OID; all that was said of each.
        self.relations: dict[int, set[Relation]] = {}
        self.changes: list[Change] = []
        #: Changes in each transaction that was sent at its commit, and in each that was streamed.
        self.transactions: list[int] = []
        self.streamed: list[int] = []
        # Transaction that is being streamed, outside of a stream None; what has come of each, with its subtransaction.
        self._stream: int | None = None
        self._parts: dict[int, list[tuple[int, Change]]] = {}
        self._begun: int | None = None
        for message in messages:
            self._read(message)
        assert self._begun is None
        assert self._stream is None

    def of(self, oid: int) -> list[Change]:
        """The changes of one table."""
        return [change for change in self.changes if change.relation == oid]

    def _read(self, message: bytes) -> None:
        kind, reader = chr(message[0]), _Reader(message[1:])
        match kind:
            case "B" | "C" | "S" | "E" | "c" | "A":
                self._boundary(kind, reader)
            case "R":
                self._told_of(reader)
            case "I" | "U" | "D" | "T":
                self._changed(kind, reader)
            case "Y":
                return
            case _:
                raise AssertionError(f"a message of kind {kind}, which was not asked for")
        reader.end()

    def _boundary(self, kind: str, reader: _Reader) -> None:
        match kind:
            case "B":
                assert self._begun is None
                reader.take(8 + 8 + 4)
                self._begun = len(self.changes)
            case "C":
                assert self._begun is not None
                reader.take(1 + 8 + 8 + 8)
                self.transactions.append(len(self.changes) - self._begun)
                self._begun = None
            case "S":
                assert self._stream is None
                self._stream = reader.number("I")
                first = reader.number("b")
                assert bool(first) == (self._stream not in self._parts)
                self._parts.setdefault(self._stream, [])
            case "E":
                assert self._stream is not None
                self._stream = None
            case "c":
                parts = self._parts.pop(reader.number("I"))
                reader.take(1 + 8 + 8 + 8)
                self.streamed.append(len(parts))
                self.changes += [change for _, change in parts]
            case "A":
                transaction, part = reader.number("I"), reader.number("I")
                if self._parallel:
                    reader.take(8 + 8)
                kept = [pair for pair in self._parts.pop(transaction) if pair[0] != part]
                if transaction != part:
                    self._parts[transaction] = kept

    def _part(self, reader: _Reader) -> int | None:
        return None if self._stream is None else reader.number("I")

    def _told_of(self, reader: _Reader) -> None:
        self._part(reader)
        oid, schema, name, identity = reader.number("I"), reader.text(), reader.text(), reader.letter()
        columns = []
        for _ in range(reader.number("h")):
            flags, column = reader.number("b"), reader.text()
            columns.append((column, flags == 1, reader.number("I"), reader.number("i")))
        relation = Relation(oid, schema, name, identity, tuple(columns))
        self.relations.setdefault(oid, set()).add(relation)

    def _changed(self, kind: str, reader: _Reader) -> None:
        part = self._part(reader)
        if kind == "T":
            count, _ = reader.number("I"), reader.number("b")
            changes = [Change(kind, reader.number("I")) for _ in range(count)]
        else:
            changes = [self._row_change(kind, reader)]
        for change in changes:
            assert change.relation in self.relations, "a table that was not told of"
            if self._stream is None:
                assert self._begun is not None
                self.changes.append(change)
            else:
                assert part is not None
                self._parts[self._stream].append((part, change))

    @staticmethod
    def _row_change(kind: str, reader: _Reader) -> Change:
        oid, tag = reader.number("I"), reader.letter()
        old_kind = ""
        old: Row = ()
        new: Row = ()
        if tag in "KO":
            assert kind != "I"
            old_kind, old = tag, reader.row()
            tag = reader.letter() if kind == "U" else ""
        if kind != "D":
            assert tag == "N"
            new = reader.row()
        return Change(kind, oid, old_kind, old, new)
