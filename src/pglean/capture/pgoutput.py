"""What the output plugin ``pgoutput`` sends (protocol version 1), reduced to what is recorded of it. Pure: no I/O.

A transaction comes as a whole, once it is committed: Begin, its changes, Commit. Before the first change of a table,
and after whatever may have changed its definition, a Relation message describes the columns as they are at that place
of the WAL. It must describe the very key that the run records, marked as the replica identity: only then the old key of
a row that gets another one is in the WAL. So a definition that was changed and changed back is noticed as well.

Values are passed on byte by byte, in the server's encoding, as lines of COPY's text format.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from pglean.errors import CaptureGap

#: Prefix of the messages by which a run finds its place in the WAL.
PREFIX: Final = b"pglean"

_BEGIN = struct.Struct(">QqI")
_COMMIT = struct.Struct(">BQQq")
#: What is escaped in COPY's text format; but for the tab, which also stands between two values.
_TO_ESCAPE, _SPECIAL = re.compile(rb"[\\\t\n\r]"), re.compile(rb"[\\\n\r]")
_ESCAPED = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}
_UNCHANGED: Final = object()

#: A value as text, None for NULL, or `_UNCHANGED`.
_Value = bytes | object | None


@dataclass(frozen=True, slots=True)
class Shape:
    """The table as its changes must be described."""

    oid: int
    #: pg_class.relreplident: d(efault), i(ndex) or f(ull).
    identity: str
    #: Name in the server's encoding, and type, of each column that is recorded.
    columns: tuple[tuple[bytes, int], ...]
    #: Whether these are all of the row, as it was (-1) and as it is (1): so it is where there is no key (`images`).
    whole: bool = False


class Keys:
    """Reads messages in their order; what is to be recorded piles up in `lines` until `take`."""

    def __init__(self, shape: Shape, xid: int) -> None:
        """`xid`: any transaction id of about now, in full: what is sent are the lower 32 bits."""
        self._shape, self._xid = shape, xid
        self._oid = shape.oid.to_bytes(4)
        #: Positions of the key's columns among those that are sent, and how many these are; None before that is told.
        self._positions: dict[int, int] | None = None
        self._count = 0
        #: How messages begin that need not be taken apart; nothing begins with these bytes.
        self._short: tuple[bytes, ...] = (b"\xff\xff",)
        #: Key and transaction of each change, for COPY.
        self.lines: list[bytes] = []
        #: Sum of their lengths.
        self.size_bytes = 0
        #: Where the last transaction that was read ends.
        self.end_lsn = 0
        #: What fences have said.
        self.fences: list[bytes] = []
        #: Whether the end of a transaction is still to come.
        self.inside = False
        self._suffix = b""

    def take(self) -> list[bytes]:
        """What is to be recorded; the pile is empty then."""
        lines, self.lines, self.size_bytes = self.lines, [], 0
        return lines

    def read(self, data: bytes) -> None:
        """One message. Raises `CaptureGap` where it is not what it must be."""
        if data.startswith(self._short):
            # By far the most: a new row of which one column is sent.
            self._record_key([data[13:]], 1)
            return
        match data[0]:
            case 0x42:  # B(egin)
                xid = _BEGIN.unpack_from(data, 1)[2]
                # Full ids are at most 2^31 apart from one another.
                self._xid += (xid - self._xid + 0x80000000) % 0x100000000 - 0x80000000
                self._suffix = b"\t%d\n" % self._xid
                self.inside = True
            case 0x43:  # C(ommit)
                self.end_lsn = _COMMIT.unpack_from(data, 1)[2]
                self.inside = False
            case 0x49 | 0x55 | 0x44:  # I(nsert), U(pdate), D(elete)
                self._change(data)
            case 0x52:  # R(elation)
                self._relation(data)
            case 0x4D:  # M(essage), of anybody
                self._message(data)
            case 0x4F | 0x59 | 0x54:  # O(rigin), (T)y(pe), T(runcate), which the fingerprint notices
                pass
            case _:
                raise _not_understood(data)

    def _record_image(self, values: list[_Value], number: int) -> None:
        fields = [b"%d" % number]
        for value in values:
            if value is _UNCHANGED:
                raise CaptureGap("a change was sent without its row")
            fields.append(_TO_ESCAPE.sub(_escaped, value) if isinstance(value, bytes) else rb"\N")
        line = b"\t".join(fields) + self._suffix
        self.lines.append(line)
        self.size_bytes += len(line)

    def _record_key(self, values: list[_Value], _: int) -> None:
        # Whether all are bytes is left to `join`, by which 150,000 keys a second come.
        try:
            line = b"\t".join(values)  # type: ignore[arg-type]
        except TypeError as error:
            raise CaptureGap("a change was sent without its key") from error
        if _SPECIAL.search(line) or line.count(b"\t") != len(values) - 1:
            line = b"\t".join(_TO_ESCAPE.sub(_escaped, value) for value in values)  # type: ignore[arg-type]
        line += self._suffix
        self.lines.append(line)
        self.size_bytes += len(line)

    def _change(self, data: bytes) -> None:
        if self._positions is None or data[1:5] != self._oid:
            raise _not_understood(data)
        kind, tag, at = data[0], data[5], 6
        old: list[_Value] | None = None
        new: list[_Value] | None = None
        if tag in (0x4B, 0x4F):  # K(ey) or O(ld row)
            old, at = self._row(data, at)
            if kind == 0x44:
                tag = 0
            else:
                tag, at = data[at], at + 1
        if tag == 0x4E and kind != 0x44:  # N(ew row)
            new, at = self._row(data, at)
            if _UNCHANGED in new:
                # Stored out of line; the old row is sent then.
                new = [before if value is _UNCHANGED else value for before, value in zip(old or new, new, strict=True)]
        elif tag != 0 or old is None:
            raise _not_understood(data)
        if at != len(data) or (self._shape.whole and kind == 0x55 and old is None):
            raise _not_understood(data)
        record = self._record_image if self._shape.whole else self._record_key
        if old is not None and not (self._shape.whole and old == new):
            record(old, -1)
        if new is not None and new != old:
            record(new, 1)

    def _row(self, data: bytes, at: int) -> tuple[list[_Value], int]:
        """The key of the row that begins at `at`, and where the row ends."""
        positions = self._positions or {}
        if int.from_bytes(data[at : at + 2]) != self._count:
            raise CaptureGap("a change has another number of columns than was told of its table")
        key: list[_Value] = [None] * len(positions)
        at += 2
        for number in range(self._count):
            value: _Value = None
            kind = data[at]
            at += 1
            if kind == 0x74:  # t(ext)
                end = at + 4 + int.from_bytes(data[at : at + 4])
                value, at = data[at + 4 : end], end
            elif kind == 0x75:
                value = _UNCHANGED
            elif kind != 0x6E:  # n(ull)
                raise _not_understood(data)
            if (place := positions.get(number)) is not None:
                key[place] = value
        return key, at

    def _relation(self, data: bytes) -> None:
        if data[1:5] != self._oid:
            raise _not_understood(data)
        at = data.index(b"\0", data.index(b"\0", 5) + 1) + 1
        identity = chr(data[at])
        count = int.from_bytes(data[at + 1 : at + 3])
        at += 3
        found: dict[tuple[bytes, int], int] = {}
        marked: set[tuple[bytes, int]] = set()
        for number in range(count):
            flags, end = data[at], data.index(b"\0", at + 1)
            column = data[at + 1 : end], int.from_bytes(data[end + 1 : end + 5])
            at = end + 9
            found[column] = number
            if flags & 1:
                marked.add(column)
        wanted = set(self._shape.columns)
        missing = wanted != found.keys() if self._shape.whole else not wanted <= found.keys()
        if identity != self._shape.identity or missing or (identity != "f" and marked != wanted):
            raise CaptureGap(
                "the key or the replica identity was changed by another session",
                detail="What was written in between may not have been recorded.",
            )
        self._positions = {found[column]: place for place, column in enumerate(self._shape.columns)}
        self._count = count
        self._short = (
            tuple(kind + self._oid + b"N\0\1t" for kind in (b"I", b"U"))
            if count == 1 and not self._shape.whole
            else (b"\xff\xff",)
        )

    def _message(self, data: bytes) -> None:
        end = data.index(b"\0", 10)
        if data[10:end] == PREFIX:
            self.fences.append(data[end + 5 :])


def _escaped(found: re.Match[bytes]) -> bytes:
    return _ESCAPED[found[0]]


def _not_understood(data: bytes) -> CaptureGap:
    return CaptureGap(f"a message of logical decoding was not understood: {data[:40]!r}")
