"""What a finished run returns: frozen, units in the names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pglean.errors import Incomplete, PgleanError, Refused


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
    #: How changes were captured: trigger or wal.
    capture: str = "trigger"
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


@dataclass(frozen=True, slots=True)
class RebuiltIndex:
    """An index that was rebuilt."""

    #: Qualified names.
    index: str
    table: str
    bytes_before: int
    bytes_after: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ReindexResult:
    """What became of the indexes that were to be rebuilt."""

    indexes: tuple[RebuiltIndex, ...]
    #: Qualified names of invalid indexes that were dropped: what failed rebuilds of before had left.
    removed: tuple[str, ...]
    #: What was not done, by the name of the index or table, with its reason.
    failures: dict[str, PgleanError]
    #: What ended the run before its time; None where nothing did.
    ended_by: PgleanError | None
    elapsed_s: float
    #: What was found and not named, and cannot be rebuilt by its nature, by the name of the index.
    skipped: dict[str, Refused] = field(default_factory=dict)

    @property
    def bytes_before(self) -> int:
        """Of all that were rebuilt."""
        return sum(index.bytes_before for index in self.indexes)

    @property
    def bytes_after(self) -> int:
        """Of all that were rebuilt."""
        return sum(index.bytes_after for index in self.indexes)

    @property
    def error(self) -> PgleanError | None:
        """What to raise where not all was done; None where all was."""
        return self.ended_by or failure(self.failures, len(self.indexes))

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "status": "failed" if self.error else "done",
            "indexes": [asdict(index) for index in self.indexes],
            "removed": list(self.removed),
            "failures": [
                {
                    "name": name,
                    "exit_status": error.exit_status,
                    "message": error.message,
                    "detail": error.detail,
                    "hint": error.hint,
                    "codes": [finding.code for finding in getattr(error, "findings", ())],
                }
                for name, error in self.failures.items()
            ],
            "skipped": [
                {
                    "name": name,
                    "message": refused.message,
                    "detail": refused.detail,
                    "hint": refused.hint,
                    "codes": [finding.code for finding in refused.findings],
                }
                for name, refused in self.skipped.items()
            ],
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "elapsed_s": self.elapsed_s,
        }


def failure(failures: dict[str, PgleanError], done: int) -> PgleanError | None:
    """The one error that tells of all: itself where it is the only one, one refusal of all where nothing was done."""
    if not failures:
        return None
    errors = list(failures.values())
    if not done and len(errors) == 1:
        return errors[0]
    if not done and all(isinstance(error, Refused) for error in errors):
        findings = [finding for error in errors for finding in getattr(error, "findings", ())]
        return Refused("what was named", findings, "reindexed")
    return Incomplete(failures, done, "indexes", "rebuilt")
