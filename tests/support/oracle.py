"""What must be true of a table before, while and after it is repacked.

`repack` does it all: it observes the table, has it repacked while `during` writes to it, and checks that afterwards

* the rows are those that the table held when the last change had been made, compared by their text;
* table and indexes have their old OIDs and new files;
* pg_dump says of the whole database what it said before;
* heap, TOAST and indexes are sound (amcheck), the catalogs as consistent as before (pg_catcheck, where it is there);
* nothing of the run is left;
* where nothing was written meanwhile: all pages are visible to all, and there are no dead rows.

The parts can be used alone: `observe`, `assert_same`, `assert_sound`, `assert_quiet`, `assert_nothing_left`.
Tables are named as in SQL, by the search path of a new session.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from psycopg import errors as pg
from psycopg import sql

import pglean
from pglean import pausepoint
from pglean.embedded import EmbeddedServer
from pglean.result import Result
from tests.servers import Database

#: A statement, or what runs some.
Change: TypeAlias = str | Callable[[Database], None]

#: Where a run is stopped for the changes, one each: before the first refresh, when the shadow has no index; with all
#: indexes built, before the last rounds; and when the next refresh is the one under the exclusive lock.
POINTS = ("phase: indexing", "phase: verifying", "swap: before the lock")

_CATCHECK = "pg_catcheck"


@dataclass(frozen=True, slots=True)
class State:
    """A table as its readers and the catalog see it."""

    oid: int
    file: int
    #: OID of the TOAST table; 0 where there is none.
    toast: int
    #: Index by name -> OID and file.
    indexes: dict[str, tuple[int, int]]
    #: The rows of the table itself as text, in order of that text.
    rows: list[str]
    #: Of the whole database, without the schema pglean.
    definition: str
    #: What is wrong with the catalogs already.
    inconsistencies: list[str]


def observe(db: Database, table: str) -> State:
    """The table as it is now."""
    # Created before the definition is read, which it is a part of.
    db.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    ((oid, file, toast),) = db.fetchall(
        "SELECT oid, pg_relation_filenode(oid), reltoastrelid FROM pg_class WHERE oid = %s::regclass", (table,)
    )
    indexes = db.fetchall(
        "SELECT indexrelid::regclass::text, indexrelid, pg_relation_filenode(indexrelid) FROM pg_index WHERE "
        "indrelid = %s",
        (oid,),
    )
    return State(
        oid=oid,
        file=file,
        toast=toast,
        indexes={name: (index, index_file) for name, index, index_file in indexes},
        rows=rows(db, table),
        definition=definition(db),
        inconsistencies=inconsistencies(db),
    )


def rows(db: Database, table: str) -> list[str]:
    """The table's own rows as text, in order of that text."""
    query = sql.SQL('SELECT ROW("the row".*)::text FROM ONLY {} AS "the row"').format(name(table))
    return sorted(row for (row,) in db.fetchall(query))


def name(table: str) -> sql.SQL:
    """A name written as in SQL, to be put into a statement."""
    return sql.SQL(table)


def definition(db: Database) -> str:
    """What pg_dump says of the database, without the schema pglean and without what is drawn at random."""
    dumped = db.server.run("pg_dump", "--schema-only", "--exclude-schema=pglean", dbname=db.name).stdout
    return "\n".join(line for line in dumped.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def repack(
    db: Database,
    table: str,
    *,
    during: Sequence[Change] = (),
    becomes: Callable[[str], str] = lambda definition: definition,
    **options: Any,
) -> Result:
    """Repack the table while each of `during` is made at the next of `POINTS`, and check all that must be true then.

    `becomes`: what the database's definition is to be afterwards, from what it was.
    """
    assert len(during) <= len(POINTS)
    calm(db)
    before = observe(db, table)
    expected = before.rows

    def change(number: int) -> None:
        nonlocal expected
        apply(db, during[number])
        expected = rows(db, table)

    with contextlib.ExitStack() as stack:
        for number, point in enumerate(POINTS[: len(during)]):
            stack.enter_context(once(point, partial(change, number)))
        with pglean.connect(db.conninfo) as database:
            result = database.repack(table, **{"verify": "full", "jobs": 2, **options})
    after = observe(db, table)
    assert after.rows == expected
    assert_same(replace(before, definition=becomes(before.definition)), after)
    assert_sound(db, table)
    assert_nothing_left(db)
    if not during:
        assert_quiet(db, table)
    return result


def calm(db: Database) -> None:
    """Close all sessions of the test, so that what they have counted for the statistics does not arrive later."""
    db.close()
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    until(lambda: db.scalar(others) == 0, "all other sessions have ended")


def apply(db: Database, change: Change) -> None:
    """Make one change."""
    if callable(change):
        change(db)
    else:
        db.execute(change)


@contextlib.contextmanager
def once(point: str, action: Callable[[], None]) -> Any:
    """Run the action the first time that a run comes to the point."""
    done = threading.Event()

    def act() -> None:
        if not done.is_set():
            done.set()
            action()

    with pausepoint.intercept(point, act):
        yield
    assert done.is_set(), f"the run never came to the point {point!r}"


def assert_same(before: State, after: State) -> None:
    """The same relations in new files, defined as they were; nothing new is wrong with the catalogs."""
    assert after.oid == before.oid
    assert after.file != before.file
    assert after.toast or not before.toast
    assert after.toast != before.toast or not before.toast
    assert {index: oid for index, (oid, _) in after.indexes.items()} == {
        index: oid for index, (oid, _) in before.indexes.items()
    }
    for index, (_, file) in after.indexes.items():
        assert file != before.indexes[index][1], f"index {index} has its old file"
    assert after.definition == before.definition
    assert after.inconsistencies == before.inconsistencies


def assert_sound(db: Database, table: str) -> None:
    """Heap and TOAST are readable and within relfrozenxid, and every B-tree (GIN from 18 on) has all rows."""
    db.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    assert db.fetchall("SELECT * FROM verify_heapam(%s::regclass, check_toast => true)", (table,)) == []
    checks = {
        "btree": "bt_index_parent_check(%s::oid::regclass, true, true)",
        "gin": "gin_index_check(%s::oid::regclass)",
    }
    known = {row[0] for row in db.fetchall("SELECT proname FROM pg_proc WHERE proname = 'gin_index_check'")}
    for oid, method in db.fetchall(
        "SELECT i.indexrelid, a.amname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a "
        "ON a.oid = c.relam"
        " WHERE i.indrelid = %s::regclass",
        (table,),
    ):
        if method == "btree" or (method == "gin" and known):
            db.fetchall(name(f"SELECT {checks[method]}"), (oid,))
    toast = (
        "SELECT 1 FROM pg_class c, verify_heapam(c.reltoastrelid) WHERE c.oid = %s::regclass AND c.reltoastrelid <> 0"
    )
    assert db.fetchall(toast, (table,)) == []


def inconsistencies(db: Database) -> list[str]:
    """What pg_catcheck complains of; nothing where it is not there. It does not know all catalogs of 15 itself."""
    program = catcheck(db.server)
    if program is None:
        return []
    told = db.server.run(program, db.name, check=False).stdout.splitlines()
    return sorted(line for line in told if not line.startswith("progress:"))


def catcheck(server: EmbeddedServer) -> str | None:
    """The program pg_catcheck, where there is one that knows this server's catalogs."""
    if (server.bindir / _CATCHECK).is_file():
        return _CATCHECK
    found = shutil.which(_CATCHECK)
    return found if found and server.version // 10000 == 15 else None


def assert_quiet(db: Database, table: str) -> None:
    """After a run in which nobody wrote: all pages visible to all, young relfrozenxid, no dead rows counted."""
    relations = db.fetchall(
        "SELECT c.oid::regclass, c.relpages, c.relallvisible, age(c.relfrozenxid), mxid_age(c.relminmxid)"
        "  FROM pg_class t JOIN pg_class c ON c.oid IN (t.oid, t.reltoastrelid) WHERE t.oid = %s::regclass",
        (table,),
    )
    for relation, pages, visible, xids, multixacts in relations:
        # Workers that fill a table side by side may leave pages near its end that they did not come to use.
        used = f"SELECT count(DISTINCT (ctid::text::point)[0]) FROM {relation}"
        assert visible == pages or visible >= db.scalar(used), f"{relation}: {visible} of {pages} are visible to all"
        assert 0 <= xids < 1000, f"{relation}: age(relfrozenxid) is {xids}"
        assert 0 <= multixacts < 1000, f"{relation}: mxid_age(relminmxid) is {multixacts}"
    # Statistics arrive when the session that made them has ended, which it does on its own time.
    dead = "SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = %s::regclass AND last_analyze IS NOT NULL"
    until(lambda: db.fetchall(dead, (table,)) == [(0,)], "the statistics show no dead rows")


def assert_nothing_left(db: Database) -> None:
    """No helper of a run: in the schema pglean stand its four tables and five functions, nothing outside uses it."""
    left = db.fetchall(
        "SELECT c.relkind, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'pglean' AND c.relkind <> 'i'"
        " AND c.relname NOT IN ('version', 'job', 'job_id_seq', 'chunk', 'twin', 'slot')"
    )
    left += db.fetchall(
        "SELECT 'function', p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = 'pglean' AND p.proname NOT IN"
        " ('conceal_1', 'postpone_1', 'image_1', 'hash_1')"
    )
    left += db.fetchall(
        "SELECT 'trigger', t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
        " JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'pglean'"
    )
    left += db.fetchall(
        "SELECT 'mark', relname FROM pg_class WHERE relrewrite <> 0 AND relnamespace <> 'pglean'::regnamespace"
        " AND oid NOT IN (SELECT reltoastrelid FROM pg_class WHERE relnamespace = 'pglean'::regnamespace)"
    )
    assert left == []
    with contextlib.suppress(pg.UndefinedTable):
        assert db.scalar("SELECT count(*) FROM pglean.chunk") == 0
        assert db.scalar("SELECT count(*) FROM pglean.twin") == 0


def until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.01)
