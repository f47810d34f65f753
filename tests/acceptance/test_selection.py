"""What is processed, by the command line: a database, all of them, schemas, parents, patterns; and what is not."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator

import pytest

import pglean
from pglean import cli, pausepoint
from pglean.embedded import EmbeddedServer
from tests.conftest import SERVERS
from tests.servers import Database
from tests.support import terminal
from tests.support.command import Outcome, Run, in_process, table
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


def by_status(out: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for element in json.loads(out):
        found.setdefault(element["status"], []).append(element["table"])
    return found


def files(stage: Stage) -> dict[str, int]:
    """The file of each table."""
    return dict(
        stage.db.fetchall(
            "SELECT oid::regclass::text, pg_relation_filenode(oid) FROM pg_class"
            " WHERE relkind = 'r' AND oid >= 16384 AND relnamespace <> coalesce(to_regnamespace('pglean'), 0)"
        )
    )


@pytest.fixture
def motley(stage: Stage) -> Iterator[Stage]:
    """Tables that can be repacked, and some that cannot."""
    stage.db.execute("""
        CREATE TABLE bare (); CREATE UNLOGGED TABLE unlogged (n int);
        CREATE SCHEMA "My Schema"; CREATE TABLE "My Schema".one (id int PRIMARY KEY);
        CREATE TABLE parted (n int PRIMARY KEY) PARTITION BY RANGE (n);
        CREATE TABLE leaf PARTITION OF parted FOR VALUES FROM (1) TO (2);
        CREATE VIEW overview AS SELECT 1 AS n;
    """)
    yield stage
    stage.db.execute('DROP SCHEMA "My Schema" CASCADE')


# ---- all of a database


def test_everything(motley: Stage, run: Run) -> None:
    before = files(motley)
    status, out, err = run("repack")
    assert status == 0
    changed = {name for name, file in files(motley).items() if file != before[name]}
    assert changed == {"items", '"model of items"', '"My Schema".one', "leaf"}
    assert "4 tables repacked, 2 skipped; " in out
    assert re.search(r"^pglean: warning: public.bare: skipped: public.bare has no column$", err, re.MULTILINE)
    assert re.search(r"^pglean: warning: public.unlogged: skipped: .*is an unlogged table$", err, re.MULTILINE)
    for name in ("parted", "overview", "pglean.job"):
        assert name not in out + err
    motley.check()


def test_tables_without_a_key_are_found_too(motley: Stage, run: Run) -> None:
    motley.db.execute("CREATE TABLE keyless (n int); INSERT INTO keyless VALUES (1), (1)")
    before = files(motley)
    status, out, err = run("repack", "-c", "public", "-q", "--json")
    assert status == 0
    assert "public.keyless" in by_status(out)["done"]
    assert "public.keyless: warning: public.keyless has no primary key" in err
    assert files(motley)["keyless"] != before["keyless"]
    status, out, _ = run("repack", "-t", "keyless", "-N")
    assert status == 0
    assert "record changed rows as they were and as they are, by three triggers" in out
    motley.db.execute("DROP TABLE keyless")


def test_everything_for_machines(motley: Stage, run: Run) -> None:
    status, out, err = run("repack", "--json", "-q")
    assert (status, err) == (0, "")
    found = by_status(out)
    assert set(found["done"]) == {"public.items", 'public."model of items"', '"My Schema".one', "public.leaf"}
    assert set(found["skipped"]) == {"public.bare", "public.unlogged"}
    skipped = {element["table"]: element for element in json.loads(out) if element["status"] == "skipped"}
    assert [finding["code"] for finding in skipped["public.bare"]["findings"]] == ["no-column"]
    assert {finding["code"] for finding in skipped["public.unlogged"]["findings"]} == {"unlogged"}
    assert skipped["public.bare"]["exit_status"] == 0
    # The largest gain first: what nothing is known of comes behind.
    motley.db.execute("ANALYZE items")
    assert json.loads(run("repack", "--json", "-q")[1])[0]["table"] in {"public.items", 'public."model of items"'}


def test_everything_quietly_and_dry(motley: Stage, run: Run) -> None:
    before = files(motley)
    status, out, err = run("repack", "-N")
    assert status == 0
    assert "public.leaf would be repacked" in out
    assert "4 tables would be repacked, 2 skipped\n" in out
    assert "public.bare: skipped: public.bare has no column" in err
    found = by_status(run("repack", "--dry-run", "--json")[1])
    assert {status: len(names) for status, names in found.items()} == {"planned": 4, "skipped": 2}
    assert files(motley) == before
    assert motley.db.scalar("SELECT to_regnamespace('pglean')") is None
    # What the exit status does not tell is told also to whoever wants warnings only.
    for arguments in (("-q",), ("-E", "WARNING")):
        status, out, err = run("repack", *arguments)
        assert (status, out) == (0, "")
        lines = sorted(err.splitlines())
        assert lines[0] == "pglean: warning: public.bare: skipped: public.bare has no column"
        assert lines[1].startswith("pglean: warning: public.unlogged: skipped: public.unlogged is an unlogged table")
        assert len(lines) == 2
    assert run("repack", "-E", "ERROR") == (0, "", "")
    assert files(motley) != before


def test_everything_some_at_once(motley: Stage, run: Run) -> None:
    status, out, err = run("repack", "--tables-at-once", "3", "-j", "1", "--json", "-q")
    assert (status, err) == (0, "")
    assert {status: len(names) for status, names in by_status(out).items()} == {"done": 4, "skipped": 2}
    # The order is the same.
    assert [element["table"] for element in json.loads(out)] == [
        element["table"] for element in json.loads(run("repack", "-N", "--json", "-q")[1])
    ]


def test_nothing_to_do(stage: Stage, run: Run) -> None:
    stage.db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    said = f"nothing to do: there is no table to repack in database {stage.db.name}\n"
    assert run("repack") == (0, said, "")
    assert run("repack", "-N", "-c", "public") == (0, said, "")
    assert run("repack", "--json") == (0, "[]\n", "")
    assert run("repack", "-q") == (0, "", "")
    stage.db.execute("CREATE TABLE p (n int) PARTITION BY RANGE (n)")
    assert run("repack", "-I", "p") == (0, said, "")
    # Something, but nothing that can be done.
    stage.db.execute("CREATE TABLE bare ()")
    status, out, err = run("repack")
    assert (status, out) == (0, "0 tables repacked, 1 skipped\n")
    assert "public.bare: skipped" in err


def test_what_fails_is_no_skip(motley: Stage, run: Run) -> None:
    with motley.db.connect(application_name="blocker") as blocker:
        blocker.execute("BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE")
        status, out, err = run("repack", "-T", "0.2", "--lock-timeout", "20", "--json", "-q")
        blocker.execute("COMMIT")
    assert status == 9
    assert by_status(out)["failed"] == ["public.items"]
    assert len(by_status(out)["done"]) == 3
    assert "pglean: error: 1 of 4 tables was not repacked\nDETAIL:  public.items: could not lock table" in err
    # Also where it is the only one that was found.
    stage, arguments = motley, ("repack", "-q", "-t", "item?", "-T", "0.2", "--lock-timeout", "20")
    with stage.db.connect() as blocker:
        blocker.execute("BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE")
        status, out, err = run(*arguments)
        assert (status, out) == (9, "")
        assert "1 of 1 tables was not repacked" in err
        blocker.execute("COMMIT")
    assert run(*arguments)[0] == 0
    motley.check()


def test_a_table_dropped_meanwhile_is_skipped(stage: Stage, run: Run) -> None:
    table(stage, "zombie")
    stage.db.execute('ANALYZE items, "model of items"')
    with pausepoint.intercept("phase: capturing", lambda: stage.db.execute("DROP TABLE IF EXISTS zombie")):
        status, out, err = run("repack", "--json", "-q")
    assert (status, err) == (0, "")
    assert by_status(out)["skipped"] == ["public.zombie"]
    assert len(by_status(out)["done"]) == 2


def test_interrupted(motley: Stage, run: Run) -> None:
    with pausepoint.intercept("copy: in a chunk", lambda: os.kill(os.getpid(), signal.SIGTERM)):
        status, out, _ = run("repack", "-q", "--json")
    assert status == 8
    first, *others = json.loads(out)
    assert first["message"] == "interrupted by SIGTERM"
    assert len(others) == 5
    assert {other["message"] for other in others} == {"not begun: the run before it was ended"}
    assert {other["exit_status"] for other in others} == {8}
    assert isinstance(first["job"], int)
    assert not any("job" in other for other in others)
    motley.check()


@pytest.mark.parametrize("at_once", [(), ("--tables-at-once", "2", "-j", "1")])
def test_interrupted_is_told_once_with_all_that_was_not_begun(
    motley: Stage, run: Run, at_once: tuple[str, ...]
) -> None:
    with pausepoint.intercept("copy: in a chunk", lambda: os.kill(os.getpid(), signal.SIGINT)):
        status, _, err = run("repack", "-t", "items,leaf,item?", "-t", '"My Schema".one,absent', *at_once)
    assert status == 8
    assert err.count("pglean: error: interrupted by SIGINT") == 1
    assert err.count("DETAIL:") == 1
    assert "items: interrupted by SIGINT\n" in err
    if not at_once:
        for name in ("leaf", '"My Schema".one', "absent"):
            assert f"\n{name}: not begun: the run before it was ended\n" in err
    assert err.endswith("HINT:  What was begun is undone; the table is as it was.\n")
    assert motley.status() == []
    motley.check()


# ---- what refuses all


def test_what_refuses_every_table_is_told_once(motley: Stage, run: Run) -> None:
    motley.db.execute("DROP ROLE IF EXISTS nobody_special; CREATE ROLE nobody_special LOGIN")
    for more in ((), ("-N",), ("-t", "i*"), ("-I", "parted"), ("-c", "public"), ("--tables-at-once", "2")):
        status, out, err = run("repack", "-U", "nobody_special", *more)
        assert (status, out) == (3, "")
        assert err.count('role "nobody_special" is not a superuser') == 1
        assert "skipped" not in err
    status, out, err = run("repack", "-U", "nobody_special", "--json")
    (element,) = json.loads(out)
    assert (status, element["table"], element["exit_status"]) == (3, None, 3)
    assert [finding["code"] for finding in element["findings"]] == ["rights"]
    motley.db.execute("CREATE SCHEMA pglean; CREATE TABLE pglean.precious (n int)")
    status, out, err = run("repack")
    assert (status, out) == (3, "")
    assert err.count('there is a schema "pglean" that is not ours') == 1


# ---- some of a database


def test_schemas_parents_and_extensions(motley: Stage, run: Run) -> None:
    def planned(*arguments: str) -> set[str]:
        status, out, _ = run("repack", "-N", "--json", *arguments)
        assert status == 0
        return {element["table"] for element in json.loads(out) if element["status"] == "planned"}

    assert planned("-c", "My Schema") == {'"My Schema".one'}
    assert planned("--schema=My Schema,publi?") == planned()
    assert planned("-I", "parted") == {"public.leaf"}
    assert planned("-I", "parted,items", "--parent-table", "leaf") == {"public.leaf", "public.items"}
    assert planned("-I", "parted", "-t", "it*", "-t", '"My Schema".one') == {
        "public.leaf", "public.items", '"My Schema".one',
    }  # fmt: skip
    assert planned("-t", "public.*") == {"public.leaf", "public.items", 'public."model of items"'}
    motley.db.execute("ALTER EXTENSION plpgsql ADD TABLE leaf")
    assert planned("-C", "plpgsql") == planned() - {"public.leaf"}
    status, _, err = run("repack", "-N", "-C", "plpgsql,absent", "-c", "public", "-q")
    assert status == 0
    assert err.startswith("pglean: warning: there is no extension absent in this database\npglean: warning: public.")
    motley.db.execute("ALTER EXTENSION plpgsql DROP TABLE leaf")


def test_named_ones_fail_where_found_ones_are_skipped(motley: Stage, run: Run) -> None:
    status, out, err = run("repack", "-q", "-t", "bare,item?,unl*", "--json")
    assert status == 9
    assert by_status(out) == {"failed": ["bare"], "done": ["public.items"], "skipped": ["public.unlogged"]}
    assert "1 of 2 tables was not repacked" in err
    # One that was found and is named as well.
    status, out, err = run("repack", "-q", "-t", "bar*,bare", "--json")
    assert (status, by_status(out)) == (3, {"failed": ["public.bare"]})
    assert run("repack", "-q", "-t", "bar*") == (
        0, "", "pglean: warning: public.bare: skipped: public.bare has no column\n",
    )  # fmt: skip
    assert run("repack", "-q", "-t", "parted")[0] == 3
    assert "-I names it with all its partitions" in run("repack", "-t", "parted")[2]
    assert run("repack", "-q", "-I", "bare")[0] == 3
    assert run("repack", "-q", "-t", "bar*", "-I", "bare")[0] == 3


def test_names_that_mean_nothing_are_told_in_their_turn(motley: Stage, run: Run) -> None:
    for arguments, message in (
        (("-t", "absent*"), "no table matches the pattern absent*"),
        (("-t", "part*"), "only partitioned tables match the pattern part*"),
        (("-t", "a(b"), "invalid pattern: a(b"),
        (("-I", "absent"), 'relation "absent" does not exist'),
        (("-c", "absent"), "no schema matches absent"),
        (("-c", "public", "-t", "items"), "exclude each other"),
        (("-c", "public", "-I", "items"), "exclude each other"),
        (("-C", "plpgsql", "-t", "items"), "exclude each other"),
        (("-C", "plpgsql", "-I", "items"), "exclude each other"),
        (("-a", "-t", "items"), "exclude each other"),
        (("-a", "-I", "items"), "exclude each other"),
        (("-a", "-c", "public"), "exclude each other"),
    ):
        status, out, err = run("repack", *arguments)
        assert (status, out) == (2, ""), arguments
        assert message in err
        status, out, err = run("repack", *arguments, "--json")
        assert status == 2
        assert [element["exit_status"] for element in json.loads(out)] == [2]
    status, out, err = run("repack", "-q", "-t", "absent*,items", "-I", "nothing", "--json")
    assert status == 9
    assert [(element["table"], element["status"]) for element in json.loads(out)] == [
        ("absent*", "failed"), ("public.items", "done"), ("nothing", "failed"),
    ]  # fmt: skip


# ---- as pg_repack is called


@pytest.mark.parametrize(
    ("line", "tables"),
    [
        ("{db}", "public.items,public.model"),
        ("--no-order --table items --table model {db}", "public.items,public.model"),
        ("-d {db} -titems -Zn", "public.items"),
        ("-d{db} -t items -nZD", "public.items"),
        ("--dbname={db} --table=items --wait-timeout=30 --no-kill-backend --jobs=2", "public.items"),
        ("-t public.items -j2 -T30 {db} -k", "public.items"),
        ("{db} -t items --elevel=WARNING --no-superuser-check", "public.items"),
        ("-e -E INFO -t items -w {db}", "public.items"),
        ("-c public -d {db} --no-analyze", "public.items,public.model"),
        ("-I items {db} --apply-count=1000 --switch-threshold 100", "public.items"),
        ("--parent-table=items --no-error-on-publication {db}", "public.items"),
        ("-C plpgsql -C absent {db}", "public.items,public.model"),
        ("--exclude-extension=plpgsql {db}", "public.items,public.model"),
        # Abbreviations, as getopt_long takes them.
        ("--dbn {db} --table items --no-an --elev=error --no-kill", "public.items"),
    ],
)
def test_command_lines_of_pg_repack(stage: Stage, run: Run, line: str, tables: str) -> None:
    stage.db.execute('ALTER TABLE "model of items" RENAME TO model')
    try:
        status, out, err = run("repack", "--dry-run", "--json", *line.format(db=stage.db.name).split())
        assert status == 0, err
        assert sorted(element["table"] for element in json.loads(out)) == tables.split(",")
        # And really.
        assert run("repack", "-q", *line.format(db=stage.db.name).split())[0] == 0
        assert stage.repacked
    finally:
        stage.db.execute('ALTER TABLE model RENAME TO "model of items"')
    stage.check()


def test_what_needs_nothing_is_said_to_whoever_wants_to_know(stage: Stage, run: Run) -> None:
    arguments = ("-k", "--no-error-on-publication", "--apply-count", "5", "--switch-threshold", "7")
    assert run("repack", "-t", "items", "-q", "-N", "--json", *arguments)[2] == ""
    err = run("repack", "-t", "items", "-N", *arguments, "-E", "DEBUG")[2]
    for option in ("--no-superuser-check", "--no-error-on-publication", "--apply-count", "--switch-threshold"):
        assert f"pglean: debug: {option} changes nothing: " in err
    assert "changes nothing" not in run("repack", "-t", "items", "-N", "-E", "DEBUG")[2]
    assert run("repack", "-t", "items", "--apply-count", "0")[0] == 2
    # Missing rights are missing whatever is skipped.
    stage.db.execute("DROP ROLE IF EXISTS nobody_special; CREATE ROLE nobody_special LOGIN")
    assert run("repack", "-t", "items", "-k", "-U", "nobody_special")[0] == 3


_OF_PG_REPACK = (
    "all", "table", "parent-table", "schema", "tablespace", "moveidx", "order-by", "no-order", "dry-run", "jobs",
    "wait-timeout", "no-kill-backend", "no-analyze", "no-superuser-check", "exclude-extension", "apply-count",
    "switch-threshold", "no-error-on-publication", "no-error-on-invalid-index", "error-on-invalid-index", "dbname",
    "host", "port", "username", "no-password", "password", "echo", "elevel", "help", "version",
)  # fmt: skip


def test_help_and_version(run: Run) -> None:
    for option in ("--version", "-V"):
        assert run("repack", option) == (0, f"pglean, version {pglean.__version__}\n", "")
    status, out, err = run("repack", "--help")
    assert (status, err) == (0, "")
    assert run("repack", "-?") == (status, out, err)
    titles = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert titles[0] == "What is processed"
    assert {"Connection", "Options of pg_repack that nothing needs here"} <= set(titles)
    for name in _OF_PG_REPACK:
        assert len(re.findall(rf"^  (?:-., +)?--{name}\b(?!-)", out, re.MULTILINE)) == 1, name


# ---- all databases


_USUAL = ("local all postgres trust", "host all all all scram-sha-256")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Database]:
    """A server of its own with several databases, which asks for a password but of `postgres` by the socket."""
    if not SERVERS:
        pytest.fail("no PostgreSQL server to test with")
    with EmbeddedServer(list(SERVERS.values())[-1]) as server:
        db = Database(server, "postgres")
        for name in ("b", "A 'b'=c", "closed", "pattern", "z"):
            db.execute(f'CREATE DATABASE "{name}"')
        for name in ("b", "A 'b'=c", "closed", "pattern", "z"):
            with Database(server, name).connect() as session:
                session.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE bare ()")
        db.execute("ALTER DATABASE closed ALLOW_CONNECTIONS false; ALTER DATABASE pattern IS_TEMPLATE true")
        db.execute("SET password_encryption = 'scram-sha-256'; CREATE ROLE admin SUPERUSER LOGIN PASSWORD 'sesame'")
        admit(db, *_USUAL)
        yield db
        db.close()


@pytest.fixture
def everywhere(cluster: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process; the environment names that server, and no database."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGHOST", str(cluster.server.socket_dir))
    monkeypatch.setenv("PGPORT", str(cluster.server.port))
    monkeypatch.setenv("PGUSER", "postgres")

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        status = cli.run(arguments)
        return status, *capsys.readouterr()

    return run


def admit(cluster: Database, *lines: str) -> None:
    """Whom the server lets in."""
    (cluster.server.datadir / "pg_hba.conf").write_text("\n".join(lines) + "\n")
    cluster.execute("SELECT pg_reload_conf()")


def elements(out: str) -> list[tuple[str, str | None, str]]:
    return [(element["database"], element["table"], element["status"]) for element in json.loads(out)]


EACH = [
    (name, table, status)
    for name in ("A 'b'=c", "b", "z")
    for table, status in (("public.bare", "skipped"), ("public.t", "done"))
]


def test_all_databases(cluster: Database, everywhere: Run) -> None:
    status, out, err = everywhere("repack", "-a")
    assert status == 0
    assert "pglean: database \"A 'b'=c\"\n" in err
    assert "nothing to do: there is no table to repack in database postgres" in out
    assert "3 tables repacked, 3 skipped; " in out
    # A database that is named is where it begins, no more; with none it needs no PGDATABASE that exists.
    for more in ([], ["b"], ["-d", "postgres"], ["--tables-at-once", "2"]):
        status, out, err = everywhere("repack", "--all", "--json", "-q", *more)
        assert (status, err) == (0, "")
        assert sorted(elements(out)) == EACH
    status, out, err = everywhere("repack", "-a", "-N", "-C", "plpgsql,absent,plperl")
    assert status == 0
    assert "3 tables would be repacked, 3 skipped" in out
    assert "public.t in database b would be repacked\n" in out
    assert "warning: there is no extension absent in any database" in err
    status, out, err = everywhere("repack", "-aq")
    assert (status, out, len(err.splitlines())) == (0, "", 3)
    assert "pglean: warning: b: public.bare: skipped: public.bare has no column\n" in err
    # Where there is no database postgres.
    cluster.close()
    with Database(cluster.server, "b").connect() as session:
        session.execute("DROP DATABASE postgres WITH (FORCE)")
    assert sorted(elements(everywhere("repack", "-aqN", "--json")[1])) == [
        (name, table, {"done": "planned"}.get(status, status)) for name, table, status in EACH
    ]
    with Database(cluster.server, "b").connect() as session:
        session.execute("CREATE DATABASE postgres")


def test_what_fails_in_one_database_stops_no_other(cluster: Database, everywhere: Run) -> None:
    db = Database(cluster.server, "b")
    db.execute("DROP SCHEMA IF EXISTS pglean CASCADE; CREATE SCHEMA pglean")
    with Database(cluster.server, "A 'b'=c").connect() as blocker:
        blocker.execute("BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE")
        status, out, err = everywhere("repack", "-a", "--json", "-q", "-T", "0.2", "--lock-timeout", "20")
        blocker.execute("ROLLBACK")
    assert status == 9
    assert sorted(elements(out), key=lambda row: (row[0], row[1] or "")) == [
        *EACH[:1], ("A 'b'=c", "public.t", "failed"), ("b", None, "failed"), *EACH[4:],
    ]  # fmt: skip
    assert "2 of 3 tables and databases were not repacked" in err
    assert "\"A 'b'=c\": public.t: could not lock" in err
    assert 'b: there is a schema "pglean" that is not ours' in err
    # One that cannot be entered.
    db.execute("DROP SCHEMA pglean CASCADE")
    admit(cluster, "local b all reject", *_USUAL)
    status, out, err = everywhere("repack", "-a", "--json", "-q")
    admit(cluster, *_USUAL)
    assert status == 9
    assert [row for row in elements(out) if row[0] == "b"] == [("b", None, "failed")]
    assert sorted(row for row in elements(out) if row[0] != "b") == [*EACH[:2], *EACH[4:]]
    db.close()


def test_interrupted_in_one_of_all_databases(cluster: Database, everywhere: Run) -> None:
    with pausepoint.intercept("copy: in a chunk", lambda: os.kill(os.getpid(), signal.SIGTERM)):
        with Database(cluster.server, "A 'b'=c").connect() as session:
            session.execute("INSERT INTO t SELECT generate_series(1, 1000)")
        status, out, err = everywhere("repack", "-aq", "--json")
    assert status == 8
    assert "pglean: error: interrupted by SIGTERM\n" in err
    assert "\nb: not begun: the run before it was ended\n" in err
    messages = {
        (element["database"], element["message"]) for element in json.loads(out) if element["status"] == "failed"
    }
    assert ("A 'b'=c", "interrupted by SIGTERM") in messages
    assert {
        ("b", "not begun: the run before it was ended"),
        ("z", "not begun: the run before it was ended"),
    } <= messages


def test_a_password_is_asked_for_once(cluster: Database, everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", os.devnull)
    where = ["-h", "127.0.0.1", "-p", str(cluster.server.port), "-U", "admin"]
    for more in ([], ["-W"]):
        status, shown = terminal.run(["repack", "-a", *where, *more], answers={"Password:": "sesame"})
        assert status == 0, shown
        assert shown.count("Password:") == 1
        assert "3 tables repacked, 3 skipped" in shown
    status, out, err = in_process("repack", "-a", "-w", *where)
    assert (status, out) == (5, "")
    assert "no password supplied" in err


def test_not_allowed_anywhere(cluster: Database, everywhere: Run) -> None:
    cluster.execute("CREATE ROLE nobody LOGIN")
    admit(cluster, "local all all trust")
    status, out, err = everywhere("repack", "-a", "-U", "nobody")
    assert (status, out.count("nothing to do")) == (3, out.count("\n"))
    assert err.count('role "nobody" is not a superuser') == 1
    admit(cluster, *_USUAL)
