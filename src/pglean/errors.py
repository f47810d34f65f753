"""Every error that pglean raises, and the exit status that goes with it.

    PgleanError                1   anything unexpected
    ├── UsageError             2   a name, option or value that makes no sense
    ├── Refused                3   preflight found obstacles; nothing was touched
    ├── LockNotObtained        4   no lock within --wait-timeout
    ├── ConnectionLost         5   the server cannot be reached, went away, or ended a session of ours
    ├── TableChanged           6   somebody's DDL changed the table under the run
    │   ├── CaptureGap         6   our triggers were off for a while; changes may be missing
    │   └── IndexesChanged     6   only its indexes, which a run takes up where it can
    ├── VerificationFailed     7   shadow and table differ; nothing was swapped
    │   └── RowsMissing        7   the shadow lacks rows that changed, so it cannot be kept up any more
    ├── Interrupted            8   Ctrl-C, SIGTERM or SIGHUP
    │   ├── Aborted            8   `pglean abort`
    │   ├── Paused             8   `pglean pause`; the run is kept
    │   └── TakenOver          8   another session has gone on with the run
    ├── WalRetained           10   the run's replication slot retains more WAL than it may
    ├── DiskFull               1   no space left on the server; the run is kept
    ├── Incomplete             9   several tables were asked for and some were not done
    └── NotBegun               1   one of several tables, after what ended the batch, whose exit status it tells

`pglean check` makes 3 of each of them: to a monitor 1 and 2 say something of the tables.

The text follows PostgreSQL's style: a lower-case message without a period, a detail that is a sentence, and a hint
with the exact command or option that mends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class PgleanError(Exception):
    """The root of the tree: catches everything that pglean raises on purpose."""

    exit_status: int = 1
    #: Whether the same call may succeed later without anybody changing anything.
    retryable: ClassVar[bool] = False
    #: Whether it makes no sense, or is not wanted, to go on with other tables.
    ends_batch: ClassVar[bool] = False

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint
        #: Number of the run that it has ended; None where none had begun.
        self.job: int | None = None

    def __str__(self) -> str:
        lines = [self.message]
        if self.detail:
            lines.append(f"DETAIL:  {self.detail}")
        if self.hint:
            lines.append(f"HINT:  {self.hint}")
        return "\n".join(lines)


class UsageError(PgleanError):
    """A name, an option or a value that makes no sense; nothing was touched."""

    exit_status = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One obstacle (or warning) that preflight found, before anything was touched."""

    #: A stable, short name, e.g. ``no-key``; scripts may rely on it.
    code: str
    message: str
    detail: str | None = None
    hint: str | None = None
    #: True where the run is refused, False where it is only warned of.
    fatal: bool = True

    def __str__(self) -> str:
        lines = [self.message]
        if self.detail:
            lines.append(f"DETAIL:  {self.detail}")
        if self.hint:
            lines.append(f"HINT:  {self.hint}")
        return "\n".join(lines)


class Refused(PgleanError):
    """Preflight found obstacles. All of them are in `findings`; nothing was touched."""

    exit_status = 3

    def __init__(self, table: str, findings: Sequence[Finding], verb: str = "repacked") -> None:
        self.table = table
        self.findings = tuple(findings)
        first = self.findings[0]
        if len(self.findings) == 1:
            super().__init__(first.message, detail=first.detail, hint=first.hint)
        else:
            super().__init__(
                f"{table} cannot be {verb} for {len(self.findings)} reasons",
                detail="\n".join(str(finding) for finding in self.findings),
            )


class LockNotObtained(PgleanError):
    """No lock within the wait timeout. `blockers` says who stood in the way."""

    exit_status = 4
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        blockers: Sequence[str] = (),
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.blockers = tuple(blockers)


class ConnectionLost(PgleanError):
    """The server went away, or somebody ended a session of ours."""

    exit_status = 5
    retryable = True
    ends_batch = True


class TableChanged(PgleanError):
    """Somebody's DDL changed the table under the run, in a way that cannot be taken up."""

    exit_status = 6
    retryable = True


class CaptureGap(TableChanged):
    """Our capture was switched off, if only for a moment: changes may be missing, the copy is worth nothing."""


class IndexesChanged(TableChanged):
    """Nothing but indexes of the table was made, dropped or changed by another session."""


class VerificationFailed(PgleanError):
    """Shadow and table differ. Nothing was swapped, the table is as it was; the run is kept, to be looked at."""

    exit_status = 7


class RowsMissing(VerificationFailed):
    """Rows without a key that changed are not in the shadow. It will not get better: the run is undone."""


class Interrupted(PgleanError):
    """The user asked for the end of the run (Ctrl-C, SIGTERM, SIGHUP)."""

    exit_status = 8
    ends_batch = True


class Aborted(Interrupted):
    """Somebody asked for the end of the run from another session."""

    ends_batch = False


class Paused(Interrupted):
    """The user asked for a pause: what was done is kept, `pglean resume` continues."""

    retryable = True
    ends_batch = False


class TakenOver(Interrupted):
    """Another session goes on with this run; this one must not touch it any more."""

    ends_batch = False


class WalRetained(PgleanError):
    """The run's replication slot keeps the server from removing more WAL than was allowed; the run is undone."""

    exit_status = 10


class DiskFull(PgleanError):
    """The server has no space left: what was done is kept, `pglean resume` continues."""

    retryable = True


class Incomplete(PgleanError):
    """Several tables (or indexes) were asked for, and some were not done. `failures` maps each to its error."""

    exit_status = 9

    def __init__(
        self, failures: dict[str, PgleanError], done: int, things: str = "tables", verb: str = "repacked"
    ) -> None:
        self.failures = failures
        super().__init__(
            f"{len(failures)} of {done + len(failures)} {things} {'was' if len(failures) == 1 else 'were'} not {verb}",
            detail="\n".join(f"{table}: {error.message}" for table, error in failures.items()),
        )


class NotBegun(PgleanError):
    """One of several tables whose turn did not come: `cause` has ended the batch, and gives its exit status."""

    def __init__(self, cause: PgleanError) -> None:
        super().__init__("not begun: the run before it was ended")
        self.cause = cause
        self.exit_status = cause.exit_status
