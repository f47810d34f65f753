"""The page layouts: what a repack leaves, by formulas whose values the server itself has shown."""

from __future__ import annotations

import pytest

from pglean.bloat import estimate, reckoning
from pglean.bloat.estimate import Width
from pglean.bloat.figures import Btree, Column, Index, Table, Toast
from pglean.bloat.finding import Method, RelationBloat, TableBloat, summed
from pglean.cli.bloat_page import squarified

_BLOCK = 8192


def column(length: int, alignment: int, mean: float | None = None, nulls: float = 0.0, **rest: float) -> Column:
    width = float(length) if mean is None else mean
    return Column("c", length, alignment, length == -1, nulls, width, n_distinct=rest.get("n_distinct"))


def test_rows_are_padded_as_the_server_pads_them() -> None:
    int4, int8, bool_ = column(4, 4), column(8, 8), column(1, 1)
    # 24 bytes of header, then 4; 4, 4 of padding and 8; 8 and 4; 1, 3 of padding and 4; the end is padded to 8.
    for columns, size in (([int4], 32), ([int4, int8], 40), ([int8, int4], 40), ([bool_, int4], 32), ([], 24)):
        assert estimate.row_width(columns, len(columns)) == Width(size, True)
    # A dropped column is a NULL, and NULLs need a bit for each column.
    assert estimate.row_width([int4] * 8, 9) == Width(24 + 8 + 32, True)
    assert estimate.row_width([int4], 2) == Width(32, True)
    # Short values of varying length are not aligned, long ones are.
    short, long = column(-1, 4, 10.0), column(-1, 4, 500.0)
    assert not estimate.row_width([int4, short], 2).uniform
    assert estimate.row_width([int4, short], 2).mean_bytes == pytest.approx(24 + 14 + 3.5, abs=2)
    assert estimate.row_width([bool_, long], 2).mean_bytes == pytest.approx(24 + 4 + 500 + 3.5, abs=2)


def test_pages_of_rows() -> None:
    # 226 rows of one int4 in a page; at a fillfactor of 70, 158.
    assert estimate.heap(226, Width(32, True), 100, _BLOCK).bytes == _BLOCK
    assert estimate.heap(227, Width(32, True), 100, _BLOCK).bytes == 2 * _BLOCK
    assert estimate.heap(158, Width(32, True), 70, _BLOCK).bytes == _BLOCK
    assert estimate.heap(159, Width(32, True), 70, _BLOCK).bytes == 2 * _BLOCK
    assert estimate.heap(0, Width(32, True), 100, _BLOCK).bytes == 0
    # One row to a page, however wide.
    assert estimate.heap(10, Width(8000, True), 50, _BLOCK).bytes == 10 * _BLOCK


def test_chunks() -> None:
    assert estimate.chunk_bytes(8192) == 1996
    assert estimate.toast(400, 1, 1996, _BLOCK).bytes == pytest.approx(100 * _BLOCK, rel=0.01)


def test_pages_of_a_btree() -> None:
    unique = Btree((column(4, 4, n_distinct=-1.0),), unique=True, deduplicated=False)
    width = estimate.key_width(unique)
    assert width == Width(16, True)
    # 366 entries in a leaf; the first page, the leaves, and from two leaves on a root.
    for entries, pages in ((0, 1), (1, 2), (366, 2), (367, 4), (100_000, 1 + 274 + 1)):
        assert estimate.btree(entries, unique, width, 90, _BLOCK).bytes == pages * _BLOCK


def test_equal_keys_are_put_together() -> None:
    few = Btree((column(4, 4, n_distinct=10.0),), unique=False, deduplicated=True)
    each = Btree((column(4, 4, n_distinct=-1.0),), unique=False, deduplicated=True)
    alone = Btree((column(4, 4, n_distinct=10.0),), unique=False, deduplicated=False)
    sizes = [estimate.btree(1_000_000, b, Width(16, True), 90, _BLOCK).bytes for b in (few, each, alone)]
    assert sizes[1] == sizes[2]
    # Six bytes instead of twenty for each.
    assert 0.29 < sizes[0] / sizes[1] < 0.34


def table(**changes: object) -> Table:
    values: dict[str, object] = {
        "oid": 1, "schema": "public", "name": "t", "owner": "o", "owner_is_superuser": False, "root": None,
        "family": None, "is_heap": True, "bytes": 10 * _BLOCK, "fillfactor": 100, "rows": 226.0, "dead_rows": 100.0,
        "changed_rows": 0.0, "readable": True, "row_security": False, "columns": (column(4, 4),), "width": 1,
        "reshaped": False, "toast": None, "indexes": (),
    }  # fmt: skip
    # Of as many types as a table has figures.
    return Table(**(values | changes))  # type: ignore[arg-type]


def test_nothing_is_guessed() -> None:
    unknown = Column("[n]", 4, 4, False, None, None)
    for changes, why in (
        ({"rows": None}, "no statistics: neither VACUUM nor ANALYZE has counted its rows"),
        ({"columns": (unknown,)}, "no statistics of column [n]: ANALYZE makes them"),
        ({"columns": (unknown,), "readable": False}, "no statistics to be seen: the role may not read the table"),
        ({"columns": (unknown,), "row_security": True}, "no statistics to be seen: row security is in the way"),
        ({"is_heap": False}, "its access method is not heap: only its size is known"),
    ):
        found = reckoning.table(table(**changes), _BLOCK)
        assert (found.heap.after_bytes, found.bloat, found.method) == (None, None, "none")
        assert found.notes == (why,)
    found = reckoning.table(table(rows=0.0, columns=(unknown,)), _BLOCK)
    assert (found.heap.after_bytes, found.bloat) == (0, 1.0)


def test_parts_add_up() -> None:
    index = Index(2, "i", "btree", 4 * _BLOCK, 90, 1.0, Btree((column(4, 4),), unique=True, deduplicated=False))
    gin = Index(3, "g", "gin", 5 * _BLOCK, 90, 1.0, None)
    found = reckoning.table(table(indexes=(index, gin), toast=Toast(4, 0, _BLOCK, 0.0, 0.0)), _BLOCK)
    heap = found.heap
    assert (heap.method, heap.after_bytes, heap.live_bytes, heap.dead_bytes) == (Method.ESTIMATE, _BLOCK, 8136, 3600)
    assert heap.bytes == (heap.live_bytes or 0) + (heap.dead_bytes or 0) + (heap.free_bytes or 0)
    assert found.bytes == 20 * _BLOCK
    # What is not known stays as it is.
    assert found.after_bytes == (1 + 1 + 2 + 5) * _BLOCK
    assert found.gain_bytes == 11 * _BLOCK
    assert found.notes == ("index g: gin: only the size is known",)


def test_what_the_fillfactor_keeps_is_not_reusable() -> None:
    heap = reckoning.table(table(fillfactor=50, dead_rows=0.0), _BLOCK).heap
    assert heap.reusable_bytes == (heap.free_bytes or 0) - 5 * _BLOCK


def test_old_statistics_are_told() -> None:
    notes = reckoning.table(table(rows=10_000.0, changed_rows=5000.0), _BLOCK).notes
    assert notes == ("old statistics: 5,000 rows were written since the last ANALYZE",)


def test_partitions_are_summed() -> None:
    def part(name: str, after: int | None, method: Method | None) -> TableBloat:
        heap = RelationBloat("heap", name, 100, method, after_bytes=after, error_bytes=30 if after else None)
        return TableBloat(1, "public", name, heap, None, (), root=("public", "all"), family=("public", "all"))

    alone = TableBloat(1, "public", "alone", RelationBloat("heap", "alone", 1), None, ())
    members = [part("a", 10, Method.ESTIMATE), part("b", 20, Method.SAMPLE), part("c", None, None)]
    first, both = summed([*members, alone])
    assert first is alone
    assert (both.name, both.partitions, both.bytes, both.after_bytes) == ("all", 3, 300, 130)
    assert both.heap.error_bytes == 42
    assert set(both.notes) == {"1 of 3 are not known, and counted with their size", "methods: estimate, sample"}


def test_a_treemap_fills_its_area() -> None:
    sizes = [60.0, 20.0, 10.0, 5.0, 3.0, 1.0, 1.0]
    boxes = squarified(sizes, 100, 50)
    assert [box.width * box.height for box in boxes] == pytest.approx([size * 50 for size in sizes])
    assert sum(box.width * box.height for box in boxes) == pytest.approx(5000)
    for one in boxes:
        assert one.x >= 0
        assert one.y >= 0
        assert one.x + one.width <= 100.001
        assert one.y + one.height <= 50.001
        assert one.ratio < 4
