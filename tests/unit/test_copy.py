"""The ranges of blocks that the copy hands out."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pglean.rewrite import copy
from pglean.rewrite.copy import Grain, Ranges

BLOCKS = st.integers(0, 100_000)
#: Milliseconds that a block takes.
PACE = st.floats(0.0001, 1000)


def take_all(ranges: Ranges, pace_ms: float) -> list[tuple[int, int]]:
    """Everything, as one worker that takes the same time for every block."""
    taken = []
    while (blocks := ranges.take()) is not None:
        taken.append(blocks)
        ranges.took(blocks[1] - blocks[0], (blocks[1] - blocks[0]) * pace_ms)
    return taken


def assert_covered(taken: list[tuple[int, int]], blocks: int) -> None:
    """Each block is in exactly one range."""
    edges = sorted(taken)
    assert all(first < end for first, end in edges)
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert (edges[0][0], edges[-1][1]) == (0, blocks) if blocks else edges == []


@given(BLOCKS, st.integers(10, 60_000), PACE, st.integers(1, 8))
def test_every_block_is_handed_out_once(blocks: int, target_ms: int, pace_ms: float, takers: int) -> None:
    ranges = Ranges(blocks, target_ms, takers)
    assert_covered(take_all(ranges, pace_ms), blocks)
    assert ranges.take() is None


@given(BLOCKS, st.lists(PACE, min_size=2, max_size=8))
def test_every_block_is_handed_out_once_to_many(blocks: int, paces: list[float]) -> None:
    ranges = Ranges(blocks, 500, len(paces))
    taken: list[list[tuple[int, int]]] = [[] for _ in paces]
    start = threading.Barrier(len(paces))

    def work(number: int) -> None:
        start.wait()
        taken[number] = take_all(ranges, paces[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(paces))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_covered([blocks for mine in taken for blocks in mine], blocks)


def test_sizes_approach_the_target() -> None:
    for pace_ms in (0.01, 0.5, 5.0, 30.0):
        sizes = [end - first for first, end in take_all(Ranges(10_000_000, 500, 1), pace_ms)]
        ideal = min(max(500 / pace_ms, copy._LEAST_BLOCKS), copy._MOST_BLOCKS)
        assert abs(sizes[20] - ideal) <= 1
        # Never more than twice, never less than half the one before, but for the end.
        assert all(before // 2 <= after <= before * 2 for before, after in pairwise(sizes[:20]))


def test_pieces_get_smaller_towards_the_end() -> None:
    sizes = [end - first for first, end in take_all(Ranges(1_000_000, 500, 4), 0.001)]
    assert sizes[-1] <= copy._FIRST_BLOCKS
    assert max(sizes) > 10 * copy._FIRST_BLOCKS


def test_one_worker_alone_has_no_small_pieces_at_the_end() -> None:
    ranges = Ranges(1_000_000, 500, 4)
    ranges.alone()
    *sizes, _ = [end - first for first, end in take_all(ranges, 0.1)]
    assert sizes[-1] == 5000
    assert sizes == sorted(sizes)


def test_chunk_that_took_no_time_at_all() -> None:
    ranges = Ranges(10_000, 500)
    taken: Any = ranges.take()
    ranges.took(taken[1], 0.0)
    first, end = ranges.take() or (0, 0)
    assert end - first == 2 * copy._FIRST_BLOCKS


def test_gentle_chunks_are_not_empty() -> None:
    """A range of values may be a chunk by itself; there is nothing smaller."""
    ranges = Ranges(1000, 500, 2, Grain(1, 1, 10, 1))
    taken: Any = [ranges.take()]
    ranges.gently()
    assert_covered([*taken, *take_all(ranges, 1000)], 1000)


@given(st.integers(0, 2000), PACE, st.integers(1, 8), st.integers(1, 50))
def test_each_grain_covers_all(pieces: int, pace_ms: float, takers: int, most: int) -> None:
    taken = take_all(Ranges(pieces, 500, takers, Grain(1, 1, most, 1)), pace_ms)
    assert_covered(taken, pieces)
    assert all(end - first <= most for first, end in taken)
