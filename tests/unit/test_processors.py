"""What the kernel's counters say of idle processors."""

from __future__ import annotations

import pytest

from pglean.processors import Sample, parse

_TEXT = """\
cpu  100 1 50 800 40 2 3 4 0 0
cpu0 50 0 25 400 20 1 1 2 0 0
cpu1 50 1 25 400 20 1 2 2 0 0
intr 12345 0 0
"""


def test_counters_are_read() -> None:
    assert parse(_TEXT) == Sample(count=2, idle=800, total=1000)


@pytest.mark.parametrize("text", ["", "cpu 1 2 3\n", "something else", "cpu  100 1 50 800 40 2 3 4 0 0\n"])
def test_what_is_something_else_tells_nothing(text: str) -> None:
    assert parse(text) is None


def test_idle_processors() -> None:
    before = Sample(2, 1000, 4000)
    assert before.idle_until(Sample(2, 1100, 4200)) == pytest.approx(1.0)
    assert before.idle_until(Sample(2, 1000, 4200)) == 0
    assert before.idle_until(before) == 0
