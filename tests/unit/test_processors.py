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


def test_what_processes_have_used_is_read() -> None:
    process = "123 (postgres: (x) y) S 1 123 123 0 -1 4194560 500 0 0 0 70 30 5 6 20 0 1 0 4711 1 2"
    assert parse(_TEXT, [process, process]) == Sample(count=2, idle=800, total=1000, ours=200)


def test_what_others_leave() -> None:
    before = Sample(2, 1000, 4000)
    assert before.left_until(Sample(2, 1100, 4200)) == pytest.approx(1.0)
    assert before.left_until(Sample(2, 1000, 4200)) == 0
    assert before.left_until(Sample(2, 1100, 4200, ours=100)) == pytest.approx(2.0)
    assert before.left_until(before) == 0
