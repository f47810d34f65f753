"""Options and their limits."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import time
from typing import Any, get_type_hints

import pytest

import pglean
from pglean import Options, Verify
from pglean.errors import UsageError
from pglean.options import Capture, Compression, InvalidIndexes, Window, lag, size_bytes

_VAST = 1 << 60

LIMITS: dict[str, tuple[str, float, float]] = {
    "jobs": ("jobs", 1, 64),
    "wait_timeout_s": ("wait-timeout", 0, 7 * 86400),
    "lock_timeout_ms": ("lock-timeout", 1, 600_000),
    "max_lock_ms": ("max-lock-time", 20, 600_000),
    "chunk_ms": ("chunk-time", 10, 60_000),
    "fillfactor": ("fillfactor", 10, 100),
    "max_lag_bytes": ("max-lag", 0, _VAST),
    "max_lag_s": ("max-lag", 0, _VAST),
    "max_load": ("max-load", 0, _VAST),
    "max_lock_waits": ("max-lock-waits", 0, _VAST),
    "max_wal_rate_bytes": ("max-wal-rate", 0, _VAST),
    "max_slot_wal_bytes": ("max-slot-wal", 16 << 20, _VAST),
    "min_free_bytes": ("min-free", 0, _VAST),
}


#: Options that make sense only with others.
NEEDS: dict[str, dict[str, Any]] = {"max_slot_wal_bytes": {"capture": Capture.WAL}}


def options(**values: Any) -> Options:
    return Options(**values)


def test_defaults_harm_nobody() -> None:
    assert Options().kill_backend is False
    assert Options().verify is Verify.COUNT
    assert Options().lock_timeout_ms <= Options().max_lock_ms


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    option, least, most = LIMITS[name]
    for value in (least, most):
        assert getattr(options(**{name: value}, **NEEDS.get(name, {})), name) == value
    for value in (least - 1, most + 1, float("nan"), float("inf")):
        message = re.escape(f"invalid value for option --{option}: {value:g}")
        with pytest.raises(UsageError, match=message) as caught:
            options(**{name: value}, **NEEDS.get(name, {}))
        assert caught.value.hint == f"The value must lie between {least:g} and {most:g}."


def test_every_number_has_limits() -> None:
    numeric = (int, float, int | None, float | None)
    assert {name for name, kind in get_type_hints(Options).items() if kind in numeric} == set(LIMITS)


def test_as_json_has_every_field() -> None:
    assert set(options().as_json()) == {field.name for field in dataclasses.fields(Options)}


def test_what_is_stored_comes_back() -> None:
    """As a resumed run reads it, after it was JSON in the database."""
    for given in (
        options(),
        options(jobs=3, verify=Verify.FULL, hold=True, mvcc_safe=True, keep=True, max_load=0, max_lag_s=2.5),
        options(
            swap_window=Window.parse("22:00-02:00"), lag_standbys=("one", "two"), max_lag_bytes=1, min_free_bytes=0
        ),
        options(
            order_by="a DESC, b",
            cluster=False,
            tablespace="other",
            move_indexes=True,
            compression=Compression.LZ4,
            fillfactor=70,
            access_method="heap",
            invalid_indexes=InvalidIndexes.DROP,
        ),
        options(capture=Capture.WAL, max_slot_wal_bytes=1 << 30, keep=True),
    ):
        assert Options.from_json(json.loads(json.dumps(given.as_json()))) == given


def test_what_another_version_has_stored_is_understood() -> None:
    assert Options.from_json({"jobs": 3, "verify": "none", "of_tomorrow": 7}) == options(jobs=3, verify=Verify.NONE)
    assert Options.from_json({}) == options()


def test_capture() -> None:
    for values in ({"max_slot_wal_bytes": 1 << 30}, {"capture": Capture.TRIGGER, "max_slot_wal_bytes": 1 << 30}):
        with pytest.raises(UsageError, match="--max-slot-wal needs"):
            options(**values)
    with pytest.raises(UsageError, match="--keep with --capture wal needs"):
        options(capture=Capture.WAL, keep=True)
    assert options().outlives_process
    assert not options(capture=Capture.WAL).outlives_process
    assert options(capture=Capture.WAL, max_slot_wal_bytes=1 << 30).outlives_process
    left_to_us = options(capture=Capture.AUTO, max_slot_wal_bytes=1 << 30)
    assert left_to_us.with_capture(Capture.TRIGGER, 1) == options(capture=Capture.TRIGGER)
    assert left_to_us.with_capture(Capture.WAL, 1 << 30) == options(capture=Capture.WAL, max_slot_wal_bytes=1 << 30)


@pytest.mark.parametrize(
    ("asked", "begun_with", "differs"),
    [
        (None, Capture.WAL, False),
        (Capture.AUTO, Capture.WAL, False),
        (Capture.AUTO, Capture.TRIGGER, False),
        (Capture.WAL, Capture.WAL, False),
        (Capture.WAL, Capture.TRIGGER, True),
        (Capture.TRIGGER, Capture.WAL, True),
        # By a version that knew of no other.
        (Capture.TRIGGER, None, False),
        (Capture.WAL, None, True),
    ],
)
def test_capture_of_a_run_that_is_gone_on_with(
    asked: Capture | None, begun_with: Capture | None, differs: bool
) -> None:
    different = options(capture=asked).shape_differs(options(capture=begun_with))
    assert different == (["--capture"] if differs else [])


# ---- how values are written


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("02:00-04:00", ["02:00", "03:59"], ["01:59", "04:00", "14:00"]),
        ("22:00-02:00", ["22:00", "23:59", "00:00", "01:59"], ["02:00", "12:00", "21:59"]),
        (" 9:30-24:00 ", ["09:30", "23:59"], ["00:00", "09:29"]),
    ],
)
def test_window(text: str, inside: list[str], outside: list[str]) -> None:
    window = Window.parse(text)
    assert all(time.fromisoformat(moment) in window for moment in inside)
    assert not [moment for moment in outside if time.fromisoformat(moment) in window]
    assert Window.parse(str(window)) == window


@pytest.mark.parametrize(
    "text",
    ["", "now", "02:00", "02:00-", "2-4", "02:00-02:00", "24:00-02:00", "02:60-04:00", "02:00-04:60", "02:00-24:01",
     "00:00-24:00", "-1:00-02:00", "02:00-04:00-06:00", "02:00:00-04:00:00", "002:00-04:00", "02:00 04:00"],
)  # fmt: skip
def test_window_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="invalid value for option --swap-window: ") as caught:
        Window.parse(text)
    assert "02:00-04:00" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("100", 100),
        ("100B", 100),
        ("64kB", 64 << 10),
        ("1.5 MB", 3 << 19),
        ("2gb", 2 << 30),
        ("1TB", 1 << 40),
    ],
)
def test_size(text: str, expected: int) -> None:
    assert size_bytes("min-free", text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "1 GB more", "1PB", "10s", ".5GB", "1,5GB", "0x10", "inf"])
def test_size_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="invalid value for option --min-free: "):
        size_bytes("min-free", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64MB", (64 << 20, None)),
        ("100", (100, None)),
        ("10s", (None, 10.0)),
        ("500 ms", (None, 0.5)),
        ("2min", (None, 120.0)),
        ("1h", (None, 3600.0)),
        ("1D", (None, 86400.0)),
    ],
)
def test_lag(text: str, expected: tuple[int | None, float | None]) -> None:
    assert lag(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1s", "10 weeks", "s"])
def test_lag_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="invalid value for option --max-lag: ") as caught:
        lag(text)
    assert "a time (10s)" in str(caught.value.hint)


def test_public_names_exist() -> None:
    for name in pglean.__all__:
        assert hasattr(pglean, name)
