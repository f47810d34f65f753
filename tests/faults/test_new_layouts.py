"""Runs that ask for another layout, killed or cut off around the swap: all is as before, or all is as asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pglean
from pglean import cli
from pglean.embedded import EmbeddedServer
from pglean.errors import ConnectionLost
from tests.support.client import Client
from tests.support.fault import Fault, assert_told, repack
from tests.support.oracle import definition, once
from tests.support.points import COMMITTED, some
from tests.support.proxy import Proxy
from tests.support.sorted import out_of_place
from tests.support.stage import Stage

pytestmark = pytest.mark.in_turn

_SPACE: Final = "Elsewhere"
_POINTS: Final = ("swap: before the lock", "swap: before the exchange", "swap: before the commit", COMMITTED)

#: What is asked for, as the command line and as the API have it.
_ASKED: Final[dict[str, tuple[list[str], dict[str, Any]]]] = {
    "tablespace": (["-s", _SPACE], {"tablespace": _SPACE}),
    "indexes too": (["-s", _SPACE, "-S"], {"tablespace": _SPACE, "move_indexes": True}),
    "fillfactor": (["--fillfactor", "50"], {"fillfactor": 50}),
    "compression": (["--compression", "pglz"], {"compression": "pglz"}),
    "order": (["-o", "code DESC"], {"order_by": "code DESC"}),
}
_ALL: Final = "all"
_ASKED[_ALL] = (
    [argument for case in _ASKED for argument in _ASKED[case][0] if case != "tablespace"],
    {option: value for _, options in _ASKED.values() for option, value in options.items()},
)

#: All at once at every point; each by itself where it would be torn apart.
KILLED = [(_ALL, point) for point in _POINTS] + [
    (case, point) for case in _ASKED if case != _ALL for point in ("swap: before the commit", COMMITTED)
]


@pytest.fixture(scope="module", autouse=True)
def space(server: EmbeddedServer) -> Iterator[None]:
    """Outlives the database of this module."""
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute("SET allow_in_place_tablespaces = on")
        session.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(sql.Identifier(_SPACE)))
    yield
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(_SPACE)))


@dataclass(frozen=True, slots=True)
class Layout:
    """What the catalogs say of the table, and what its files are like."""

    heap: str
    toast: str
    indexes: frozenset[str]
    parameters: tuple[str, ...]
    compressions: frozenset[str]
    #: Of the database, as pg_dump writes it, the triggers of a run that is kept among it.
    definition: str = field(compare=False)


def layout(stage: Stage) -> Layout:
    """As it is now."""
    spaces = stage.db.fetchall(
        """
        SELECT CASE WHEN c.oid = %(oid)s THEN 'heap' WHEN i.indrelid = %(oid)s THEN 'index' ELSE 'toast' END,
               coalesce(s.spcname, ''), pg_relation_filepath(c.oid)
          FROM pg_class c
          LEFT JOIN pg_index i ON i.indexrelid = c.oid
          LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace,
               (SELECT reltoastrelid FROM pg_class WHERE oid = %(oid)s) t
         WHERE c.oid IN (%(oid)s, t.reltoastrelid) OR i.indrelid IN (%(oid)s, t.reltoastrelid)
        """,
        {"oid": stage.oid},
    )
    for _, space, path in spaces:
        assert path.startswith("base/") == (space == ""), (space, path)
    found: dict[str, set[str]] = {}
    for what, space, _ in spaces:
        found.setdefault(what, set()).add(space)
    (heap,), (toast,) = found["heap"], found["toast"]
    parameters = stage.db.scalar("SELECT coalesce(reloptions, '{}') FROM pg_class WHERE oid = %s", (stage.oid,))
    compressions = stage.db.fetchall(
        "SELECT DISTINCT attcompression FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND attlen = -1"
        " OR attrelid = (SELECT indexrelid FROM pg_index WHERE indrelid = %s AND indisunique AND NOT indisprimary)",
        (stage.oid, stage.oid),
    )
    return Layout(
        heap=heap,
        toast=toast,
        indexes=frozenset(found["index"]),
        parameters=tuple(parameters),
        compressions=frozenset(row[0] for row in compressions),
        definition=definition(stage.db),
    )


def check_layout(stage: Stage, case: str, before: Layout) -> None:
    """All as asked where the files were exchanged, else all as before."""
    found, (_, options) = layout(stage), _ASKED[case]
    if not stage.repacked:
        assert found == before
        return
    where = options.get("tablespace", "")
    assert (found.heap, found.toast) == (where, where)
    assert found.indexes == {where if options.get("move_indexes") else ""}
    assert found.parameters == (("fillfactor=50",) if "fillfactor" in options else ())
    assert found.compressions == {"p" if "compression" in options else ""}
    if "order_by" in options:
        assert out_of_place(stage.db, stage.name, options["order_by"]) == 0
    if "fillfactor" in options:
        # The model is as full as it was.
        full, filled = (stage.db.scalar("SELECT pg_relation_size(%s::regclass)", (name.as_string(None),))
                        for name in (stage.model, stage.table))  # fmt: skip
        assert filled > 1.3 * full


def check_nothing_left(stage: Stage, case: str, before: Layout) -> None:
    """Nor a file in a tablespace in which nothing is."""
    check_layout(stage, case, before)
    assert (definition(stage.db) != before.definition) == (stage.repacked and case != "order")
    stage.check()
    used = "tablespace" in _ASKED[case][1] and stage.repacked
    stage.db.execute("CHECKPOINT")
    databases = (
        "SELECT d.datname FROM pg_tablespace t, pg_tablespace_databases(t.oid) AS f (oid)"
        " JOIN pg_database d ON d.oid = f.oid WHERE t.spcname = %s"
    )
    assert stage.db.fetchall(databases, (_SPACE,)) == ([(stage.db.name,)] if used else [])


@pytest.mark.parametrize("then", ["cleanup", "resume"])
@pytest.mark.parametrize(("case", "point"), some(KILLED, 0, 2))
def test_killed_client(stage: Stage, case: str, point: str, then: str) -> None:
    before = layout(stage)
    with Client(["repack", "-j", "2", *_ASKED[case][0], "-t", stage.name, stage.db.conninfo], {point}) as client:
        client.await_line(point)
        client.kill()
    stage.deserted()
    assert stage.repacked == (point == COMMITTED)
    check_layout(stage, case, before)
    (run,) = stage.status()
    assert run.state == "interrupted"
    assert cli.run([then, *([str(run.id), "-d"] if then == "resume" else []), stage.db.conninfo]) == 0
    assert stage.repacked == (then == "resume" or point == COMMITTED)
    check_nothing_left(stage, case, before)


@pytest.mark.parametrize("point", _POINTS)
def test_lost_sessions(stage: Stage, point: str) -> None:
    before = layout(stage)

    def terminate() -> None:
        for pid in stage.sessions():
            stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    # The application writes: the order is lost, all else holds for what it writes as well.
    options = {option: value for option, value in _ASKED[_ALL][1].items() if option != "order_by"}
    outcome = repack(stage, Fault(point, terminate), **options)
    assert_told(stage, outcome, ConnectionLost.exit_status)
    assert stage.repacked == (point == COMMITTED)
    found = layout(stage)
    assert (found == before) != stage.repacked
    stage.write()
    stage.settle("resume")
    after = layout(stage)
    assert (after.heap, after.indexes, after.parameters) == (_SPACE, frozenset({_SPACE}), ("fillfactor=50",))
    assert after.compressions == {"p"}
    stage.check()


@pytest.mark.parametrize("then", ["abort", "resume"])
@pytest.mark.parametrize("what", ["request", "answer"])
def test_connection_lost_at_the_commit(stage: Stage, what: str, then: str) -> None:
    before = layout(stage)
    with Proxy(stage.db.server.port) as proxy:
        conninfo = make_conninfo(stage.db.server.conninfo(stage.db.name, tcp=True), port=proxy.port)

        def arm() -> None:
            proxy.cut_at(b"COMMIT", "request" if what == "request" else "answer")

        with (
            once("swap: before the commit", arm),
            pglean.connect(conninfo) as database,
            pytest.raises(ConnectionLost),
        ):
            database.repack(stage.name, **_ASKED[_ALL][1])
    assert stage.repacked == (what == "answer")
    check_layout(stage, _ALL, before)
    stage.settle(then)
    assert stage.repacked == (what == "answer" or then == "resume")
    check_nothing_left(stage, _ALL, before)
