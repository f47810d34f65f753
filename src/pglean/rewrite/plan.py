"""What a run would do, with sizes: made from the catalog alone, printed by --dry-run, carried out by `pipeline`."""

from __future__ import annotations

from dataclasses import dataclass

from pglean.catalog import Fingerprint
from pglean.errors import Finding
from pglean.options import Options, Verify
from pglean.table import Table


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that preflight has let through."""

    table: Table
    options: Options
    #: What the run relies on, read before `table`.
    fingerprint: Fingerprint
    #: Findings that do not refuse the run.
    warnings: tuple[Finding, ...]

    @property
    def disk_bytes(self) -> int:
        """Free space that is surely enough: a second copy as large as the first, until the old files are dropped.

        What a run really needs is this times the share of live data, plus the change table.
        """
        return self.table.total_bytes

    @property
    def steps(self) -> tuple[str, ...]:
        """The run in words, in order."""
        table, options = self.table, self.options
        key = table.key
        key_text = "" if key is None else ", ".join(column.name for column in key.columns)
        verify = {
            Verify.NONE: "do not compare the tables (--verify none)",
            Verify.COUNT: "compare the number of rows in both tables",
            Verify.FULL: "compare both tables row by row",
        }[options.verify]
        steps = [
            f"record the keys ({key_text}) of changed rows, by three triggers"
            f" (SHARE ROW EXCLUSIVE, a moment; waits at most {options.lock_timeout_ms} ms at a time)",
            f"copy the rows in chunks of about {options.chunk_ms} ms, {options.jobs} at a time",
            "take over the changes recorded meanwhile; freeze the copy",
            f"build {len(table.indexes)} indexes, {min(options.jobs, max(len(table.indexes), 1))} at a time",
            "catch up with the changes",
            verify,
            f"exchange the files (ACCESS EXCLUSIVE, at most {options.max_lock_ms} ms)",
            "drop the old files" + ("; ANALYZE" if options.analyze else ""),
        ]
        return tuple(steps)
