"""What a finished run returns: frozen, units in the names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class RelationSize:
    """Size of one file of the table before and after."""

    #: heap, toast (with its index) or index.
    kind: str
    #: Of the relation; empty for the TOAST table, which gets another one.
    name: str
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class Result:
    """A table that was repacked."""

    job: int
    #: Qualified name.
    table: str
    #: Rows as counted by the verification; of no meaning where there was none.
    rows: int
    sizes: tuple[RelationSize, ...]
    #: Longest time for which ACCESS EXCLUSIVE was held, as the client saw it.
    exclusive_lock_ms: float
    #: WAL that the whole cluster wrote during the run.
    wal_bytes: int
    #: Recorded changes that were taken over.
    changes_applied: int
    #: Whether all of the table was visible to everybody, hence frozen, at the last VACUUM before the swap.
    frozen: bool
    elapsed_s: float
    #: Seconds per phase, in order.
    phases: dict[str, float]
    #: How both tables were compared: none, count or full.
    verify: str = "count"
    status: Literal["done"] = "done"

    @property
    def bytes_before(self) -> int:
        """Heap, TOAST and all indexes."""
        return sum(size.bytes_before for size in self.sizes)

    @property
    def bytes_after(self) -> int:
        """Heap, TOAST and all indexes."""
        return sum(size.bytes_after for size in self.sizes)

    def as_json(self) -> dict[str, Any]:
        """For ``--json`` and for the job's row."""
        rows = None if self.verify == "none" else self.rows
        return {**asdict(self), "rows": rows, "bytes_before": self.bytes_before, "bytes_after": self.bytes_after}
