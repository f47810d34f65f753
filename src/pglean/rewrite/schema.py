"""The schema `pglean`: made by the first run, brought up to date by migrations, dropped by `uninstall`."""

from __future__ import annotations

from psycopg import errors as pg
from psycopg import sql

from pglean.errors import LockNotObtained, PgleanError
from pglean.rewrite import rights
from pglean.session import Connection, scalar, transaction
from pglean.sql import fragment, migrations, query

#: Longest wait for a table of ours that somebody reads (pg_dump).
_LOCK_TIMEOUT = "5s"


def version(conn: Connection) -> int | None:
    """The newest migration that was applied; None where there is no schema pglean.

    Raises `PgleanError` where the schema is not ours, `Refused` where our role is not a superuser.
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
    # Also who has inherited the owner's rights: what he would make there would not be a superuser's.
    rights.require_superuser(conn)
    found = scalar(conn, "SELECT pg_catalog.max(version) FROM pglean.version")
    if found is None:
        raise PgleanError(
            "the schema pglean has lost what stood in it",
            detail="So it is after a dump of definitions alone was restored.",
            hint="DROP SCHEMA pglean CASCADE; removes it, with the triggers that a run had made.",
        )
    return int(found)


def current(conn: Connection) -> bool:
    """Whether there is a schema pglean of this very version. Touches nothing; raises what `version` raises."""
    return version(conn) == migrations()[-1][0]


def present(conn: Connection) -> bool:
    """Whether there is a schema pglean, which then is up to date. Raises what `version` and `ensure` raise."""
    found = version(conn)
    if found is None:
        return False
    if found != migrations()[-1][0]:
        ensure(conn)
    return True


def ensure(conn: Connection) -> bool:
    """Create the schema `pglean` or bring it up to date; whoever owns it was looked at by preflight.

    Returns whether there was one of an older version, in which a run may have been kept.
    Raises `PgleanError` where a newer pglean has made it, `LockNotObtained` where somebody has its tables locked.
    """
    known = migrations()
    try:
        with transaction(conn):
            # Two first runs at once: one creates, the other waits and finds it done.
            conn.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", (0x70676C65_53434845,))
            conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
            found = version(conn)
            newest = known[-1][0]
            if found is not None and found > newest:
                raise PgleanError(
                    f"schema pglean has version {found}, this program knows versions up to {newest}",
                    hint="Upgrade pglean on this machine.",
                )
            if found == newest:
                return False
            if found is None:
                _create(conn)
            for number, body in known:
                if found is None or number > found:
                    conn.execute(body)
                    conn.execute("INSERT INTO pglean.version (version) VALUES (%s)", (number,))
    except pg.LockNotAvailable as error:
        raise _in_use() from error
    return found is not None


def _create(conn: Connection) -> None:
    # Not IF NOT EXISTS: a schema that somebody made since we looked must not be moved into.
    conn.execute("CREATE SCHEMA pglean")
    # Default privileges may have granted it to others.
    for (grantee,) in conn.execute(query("job.schema_grantees")).fetchall():
        conn.execute(sql.SQL("REVOKE ALL ON SCHEMA pglean FROM {}").format(fragment(grantee)))


def drop(conn: Connection) -> bool:
    """Drop the schema with all it holds; False where there is none.

    Whether any run is not over, the caller has looked at.
    Raises `LockNotObtained` where somebody has its tables locked.
    """
    if version(conn) is None:
        return False
    try:
        with transaction(conn):
            conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
            conn.execute("DROP SCHEMA pglean CASCADE")
    except pg.LockNotAvailable as error:
        raise _in_use() from error
    return True


def _in_use() -> LockNotObtained:
    return LockNotObtained(
        "tables of the schema pglean are locked by another session",
        hint="Try again when it has ended; a pg_dump is the usual one.",
    )
