"""Rebuilds of indexes that stand still, that fail, and what they leave."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg.rows import TupleRow

import pglean
from pglean.errors import PgleanError
from pglean.result import ReindexResult, Result
from pglean.server import Server
from tests.servers import Database
from tests.support.oracle import name, until

#: What keeps a REINDEX CONCURRENTLY of an index of `t` waiting, by the phase in which it then waits.
HOLDS = {
    "waiting for writers before build": "INSERT INTO {table} SELECT FROM {table} WHERE false",
    "waiting for old snapshots": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1",
    "waiting for readers before marking dead": "SELECT FROM {table} LIMIT 1",
}
WRITERS, SNAPSHOTS, READERS = HOLDS


def invalid(db: Database) -> set[str]:
    """Names of all invalid indexes."""
    rows = db.fetchall(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE NOT (i.indisvalid AND i.indisready AND i.indislive)"
    )
    return {row[0] for row in rows}


def indexes(db: Database, table: str) -> dict[str, tuple[int, int]]:
    """Index by name -> OID and file."""
    rows = db.fetchall(
        "SELECT indexrelid::regclass::text, indexrelid, pg_relation_filenode(indexrelid) FROM pg_index"
        " WHERE indrelid = %s::regclass",
        (table,),
    )
    return {index: (oid, file) for index, oid, file in rows}


@contextlib.contextmanager
def held(db: Database, phase: str, table: str = "t") -> Iterator[psycopg.Connection[TupleRow]]:
    """A transaction for which a rebuild of an index waits in this phase."""
    with db.connect(autocommit=False, application_name="holder") as session:
        session.execute(name(HOLDS[phase].replace("{table}", table)))
        yield session
        session.rollback()


def waiting(db: Database, phase: str, rebuilds: int = 1) -> None:
    """Until so many rebuilds wait in this phase."""
    query = (
        "SELECT count(*) FROM pg_stat_progress_create_index p JOIN pg_locks l ON l.pid = p.pid AND NOT l.granted"
        " WHERE p.phase = %s AND p.datname = current_database()"
    )
    until(lambda: db.scalar(query, (phase,)) == rebuilds, f"{rebuilds} rebuilds are {phase}")


def leave(db: Database, index: str, phase: str = WRITERS, table: str = "t") -> set[str]:
    """Cancel a REINDEX CONCURRENTLY while it waits; returns what it has left."""
    before = invalid(db)
    with held(db, phase, table), db.connect() as session:
        failed: list[psycopg.Error] = []

        def work() -> None:
            try:
                session.execute(name(f"REINDEX INDEX CONCURRENTLY {index}"))
            except psycopg.Error as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        waiting(db, phase)
        session.cancel_safe()
        thread.join()
        assert isinstance(failed[0], psycopg.errors.QueryCanceled)
    return invalid(db) - before


class Rebuild:
    """`Database.reindex` in a thread of its own; or, of one table, `repack`."""

    def __init__(
        self, db: Database, *tables: str, act: str = "reindex", conninfo: str | None = None, **options: Any
    ) -> None:
        self._conninfo, self._tables, self._act, self._options = conninfo or db.conninfo, tables, act, options
        #: What it waits for, as it was told, and messages.
        self.waited_for: set[str] = set()
        self.messages: list[str] = []
        self.server: Server | None = None
        self._outcome: Result | ReindexResult | PgleanError | None = None
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        def tell(progress: pglean.Progress) -> None:
            self.waited_for.add(progress.waiting_for)
            if progress.message:
                self.messages.append(progress.message)

        try:
            with pglean.connect(self._conninfo) as database:
                self.server = database.server
                if self._act == "repack":
                    self._outcome = database.repack(self._tables[0], on_progress=tell, **self._options)
                else:
                    self._outcome = database.reindex(self._tables, on_progress=tell, **self._options)
        except PgleanError as error:
            self._outcome = error

    @property
    def ended(self) -> bool:
        """Whether it has come to an end."""
        return not self._thread.is_alive()

    def outcome(self) -> Result | ReindexResult | PgleanError:
        """What came of it, when it has ended."""
        self._thread.join(60)
        assert self._outcome is not None
        return self._outcome

    def result(self) -> ReindexResult:
        """The same, where it is no error."""
        outcome = self.outcome()
        assert isinstance(outcome, ReindexResult), outcome
        return outcome


def told(rebuild: Rebuild, text: str) -> Callable[[], bool]:
    """Whether it has said that it waits for this."""
    return lambda: any(text in waited for waited in set(rebuild.waited_for))
