"""One session: how it is named and made safe before it is used, and its transactions.

A session of ours must not depend on what somebody set for the role or the database: no search path but pg_catalog
(an unqualified name can never mean an object of somebody else), no time limits that end a run after hours of work
(`statement_timeout`, `transaction_timeout`, …), no parameter that changes what pg_get_indexdef prints.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, LiteralString, TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

Connection: TypeAlias = psycopg.Connection[TupleRow]
Statement: TypeAlias = LiteralString | sql.SQL | sql.Composed

statements_log = logging.getLogger("pglean.sql")

#: What each session sets, and why it must.
SETTINGS: dict[str, str] = {
    "search_path": "pg_catalog, pg_temp",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    # A statement whose client was killed ends within this time, not after hours.
    "client_connection_check_interval": "2s",
    # One whose packets are silently dropped on the way ends within two minutes.
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
    # A superuser sees all rows anyway; were it ever not so, an error is better than a part of the table.
    "row_security": "off",
    # A damaged page must be an error, not an empty page whose rows the copy then lacks.
    "zero_damaged_pages": "off",
    "ignore_checksum_failure": "off",
    # Without it, a chunk would read the whole table for its range of blocks.
    "enable_tidscan": "on",
    # The guard reads the table through a view.
    "restrict_nonsystem_relation_kind": "",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "session_replication_role": "origin",
    # Whatever of ours is lost in a crash is lost together with the checkpoint that tells of it, and a later
    # commit of anybody that reaches the disk brings ours along: the WAL is one sequence. So nothing of ours waits
    # for the disk or, under the swap's lock, for a synchronous standby that is down.
    "synchronous_commit": "off",
    # These change what the server prints of definitions; the values are those of pg_dump.
    "quote_all_identifiers": "off",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    # An element NULL of an array that was printed must be read as one.
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "constraint_exclusion": "off",
    "jit": "off",
    # Queries on the catalog join a dozen relations, written in the order in which they are looked up. To try all orders
    # took longer (10 ms) than the query does.
    "join_collapse_limit": "4",
    "client_min_messages": "warning",
    "default_table_access_method": "heap",
}


class Cursor(psycopg.Cursor[TupleRow]):
    """A cursor that can tell (``-e``) what it sends."""

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Cursor:
        if statements_log.isEnabledFor(logging.INFO):
            text = query.as_string(self.connection) if isinstance(query, sql.Composable) else str(query)
            statements_log.info("%s", text if params is None else f"{text}\n-- {params!r}")
        super().execute(query, params, **kwargs)
        return self


class PlainCursor(psycopg.ClientCursor[TupleRow]):
    """For sessions of the replication protocol: statements are sent with their values in them."""


class Session(psycopg.Connection[TupleRow]):
    """One that knows whether it was ever asked to cancel what it does: the server may take its time to tell it."""

    asked = False

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        self.asked = True
        super().cancel_safe(timeout=timeout)


def scalar(conn: Connection, query: Statement, params: Any = None) -> Any:
    """The first column of the first row, or None."""
    row = conn.execute(query, params).fetchone()
    return None if row is None else row[0]


def set_up(conn: Connection, settings: dict[str, str]) -> int:
    """Set them for the session, in one statement; returns the server process that has done so."""
    return int(
        scalar(
            conn,
            "SELECT pg_catalog.pg_backend_pid(), pg_catalog.set_config(s.name, s.value, false)"
            " FROM ROWS FROM (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[]))"
            " AS s(name, value)",
            (list(settings), list(settings.values())),
        )
    )


def settable(conn: Connection) -> dict[str, str]:
    """Of `SETTINGS`, what this server has and lets our role set.

    Who may not set some is refused later, with all that stands in the way (`checks`); here he must get in.
    """
    rows = conn.execute(
        "SELECT name FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])"
        " AND (context OPERATOR(pg_catalog.=) 'user'"
        " OR pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'on')",
        (list(SETTINGS),),
    ).fetchall()
    known = {name for (name,) in rows}
    return {name: value for name, value in SETTINGS.items() if name in known}


def application_name(purpose: str) -> str:
    """``pglean <purpose>``, cut to what the server keeps (63 bytes) without breaking a character."""
    return f"pglean {purpose}".encode()[:63].decode("utf-8", "ignore")


def set_purpose(conn: Connection, purpose: str) -> None:
    """Tell in pg_stat_activity what this session is doing now."""
    conn.execute("SELECT pg_catalog.set_config('application_name', %s, false)", (application_name(purpose),))


@contextlib.contextmanager
def transaction(conn: Connection, *, snapshot: str | None = None, repeatable: bool = False) -> Iterator[None]:
    """One transaction of an autocommit session; rolled back where the block raises.

    `repeatable`: REPEATABLE READ, so that all statements see one snapshot; `snapshot`: that very one, exported
    elsewhere by pg_export_snapshot.
    """
    mode: LiteralString = "BEGIN ISOLATION LEVEL REPEATABLE READ" if repeatable or snapshot else "BEGIN"
    conn.execute(mode)
    try:
        if snapshot is not None:
            conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        yield
    except BaseException:
        with contextlib.suppress(psycopg.Error):
            conn.execute("ROLLBACK")
        raise
    conn.execute("COMMIT")
