"""The persisted run: its row in pglean.job, its checkpoints, the names of its objects; and the schema they stand in.

Everything that a run makes is named after its job's number and stands in the schema `pglean`, except the
triggers on the table, whose functions stand there. So whoever finds a job's row finds all that belongs to it.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pglean.catalog import Fingerprint, relation
from pglean.errors import PgleanError
from pglean.options import Options
from pglean.rewrite.phase import FOLLOWS, Phase
from pglean.server import Connection, scalar, transaction
from pglean.sql import fragment, migrations, query
from pglean.table import Table

SCHEMA = "pglean"


@dataclass(frozen=True, slots=True)
class Job:
    """Which run this is. Its state is in the database, not here."""

    id: int
    table: Table
    options: Options
    fingerprint: Fingerprint

    @property
    def shadow(self) -> sql.Identifier:
        """The table that is filled and then exchanged."""
        return sql.Identifier(SCHEMA, self.shadow_name)

    @property
    def shadow_name(self) -> str:
        return f"shadow_{self.id}"

    @property
    def changes(self) -> sql.Identifier:
        """The table of recorded keys."""
        return sql.Identifier(*self.changes_name.split("."))

    @property
    def changes_name(self) -> str:
        """The same, as text for regclass: nothing in it needs quotes."""
        return f"{SCHEMA}.changes_{self.id}"

    def twin_name(self, index_oid: int) -> str:
        """The shadow's index that stands for an index of the table."""
        return f"twin_{self.id}_{index_oid}"


# ---- the schema


def schema_version(conn: Connection) -> int | None:
    """The newest migration that was applied; None where there is no schema pglean.

    Raises `PgleanError` where the schema is not ours, or our role may not look into it.
    """
    owner = conn.execute(query("catalog.schema_owner")).fetchone()
    if owner is None:
        return None
    name, ours, _ = owner
    if not ours:
        raise PgleanError(
            f'there is a schema "pglean" that is not ours (owner "{name}")',
            hint="Rename or drop it: ALTER SCHEMA pglean RENAME TO something_else;",
        )
    if not scalar(conn, "SELECT pg_catalog.has_schema_privilege('pglean', 'USAGE')"):
        raise PgleanError(
            "permission denied for schema pglean",
            hint="Connect as a superuser (-U).",
        )
    return int(scalar(conn, "SELECT pg_catalog.max(version) FROM pglean.version"))


def ensure_schema(conn: Connection) -> None:
    """Create the schema `pglean` or bring it up to date; whoever owns it was looked at by preflight.

    Raises `PgleanError` where a newer pglean has made it.
    """
    known = migrations()
    with transaction(conn):
        # Two first runs at once: one creates, the other waits and finds it done.
        conn.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", (0x70676C65_53434845,))
        found = schema_version(conn)
        newest = known[-1][0]
        if found is not None and found > newest:
            raise PgleanError(
                f"schema pglean has version {found}, this program knows versions up to {newest}",
                hint="Upgrade pglean on this machine.",
            )
        if found == newest:
            return
        if found is None:
            # Not IF NOT EXISTS: a schema that somebody made since we looked must not be moved into.
            conn.execute("CREATE SCHEMA pglean")
            # Default privileges may have granted it to others.
            for (grantee,) in conn.execute(query("job.schema_grantees")).fetchall():
                conn.execute(sql.SQL("REVOKE ALL ON SCHEMA pglean FROM {}").format(fragment(grantee)))
        for number, body in known:
            if found is None or number > found:
                conn.execute(body)
                conn.execute("INSERT INTO pglean.version (version) VALUES (%s)", (number,))


def drop_schema(conn: Connection) -> bool:
    """Drop the schema with all it holds; False where there is none.

    Raises `PgleanError` where a run is not over.
    """
    if runs := unfinished(conn):
        raise PgleanError(
            f"{len(runs)} runs are not over",
            detail="; ".join(f"{run.id} on {run.schema}.{run.table}: {run.state}" for run in runs),
            hint="Wait for those that are running; `pglean cleanup` undoes those that were interrupted.",
        )
    if schema_version(conn) is None:
        return False
    conn.execute("DROP SCHEMA pglean CASCADE")
    return True


# ---- the row


def create(conn: Connection, table: Table, options: Options, fingerprint: Fingerprint, version: str) -> Job:
    """A new run in phase `planned`."""
    job_id = scalar(
        conn,
        query("job.create"),
        {
            "relation": table.oid,
            "schema": table.schema,
            "name": table.name,
            "options": _json(options.as_json()),
            "fingerprint": _json(fingerprint),
            "client": f"{socket.gethostname()}:{os.getpid()}",
            "version": version,
        },
    )
    return Job(int(job_id), table, options, fingerprint)


def enter(conn: Connection, job_id: int, phase: Phase) -> None:
    """Persist that the run is in `phase`, in the caller's transaction if there is one.

    Raises `PgleanError` where the transition table does not know the step: a bug, better found before it commits.
    """
    before = phase_of(conn, job_id)
    if before is None or (phase is not before and phase not in FOLLOWS[before]):
        raise PgleanError(f"run {job_id} cannot go from {before!r} to {phase!r}")
    conn.execute(query("job.enter"), {"job": job_id, "phase": int(phase)})


def phase_of(conn: Connection, job_id: int) -> Phase | None:
    """The phase of a run as the database has it; None where there is no such run."""
    value = scalar(conn, query("job.phase"), {"job": job_id})
    return None if value is None else Phase(value)


def state_of(conn: Connection, job_id: int) -> str | None:
    """The state of a run as the database has it; None where there is no such run."""
    value: str | None = scalar(conn, query("job.state"), {"job": job_id})
    return value


def beat(conn: Connection, job_id: int, progress: dict[str, Any]) -> None:
    """Persist the heartbeat with the latest progress."""
    conn.execute(query("job.beat"), {"job": job_id, "progress": _json(progress)})


def record_capture(conn: Connection, job_id: int, identity: Any, blocks: int) -> None:
    """Persist what identifies the capture, and the blocks to be copied, in the transaction that switched it on."""
    conn.execute(query("job.capture"), {"job": job_id, "capture": _json(identity), "blocks": blocks})


def record_chunk(conn: Connection, job_id: int, first: int, end: int, rows: int) -> None:
    """Persist that a range of blocks is copied, in the transaction that copied it."""
    conn.execute(query("job.chunk"), {"job": job_id, "first": first, "end": end, "rows": rows})


def record_twin(conn: Connection, job_id: int, index_oid: int, twin_oid: int) -> None:
    """Persist which empty index of the shadow stands for which of the table, in the transaction that made it."""
    conn.execute(query("job.twin"), {"job": job_id, "index": index_oid, "twin": twin_oid})


def record_built(conn: Connection, job_id: int, index_oid: int) -> None:
    """Persist that a twin is built, in the transaction that built it."""
    conn.execute(query("job.built"), {"job": job_id, "index": index_oid})


def twins(conn: Connection, job_id: int) -> dict[int, int]:
    """Index of the table -> its twin, for all that are built."""
    return {row[0]: row[1] for row in conn.execute(query("job.twins"), {"job": job_id})}


def finish(
    conn: Connection,
    job_id: int,
    state: str,
    *,
    error: str | None = None,
    result: dict[str, Any] | None = None,
) -> None:
    """Close the row and drop its checkpoints: `done`, `undone`, or `remains` where something could not be removed.

    A row that `remains` keeps its phase: it tells whether what remains is to be undone or is left of a success.
    """
    conn.execute(
        query("job.finish"),
        {
            "job": job_id,
            "phase": None if state == "remains" else int(Phase.DONE if state == "done" else Phase.UNDONE),
            "state": state,
            "error": None if error is None else error.replace("…", "..."),
            "result": None if result is None else _json(result),
        },
    )


def analyze(conn: Connection, table: Table) -> None:
    """ANALYZE, as the table's owner (the server sees to that). SHARE UPDATE EXCLUSIVE, waited for a second at most."""
    conn.execute("SET lock_timeout = '1s'")
    try:
        conn.execute(sql.SQL("ANALYZE {}").format(relation(table)))
    finally:
        conn.execute("SET lock_timeout = 0")


def _json(value: Any) -> Jsonb:
    """Characters as they are, not as escapes: a database in another encoding than UTF-8 has no use for these."""
    return Jsonb(value, dumps=lambda v: json.dumps(v, default=str, ensure_ascii=False).replace("…", "..."))


# ---- what status shows


@dataclass(frozen=True, slots=True)
class Status:
    """One run that is not over, as another session sees it."""

    id: int
    schema: str
    table: str
    relation: int
    phase: str
    #: running (a live session has its claim) or interrupted.
    state: str
    progress: dict[str, Any]
    #: Seconds since the run began and since its last heartbeat.
    elapsed_s: float
    heartbeat_s: float
    #: Recorded changes waiting, as size of the change table; 0 where there is none yet.
    changes_bytes: int
    shadow_bytes: int
    error: str | None


def unfinished(conn: Connection) -> list[Status]:
    """All runs that are not over, or that left something; empty where there is no schema of ours."""
    if schema_version(conn) is None:
        return []
    return [
        Status(
            id=row[0],
            schema=row[1],
            table=row[2],
            relation=row[3],
            phase=Phase(row[4]).label,
            state=row[5],
            progress=row[6] or {},
            elapsed_s=float(row[7]),
            heartbeat_s=float(row[8]),
            changes_bytes=row[9],
            shadow_bytes=row[10],
            error=row[11],
        )
        for row in conn.execute(query("job.unfinished"))
    ]
