"""A table to be repacked, its model, and what must be true of both whatever became of the run.

Each change is made to the table and, by the same statements in the same transaction, to a second table that no run
ever touches.
"""

from __future__ import annotations

from psycopg import sql

import pglean
from pglean.conninfo import connection_words
from pglean.rewrite.status import Status
from tests.servers import Database
from tests.support.oracle import assert_nothing_left, assert_sound, until

_DEFINITION = """
CREATE TABLE {table} (id int PRIMARY KEY, code text NOT NULL UNIQUE, amount int NOT NULL, note text);
ALTER TABLE {table} ALTER note SET STORAGE EXTERNAL;
CREATE INDEX ON {table} (amount);
"""
_KEYLESS = """
CREATE TABLE {table} (id int, code text, amount int, note text);
ALTER TABLE {table} ALTER note SET STORAGE EXTERNAL;
CREATE INDEX ON {table} (amount);
CREATE UNIQUE INDEX ON {table} (code);
"""
_CONTENT = """
INSERT INTO {table}
SELECT i, 'code ' || i, i % 100, CASE WHEN i % 400 = 0 THEN repeat(md5(i::text), 100) ELSE md5(i::text) END
  FROM generate_series(1, 4000) AS i;
DELETE FROM {table} WHERE id % 4 = 3;
"""
#: Enough keys for the workers to share a refresh; rows move, come, go, and exchange unique values.
_CHANGES = (
    "UPDATE {table} SET amount = amount + 1",
    "DELETE FROM {table} WHERE id % 100 = 1",
    "INSERT INTO {table} SELECT max(id) + 1, 'new ' || max(id), 0, repeat('long', 1000) FROM {table}",
    "UPDATE {table} SET id = -id, note = note || '!' WHERE id % 100 = 2",
    "UPDATE {table} SET code = 'away' WHERE id = 4",
    "UPDATE {table} SET code = 'code 4' || code WHERE id = 5",
)


class Stage:
    """One table, called `name`, and its model; `keyless`: nothing tells its rows apart but what they hold."""

    def __init__(self, db: Database, name: str = "items", *, keyless: bool = False) -> None:
        self.db, self.name = db, name
        self.table = sql.Identifier(name)
        self.model = sql.Identifier(f"model of {name}")
        for table in (self.table, self.model):
            db.execute(sql.SQL(_KEYLESS if keyless else _DEFINITION).format(table=table))
            db.execute(sql.SQL(_CONTENT).format(table=table))
        self.oid = self._oid()
        self.first_file = self.file

    def _oid(self) -> int:
        return int(self.db.scalar("SELECT %s::regclass::oid", (self.table.as_string(None),)))

    def typed(self, words: str) -> str:
        """As `Server.command` of whoever was given the connection string of the database."""
        return f"`pglean {words} {connection_words(self.db.conninfo, self.db.name)}`"

    @property
    def file(self) -> int:
        """The file in which the rows are."""
        return int(self.db.scalar("SELECT pg_relation_filenode(%s::oid)", (self.oid,)))

    @property
    def repacked(self) -> bool:
        """Whether the table has another file than in the beginning."""
        return self.file != self.first_file

    def write(self) -> None:
        """One transaction of the application, which waits for nobody longer than ten seconds."""
        statements = sql.SQL("; ").join(
            sql.SQL(change).format(table=table) for change in _CHANGES for table in (self.table, self.model)
        )
        self.db.execute(sql.SQL("BEGIN; SET LOCAL lock_timeout = '10s'; {}; COMMIT").format(statements))

    def compare(self) -> None:
        """Table and model hold the same rows."""
        difference = sql.SQL(
            "SELECT count(*) FROM ((TABLE {0} EXCEPT ALL TABLE {1}) UNION ALL (TABLE {1} EXCEPT ALL TABLE {0})) AS d"
        )
        assert self.db.scalar(difference.format(self.table, self.model)) == 0

    def status(self) -> list[Status]:
        """What `pglean status` has to tell."""
        with pglean.connect(self.db.conninfo) as database:
            return database.status()

    def sessions(self) -> list[int]:
        """Process ids of the sessions of ours, in the order in which they were opened."""
        rows = self.db.fetchall(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pglean %'"
            " ORDER BY backend_start, pid"
        )
        return [pid for (pid,) in rows]

    def deserted(self) -> None:
        """Wait until no session of ours is left: the server notices the end of a client by itself."""
        until(lambda: not self.sessions(), "the sessions of the run have ended")

    def settle(self, how: str) -> None:
        """Go on with the run that was kept or interrupted, or abort it; there may be none."""
        self.deserted()
        for run in self.status():
            assert run.state in ("paused", "interrupted"), run
            with pglean.connect(self.db.conninfo) as database:
                if how == "resume":
                    database.resume(run.id)
                    assert self.repacked
                else:
                    swapped = self.repacked
                    state, remains = database.abort(run.id)
                    assert (state, remains) == ("done" if swapped else "undone", [])
                    assert self.repacked == swapped

    def check(self) -> None:
        """Nothing of a run is left, the table holds what it must, is sound, and can be written."""
        self.deserted()
        # A crash may take back that the schema was created, with all there was in it.
        if self.db.scalar("SELECT to_regnamespace('pglean') IS NOT NULL"):
            assert_nothing_left(self.db)
        assert self.status() == []
        assert self._oid() == self.oid
        self.compare()
        if self.repacked:
            assert_sound(self.db, self.table.as_string(None))
        self.write()
        self.compare()
