"""Steering a run from another session: what it is asked for is written to its row, where its watch finds it.

A run that nobody works on any more is aborted by whoever asks for it.
"""

from __future__ import annotations

import time

from pglean.claim import claim, release
from pglean.errors import LockNotObtained, UsageError
from pglean.options import Options
from pglean.rewrite import cleanup, ending
from pglean.rewrite import job as jobs
from pglean.rewrite.status import Status, unfinished, ways_on
from pglean.server import Server
from pglean.session import Connection

#: How often the run's row is looked at; how long nobody works on it before its process is taken for dead; in seconds.
_LOOK_S, _GONE_S = 0.1, 5.0


def _find(conn: Connection, job_id: int) -> Status | None:
    return next((run for run in unfinished(conn) if run.id == job_id), None)


def _found(server: Server, conn: Connection, job_id: int) -> Status:
    run = _find(conn, job_id)
    if run is None:
        raise UsageError(
            f"there is no run {job_id} that is not over",
            hint=f"{server.command('status')} lists those that are not over, {server.command('log')} the others.",
        )
    return run


def pause(server: Server, job_id: int, wait_s: float) -> None:
    """Ask a run to stop after what it has begun, and wait for that: it may be the build of a large index.

    Raises `UsageError` where nobody works on it, `LockNotObtained` where it goes on for longer than `wait_s`; it is
    still asked then.
    """
    with server.connect("pause") as conn:
        run = _found(server, conn, job_id)
        if run.state == "paused":
            return
        stored = jobs.load(conn, job_id)
        if stored is not None and not stored.options.outlives_process:
            raise UsageError(
                f"run {job_id} cannot be paused: its replication slot would end with its process",
                hint="With --max-slot-wal such runs can be kept.",
            )
        if not run.alive or not jobs.request(conn, job_id, "pause"):
            raise UsageError(
                f"run {job_id} is {run.state}: nobody works on it",
                hint=f"{ways_on(job_id, server.command)}.",
            )
        _wait(server, conn, job_id, wait_s)
        if _find(conn, job_id) is None:
            raise UsageError(
                f"run {job_id} has come to its end: {jobs.state_of(conn, job_id)}", hint=f"See {server.command('log')}."
            )


def swap(server: Server, job_id: int) -> None:
    """Let a run that holds, or waits for its window, swap; also before it is ready. Raises `UsageError` for others."""
    with server.connect("swap") as conn:
        run = _found(server, conn, job_id)
        stored = jobs.load(conn, job_id)
        if run.alive and stored is not None and not (stored.options.hold or stored.options.swap_window):
            raise UsageError(
                f"run {job_id} does not hold: it swaps by itself",
                hint="`pglean repack --hold` or --swap-window makes a run wait for this.",
            )
        if not run.alive or not jobs.request(conn, job_id, "swap"):
            raise UsageError(
                f"run {job_id} is {run.state}: nobody works on it",
                hint=f"{server.command(f'resume {job_id}')} continues with it; then ask again.",
            )


def abort(server: Server, job_id: int, wait_s: float) -> tuple[str, list[str]]:
    """Undo a run, whether anybody works on it or not; returns its final state, and what could not be removed.

    A run that had swapped already is finished instead: its state is `done`.
    Raises `UsageError` where there is none, `LockNotObtained` where whoever works on it does not react in time.
    """
    with server.connect("abort") as conn:
        run = _found(server, conn, job_id)
        deadline = time.monotonic() + wait_s
        if run.alive and jobs.request(conn, job_id, "abort"):
            _wait(server, conn, job_id, wait_s)
        while (left := _find(conn, job_id)) is not None:
            # Whoever worked on it may be undoing it himself.
            if claim(conn, left.relation):
                break
            if time.monotonic() > deadline:
                raise _busy(left)
            server.rest(_LOOK_S)
        else:
            return jobs.state_of(conn, job_id) or "undone", []
        try:
            if jobs.state_of(conn, job_id) not in ("running", "paused", "remains"):
                return jobs.state_of(conn, job_id) or "undone", []
            patience = ending.patience(server, Options(), max(deadline - time.monotonic(), 0))
            remains = cleanup.end(server, conn, job_id, patience, "aborted", deadline)
            return jobs.state_of(conn, job_id) or "undone", remains
        finally:
            release(conn, run.relation)


def _wait(server: Server, conn: Connection, job_id: int, wait_s: float) -> None:
    """Wait until the run is kept, or over; a moment longer where its process is gone, or about to note either."""
    deadline = time.monotonic() + wait_s
    gone_s = 0.0
    while (run := _find(conn, job_id)) is not None and (run.alive or run.state == "interrupted"):
        gone_s = 0.0 if run.alive else gone_s + _LOOK_S
        if gone_s > _GONE_S:
            return
        if time.monotonic() > deadline:
            raise _busy(run)
        server.rest(_LOOK_S)


def _busy(run: Status) -> LockNotObtained:
    return LockNotObtained(
        f"a session still works on run {run.id}",
        detail=f"It is {run.state}, in phase {run.phase}; its last heartbeat was {run.heartbeat_s:.0f} s ago.",
        hint="It has been asked, and will do so when it has finished what it is at; or end its process.",
    )
