"""What other sessions see of runs: those that are not over, and the history of those that are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg import errors as pg

from pglean.rewrite import schema
from pglean.rewrite.phase import Phase
from pglean.session import Connection, scalar
from pglean.sql import query


def ways_on(job_id: int, command: Callable[[str], str]) -> str:
    """What can be done with a run that is kept; `command` is `Server.command`."""
    return f"{command(f'resume {job_id}')} continues, {command(f'abort {job_id}')} undoes it"


@dataclass(frozen=True, slots=True)
class Status:
    """One run that is not over."""

    id: int
    schema: str
    table: str
    relation: int
    phase: str
    #: running; ready (kept in sync, and waits); paused (kept, nobody works on it); interrupted (its client is gone);
    #: remains (over, but something of it could not be removed); unknown (seen from a standby).
    state: str
    progress: dict[str, Any]
    #: Seconds since the run began and since its last heartbeat.
    elapsed_s: float
    heartbeat_s: float
    #: What it was asked for and has not done yet: pause, swap, abort.
    command: str | None
    #: Why it was kept, or what remains.
    error: str | None
    #: What the run costs meanwhile: the table of recorded changes, which grows until they are taken over, and the copy.
    #: Zero where that was not asked for.
    changes_bytes: int = 0
    shadow_bytes: int = 0
    #: trigger or wal; for the latter its replication slot, and the WAL that the server may not remove because of it.
    capture: str = "trigger"
    slot: str | None = None
    #: None where the slot is not there any more, or the server has given it up.
    slot_wal_bytes: int | None = None

    @property
    def alive(self) -> bool:
        """Whether a session works on it."""
        return self.state in ("running", "ready")

    @property
    def slot_lost(self) -> bool:
        """Whether it has lost the replication slot that it read: what was copied is worth nothing."""
        return self.slot is not None and self.slot_wal_bytes is None and self.state in ("paused", "interrupted")

    @property
    def swapped(self) -> bool:
        """Whether the table has its new files, so that what is left is to be removed, not to be gone on with."""
        return self.phase == Phase.CLEANING.label


@dataclass(frozen=True, slots=True)
class Finished:
    """One run that is over."""

    id: int
    schema: str
    table: str
    #: done or undone.
    state: str
    started_at: datetime
    finished_at: datetime
    elapsed_s: float
    #: What `Result.as_json` was; None where the run was undone, or finished by `cleanup`.
    result: dict[str, Any] | None
    error: str | None
    #: Host and process id of who ran it.
    client: str
    pglean_version: str


def unfinished(conn: Connection) -> list[Status]:
    """All runs that are not over, or that left something; empty where there is no schema of ours."""
    if not schema.present(conn):
        return []
    return [
        Status(
            id=row[0],
            schema=row[1],
            table=row[2],
            relation=row[3],
            phase=Phase(row[4]).label,
            state=row[5],
            progress=_progress(row[5], row[6] or {}),
            elapsed_s=float(row[7]),
            heartbeat_s=float(row[8]),
            command=row[9],
            error=row[10],
            capture=row[11],
            slot=row[12],
        )
        for row in conn.execute(query("status.unfinished"))
    ]


def _progress(state: str, progress: dict[str, Any]) -> dict[str, Any]:
    # What nobody works on waits for nothing, whatever it did when it was last heard of.
    return {**progress, "waiting_for": ""} if state in ("paused", "interrupted", "remains") else progress


def with_sizes(conn: Connection, runs: list[Status]) -> list[Status]:
    """The same with what they cost. Waits for no lock for long: while an index is being built, its file tells."""
    conn.execute("SET lock_timeout = '100ms'")
    try:
        return [_with_sizes(conn, run) for run in runs]
    finally:
        conn.execute("SET lock_timeout = 0")


def _with_sizes(conn: Connection, run: Status) -> Status:
    parameters = {"job": str(run.id)}
    try:
        row = conn.execute(query("status.sizes"), parameters).fetchone()
    except pg.LockNotAvailable:
        row = conn.execute(query("status.sizes_of_files"), parameters).fetchone()
    assert row is not None
    retained = scalar(conn, query("capture.retained"), {"slot": run.slot}) if run.slot else None
    return replace(
        run,
        changes_bytes=row[0],
        shadow_bytes=row[1],
        slot_wal_bytes=None if retained is None else int(retained),
    )


def history(conn: Connection, limit: int) -> list[Finished]:
    """The latest runs that are over, newest first; empty where there is no schema of ours."""
    if not schema.present(conn):
        return []
    return [Finished(*row) for row in conn.execute(query("status.history"), {"limit": limit})]
