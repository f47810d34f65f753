"""When the brake is put on and let go, by figures alone; and the gate that holds the workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pglean.disk import Space
from pglean.options import Options
from pglean.throttle import (
    RATE_WINDOW_S,
    STEADY_S,
    Gate,
    Limit,
    Rate,
    Standby,
    Throttle,
    Trail,
    Unmeasured,
    behind_bytes,
    behind_s,
    counted,
    limit_text,
)

STANDBY = Standby("a", "streaming", logical=False, only_receives=False, position=1000, replay_lag_s=0.1)


def number(value: float) -> str:
    return f"{value:g}"


# ---- limits


def test_a_limit_lets_go_at_once_where_there_is_room() -> None:
    limit = Limit(10, number)
    assert limit.check(10, 0) == ""
    assert limit.check(11, 1) == "(limit 10)"
    assert limit.check(9, 2) == "(limit 10, goes on at 8)"
    assert limit.check(8, 3) == ""
    # The memory is gone: between both marks it is open again.
    assert limit.check(9, 4) == ""


def test_a_limit_lets_go_after_a_while_within_it() -> None:
    limit = Limit(10, number)
    assert limit.check(11, 0)
    assert limit.check(9, 1)
    assert limit.check(10, 1 + STEADY_S * 0.9)
    assert limit.check(9, 1 + STEADY_S) == ""


def test_the_while_is_without_exception() -> None:
    limit = Limit(10, number)
    limit.check(11, 0)
    limit.check(9, 1)
    limit.check(11, 2)
    assert limit.check(9, 3)
    assert limit.check(9, 1 + STEADY_S)
    assert limit.check(9, 3 + STEADY_S) == ""


def test_what_is_unknown_is_an_exception_too() -> None:
    limit = Limit(10, number)
    limit.check(11, 0)
    limit.check(9, 1)
    limit.unknown()
    assert limit.check(9, 1 + STEADY_S)
    assert limit.check(9, 1 + 2 * STEADY_S) == ""


def test_what_is_unknown_does_not_close_for_longer_than_it_is() -> None:
    limit = Limit(10, number)
    limit.unknown()
    assert limit.check(10, 0) == ""


def test_a_lower_limit_is_that_of_the_negative_value() -> None:
    limit = Limit(-100, number)
    assert limit.check(-100, 0) == ""
    assert limit.check(-99, 1) == "(limit 100)"
    assert limit.check(-124, 2) == "(limit 100, goes on at 125)"
    assert limit.check(-125, 3) == ""


def test_a_limit_of_nothing() -> None:
    limit = Limit(0, number)
    assert limit.check(0, 0) == ""
    assert limit.check(1, 1) == "(limit 0)"
    assert limit.check(0, 2) == ""


# ---- the rate of WAL


def test_the_first_look_tells_no_rate() -> None:
    rate = Rate()
    assert rate.add(5_000_000, 7.0) is None
    assert rate.add(5_001_000, 7.5) == pytest.approx(2000)


def test_a_burst_is_no_verdict() -> None:
    rate = Rate()
    position = 0
    for tick in range(100):
        position += 500
        rate.add(position, tick / 2)
    # In one interval as much as before in twenty: not twenty times the rate, and no more of it a window later.
    burst = rate.add(position + 10_000, 50)
    assert burst == pytest.approx(1000 + 9_500 / RATE_WINDOW_S)
    position += 10_000
    later = [rate.add(position + 500 * tick, 50 + tick / 2) for tick in range(1, int(RATE_WINDOW_S * 2) + 2)]
    assert later[-1] == pytest.approx(1000)


def test_after_a_gap_the_rate_is_the_mean_of_it() -> None:
    rate = Rate()
    rate.add(0, 0)
    rate.add(1_000, 1)
    assert rate.add(61_000, 61) == pytest.approx(1000)
    assert rate.add(61_000, 61 + RATE_WINDOW_S) == 0


def test_two_looks_at_the_same_moment() -> None:
    rate = Rate()
    rate.add(0, 1.0)
    assert rate.add(100, 1.0) is None


# ---- lag


def test_the_trail_knows_since_when_wal_is_lacking() -> None:
    trail = Trail(10)
    trail.add(100, 0)
    trail.add(200, 1)
    trail.add(300, 2)
    assert trail.age_s(300, 5) == (0.0, True)
    assert trail.age_s(299, 5) == (3.0, True)
    assert trail.age_s(200, 5) == (3.0, True)
    assert trail.age_s(150, 5) == (4.0, True)
    assert trail.age_s(50, 5) == (5.0, False)


def test_in_a_pause_of_the_primary_nothing_gets_older() -> None:
    trail = Trail(10)
    for second in range(1000):
        trail.add(100, second)
    trail.add(200, 1000)
    assert trail.age_s(100, 1000.5) == (0.5, True)


@pytest.mark.parametrize("horizon_s", [0, 10, 3600, 86400])
def test_the_trail_is_bounded(horizon_s: float) -> None:
    trail = Trail(horizon_s)
    for tick in range(20_000):
        trail.add(tick, tick / 2)
    assert len(trail._times) < 1000
    age_s, _ = trail.age_s(0, 10_000)
    # Far enough back for the limit, and for a while after it.
    assert age_s >= min(2 * horizon_s, 9_000)


def test_who_counts() -> None:
    replica = STANDBY
    catching_up = replace(STANDBY, name="b", state="catchup")
    subscriber = replace(STANDBY, name="c", logical=True)
    archive = replace(STANDBY, name="d", only_receives=True)
    backup = replace(STANDBY, name="e", state="backup", position=None)
    all_of_them = [replica, catching_up, subscriber, archive, backup]
    assert counted(all_of_them, []) == [replica, catching_up]
    assert counted(all_of_them, ["c", "d"]) == [subscriber, archive]
    assert counted([], []) == []
    # There may be two of one name, e.g. a connection that the server has not yet found dead.
    assert counted([replica, replica], ["a"]) == [replica, replica]


def test_a_named_standby_must_be_there() -> None:
    with pytest.raises(Unmeasured, match=r"^cannot measure the lag of standby b: it is not connected$"):
        counted([STANDBY], ["a", "b"])
    with pytest.raises(Unmeasured, match=r"^cannot measure the lag of standby a: it is not streaming \(state backup\)"):
        counted([replace(STANDBY, state="backup")], ["a"])


def test_lag_in_bytes() -> None:
    assert behind_bytes(STANDBY, 1500) == 500
    # It has reported a moment after the position was read.
    assert behind_bytes(STANDBY, 900) == 0
    with pytest.raises(Unmeasured, match="it has not reported yet"):
        behind_bytes(replace(STANDBY, position=None), 1500)


def test_lag_in_seconds() -> None:
    trail = Trail(10)
    trail.add(900, 0)
    trail.add(1100, 1)
    # Nothing to replay is no lag, whatever was reported last.
    assert behind_s(replace(STANDBY, replay_lag_s=7.0), 1000, trail, 10, 3) == 0
    # The greater one of what is reported and what is proved.
    assert behind_s(STANDBY, 1100, trail, 10, 3) == 2
    assert behind_s(replace(STANDBY, replay_lag_s=7.0), 1100, trail, 10, 3) == 7
    assert behind_s(replace(STANDBY, replay_lag_s=None), 1100, trail, 10, 3) == 2


def test_lag_in_seconds_of_one_that_was_behind_before() -> None:
    trail = Trail(10)
    trail.add(1100, 1)
    silent = replace(STANDBY, replay_lag_s=None)
    with pytest.raises(Unmeasured, match="age is not known yet"):
        behind_s(silent, 1100, trail, 10, 3)
    # Until it is clear enough.
    assert behind_s(silent, 1100, trail, 10, 12) == 11
    assert behind_s(STANDBY, 1100, trail, 10, 1.5) == 0.5


# ---- what is wanted


def test_nothing_is_wanted_without_a_limit() -> None:
    assert not Throttle(Options(), None).wanted
    # Names alone limit nothing.
    assert not Throttle(Options(lag_standbys=("a",)), None).wanted


@pytest.mark.parametrize(
    "options",
    [
        Options(max_lag_bytes=0),
        Options(max_lag_s=1.5),
        Options(max_load=0),
        Options(max_lock_waits=0),
        Options(max_wal_rate_bytes=1),
    ],
)
def test_any_limit_is_wanted(options: Options) -> None:
    assert Throttle(options, None).wanted


def test_space_is_measured_without_a_session(tmp_path: Path) -> None:
    nobody: Any = None
    space = Space({"tablespace x": tmp_path})
    assert Throttle(Options(), space).wanted
    assert not Throttle(Options(min_free_bytes=0), space).wanted
    assert Throttle(Options(min_free_bytes=1), space).measure(nobody) == ""
    reason = Throttle(Options(min_free_bytes=1 << 60), space).measure(nobody)
    assert reason.endswith(" free on tablespace x (limit 1024 PB)")


def test_space_that_cannot_be_seen_any_more(tmp_path: Path) -> None:
    nobody: Any = None
    throttle = Throttle(Options(), Space({"tablespace x": tmp_path / "gone"}))
    assert throttle.measure(nobody).startswith("cannot measure free space: [Errno 2]")


# ---- the gate


def test_the_gate_says_why_it_is_closed() -> None:
    gate = Gate()
    assert gate.reason == ""
    gate.close("first")
    gate.close("second")
    assert gate.reason == "second"
    gate.open()
    assert gate.reason == ""


# ---- words


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (0.05, "0.05 s"), (4.23, "4.2 s"), (4, "4 s"), (9.96, "10 s"), (3600, "3600 s")]
)
def test_times(seconds: float, text: str) -> None:
    assert limit_text(seconds) == text
