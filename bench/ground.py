"""The servers on which tools are compared: a private one, and those that the user names for a peer's sake."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pglean.embedded import EmbeddedError, EmbeddedServer, find_binaries

#: The copy that is rewritten, and what it is a copy of.
DATABASE: Final = "pglean_bench"
TEMPLATE: Final = "pglean_bench_template"
#: By it a database is known to be of no use to anybody.
_COMMENT: Final = "made by bench/run.py of pglean, which drops it"
_AUTHENTIC: Final = "SELECT inet_client_addr() IS NOT DISTINCT FROM inet_server_addr(), pg_backend_pid()"


@dataclass(frozen=True, slots=True)
class Local:
    """Where a server is found on this machine."""

    postmaster: int
    #: Of the data directory; unreadable for some.
    datadir: Path


@dataclass(frozen=True, slots=True)
class Ground:
    """A server, and how programs are told to connect to it."""

    #: For whose sake it was named; empty for the private one.
    peer: str
    #: Of the database from which others are made.
    base: str
    #: Of its programs; None where they are looked for on the path.
    bindir: Path | None

    @classmethod
    def private(cls, server: EmbeddedServer) -> Ground:
        """The server of this program."""
        return cls("", server.conninfo(), server.bindir)

    def conninfo(self, dbname: str | None = DATABASE) -> str:
        """A connection string; of the database from which others are made where none is named."""
        return make_conninfo(self.base, **({} if dbname is None else {"dbname": dbname}))

    @contextlib.contextmanager
    def connect(self, dbname: str | None = DATABASE) -> Iterator[psycopg.Connection]:
        """A session in autocommit mode, closed at the end of the block."""
        with psycopg.connect(self.conninfo(dbname), autocommit=True, application_name="bench") as conn:
            yield conn

    def execute(self, statement: str | sql.Composed, dbname: str | None = DATABASE) -> None:
        """Run statements for their effect."""
        with self.connect(dbname) as conn:
            conn.execute(statement)

    def value(self, query: str, dbname: str | None = DATABASE) -> Any:
        """The only column of the only row of a query."""
        with self.connect(dbname) as conn:
            row = conn.execute(query).fetchone()
        assert row is not None
        return row[0]

    def environment(self) -> dict[str, str]:
        """What libpq's programs need to connect to the copy, with nothing of it on their command lines."""
        # Without compiled modules pglean would be translated anew at each start, which no installed program is.
        ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        if not self.peer:
            ours = {name: value for name, value in ours.items() if not name.startswith("PG")}
        variables = {option.keyword.decode(): option.envvar for option in pq.Conninfo.get_defaults()}
        for keyword, value in conninfo_to_dict(self.conninfo()).items():
            variable = variables.get(keyword)
            if variable is None:
                raise ValueError(f"the connection parameter {keyword} has no environment variable")
            ours[variable.decode()] = str(value)
        return ours

    def program(self, name: str) -> Path:
        """A client program, of the server's own version where there is one.

        Raises `FileNotFoundError` where there is none at all.
        """
        if self.bindir is not None and (self.bindir / name).is_file():
            return self.bindir / name
        with contextlib.suppress(EmbeddedError):
            if (find_binaries() / name).is_file():
                return find_binaries() / name
        found = shutil.which(name)
        if found is None:
            raise FileNotFoundError(f"the program {name} is not installed")
        return Path(found)

    def version(self) -> int:
        """As `server_version_num`."""
        return int(self.value("SHOW server_version_num", None))

    def local(self) -> Local | None:
        """Its processes and files, where it runs on this machine and this program may look at them."""
        with self.connect(None) as conn:
            row = conn.execute(_AUTHENTIC).fetchone()
            assert row is not None
            here, backend = row
            setting = conn.execute("SHOW data_directory").fetchone()
            assert setting is not None
            try:
                words = Path(f"/proc/{backend}/stat").read_text().rpartition(")")
                postmaster = int(words[2].split()[1])
                if not here or "postgres" not in words[0] or not os.access(f"{setting[0]}/base", os.R_OK | os.X_OK):
                    return None
            except OSError:
                return None
        return Local(postmaster, Path(setting[0]))

    def create(self, name: str, template: str) -> None:
        """Make a database of ours. Raises `RuntimeError` where there is one by its name that is not."""
        self.drop(name)
        # What is copied are files and not their rows, so that dead rows come along.
        strategy = sql.SQL(" STRATEGY file_copy" if self.version() >= 150000 else "")
        names = {"name": sql.Identifier(name), "template": sql.Identifier(template), "comment": sql.Literal(_COMMENT)}
        self.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}").format(**names) + strategy, None)
        self.execute(sql.SQL("COMMENT ON DATABASE {name} IS {comment}").format(**names), None)

    def drop(self, name: str) -> None:
        """Drop a database of ours, if there is one. Raises `RuntimeError` where it is not."""
        with self.connect(None) as conn:
            query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
            row = conn.execute(query, (name,)).fetchone()
            if row is None:
                return
            if row[0] != _COMMENT:
                raise RuntimeError(f"there is a database {name} that was not made by this program: drop or rename it")
            slots = "SELECT slot_name FROM pg_replication_slots WHERE database = %s AND NOT active"
            conn.execute(f"SELECT pg_drop_replication_slot(slot_name) FROM ({slots}) AS unused", (name,))
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
