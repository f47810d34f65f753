"""A name means one thing when preflight reads it, and another when the shadow or a twin is made from it.

Definitions are carried over as text. Whatever somebody renames meanwhile, and puts in its place, either the run notices
or what it has made is what the catalog says that it is.
"""

from __future__ import annotations

from typing import Any

import pytest

import pglean
from pglean import pausepoint
from pglean.errors import TableChanged
from pglean.rewrite import indexes
from tests.servers import Database
from tests.support import oracle
from tests.support.play import at

pytestmark = pytest.mark.newest

#: What is made at first, and what is done to its name.
TYPES = {
    "domain": ("CREATE DOMAIN d AS numeric", "ALTER DOMAIN d RENAME TO d_1", "CREATE DOMAIN d AS int8"),
    "enum": (
        "CREATE TYPE d AS ENUM ('1', '2', '3')",
        "ALTER TYPE d RENAME TO d_1",
        "CREATE TYPE d AS ENUM ('3', '2', '1')",
    ),
    "range": (
        "CREATE TYPE d AS RANGE (SUBTYPE = int4)",
        "ALTER TYPE d RENAME TO d_1",
        "CREATE TYPE d AS RANGE (SUBTYPE = int8, MULTIRANGE_TYPE_NAME = ds)",
    ),
}
VALUES = {"domain": "g", "enum": "g::text::d", "range": "d(g, g + 1)"}


@pytest.mark.parametrize("place", ["column", "key"])
@pytest.mark.parametrize("kind", TYPES)
def test_type_exchanged_before_the_shadow_is_made(emptied: Database, kind: str, place: str) -> None:
    """The new heap would hold values of another type than the one by which they are read."""
    db = emptied
    create, *exchange = TYPES[kind]
    key = "id" if place == "column" else "v"
    db.execute(
        f"{create}; CREATE TABLE t (id int, v d NOT NULL, z text, PRIMARY KEY ({key}));"
        f"INSERT INTO t SELECT g, {VALUES[kind]}, 'z' || g FROM generate_series(1, 3) AS g"
    )
    before = oracle.rows(db, "t")
    definition: list[str] = []

    def act() -> None:
        for statement in exchange:
            db.execute(statement)
        # Without the schema of the first run, which was there already.
        definition.append(oracle.definition(db))

    with (
        at("phase: capturing", act),
        pglean.connect(db.conninfo) as database,
        pytest.raises(TableChanged, match=r"public\.t"),
    ):
        database.repack("t")
    assert oracle.rows(db, "t") == before
    assert [oracle.definition(db)] == definition
    oracle.assert_nothing_left(db)
    # Whatever it is called, the next run takes it as it is.
    oracle.repack(db, "t")


def test_collation_exchanged_before_the_shadow_is_made(emptied: Database) -> None:
    """An index in the order of one collation, read as one in the order of another, does not find what is there."""
    db = emptied
    db.execute(
        "CREATE COLLATION c (LOCALE = 'C'); CREATE TABLE t (id int PRIMARY KEY, v text COLLATE c UNIQUE);"
        "INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 100) AS g"
    )

    def exchange() -> None:
        db.execute("ALTER COLLATION c RENAME TO c_1; CREATE COLLATION c (LOCALE = 'C.UTF-8')")

    with at("phase: capturing", exchange), pglean.connect(db.conninfo) as database, pytest.raises(TableChanged):
        database.repack("t")
    oracle.assert_nothing_left(db)
    oracle.repack(db, "t")


@pytest.fixture
def expressive(emptied: Database) -> Database:
    """A database with a table whose indexes call a function, use an operator, are of an operator class."""
    emptied.execute(
        """
        CREATE FUNCTION f(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT lower($1)';
        CREATE FUNCTION same(int, int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 % 10 = $2';
        CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = same);
        CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT g, 'X' || g FROM generate_series(1, 3000) AS g;
        CREATE INDEX i ON t (f(v));
        CREATE INDEX p ON t (v) WHERE id === 7;
        ANALYZE t
        """
    )
    return emptied


def exchange_functions(db: Database) -> None:
    """What the indexes use is renamed, and something else bears the name."""
    db.execute(
        """
        ALTER FUNCTION f(text) RENAME TO f_1;
        CREATE FUNCTION f(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1)';
        CREATE SCHEMA away;
        ALTER OPERATOR === (int, int) SET SCHEMA away;
        CREATE FUNCTION same_2(int, int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 % 10 = $2 + 1';
        CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = same_2)
        """
    )


def assert_indexes_are_right(db: Database) -> None:
    """A scan of each index finds what a scan of the table finds."""
    oracle.assert_sound(db, "t")
    for condition, expected in (
        ("f_1(v) = 'x77'", 1),
        ("id OPERATOR(away.===) 7 AND v >= ''", 300),
    ):
        counts = []
        for scan in ("seqscan", "indexscan"):
            with db.connect() as conn:
                for other in {"seqscan", "indexscan", "indexonlyscan", "bitmapscan"} - {scan}:
                    conn.execute(f"SET enable_{other} = off")
                counts.append(conn.execute(f"SELECT count(*) FROM t WHERE {condition}").fetchone())
        assert counts == [(expected,), (expected,)], condition


@pytest.mark.parametrize(
    "moment", ["phase: capturing", "capture: prepared", "copy: in a chunk", "index: before a build", "phase: ready"]
)
def test_function_and_operator_exchanged(expressive: Database, moment: str) -> None:
    """Whenever it is done: a twin is what its index is, by what it calls, not by how that is called."""
    db = expressive
    with at(moment, lambda: exchange_functions(db)), pglean.connect(db.conninfo) as database:
        database.repack("t", verify="full")
    assert "f_1" in db.scalar("SELECT pg_get_indexdef('i'::regclass)")
    assert_indexes_are_right(db)
    oracle.assert_nothing_left(db)


def test_function_exchanged_while_twins_are_made(expressive: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the reading of a definition and the making of its twin; what has come of it is compared."""
    db = expressive
    create = indexes._create

    def exchange_first(*arguments: Any) -> int:
        pausepoint.reach("twin")
        return create(*arguments)

    monkeypatch.setattr(indexes, "_create", exchange_first)
    with (
        at("twin", lambda: exchange_functions(db)),
        pglean.connect(db.conninfo) as database,
        pytest.raises(TableChanged, match="index"),
    ):
        database.repack("t")
    oracle.assert_nothing_left(db)
    monkeypatch.undo()
    with pglean.connect(db.conninfo) as database:
        database.repack("t", verify="full")
    assert_indexes_are_right(db)
