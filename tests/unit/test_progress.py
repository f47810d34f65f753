"""Progress: fractions, rates, the estimate of the end; who is told what, and how often."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglean.cli.display import PHASES
from pglean.progress import Progress, Reporter
from pglean.report import seconds_text
from pglean.rewrite.pipeline import STEPS


def at(done: int, total: int, phase_s: float) -> Progress:
    return Progress(job=1, table="t", phase="copying", done=done, total=total, phase_s=phase_s)


def test_rate_and_estimate() -> None:
    progress = at(25, 100, 5)
    assert progress.fraction == 0.25
    assert progress.rate == 5
    assert progress.eta_s == 15


@pytest.mark.parametrize(("done", "total", "phase_s"), [(0, 100, 5), (5, 0, 5), (5, 100, 0)])
def test_what_nobody_can_know(done: int, total: int, phase_s: float) -> None:
    assert at(done, total, phase_s).eta_s is None


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 10**6))
def test_fractions_are_fractions(done: int, total: int, phase_s: float) -> None:
    progress = at(done, total, phase_s)
    if total:
        assert progress.fraction is not None
        assert 0 <= progress.fraction <= 1
    assert progress.rate >= 0
    assert progress.eta_s is None or progress.eta_s >= 0


def test_reporter_tells_phases_at_once_and_the_rest_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pglean.progress.time.monotonic", lambda: now[0])
    told: list[Progress] = []
    reporter = Reporter(7, "public.t", told.append)
    reporter.phase("copying", 100, "blocks")
    for _ in range(10):
        now[0] += 0.0625
        reporter.advance(1, rows=3)
    assert [progress.done for progress in told] == [0, 4, 8]
    assert (told[-1].job, told[-1].table, told[-1].unit, told[-1].rows) == (7, "public.t", "blocks", 24)
    reporter.phase("indexing")
    assert (told[-1].phase, told[-1].done, told[-1].phase_s, told[-1].rows) == ("indexing", 0, 0, 30)
    assert told[-1].elapsed_s == 0.625
    reporter.waiting("a lock")
    assert told[-1].waiting_for == "a lock"
    reporter.message("so it is")
    assert told[-1].message == "so it is"
    reporter.applied(5, 2)
    assert (reporter.state.changes_applied, reporter.state.changes_waiting, reporter.state.message) == (5, 2, "")
    assert reporter.state.waiting_for == "", "it works again"


def test_reporter_counts_what_all_threads_do() -> None:
    reporter = Reporter(1, "t", lambda _: None)

    def work() -> None:
        for _ in range(500):
            reporter.advance(1, rows=2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (reporter.state.done, reporter.state.rows) == (2000, 4000)


def test_parts_of_a_phase_are_counted_one_by_one() -> None:
    """Indexing refreshes in shares, then builds indexes: ten shares that are done are not ten indexes."""
    reporter = Reporter(1, "t")
    reporter.phase("indexing")
    reporter.total(10, "shares")
    reporter.advance(10)
    reporter.total(3, "indexes")
    assert reporter.state.fraction == 0
    reporter.advance(1)
    assert (reporter.state.done, reporter.state.total, reporter.state.unit) == (1, 3, "indexes")


def test_display_knows_every_phase() -> None:
    assert [step.phase.label for step in STEPS] == list(PHASES)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.99, "10 s"),
        (12.4, "12 s"),
        (59.7, "1:00"),
        (185, "3:05"),
        (7869, "2:11:09"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text
