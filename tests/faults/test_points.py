"""An error, and the end of each session, at every point of a run."""

from __future__ import annotations

import pytest

from pglean import pausepoint
from pglean.errors import ConnectionLost, PgleanError
from pglean.result import Result
from tests.support.fault import Fault, assert_told, repack
from tests.support.points import COMMITTED, POINTS, UNDO, some
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

#: How often the same point is tried: the copy, the refresh and the index builds come by theirs several times.
_OCCURRENCES = 2


class Mishap(RuntimeError):
    """What nobody expects."""


def test_points_are_all_reached(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: dict[str, None] = {}
    monkeypatch.setattr(pausepoint, "trace", reached.setdefault)
    assert isinstance(repack(stage), Result)
    assert set(reached) == set(POINTS)
    assert UNDO not in reached
    assert COMMITTED in reached
    stage.check()


@pytest.mark.parametrize("point", some(POINTS, 1))
def test_error_is_undone(stage: Stage, point: str) -> None:
    def fail() -> None:
        raise Mishap

    for occurrence in range(1, _OCCURRENCES + 1):
        fault = Fault(point, fail, occurrence)
        outcome = repack(stage, fault)
        if not fault.struck:
            assert occurrence > 1
            assert isinstance(outcome, Result)
            break
        assert_told(stage, outcome, PgleanError.exit_status)
        assert "Mishap" in str(outcome)
        stage.check()
        if stage.repacked:
            break


@pytest.mark.parametrize(
    "point", ["capture: before the commit", "copy: in a chunk", "swap: before the commit", COMMITTED]
)
def test_error_of_the_user_is_his(stage: Stage, point: str) -> None:
    """What `on_progress` or Ctrl-C raise, without the command line, comes out as it is, after undoing."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        repack(stage, Fault(point, interrupt))
    notes = getattr(caught.value, "__notes__", [])
    assert any("the table is repacked" in note for note in notes) == stage.repacked
    stage.check()


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("point", some(POINTS, 2))
def test_terminated_session_is_survived(stage: Stage, point: str) -> None:
    # The first session watches, the second works itself, two are workers, the last one flushes the WAL.
    for number in (0, 1, 2, 4):
        sessions: list[int] = []

        def terminate(number: int = number, sessions: list[int] = sessions) -> None:
            sessions += stage.sessions()
            if number < len(sessions):
                stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (sessions[number],))

        fault = Fault(point, terminate)
        file = stage.file
        outcome = repack(stage, fault)
        assert fault.struck
        assert len(sessions) == 5
        # A worker that nobody needs any more may end as it likes; the watch is missed only as long as it watches.
        if number != 1 and isinstance(outcome, Result):
            assert stage.file != file
        else:
            assert number != 4
            assert isinstance(outcome, ConnectionLost)
            assert ("the table is repacked" in str(outcome)) == (stage.file != file), str(outcome)
        stage.settle("resume" if number else "abort")
        stage.check()


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("point", some(POINTS, 0))
def test_loss_of_all_sessions_is_survived(stage: Stage, point: str) -> None:
    def terminate() -> None:
        for pid in stage.sessions():
            stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    assert_told(stage, repack(stage, Fault(point, terminate)), ConnectionLost.exit_status)
    stage.write()
    stage.settle("resume")
    stage.check()
