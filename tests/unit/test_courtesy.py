"""How long others' commits are waited for, and when that is given up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from pglean.rewrite.courtesy import Courtesy


class Bench:
    """A clock that only resting moves, and a queue that is looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.queue: Iterator[int] = iter(())
        self.looks = 0
        monkeypatch.setattr("pglean.rewrite.courtesy.time.monotonic", lambda: self.now)
        monkeypatch.setattr("pglean.rewrite.courtesy.scalar", lambda *_: self._look())
        anything: Any = self
        self._courtesy, self._conn = Courtesy(anything), anything

    def rest(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def _look(self) -> int:
        self.looks += 1
        return next(self.queue)

    def give_way(self, queue: Iterable[int], limit_s: float = 0.5) -> tuple[bool, float]:
        """Whether there was a queue that passed, and how long that took."""
        began, self.queue = self.now, iter(queue)
        return self._courtesy.give_way(self._conn, limit_s), self.now - began


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def always(number: int) -> Iterator[int]:
    while True:
        yield number


def test_nobody_waits(bench: Bench) -> None:
    for alone in (0, 1):
        assert bench.give_way([alone]) == (False, 0)


def test_queue_passes(bench: Bench) -> None:
    passed, took_s = bench.give_way([5, 4, 2, 1])
    assert passed
    assert 0 < took_s < 0.1


def test_queue_of_somebody_elses_making(bench: Bench) -> None:
    """Waited for twice, as long as it was said; then nobody is asked any more."""
    for _ in range(2):
        passed, took_s = bench.give_way(always(3))
        assert not passed
        assert took_s == pytest.approx(0.5, abs=0.05)
    looks = bench.looks
    assert bench.give_way(always(3)) == (False, 0)
    assert bench.looks == looks


def test_queue_that_passes_is_waited_for_again(bench: Bench) -> None:
    for _ in range(5):
        assert not bench.give_way(always(2))[0]
        assert bench.give_way([2, 0])[0]
