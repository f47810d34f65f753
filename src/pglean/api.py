"""The Python interface: a database, and what can be done to its tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg

from pglean import catalog
from pglean.errors import UsageError
from pglean.locks import Patience, Policy
from pglean.options import Options, Verify
from pglean.progress import Callback
from pglean.result import Result
from pglean.rewrite import cleanup as _cleanup
from pglean.rewrite import job as jobs
from pglean.rewrite import pipeline
from pglean.rewrite.job import Status
from pglean.rewrite.plan import Plan
from pglean.server import Server


class Database:
    """One database of a running server; made by `pglean.connect`. Safe to use from one thread at a time."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def plan(self, table: str, options: Options | None = None, **changes: Any) -> Plan:
        """What `repack` would do, with sizes. Touches nothing, takes no lock but ACCESS SHARE on catalogs.

        Raises `Refused` with all findings, `UsageError` where there is no such table or option.
        """
        with _told(self.server):
            return pipeline.preflight(self.server, self._oid(table), _options(options, changes))

    def repack(
        self,
        table: str,
        options: Options | None = None,
        *,
        on_progress: Callback | None = None,
        **changes: Any,
    ) -> Result:
        """Rewrite a table while applications read and write it.

        `table` is read as in SQL, by the role's search path. Options are those of `Options`, as an object, by keyword,
        or both. `on_progress` is called with a `Progress`, from any thread of the run, at most a few times a second.

        Locks: ACCESS SHARE per chunk (`chunk_ms`) and refresh; SHARE ROW EXCLUSIVE once, for a moment; ACCESS EXCLUSIVE
        at the end, at most `max_lock_ms`; each waited for at most `lock_timeout_ms` at a time.
        Raises the errors of `pglean.errors`; the table is then as it was, and nothing of the run is left, or the
        error's hint says what is.
        """
        with _told(self.server):
            return pipeline.repack(self.server, self._oid(table), _options(options, changes), on_progress)

    def status(self) -> list[Status]:
        """Runs in progress, and what interrupted ones have left. Takes no lock."""
        with _told(self.server), self.server.connect("status") as conn:
            return jobs.unfinished(conn)

    def cleanup(self, options: Options | None = None) -> list[tuple[Status, list[str]]]:
        """Finish or undo what interrupted runs have left; each with what could not be removed (empty: all was).

        Locks: ACCESS EXCLUSIVE for a moment on a table that still has triggers of ours.
        """
        policy = Policy.of(options or Options())
        with _told(self.server), self.server.connect("cleanup") as conn:
            return _cleanup.sweep(self.server, conn, Patience(self.server, policy, lambda _: None))

    def uninstall(self) -> bool:
        """Drop the schema `pglean` with the history of runs; False where there is none.

        Raises `PgleanError` where a run is in progress or has left something.
        """
        with _told(self.server), self.server.connect("uninstall") as conn:
            return jobs.drop_schema(conn)

    def _oid(self, table: str) -> int:
        with self.server.connect("preflight") as conn:
            return catalog.resolve(self.server, conn, table)


@contextlib.contextmanager
def _told(server: Server) -> Iterator[None]:
    """Errors of the driver leave as those of `pglean.errors`."""
    try:
        yield
    except psycopg.Error as error:
        raise server.translate(error) from error


def _options(options: Options | None, changes: dict[str, Any]) -> Options:
    try:
        if "verify" in changes:
            changes["verify"] = Verify(changes["verify"])
        return replace(options or Options(), **changes)
    except (TypeError, ValueError) as error:
        raise UsageError(f"invalid option: {error}") from error


@contextlib.contextmanager
def connect(conninfo: str = "") -> Iterator[Database]:
    """A database, by a connection string or URI as libpq takes it; empty for what the PG* environment says.

    Raises `ConnectionLost` where the server cannot be reached. Holds no connection while nothing is done.
    """
    yield Database(Server(conninfo))
