"""Whether tables are so bloated that somebody should be told: what was found against thresholds.

A table passes a threshold where a repack would give back *more* than that: a share of its size, or so many bytes. What
nothing is known of gives back nothing; where the state would be another if all of it were bloat, it is UNKNOWN.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

from pglean.bloat.finding import Bloat, TableBloat, families
from pglean.errors import UsageError
from pglean.options import size_bytes

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


class State(IntEnum):
    """As monitoring plugins have it; the value is the exit status."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


#: What is worse hides the rest.
_SEVERITY = (State.OK, State.UNKNOWN, State.WARNING, State.CRITICAL)


def worst(states: Iterable[State]) -> State:
    """The one to be told: what is known to be bad comes before what is not known."""
    return max(states, key=_SEVERITY.index, default=State.OK)


@dataclass(frozen=True, slots=True)
class Threshold:
    """What a repack may give back: a share of the size, or so many bytes; the other is None."""

    #: As it was given.
    text: str
    #: 0.3 for ``30%``.
    share: float | None = None
    bytes: int | None = None

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """``30%`` or ``10GB``. Raises `UsageError`."""
        match = _SHARE.fullmatch(text.strip())
        if match is not None and float(match[1]) <= 100:
            return cls(text.strip(), share=float(match[1]) / 100)
        # Of a bare number nobody knows which of both it is.
        if match is None and not text.strip().isdecimal():
            with contextlib.suppress(UsageError):
                return cls(text.strip(), bytes=size_bytes(name, text))
        raise UsageError(
            f"invalid value for option --{name}: {text}",
            hint=f"Give a share of the size, or a size: --{name} 30%, --{name} 10GB.",
        )

    def passed(self, size: int, gain: int) -> bool:
        """Whether it is less than a `gain` of so many bytes."""
        return gain > (self.bytes or 0) if self.share is None else gain > self.share * size


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Raises `UsageError` where what is critical would be no warning."""

    warning: Threshold
    critical: Threshold

    def __post_init__(self) -> None:
        warning, critical = self.warning, self.critical
        for first, second in ((warning.share, critical.share), (warning.bytes, critical.bytes)):
            if first is not None and second is not None and first > second:
                raise UsageError(
                    f"--warning {warning.text} is above --critical {critical.text}",
                    hint="--warning is the lower one of both.",
                )

    def state(self, size: int, gain: int, unknown: int) -> State:
        """Of what is so large, with what a repack would give back, and what of it is not known; all in bytes."""
        if self.critical.passed(size, gain):
            return State.CRITICAL
        if self.warning.passed(size, gain):
            return State.WARNING
        could = self.critical.passed(size, gain + unknown) or self.warning.passed(size, gain + unknown)
        return State.UNKNOWN if could else State.OK


@dataclass(frozen=True, slots=True)
class Judged:
    """A table, or all of them together."""

    name: str
    state: State
    bytes: int
    #: What a repack would give back, as far as that is known.
    gain_bytes: int
    #: What of `bytes` nothing is known of.
    unknown_bytes: int
    method: str = ""
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether anything is known of it."""
        return self.unknown_bytes < self.bytes or self.bytes == 0

    @property
    def bloat(self) -> float:
        """`gain_bytes` as a share of the size."""
        return self.gain_bytes / self.bytes if self.bytes else 0.0

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "table": self.name,
            "status": self.state.name,
            "bytes": self.bytes,
            "gain_bytes": self.gain_bytes if self.known else None,
            "bloat": round(self.bloat, 4) if self.known else None,
            "unknown_bytes": self.unknown_bytes,
            "method": self.method,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be told of a database."""

    state: State
    thresholds: Thresholds
    #: The worst first.
    tables: tuple[Judged, ...]
    #: All of them together.
    total: Judged
    #: Whether it is `total` that was held against the thresholds, and not each table.
    together: bool
    #: How many were left out because they are small.
    small: int

    def of_state(self, state: State) -> list[Judged]:
        """Tables of that state."""
        return [table for table in self.tables if table.state is state]


def judge(
    found: Bloat, thresholds: Thresholds, *, min_bytes: int = 0, partitions: bool = False, together: bool = False
) -> Verdict:
    """Hold each table against the thresholds; or, with `together`, what all of them would give back.

    `found` has partitions one by one; they are added up unless `partitions`. Tables smaller than `min_bytes` are left
    out.
    """
    groups = [(table, (table,)) for table in found] if partitions else families(found)
    large = [(table, members) for table, members in groups if table.bytes >= min_bytes]
    tables = sorted((_judged(table, members, thresholds) for table, members in large), key=_order)
    size, gain, unknown = (sum(getattr(t, part) for t in tables) for part in ("bytes", "gain_bytes", "unknown_bytes"))
    total = Judged("total", thresholds.state(size, gain, unknown), size, gain, unknown)
    return Verdict(
        state=total.state if together else worst(table.state for table in tables),
        thresholds=thresholds,
        tables=tuple(tables),
        total=total,
        together=together,
        small=len(groups) - len(large),
    )


def _judged(table: TableBloat, members: Sequence[TableBloat], thresholds: Thresholds) -> Judged:
    unknown = sum(member.bytes for member in members if not member.heap.known)
    # What is not known of a heap is not known of the table, whatever its indexes are.
    gain = sum(member.gain_bytes for member in members if member.heap.known)
    state = thresholds.state(table.bytes, gain, unknown)
    return Judged(table.qualified_name, state, table.bytes, gain, unknown, table.method, table.notes)


def _order(table: Judged) -> tuple[int, int, int, str]:
    return -_SEVERITY.index(table.state), -table.gain_bytes, -table.bytes, table.name
