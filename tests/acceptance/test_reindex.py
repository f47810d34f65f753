"""`pglean reindex`, and `pglean repack -x` and `-i`: options, exit statuses, what is said on which stream."""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg import sql

from pglean.embedded import EmbeddedServer
from tests.support import rebuild
from tests.support.command import Run, in_process
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

_SPACE = 'Fast "disk"'
_ALL = {"items_pkey", "items_code_key", "items_amount_idx"}


@pytest.fixture(autouse=True)
def other_tables(stage: Stage) -> None:
    stage.db.execute(
        """
        CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF parent FOR VALUES FROM (0) TO (10);
        CREATE TABLE bookings (id int PRIMARY KEY, at int4range, CONSTRAINT overlap EXCLUDE USING gist (at WITH &&));
        """
    )


def rebuilt(stage: Stage, before: dict[str, tuple[int, int]]) -> set[str]:
    """The indexes of the stage's table that have another file since."""
    after = rebuild.indexes(stage.db, "items")
    assert after.keys() == before.keys()
    assert not stage.repacked
    return {index for index in after if after[index] != before[index]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("reindex", "-t", "items"), _ALL),
        (("reindex", "--table", "items,part", "-t", "items", "-j", "2", "-T", "5"), _ALL),
        (("reindex", "-i", "items_pkey, public.items_code_key"), {"items_pkey", "items_code_key"}),
        (("repack", "-x", "-t", "items"), _ALL),
        (("repack", "--only-indexes", "-t", "items", "-I", "parent", "-T", "5", "-D"), _ALL),
        (("repack", "-i", "items_pkey", "--index", "items_code_key"), {"items_pkey", "items_code_key"}),
    ],
)
def test_rebuilt(stage: Stage, run: Run, arguments: tuple[str, ...], expected: set[str]) -> None:
    before = rebuild.indexes(stage.db, "items")
    status, out, err = run(*arguments)
    assert status == 0, err
    assert rebuilt(stage, before) == expected
    for index in expected:
        assert f"public.{index} " in out
        assert f"pglean: public.items: index {index}" in err
    assert "\x1b" not in out + err
    assert stage.db.scalar("SELECT to_regnamespace('pglean')") is None


def test_parents(stage: Stage, run: Run) -> None:
    for arguments in (("reindex", "-I", "parent"), ("repack", "-x", "-I", "parent")):
        status, out, err = run(*arguments)
        assert status == 0, err
        assert "public.part_pkey" in out
    status, _, err = run("repack", "-x", "-t", "parent")
    assert status == 3
    assert "pglean: error: public.parent is a partitioned table" in err
    assert "HINT:  Name it as a parent: -I public.parent" in err


def test_tablespace(stage: Stage, run: Run, server: EmbeddedServer) -> None:
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute("SET allow_in_place_tablespaces = on")
        session.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(sql.Identifier(_SPACE)))
    where = "SELECT DISTINCT tablespace FROM pg_indexes WHERE tablename = 'items'"
    assert run("repack", "-q", "-x", "-t", "items", "-s", _SPACE)[0] == 0
    assert stage.db.fetchall(where) == [(_SPACE,)]
    assert run("reindex", "-q", "-t", "items", "-s", "pg_default")[0] == 0
    assert stage.db.fetchall(where) == [(None,)]
    assert run("reindex", "-t", "items", "-s", "nowhere")[0] == 2
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(_SPACE)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("repack", "-i", "items_pkey", "-t", "items"), "--index (-i) and --table (-t) exclude each other"),
        (("repack", "-i", "items_pkey", "-I", "parent"), "--index (-i) and --parent-table (-I) exclude each other"),
        (("repack", "-i", "items_pkey", "-x"), "--index (-i) and --only-indexes (-x) exclude each other"),
        (("repack", "-x"), "--only-indexes (-x) needs tables"),
        (("reindex",), "no index and no table was named"),
        (("reindex", "-t", "items", "-j", "0"), "invalid value for option --jobs: 0"),
        (("reindex", "-i", "absent"), 'relation "absent" does not exist'),
        (("reindex", "-i", "items"), '"items" is not an index'),
        (("repack", "-i", "absent"), 'relation "absent" does not exist'),
    ],
)
def test_usage(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert f"pglean: error: {message}" in err


def test_options_without_effect(stage: Stage, run: Run) -> None:
    given = ["-o", "amount", "-n", "-Z", "-S", "-s", "pg_default", "--hold", "--fillfactor", "70"]
    status, _, err = run("repack", "-x", "-t", "items", *given)
    assert status == 0
    for option in ("-o (--order-by)", "-n (--no-order)", "-Z (--no-analyze)", "-S (--moveidx)", "--hold"):
        assert f"pglean: warning: option {option} has no effect while repacking indexes" in err
    assert err.count("has no effect") == 6
    assert "has no effect" not in run("repack", "-x", "-t", "items", "-Z", "-E", "error")[2]
    assert "has no effect" not in run("repack", "-x", "-t", "items", "-j", "2", "-T", "3", "-D", "-e")[2]


def test_dry_run(stage: Stage, run: Run) -> None:
    before = rebuild.indexes(stage.db, "items")
    rebuild.leave(stage.db, "items_pkey", table="items")
    status, out, err = run("reindex", "-N", "-t", "items,bookings,absent")
    assert status == 9
    assert "index public.items_pkey_ccnew would be dropped. A REINDEX CONCURRENTLY of public.items_pkey" in out
    assert "public.items_code_key" in out
    assert "WARNING:  skipped: index public.overlap backs exclusion constraint overlap" in out
    assert 'cannot be done: absent: relation "absent" does not exist' in out
    assert "1 of 5 indexes was not rebuilt" in err
    plan = json.loads(run("repack", "-x", "--dry-run", "-t", "items", "--json")[1])
    assert (plan["status"], plan["removals"]) == ("planned", ["public.items_pkey_ccnew"])
    assert {index["index"] for index in plan["indexes"]} == {f"public.{index}" for index in _ALL}
    stage.db.execute("DROP INDEX items_pkey_ccnew")
    assert rebuilt(stage, before) == set()


def test_json(stage: Stage, run: Run) -> None:
    rebuild.leave(stage.db, "items_pkey", table="items")
    status, out, err = run("reindex", "-t", "items,bookings", "--json")
    assert status == 0
    result = json.loads(out)
    assert result["status"] == "done"
    assert result["removed"] == ["public.items_pkey_ccnew"]
    assert {index["index"] for index in result["indexes"]} == {f"public.{i}" for i in (*_ALL, "bookings_pkey")}
    assert all(index["bytes_before"] > 0 and index["elapsed_s"] >= 0 for index in result["indexes"])
    assert result["failures"] == []
    ((skipped),) = result["skipped"]
    assert (skipped["name"], skipped["codes"]) == ("public.overlap", ["exclusion"])
    assert "warning: skipped: index public.overlap backs exclusion constraint overlap" in err
    assert "removed invalid index public.items_pkey_ccnew" in err
    for arguments, expected in ((("-i", "overlap"), 3), (("-i", "absent"), 2), ((), 2)):
        status, out, _ = run("reindex", *arguments, "--json")
        assert status == expected
        assert json.loads(out)["exit_status"] == expected


def test_some_not_done(stage: Stage, run: Run) -> None:
    status, out, err = run("reindex", "-t", "bookings", "-t", "absent")
    assert status == 9
    assert "public.bookings_pkey" in out
    for line in (
        "pglean: error: 1 of 2 indexes was not rebuilt",
        "warning: skipped: index public.overlap backs exclusion constraint overlap",
        'absent: relation "absent" does not exist',
    ):
        assert line in err
    status, out, err = run("reindex", "-i", "overlap")
    assert (status, out) == (3, "")
    assert "REINDEX INDEX public.overlap;" in err


def test_quiet_and_levels(stage: Stage, run: Run) -> None:
    assert run("reindex", "-q", "-t", "items") == (0, "", "")
    assert run("reindex", "-t", "items", "-E", "warning") == (0, "", "")
    stage.db.execute("CREATE TABLE bare (n int)")
    status, out, err = run("reindex", "-t", "bare")
    assert (status, out) == (0, "nothing to rebuild\n")
    assert "pglean: warning: public.bare has no indexes" in err


def test_echo(stage: Stage, run: Run) -> None:
    status, out, err = in_process("reindex", "-i", "items_pkey", "-e", "-q")
    assert (status, out) == (0, "")
    assert 'REINDEX INDEX CONCURRENTLY "public"."items_pkey"' in err


def test_invalid_indexes_before_a_rewrite(stage: Stage, run: Run) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):
        stage.db.execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON items (amount)")
    status, _, err = run("repack", "-t", "items")
    assert status == 3
    assert "--invalid-indexes rebuild, or drop" in err
    status, _, err = run("repack", "-t", "items", "--no-error-on-invalid-index")
    assert status == 3
    assert "DETAIL:  Key (amount)=" in err
    status, out, err = run("repack", "-t", "items", "--invalid-indexes", "drop", "--dry-run")
    assert status == 0
    assert "It is dropped first (--invalid-indexes drop)." in out
    assert "broken" in rebuild.indexes(stage.db, "items")
    status, _, err = run("repack", "-t", "items", "--invalid-indexes", "drop")
    assert status == 0, err
    assert "removed invalid index public.broken" in err
    assert set(rebuild.indexes(stage.db, "items")) == _ALL
    stage.check()
