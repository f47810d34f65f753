"""What catching up knows of the race between writers and refreshes, and when it ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglean.rewrite import catchup
from pglean.rewrite.catchup import Flow
from pglean.rewrite.refresh import Round


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def race(inflow: float, per_record_s: float, start: int, rounds: int) -> tuple[Flow, int]:
    """Rounds, each of which takes over what came in during the one before, until the flow says that it is enough."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catchup, "time", clock)
        flow = Flow()
        records = start
        for number in range(1, rounds + 1):
            seconds = records * per_record_s + 0.001
            clock.now += seconds
            flow.learn(Round(records, seconds))
            if flow.calm() or flow.fits(1000):
                return flow, number
            records = int(inflow * seconds)
    return flow, rounds + 1


def test_nobody_writes() -> None:
    flow, rounds = race(inflow=0, per_record_s=0.00005, start=0, rounds=5)
    assert rounds == 1
    assert flow.calm()
    assert flow.expected_ms == 0
    assert flow.inflow == 0


@given(st.floats(0, 15_000), st.integers(0, 1_000_000))
def test_writers_slower_than_refreshes_are_caught_up_with(inflow: float, start: int) -> None:
    # 20,000 records per second are taken over.
    flow, rounds = race(inflow, 1 / 20_000, start, 60)
    assert rounds <= 60
    assert flow.expected_ms <= 0.4 * 1000


@given(st.floats(25_000, 100_000), st.integers(100_000, 1_000_000))
def test_writers_faster_than_refreshes_are_noticed(inflow: float, start: int) -> None:
    flow, rounds = race(inflow, 1 / 20_000, start, 8)
    assert rounds == 9, "it must not end by itself"
    assert flow.stuck >= 3, "so that writers are paused"


def test_a_rest_that_fits_is_enough_only_once_it_shrinks_no_more() -> None:
    flow = Flow()
    flow.expected_ms = 100
    assert not flow.fits(1000)
    flow.stuck = 1
    assert flow.fits(1000)
    assert not flow.fits(200)
    assert not flow.calm()
    assert not Flow().calm(), "nothing is known yet"
