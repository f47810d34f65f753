"""Messages of pgoutput: recorded from servers of each version, and made up; read by us, and by a reader for tests."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglean.capture.pgoutput import Keys, Shape
from pglean.errors import CaptureGap
from tests.support.pgoutput import UNCHANGED, Decoded

RECORDED = sorted((Path(__file__).parent / "pgoutput").glob("*.json.gz"))
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _major(path: Path) -> int:
    return int(path.name.partition(".")[0])


def line(values: list[str]) -> str:
    """A line of COPY's text format, without the transaction."""
    return "\t".join(value.translate(_ESCAPES) for value in values)


def recorded(keys: Keys) -> list[str]:
    return [text.decode().rpartition("\t")[0] for text in keys.take()]


def test_all_versions_were_recorded() -> None:
    assert {_major(path) for path in RECORDED} >= {14, 15, 16, 17, 18, 19}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"pg{_major(path)}")
def test_recorded(path: Path) -> None:
    for case in json.loads(gzip.decompress(path.read_bytes())):
        messages = [bytes.fromhex(text) for text in case["messages"]]
        assert {chr(message[0]) for message in messages} >= set("BCRIUDTMO")
        names = [name for name, _ in case["key"]]
        keys = Keys(Shape(case["table"], case["identity"], tuple((n.encode(), t) for n, t in case["key"])), 3_000)
        for message in messages:
            keys.read(message)
        decoded = Decoded(message for message in messages if chr(message[0]) not in "MO")
        expected: list[str] = []
        # By name: the definition with fewer columns comes first.
        columns = [[name for name, *_ in relation.columns] for relation in decoded.relations[case["table"]]]
        positions = {name: {order.index(name) for order in columns} for name in names}
        assert all(len(found) == 1 for found in positions.values())
        for change in decoded.changes:
            if change.kind == "T":
                continue
            old, new = (
                [row[position] for name in names for position in positions[name]] if row else None
                for row in (change.old, change.new)
            )
            if new is not None:
                new = [(old or new)[i] if value is UNCHANGED else value for i, value in enumerate(new)]
            expected += [line([str(v) for v in row]) for row in (old, new if new != old else None) if row is not None]
        assert recorded(keys) == expected
        assert len(expected) > 12
        assert keys.fences == [b"token"]
        (end,) = [struct.unpack_from(">Q", message, 10)[0] for message in messages if message[0] == 0x43][-1:]
        assert keys.end_lsn == end
        assert not keys.inside


# ---- made up

OID = 16400
_text = st.text(max_size=20).map(lambda value: value.replace("\0", ""))


def relation(columns: list[tuple[str, int, bool]], identity: str = "d") -> bytes:
    parts = [b"R", OID.to_bytes(4), b"public\0t\0", identity.encode(), len(columns).to_bytes(2)]
    for name, type_oid, marked in columns:
        parts += [bytes([marked]), name.encode(), b"\0", type_oid.to_bytes(4), b"\xff\xff\xff\xff"]
    return b"".join(parts)


def row(values: list[str | bytes | None]) -> bytes:
    """Text, NULL, or b"u" for what is unchanged."""
    parts = [len(values).to_bytes(2)]
    for value in values:
        match value:
            case None:
                parts.append(b"n")
            case bytes():
                parts.append(b"u")
            case text:
                raw = text.encode()
                parts += [b"t", len(raw).to_bytes(4), raw]
    return b"".join(parts)


def begin(xid: int) -> bytes:
    return struct.pack(">cQqI", b"B", 100, 0, xid)


def commit(end: int) -> bytes:
    return struct.pack(">cBQQq", b"C", 0, end - 8, end, 0)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[str, int, bool]], list[int], str]:
    """Columns, the positions of the key's in the order of the key, and the identity."""
    count = draw(st.integers(1, 6))
    key = draw(st.permutations(range(count)))[: draw(st.integers(1, count))]
    identity = draw(st.sampled_from("dif"))
    columns = [(f"c{number}", 20 + number, identity == "f" or number in key) for number in range(count)]
    return columns, list(key), identity


@given(st.data(), tables(), st.integers(3, 2**40))
def test_any_changes(data: st.DataObject, table: tuple[Any, list[int], str], now: int) -> None:
    columns, key, identity = table
    shape = Shape(OID, identity, tuple((columns[number][0].encode(), columns[number][1]) for number in key))
    keys = Keys(shape, now)
    expected: list[str] = []
    messages: list[bytes] = []

    def draw_row(*, unchanged: bool = False) -> list[Any]:
        values = [_text, *([st.just(b"u")] if unchanged else [])]
        return [
            data.draw(st.one_of(*values) if number in key else st.one_of(st.none(), *values))
            for number in range(len(columns))
        ]

    def only_key(values: list[Any]) -> list[Any]:
        return [value if identity == "f" or number in key else None for number, value in enumerate(values)]

    end = 1000
    for _ in range(data.draw(st.integers(0, 4))):
        xid = max(now + data.draw(st.integers(-(2**30), 2**30)), 3)
        messages += [begin(xid % 2**32), relation(columns, identity)]
        for _ in range(data.draw(st.integers(0, 5))):
            kind = data.draw(st.sampled_from("IUVD"))
            old, new = draw_row(), draw_row(unchanged=kind == "V")
            sent = [old] if kind == "D" else [new] if kind in "IU" else [old, new]
            letter = b"O" if identity == "f" else b"K"
            head = (b"U" if kind == "V" else kind.encode()) + OID.to_bytes(4)
            body = b"".join(
                (b"N" if values is new else letter) + row(values if values is new else only_key(values))
                for values in sent
            )
            messages.append(head + body)
            full = [old[i] if value == b"u" else value for i, value in enumerate(new)]
            found = [[values[number] for number in key] for values in ([old] if kind == "D" else [full])]
            if kind == "V" and found[0] != (before := [old[number] for number in key]):
                found.insert(0, before)
            elif kind == "V":
                found = [before]
            expected += [f"{line(values)}\t{xid}" for values in found]
        end += data.draw(st.integers(1, 2**40))
        messages.append(commit(end))
    for message in messages:
        keys.read(message)
    lines = [text.decode() for text in keys.take()]
    # Ids are given in full to within 2^31 of one another.
    assert lines == [f"{text}\n" for text in expected]
    assert keys.lines == []
    assert keys.size_bytes == 0
    assert keys.end_lsn == (end if messages else 0)


KEY = Shape(OID, "d", ((b"id", 23),))
GOOD = relation([("id", 23, True)])
INSERT = b"I" + OID.to_bytes(4) + b"N" + row(["5"])


@pytest.mark.parametrize(
    "messages",
    {
        "another table": [relation([("id", 23, True)]).replace(OID.to_bytes(4), b"\0\0\1\1")],
        "identity of another kind": [relation([("id", 23, True)], "n")],
        "key of another type": [relation([("id", 20, True)])],
        "key of another name": [relation([("x", 23, True)])],
        "key that is no identity": [relation([("id", 23, False), ("x", 23, True)])],
        "identity of more": [relation([("id", 23, True), ("x", 23, True)])],
        "change before its table": [INSERT],
        "change of another table": [GOOD, INSERT.replace(OID.to_bytes(4), b"\0\0\1\1")],
        "more columns": [GOOD, b"I" + OID.to_bytes(4) + b"N" + row(["5", "6"])],
        "fewer columns": [GOOD, b"I" + OID.to_bytes(4) + b"N" + row([])],
        "no key": [GOOD, b"I" + OID.to_bytes(4) + b"N" + row([None])],
        "unchanged key without the old one": [GOOD, b"U" + OID.to_bytes(4) + b"N" + row([b"u"])],
        "delete of nothing": [GOOD, b"D" + OID.to_bytes(4) + b"N" + row(["5"])],
        "something behind": [relation([("id", 23, True), ("x", 23, False)]), INSERT[:6] + row(["5", "6"]) + b"x"],
        "unknown kind": [b"Q"],
        "unknown value": [GOOD, b"I" + OID.to_bytes(4) + b"N\0\1z"],
    }.items(),
    ids=lambda item: item[0].replace(" ", "-"),
)
def test_whatever_is_not_as_it_must_be_is_a_gap(messages: tuple[str, list[bytes]]) -> None:
    keys = Keys(KEY, 3)
    *before, last = messages[1]
    for message in [begin(7), *before]:
        keys.read(message)
    with pytest.raises(CaptureGap):
        keys.read(last)


def test_columns_that_are_none_of_the_key_may_come() -> None:
    keys = Keys(KEY, 3)
    wider = relation([("new", 25, False), ("id", 23, True)])
    for message in (begin(7), GOOD, INSERT, wider, INSERT[:6] + row([None, "6"]), GOOD, INSERT):
        keys.read(message)
    assert recorded(keys) == ["5", "6", "5"]
    assert keys.inside


WHOLE = Shape(OID, "f", ((b"a", 23), (b"b", 25)), whole=True)
BOTH = relation([("a", 23, True), ("b", 25, True)], "f")


def _update(old: list[str | bytes | None], new: list[str | bytes | None]) -> bytes:
    return b"U" + OID.to_bytes(4) + b"O" + row(old) + b"N" + row(new)


def test_whole_rows() -> None:
    """As they were and as they are; what is the same is not told of."""
    keys = Keys(WHOLE, 3)
    for message in (
        begin(7),
        BOTH,
        b"I" + OID.to_bytes(4) + b"N" + row([None, "a\tb\\\n"]),
        _update(["1", "long"], ["2", b"u"]),
        _update(["1", "same"], ["1", b"u"]),
        _update(["1", "same"], ["1", "same"]),
        b"D" + OID.to_bytes(4) + b"O" + row(["", None]),
        commit(2000),
    ):
        keys.read(message)
    assert [text.decode() for text in keys.take()] == [
        "1\t\\N\ta\\tb\\\\\\n\t7\n",
        "-1\t1\tlong\t7\n",
        "1\t2\tlong\t7\n",
        "-1\t\t\\N\t7\n",
    ]


@pytest.mark.parametrize(
    "message",
    {
        "fewer columns": relation([("a", 23, True)], "f"),
        "more columns": relation([("a", 23, True), ("b", 25, True), ("c", 25, True)], "f"),
        "no old row": b"U" + OID.to_bytes(4) + b"N" + row(["1", "2"]),
        "unchanged in both": _update(["1", b"u"], ["2", b"u"]),
    }.items(),
    ids=lambda item: item[0].replace(" ", "-"),
)
def test_what_is_not_a_whole_row_is_a_gap(message: tuple[str, bytes]) -> None:
    keys = Keys(WHOLE, 3)
    for before in (begin(7), BOTH):
        keys.read(before)
    with pytest.raises(CaptureGap):
        keys.read(message[1])
