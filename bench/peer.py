"""What a tool needs of the server that it is run on."""

from __future__ import annotations

from typing import Final

import psycopg

from ground import Ground
from tool import PG_REPACK, REPACK19, SQUEEZE, find_pg_repack

#: What has to be created in a database.
EXTENSIONS: Final = {PG_REPACK: "pg_repack", SQUEEZE: "pg_squeeze"}


def absent(name: str, ground: Ground) -> str:
    """Why a tool cannot be run on a server; nothing where it can."""
    with ground.connect(None) as conn:
        if name == PG_REPACK:
            return _pg_repack(conn, ground)
        if name == SQUEEZE:
            return _squeeze(conn)
        if name == REPACK19:
            return _repack19(conn)
    return ""


def _pg_repack(conn: psycopg.Connection, ground: Ground) -> str:
    try:
        find_pg_repack(ground.bindir)
    except FileNotFoundError as error:
        return str(error)
    return _missing(conn, "pg_repack")


def _squeeze(conn: psycopg.Connection) -> str:
    missing = _missing(conn, "pg_squeeze")
    if not missing and "pg_squeeze" not in _setting(conn, "shared_preload_libraries"):
        missing = "shared_preload_libraries does not contain pg_squeeze"
    # Newer servers raise the level by themselves where a slot needs it.
    if not missing and _version(conn) < 190000 and _setting(conn, "wal_level") != "logical":
        missing = f"wal_level is {_setting(conn, 'wal_level')}, and has to be logical"
    if not missing and _setting(conn, "max_replication_slots") == "0":
        missing = "max_replication_slots is 0"
    return missing


def _repack19(conn: psycopg.Connection) -> str:
    if _version(conn) < 190000:
        return f"REPACK (CONCURRENTLY) came with PostgreSQL 19, the server is {_setting(conn, 'server_version')}"
    if _setting(conn, "wal_level") == "minimal":
        return "wal_level is minimal, and has to be replica or logical"
    if _setting(conn, "max_repack_replication_slots") == "0":
        return "max_repack_replication_slots is 0"
    return ""


def _missing(conn: psycopg.Connection, extension: str) -> str:
    known = conn.execute("SELECT 1 FROM pg_available_extensions WHERE name = %s", (extension,)).fetchone()
    return "" if known else f"the extension {extension} is not installed for PostgreSQL {_version(conn) // 10000}"


def _version(conn: psycopg.Connection) -> int:
    return int(_setting(conn, "server_version_num"))


def _setting(conn: psycopg.Connection, name: str) -> str:
    row = conn.execute("SELECT current_setting(%s, true)", (name,)).fetchone()
    return "" if row is None or row[0] is None else str(row[0])
