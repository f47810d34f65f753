"""What becomes of a run that something has ended: it is kept, undone, or, after the swap, finished.

Kept is what will pass by itself or was asked for: no lock in time, a lost connection, a full disk, a pause, a
verification that failed (to be looked at; but not where rows are missing in the copy that are needed to go on). Its
triggers go on recording, so nothing is lost; `resume` continues.
Everything else is undone to the last object, by a session of its own, which finds what the run has made by its number.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import psycopg

from pglean import pausepoint
from pglean.claim import claim, release
from pglean.errors import (
    ConnectionLost,
    DiskFull,
    Interrupted,
    LockNotObtained,
    Paused,
    PgleanError,
    RowsMissing,
    TableChanged,
    TakenOver,
    VerificationFailed,
)
from pglean.options import Capture, Options
from pglean.patience import Patience, Policy
from pglean.rewrite import cleanup
from pglean.rewrite import job as jobs
from pglean.rewrite.job import Job
from pglean.rewrite.phase import Phase
from pglean.rewrite.status import ways_on
from pglean.server import Server, translate
from pglean.session import Connection

#: How long an undo tries to reach a server that is restarting, and to get the lock for dropping triggers, in seconds.
_RECONNECT_S, _UNDO_WAIT_S = 30.0, 10.0

_KEPT = (LockNotObtained, ConnectionLost, DiskFull, Paused, VerificationFailed)


def keeps(error: BaseException, options: Options) -> bool:
    """Whether a run that ends with this error is kept, if it has come to anything."""
    if not options.outlives_process:
        return False
    if isinstance(error, RowsMissing):
        return False
    return isinstance(error, _KEPT) or (options.keep and type(error) is Interrupted)


def end(server: Server, job: Job, error: BaseException) -> BaseException:
    """Keep, undo or finish the run; returns what is to be told, with what has become of it.

    On entry: the run's sessions are closed, or lost.
    """
    told: BaseException = server.translate(error) if isinstance(error, Exception) else error
    if isinstance(told, TakenOver):
        return told
    keep = keeps(told, job.options)
    with server.shielded():
        pausepoint.reach("undo")
        try:
            hints = _end(server, job, keep, told)
        except (PgleanError, psycopg.Error) as second:
            what = translate(second).message
            hints = [
                f"Its state could not be noted ({what}): {ways_on(job.id, server.command)}."
                if keep
                else f"Undoing failed as well ({what}): {server.command('cleanup')} undoes it."
            ]
    if isinstance(told, PgleanError):
        told.job = job.id
    for hint in hints:
        _add_hint(told, hint)
    return told


def _end(server: Server, job: Job, keep: bool, told: BaseException) -> list[str]:
    with _reach_again(server) as conn:
        if not _claim_again(server, conn, job.table.oid):
            if jobs.is_ours(conn, job):
                raise LockNotObtained(f"a session of run {job.id} still lives on the server")
            return _swapped_hint(conn, job)
        try:
            return _end_claimed(server, conn, job, keep, told)
        finally:
            # Not left to the end of the session, which the server takes its time to notice: a run that begins again at
            # once would be refused.
            with contextlib.suppress(psycopg.Error):
                release(conn, job.table.oid)


def _end_claimed(server: Server, conn: Connection, job: Job, keep: bool, told: BaseException) -> list[str]:
    reason = str(getattr(told, "message", told))
    if not jobs.is_ours(conn, job):
        # Somebody has gone on with it, or ended it, while this process hung or could not reach the server.
        return _swapped_hint(conn, job)
    if keep and _keep(conn, job, reason):
        # Of a copy under one snapshot nothing is left when that is gone.
        lost = job.table.key is None and jobs.phase_of(conn, job.id) is Phase.COPYING
        done = (
            "The run is kept, but its copy begins again, for the table has no key" if lost else "What was done is kept"
        )
        return [
            f"{done}: {ways_on(job.id, server.command)}."
            + (
                f" Until then its replication slot retains WAL ({server.command('status')} tells how much)."
                if job.options.capture is Capture.WAL
                else " Until then its triggers record what is written to the table."
            )
        ]
    remains = cleanup.end(server, conn, job.id, patience(server, job.options, _UNDO_WAIT_S), reason)
    hints = _swapped_hint(conn, job)
    if keep and not hints:
        hints.append("The run had not come so far that there was anything to keep, and was undone.")
    elif not (hints or remains):
        # What others have done to it meanwhile is theirs.
        as_it_was = "" if isinstance(told, TableChanged) else "; the table is as it was"
        hints.append(f"What was begun is undone{as_it_was}.")
    if remains:
        hints.append(f"Still there: {'; '.join(remains)}. {server.command('cleanup')} removes them.")
    return hints


def _keep(conn: Connection, job: Job, reason: str) -> bool:
    """Note that the run is kept; False where there is nothing worth it, or the swap was committed."""
    # A COMMIT of the swap whose connection was lost may be under way: it has the row locked, and is waited for here.
    jobs.keep(conn, job.id, reason)
    phase = jobs.phase_of(conn, job.id)
    return phase is not None and phase.worth_keeping


def _swapped_hint(conn: Connection, job: Job) -> list[str]:
    phase = jobs.phase_of(conn, job.id)
    if phase is not None and phase.swapped:
        return ["The files had been exchanged already: the table is repacked, and what was left is removed."]
    return []


def _add_hint(error: BaseException, text: str) -> None:
    if isinstance(error, PgleanError):
        error.hint = f"{error.hint} {text}" if error.hint else text
    else:
        error.add_note(text)


def patience(server: Server, options: Options, limit_s: float | None = None) -> Patience:
    """An allowance of waiting outside of a run; with a limit, nobody is cancelled for it."""
    policy = Policy.of(options)
    if limit_s is not None:
        policy = replace(policy, wait_timeout_s=min(policy.wait_timeout_s, limit_s), kill_backend=False)
    return Patience(server, policy, lambda _: None)


def _claim_again(server: Server, conn: Connection, oid: int) -> bool:
    """Take the claim that the run's closed session is about to lose."""
    deadline = time.monotonic() + _UNDO_WAIT_S
    while not claim(conn, oid):
        if time.monotonic() > deadline:
            return False
        server.rest(0.05)
    return True


@contextlib.contextmanager
def _reach_again(server: Server) -> Iterator[Connection]:
    """A session for undoing; a server that is restarting is waited for."""
    deadline = time.monotonic() + _RECONNECT_S
    while True:
        try:
            connection = server.connect("undo", cancellable=False)
            conn = connection.__enter__()
        except ConnectionLost:
            if time.monotonic() > deadline:
                raise
            server.rest(0.5)
            continue
        break
    try:
        yield conn
    finally:
        connection.__exit__(None, None, None)
