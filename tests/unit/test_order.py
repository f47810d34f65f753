"""Orders: how they are kept, what they look like, and how pieces are numbered."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from pglean.rewrite.order import KeyRanges, Order

BOUNDS = ("10", "20", "30")


def ranges(*, descending: bool = False, nulls_first: bool = False, bounds: tuple[str, ...] = BOUNDS) -> KeyRanges:
    return KeyRanges("Größe", "integer", None, descending, nulls_first, bounds)


def condition(of: KeyRanges, first: int, end: int) -> str:
    text = of.condition("t", first, end).as_string(None)
    return text.replace('"t"."Größe"', "x").replace("OPERATOR(pg_catalog.", "").replace("::integer", "")


def test_ascending() -> None:
    found = [condition(ranges(), piece, piece + 1) for piece in range(5)]
    assert found == [
        "(x <) '10')",
        "(x >=) '10' AND x <) '20')",
        "(x >=) '20' AND x <) '30')",
        "(x >=) '30')",
        "(x IS NULL)",
    ]
    assert condition(ranges(), 0, 4) == "(x IS NOT NULL)"
    assert condition(ranges(), 0, 5) == "(x IS NOT NULL OR x IS NULL)"
    assert condition(ranges(), 2, 5) == "(x >=) '20' OR x IS NULL)"


def test_descending() -> None:
    found = [condition(ranges(descending=True, nulls_first=True), piece, piece + 1) for piece in range(5)]
    assert found == [
        "(x IS NULL)",
        "(x >=) '30')",
        "(x >=) '20' AND x <) '30')",
        "(x >=) '10' AND x <) '20')",
        "(x <) '10')",
    ]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("nulls_first", [False, True])
@pytest.mark.parametrize("bounds", [(), ("10",), BOUNDS], ids=len)
def test_each_value_is_in_one_piece(descending: bool, nulls_first: bool, bounds: tuple[str, ...]) -> None:
    of = ranges(descending=descending, nulls_first=nulls_first, bounds=bounds)
    for edges in ([*range(of.pieces + 1)], [0, of.pieces], [0, 1, of.pieces], [0, of.pieces - 1, of.pieces]):
        conditions = [condition(of, first, end) for first, end in pairwise(edges)]
        for value in (None, 0, 10, 15, 20, 29, 30, 99):
            assert sum(holds(each, value) for each in conditions) == 1, (value, conditions)


def holds(text: str, value: int | None) -> bool:
    """What the server would say."""

    def part(text: str) -> bool:
        if text == "x IS NULL":
            return value is None
        if value is None:
            return False
        if text == "x IS NOT NULL":
            return True
        _, operator, bound = text.split(" ")
        return value >= int(bound.strip("'")) if operator == ">=)" else value < int(bound.strip("'"))

    return any(all(part(each) for each in either.split(" AND ")) for either in text[1:-1].split(" OR "))


def test_what_is_kept_is_what_it_was() -> None:
    for order in (
        Order('"Größe" DESC, x', None, None, "…"),
        Order("x", "Index…", ranges(bounds=("…", "é", "")), "why"),
    ):
        assert Order.from_json(json.loads(json.dumps(order.as_json()))) == order


def test_pieces_and_workers() -> None:
    one = Order("x", None, None, "")
    assert (one.pieces, one.workers(4)) == (1, 1)
    few = Order("x", None, ranges(), "")
    assert (few.pieces, few.workers(4)) == (5, 1)
    many = Order("x", None, ranges(bounds=tuple(map(str, range(1000)))), "")
    assert (many.pieces, many.workers(4)) == (1002, 4)
