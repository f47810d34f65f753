"""Every option of a run with its default and its validation, once; the command line and the API both end here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from pglean.errors import UsageError


class Verify(StrEnum):
    """How shadow and table are compared before the swap."""

    NONE = "none"
    COUNT = "count"
    FULL = "full"


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
    #: Comparison of both tables before the swap.
    verify: Verify = Verify.COUNT
    #: Cancel, then terminate, the sessions that hold conflicting locks when `wait_timeout_s` is over.
    kill_backend: bool = False
    #: ANALYZE the table at the end.
    analyze: bool = True

    def __post_init__(self) -> None:
        _within("jobs", self.jobs, 1, 64)
        _within("wait-timeout", self.wait_timeout_s, 0, 7 * 86400)
        _within("lock-timeout", self.lock_timeout_ms, 1, 600_000)
        _within("max-lock-time", self.max_lock_ms, 20, 600_000)
        _within("chunk-time", self.chunk_ms, 10, 60_000)

    def as_json(self) -> dict[str, Any]:
        """What the job's row remembers."""
        return asdict(self)


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UsageError(
            f"invalid value for option --{name}: {value:g}",
            hint=f"The value must lie between {least:g} and {most:g}.",
        )
