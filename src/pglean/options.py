"""Every option of a run with its default and its validation, once; the command line and the API both end here."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from datetime import time
from enum import StrEnum
from typing import Any, Self

from pglean.errors import UsageError


class Verify(StrEnum):
    """How shadow and table are compared before the swap."""

    NONE = "none"
    COUNT = "count"
    FULL = "full"


class Capture(StrEnum):
    """How the keys of changed rows are recorded."""

    TRIGGER = "trigger"
    WAL = "wal"
    #: From the WAL where the server allows it.
    AUTO = "auto"


class InvalidIndexes(StrEnum):
    """What is done about invalid indexes of the table before it is repacked."""

    REFUSE = "refuse"
    REBUILD = "rebuild"
    DROP = "drop"


class Compression(StrEnum):
    """How the server compresses long values."""

    PGLZ = "pglz"
    LZ4 = "lz4"


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of each day, by the clock of the machine that pglean runs on; it may go over midnight."""

    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Self:
        """``02:00-04:00``. Raises `UsageError`."""
        if match := re.fullmatch(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", text.strip()):
            hour, minute, end_hour, end_minute = map(int, match.groups())
            if max(hour, end_hour % 24) < 24 and max(minute, end_minute) < 60 and end_hour * 60 + end_minute <= 1440:
                window = cls(time(hour, minute), time(end_hour % 24, end_minute))
                if window.begin != window.end:
                    return window
        raise UsageError(
            f"invalid value for option --swap-window: {text}",
            hint="Give two times of the day, e.g. 02:00-04:00; 22:00-02:00 goes over midnight.",
        )

    def __contains__(self, moment: time) -> bool:
        if self.begin < self.end:
            return self.begin <= moment < self.end
        return moment >= self.begin or moment < self.end

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"


@dataclass(frozen=True, slots=True)
class Options:
    """How a table is to be repacked.

    Raises `UsageError` where a value is out of its range.
    """

    #: Worker connections: parallel copying, refreshing and index building.
    jobs: int = 2
    #: How long a lock is tried for, in attempts of `lock_timeout_ms`, before the run gives up.
    wait_timeout_s: float = 60.0
    #: Longest single wait for a lock; so long may others queue behind us.
    lock_timeout_ms: int = 200
    #: Longest hold of a lock that stands in the way of writers.
    max_lock_ms: int = 1000
    #: What one chunk of the copy should take; the longest that a snapshot is held while copying.
    chunk_ms: int = 500
    #: How changes are recorded; None: by triggers, or as a run that is gone on with does it.
    capture: Capture | None = None
    #: Bytes of WAL that a replication slot of the run may retain. With such a limit the slot outlives the process, and
    #: the run can be kept.
    max_slot_wal_bytes: int | None = None
    #: Comparison of both tables before the swap.
    verify: Verify = Verify.COUNT
    #: Cancel, then terminate, the sessions that hold conflicting locks when `wait_timeout_s` is over.
    kill_backend: bool = False
    #: ANALYZE the table at the end.
    analyze: bool = True
    #: Keep the finished copy in sync, and wait for `pglean swap`.
    hold: bool = False
    #: Keep it in sync, and swap only at this time of the day.
    swap_window: Window | None = None
    #: Swap only when no transaction is left that could see the table as it never was.
    mvcc_safe: bool = False
    #: On Ctrl-C, SIGTERM or SIGHUP keep what was done, for `pglean resume`, instead of undoing it.
    keep: bool = False
    #: Sort the rows, as an ORDER BY would, by this list of columns and expressions.
    order_by: str | None = None
    #: Where there is no `order_by`: sort them by the index that the table is clustered on (CLUSTER ON), if any.
    cluster: bool = True
    #: Move the heap and its TOAST table to this tablespace, and with `move_indexes` the indexes too.
    tablespace: str | None = None
    move_indexes: bool = False
    #: Compress long values by this method, those that are stored and those to come.
    compression: Compression | None = None
    #: Percentage to which pages are filled, now and from now on.
    fillfactor: int | None = None
    #: Table access method that the table gets.
    access_method: str | None = None
    #: What is done about invalid indexes, before anything else.
    invalid_indexes: InvalidIndexes = InvalidIndexes.REFUSE
    #: The copy waits while a standby lags behind by more than so many bytes of WAL, or seconds of replay.
    max_lag_bytes: int | None = None
    max_lag_s: float | None = None
    #: Names (application_name) of the standbys whose lag counts; empty for all that are connected.
    lag_standbys: tuple[str, ...] = ()
    #: The copy waits while more sessions of others than this are active.
    max_load: int | None = None
    #: The copy waits while more sessions of others than this wait for locks.
    max_lock_waits: int | None = None
    #: The copy waits while the cluster writes more bytes of WAL a second than this.
    max_wal_rate_bytes: int | None = None
    #: The copy waits while less space than this is free on the server's disk, where that can be seen from here.
    min_free_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        _within("jobs", self.jobs, 1, 64)
        _within("wait-timeout", self.wait_timeout_s, 0, 7 * 86400)
        _within("lock-timeout", self.lock_timeout_ms, 1, 600_000)
        _within("max-lock-time", self.max_lock_ms, 20, 600_000)
        _within("chunk-time", self.chunk_ms, 10, 60_000)
        for name, value in (
            ("max-lag", self.max_lag_bytes),
            ("max-lag", self.max_lag_s),
            ("max-load", self.max_load),
            ("max-lock-waits", self.max_lock_waits),
            ("max-wal-rate", self.max_wal_rate_bytes),
            ("min-free", self.min_free_bytes),
        ):
            if value is not None:
                _within(name, value, 0, 1 << 60)
        if self.max_slot_wal_bytes is not None:
            # One segment of WAL is kept in any case.
            _within("max-slot-wal", self.max_slot_wal_bytes, 16 << 20, 1 << 60)
        if self.fillfactor is not None:
            _within("fillfactor", self.fillfactor, 10, 100)
        for name, text in (("order-by", self.order_by), ("tablespace", self.tablespace)):
            if text is not None and not text.strip():
                raise UsageError(f"invalid value for option --{name}: it is empty")
        if self.max_slot_wal_bytes is not None and self.capture not in (Capture.WAL, Capture.AUTO):
            raise UsageError(
                "--max-slot-wal needs --capture wal or auto",
                hint="Capture by triggers needs no replication slot.",
            )
        if self.keep and self.capture is Capture.WAL and not self.outlives_process:
            raise UsageError(
                "--keep with --capture wal needs --max-slot-wal",
                hint="Without a limit on the WAL that it retains, the replication slot ends with the process.",
            )
        if self.move_indexes and self.tablespace is None:
            raise UsageError(
                "--moveidx (-S) needs --tablespace (-s)",
                hint="Name the tablespace that the indexes are to be moved to.",
            )

    @property
    def outlives_process(self) -> bool:
        """Whether the run can be gone on with: a temporary replication slot is gone with the session that made it."""
        return self.capture is not Capture.WAL or self.max_slot_wal_bytes is not None

    def shape_differs(self, other: Options) -> list[str]:
        """What is asked for differently that decides what the new files are like, by the names of the options."""
        different = [option for name, option in _SHAPE.items() if getattr(self, name) != getattr(other, name)]
        if self.capture not in (None, Capture.AUTO, other.capture or Capture.TRIGGER):
            different.append("--capture")
        return different

    def with_capture(self, capture: Capture, max_slot_wal_bytes: int | None) -> Self:
        """The same, with what has come of `capture`."""
        limit = max_slot_wal_bytes if capture is Capture.WAL else None
        return replace(self, capture=capture, max_slot_wal_bytes=limit)

    def as_json(self) -> dict[str, Any]:
        """What the job's row remembers."""
        value = asdict(self)
        value["swap_window"] = None if self.swap_window is None else str(self.swap_window)
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """What `as_json` has made, perhaps by an older version: what it did not know has its default."""
        known = {field.name for field in fields(cls)}
        given = {name: part for name, part in value.items() if name in known}
        given["verify"] = Verify(given.get("verify", Verify.COUNT))
        given["invalid_indexes"] = InvalidIndexes(given.get("invalid_indexes", InvalidIndexes.REFUSE))
        if given.get("capture"):
            given["capture"] = Capture(given["capture"])
        if given.get("compression"):
            given["compression"] = Compression(given["compression"])
        if given.get("swap_window"):
            given["swap_window"] = Window.parse(given["swap_window"])
        given["lag_standbys"] = tuple(given.get("lag_standbys") or ())
        return cls(**given)


#: A copy that was begun with these cannot be gone on with by others.
_SHAPE = {
    "order_by": "--order-by",
    "cluster": "--no-order",
    "tablespace": "--tablespace",
    "move_indexes": "--moveidx",
    "compression": "--compression",
    "fillfactor": "--fillfactor",
    "access_method": "--access-method",
}

_SIZE = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_TIME = {"MS": 0.001, "S": 1.0, "MIN": 60.0, "H": 3600.0, "D": 86400.0}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def size_bytes(name: str, text: str) -> int:
    """``64MB`` as the server reads it, in powers of 1024. Raises `UsageError`."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2].upper() not in _SIZE:
        raise UsageError(f"invalid value for option --{name}: {text}", hint="Give a size: 500MB, 2GB.")
    return int(float(match[1]) * _SIZE[match[2].upper()])


def lag(text: str) -> tuple[int | None, float | None]:
    """``64MB`` or ``10s``: bytes, or seconds. Raises `UsageError`."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is not None and match[2].upper() in _TIME:
        return None, float(match[1]) * _TIME[match[2].upper()]
    if match is None or match[2].upper() not in _SIZE:
        raise UsageError(f"invalid value for option --max-lag: {text}", hint="Give a size (64MB) or a time (10s).")
    return size_bytes("max-lag", text), None


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UsageError(
            f"invalid value for option --{name}: {value:g}",
            hint=f"The value must lie between {least:g} and {most:g}.",
        )
