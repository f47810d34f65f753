"""Random writers on a table without a key, and the sum of what they did to it.

Nothing tells rows apart, so the model is a number of each row's text: what the table held at first, and what each
committed transaction took from it and brought. A writer picks any row that nobody has locked, and knows it by its ctid
as long as it has it locked.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import LiteralString

import psycopg
from psycopg import errors, sql

from tests.support.model import Connection, Spec
from tests.support.writers import Writers

_RICH: tuple[LiteralString, ...] = (
    "CREATE TYPE mood AS ENUM ('sad', 'glad')",
    "CREATE TYPE pair AS (a mood, b text)",
    "CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0)",
    """
    CREATE TABLE t (n int, gone int, u int, f float8, num numeric, j json, p point, a text[], big text, m mood,
        d even, c pair, r regclass, acl aclitem, g int GENERATED ALWAYS AS (n * 2) STORED)
    """,
    "ALTER TABLE t DROP gone",
    "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
    # Unique values wander between rows: NULL is no value, and only some rows have to be unique.
    "CREATE UNIQUE INDEX ON t (u)",
    "CREATE UNIQUE INDEX ON t (num) WHERE n = 3",
    "CREATE INDEX ON t (n) WHERE f <> 'NaN'",
    "CREATE INDEX ON t USING gist (p)",
    """
    INSERT INTO t (n, u, f, num, j, p, a, big, m, d, c, r, acl)
        SELECT i % 7 + 10, CASE WHEN i % 10 = 0 THEN i + 1000 END, i % 3, i % 5, '{"a":  1}', point(i % 2, 0),
               ARRAY['x', NULL], repeat('big', i % 2 * 800), 'sad', i % 3 * 2, '(glad,x)', 'pg_class', NULL
          FROM generate_series(1, 1500) AS i
    """,
    # A default that is not in the rows.
    "ALTER TABLE t ADD late text DEFAULT 'late'",
    "UPDATE t SET f = f + 1 WHERE n < 15",
)
_EQUAL: tuple[LiteralString, ...] = (
    "CREATE TABLE t (n int, note text)",
    "INSERT INTO t SELECT 1, 'the same' FROM generate_series(1, 3000)",
    "CREATE INDEX ON t (n)",
    "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 1000)",
)
#: Nothing of it can be sent in binary.
_UNSENT: tuple[LiteralString, ...] = (
    "CREATE TABLE t (acl aclitem, acls aclitem[])",
    "INSERT INTO t SELECT makeaclitem(10, 10, CASE i % 2 WHEN 0 THEN 'SELECT' ELSE 'INSERT' END, false), NULL"
    " FROM generate_series(1, 60) AS i",
)

_ACLS: tuple[LiteralString, ...] = ("SELECT", "INSERT", "UPDATE")


@dataclass(frozen=True, slots=True)
class Kind:
    """A table without a key."""

    name: str
    definition: tuple[LiteralString, ...]
    #: What an UPDATE may assign; what an INSERT gives.
    assignments: tuple[LiteralString, ...]
    values: tuple[LiteralString, ...]
    #: Columns that may be the same in any number of rows.
    copied: LiteralString
    owner: str = ""

    def create(self, conn: Connection) -> None:
        """Make the table. `conn` is a superuser's."""
        for statement in self.definition:
            conn.execute(statement)
        if self.owner:
            owner = sql.Identifier(self.owner)
            if not conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (self.owner,)).fetchall():
                conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(owner))
            conn.execute(sql.SQL("ALTER TABLE t OWNER TO {}").format(owner))


_RICH_ASSIGNMENTS: tuple[LiteralString, ...] = (
    "n = n",
    "n = 3",
    "n = {small}",
    "u = NULL",
    "u = {number}",
    "f = 'NaN'",
    "f = '-0'",
    "f = 0",
    "num = 1.0",
    "num = 1.00",
    "num = {number}",
    """j = '{{"a": 1}}'""",
    """j = '{{"a":  1}}'""",
    "p = point({small}, 1)",
    "a = a || '{{y,NULL}}'",
    "a = NULL",
    "big = repeat(md5('{small}'), 100)",
    "big = big || 'x'",
    "m = 'glad', c = ROW('sad', NULL)",
    "d = {small} * 2, c = NULL",
    "r = 'pg_type'",
    "acl = makeaclitem(10, 10, 'SELECT', false)",
    "n = NULL, u = NULL, f = NULL, num = NULL, j = NULL, p = NULL, a = NULL, big = NULL, m = NULL, d = NULL, c = NULL,"
    " r = NULL, acl = NULL, late = NULL",
)
_RICH_VALUES: tuple[LiteralString, ...] = (
    "(n) VALUES ({small})",
    "(n, u) VALUES ({small}, {number})",
    "(n, num, f) VALUES (3, {small}, '-0')",
    "DEFAULT VALUES",
    "(big, a) VALUES (repeat(md5('{number}'), 200), ARRAY['{small}'])",
    "(n, c, m) VALUES (1, ROW('sad', 'y'), 'glad'), (1, ROW('sad', 'y'), 'glad')",
)

_RICH_COPIED: LiteralString = "f, j, p, a, big, m, d, c, r, acl, late"

KINDS = (
    Kind("rich", _RICH, _RICH_ASSIGNMENTS, _RICH_VALUES, _RICH_COPIED),
    Kind("rich-plain-owner", _RICH, _RICH_ASSIGNMENTS, _RICH_VALUES, _RICH_COPIED, "keeper"),
    Kind(
        "equal",
        _EQUAL,
        ("n = 1", "n = 2", "n = 1, note = 'the same'"),
        ("VALUES (1, 'the same')", "VALUES (1, 'the same'), (1, 'the same')"),
        "n, note",
        "keeper",
    ),
    Kind(
        "unsent",
        _UNSENT,
        tuple(f"acl = makeaclitem(10, 10, '{acl}', false)" for acl in _ACLS),
        ("(acl) VALUES (makeaclitem(10, 10, 'UPDATE', true))", "DEFAULT VALUES"),
        "acls, acl",
        "keeper",
    ),
)


def _sent(name: str, owner: str, *dropped: LiteralString) -> Kind:
    """The rich table, as far as its changes can be captured from the WAL."""
    drops: tuple[LiteralString, ...] = tuple(f"ALTER TABLE t DROP {column}" for column in dropped)
    return Kind(
        name,
        (*_RICH, *drops, "ALTER TABLE t REPLICA IDENTITY FULL"),
        tuple(text for text in _RICH_ASSIGNMENTS if not any(f"{column} = " in text for column in dropped)),
        tuple(text for text in _RICH_VALUES if not any(f"{column}," in text for column in dropped)),
        ", ".join(column for column in _RICH_COPIED.split(", ") if column not in dropped),
        owner,
    )


SENT_KINDS = (
    _sent("rich", "", "acl", "r", "g"),
    _sent("rich-plain-owner", "keeper", "acl", "r", "g", "c", "d"),
    replace(KINDS[2], definition=(*_EQUAL, "ALTER TABLE t REPLICA IDENTITY FULL")),
)


@dataclass(slots=True)
class _Hand:
    """One transaction of one writer, and what it has come to."""

    conn: Connection
    kind: Kind
    rng: random.Random
    delta: Counter[str] = field(default_factory=Counter)

    def fill(self, text: LiteralString) -> sql.Composed:
        return sql.SQL(text).format(
            small=sql.Literal(self.rng.randrange(6)), number=sql.Literal(self.rng.randrange(100))
        )

    def pick(self) -> tuple[str, str] | None:
        """The ctid and the text of a row, which is locked now."""
        row = self.conn.execute(
            "SELECT ctid::text, t::text FROM t OFFSET %s LIMIT 1 FOR UPDATE SKIP LOCKED",
            (self.rng.choice((0, self.rng.randrange(50), self.rng.randrange(1200))),),
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def insert(self) -> None:
        statement = sql.SQL("INSERT INTO t {} RETURNING t::text").format(self.fill(self.rng.choice(self.kind.values)))
        self.delta.update(row for (row,) in self.conn.execute(statement))

    def update(self) -> None:
        if (found := self.pick()) is None:
            return
        place, old = found
        statement = sql.SQL("UPDATE t SET {} WHERE ctid = {} RETURNING t::text").format(
            self.fill(self.rng.choice(self.kind.assignments)), sql.Literal(place)
        )
        ((new,),) = self.conn.execute(statement).fetchall()
        self.delta.subtract([old])
        self.delta.update([new])

    def delete(self) -> None:
        if (found := self.pick()) is None:
            return
        place, old = found
        assert self.conn.execute("DELETE FROM t WHERE ctid = %s", (place,)).rowcount == 1
        self.delta.subtract([old])

    def double(self) -> None:
        """One more of the same row, but for unique values."""
        if (found := self.pick()) is None:
            return
        statement = sql.SQL("INSERT INTO t ({0}) SELECT {0} FROM t WHERE ctid = {1} RETURNING t::text").format(
            sql.SQL(self.kind.copied), sql.Literal(found[0])
        )
        self.delta.update(row for (row,) in self.conn.execute(statement))

    def savepoint(self) -> None:
        """A few things in a subtransaction, released or rolled back."""
        self.conn.execute("SAVEPOINT s")
        before = Counter(self.delta)
        try:
            for _ in range(self.rng.randint(1, 3)):
                self.rng.choice((_Hand.insert, _Hand.update, _Hand.delete))(self)
            keep = self.rng.random() < 0.5
        except errors.UniqueViolation:
            keep = False
        if not keep:
            self.conn.execute("ROLLBACK TO s")
            self.delta = before
        self.conn.execute("RELEASE s")

    def act(self) -> None:
        """Do one thing."""
        acts = (_Hand.insert, _Hand.update, _Hand.update, _Hand.update, _Hand.delete, _Hand.double, _Hand.savepoint)
        self.rng.choice(acts)(self)


class Counters(Writers):
    """So many sessions that write at random to the table ``t`` without a key."""

    def __init__(self, conninfo: str, kind: Kind, seed: int, connections: int = 5) -> None:
        super().__init__(conninfo, Spec(), seed, connections)
        self._kind = kind
        self._adding = threading.Lock()
        self._sum = self._found()

    def _found(self) -> Counter[str]:
        with psycopg.connect(self._conninfo, autocommit=True) as conn:
            return Counter(dict(conn.execute("SELECT t::text, count(*) FROM t GROUP BY 1").fetchall()))

    def _transaction(self, conn: Connection, rng: random.Random) -> str:
        hand = _Hand(conn, self._kind, rng)
        conn.execute("BEGIN")
        try:
            for _ in range(rng.randint(1, 6)):
                hand.act()
            if rng.random() < 0.2:
                conn.execute("ROLLBACK")
                return "rolled back"
            conn.execute("COMMIT")
        except (errors.UniqueViolation, errors.DeadlockDetected) as error:
            conn.execute("ROLLBACK")
            return error.sqlstate or "?"
        with self._adding:
            self._sum.update(hand.delta)
        return "committed"

    def compare(self) -> None:
        """Raise `AssertionError` where the table holds other rows. To be called when they have stopped."""
        found, expected = self._found(), +self._sum
        assert min(self._sum.values(), default=0) >= 0
        differences = [
            f"{found[row]} instead of {expected[row]} of {row[:120]}"
            for row in found.keys() | expected.keys()
            if found[row] != expected[row]
        ]
        assert not differences, "\n".join([f"seed {self._seed}, {dict(self.tally)}", *differences[:10]])
