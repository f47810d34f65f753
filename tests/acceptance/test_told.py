"""What is said of runs: to whom, by which name, and with which way on."""

from __future__ import annotations

import contextlib
import json
import shlex
import time

import click
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pglean.cli.display import console, progress_display
from pglean.cli.repack import repack_command
from pglean.conninfo import connection_words
from pglean.progress import Progress
from tests.support.client import Client
from tests.support.command import Run, table
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


def killed(stage: Stage, point: str = "phase: ready") -> int:
    """Leave what a killed run leaves; returns its number."""
    with Client(["repack", "-q", "-t", "items", stage.db.conninfo], [point]) as client:
        client.await_line(point)
        client.kill()
    stage.deserted()
    return stage.status()[-1].id


# ---- ways on


@pytest.mark.parametrize(
    ("conninfo", "database", "typed"),
    [
        ("", "shop", "-d shop"),
        ("", "My Shop", "-d 'My Shop'"),
        ("", "a=b", "-d dbname=a=b"),
        ("", "a://b", "-d dbname=a://b"),
        ("dbname=postgres user=admin", "shop", "-U admin -d shop"),
        ("host=db1,db2 port=5433 user='it\\'s'", "shop", "-h db1,db2 -p 5433 -U 'it'\"'\"'s' -d shop"),
        ("postgresql://admin:secret@db1:5433/shop", "shop", "-h db1 -p 5433 -U admin -d shop"),
        (
            "postgresql://admin:secret@db1/shop?sslmode=require&sslpassword=hidden",
            "shop",
            "-d 'dbname=shop user=admin host=db1 sslmode=require'",
        ),
        ("service=prod password=secret", "My Shop", "-d 'dbname='\"'\"'My Shop'\"'\"' service=prod'"),
    ],
)
def test_commands_lead_to_the_database(conninfo: str, database: str, typed: str) -> None:
    words = connection_words(conninfo, database)
    assert words == typed
    # What is typed so means the same again, but for what is secret.
    options = dict(zip(*[iter(shlex.split(words))] * 2, strict=True))
    again = make_conninfo(options["-d"]) if "=" in options["-d"] else make_conninfo(dbname=options["-d"])
    for option, name in (("-h", "host"), ("-p", "port"), ("-U", "user")):
        again = make_conninfo(again, **({name: options[option]} if option in options else {}))
    meant = conninfo_to_dict(conninfo) | {"dbname": database}
    assert conninfo_to_dict(again) == {name: meant[name] for name in meant if "password" not in name}


def test_hints_lead_to_the_database(stage: Stage, run: Run) -> None:
    with stage.db.connect(application_name="blocker") as blocker:
        blocker.execute("BEGIN; LOCK TABLE items IN ACCESS SHARE MODE")
        uri = f"postgresql://postgres:secret@/{stage.db.name}"
        status, _, err = run("repack", "-q", "-t", "items", "-T", "0.1", "--lock-timeout", "20", "-d", uri)
    assert status == 4
    (kept,) = stage.status()
    assert f"`pglean resume {kept.id} -U postgres -d {stage.db.name}` continues" in err
    assert "secret" not in err
    assert (
        f"`pglean abort {kept.id} -p {stage.db.server.port} -d {stage.db.name}` undoes it"
        in run("status", "-p", str(stage.db.server.port))[1]
    )
    assert run("abort", str(kept.id))[0] == 0
    stage.check()


def test_resume_takes_what_the_hint_advises(stage: Stage, run: Run) -> None:
    with contextlib.suppress(psycopg.errors.AdminShutdown), stage.db.connect(application_name="blocker") as blocker:
        blocker.execute("BEGIN; LOCK TABLE items IN ACCESS SHARE MODE")
        status, _, err = run("repack", "-q", "-t", "items", "-T", "0.5", "--lock-timeout", "20")
        assert status == 4
        (kept,) = stage.status()
        assert "HINT:  Wait for these sessions to end, raise --wait-timeout, or have them cancelled by --kill-" in err
        assert f"`pglean resume {kept.id} -d {stage.db.name}` continues" in err
        began = time.monotonic()
        assert run("resume", "-q", "-T", "0.1")[0] == 4
        assert time.monotonic() - began < 10
        assert stage.db.scalar("SELECT options ->> 'wait_timeout_s' FROM pglean.job") == "0.1"
        status, _, err = run("resume", "-q", str(kept.id), "-T", "0.3", "--kill-backend")
        assert status == 0, err
        assert "pglean: public.items: terminated pid " in err
    assert stage.repacked
    stage.check()


def test_nothing_to_resume(stage: Stage, run: Run) -> None:
    status, out, err = run("resume")
    assert (status, out) == (2, "")
    assert f"no run is paused or interrupted\nHINT:  `pglean status -d {stage.db.name}` lists" in err


def test_swap_of_a_run_that_does_not_hold(stage: Stage, run: Run) -> None:
    with Client(["repack", "-q", "-t", "items", stage.db.conninfo], ["copy: before a chunk"]) as client:
        client.await_line("copy: before a chunk")
        (found,) = stage.status()
        status, out, err = run("swap", str(found.id))
        assert (status, out) == (2, "")
        assert f"run {found.id} does not hold: it swaps by itself" in err
        client.go_on()
        assert client.wait() == 0, client.stderr
    stage.check()


# ---- what became of it


def test_log_keeps_the_cause_and_not_what_is_gone(stage: Stage, run: Run) -> None:
    job = killed(stage)
    with stage.db.connect() as reader:
        reader.execute("BEGIN; SELECT count(*) FROM items")
        began = time.monotonic()
        status, _, err = run("cleanup", "-T", "1")
        assert (status, time.monotonic() - began < 5) == (4, True)
        assert "three triggers without effect" in err
        assert run("cleanup", "-T", "0.2")[0] == 4
        (left,) = stage.status()
        assert left.error is not None
        assert left.error.startswith("its process was gone; cleaned up; still there: three triggers without effect")
        assert left.error.count("three triggers") == 1
        reader.execute("COMMIT")
    assert run("cleanup")[0] == 0
    (over,) = json.loads(run("log", "--json")[1])
    assert (over["id"], over["state"], over["error"]) == (job, "undone", "its process was gone; cleaned up")
    stage.check()


def test_abort_ends_in_its_time(stage: Stage, run: Run) -> None:
    """Whoever has a table of ours locked is waited for no longer than was said."""
    job = killed(stage)
    with stage.db.connect() as dump:
        dump.execute(f"BEGIN; LOCK TABLE pglean.changes_{job}, pglean.shadow_{job} IN ACCESS SHARE MODE")
        began = time.monotonic()
        status, _, err = run("abort", str(job), "-T", "1")
        assert (status, time.monotonic() - began < 5) == (4, True)
        assert f"table pglean.shadow_{job} (in use by " in err
        dump.execute("COMMIT")
    assert run("abort", str(job))[0] == 0
    stage.check()


def test_no_connection(run: Run) -> None:
    status, _, err = run("repack", "-t", "items", "-p", "1")
    assert status == 5
    assert "HINT:  Nothing was begun. " in err


# ---- messages


def test_messages_carry_the_table_and_their_weight(stage: Stage, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stage.db.execute("CREATE INDEX amounts ON items (amount)")
    for arguments in (("-q",), ("-E", "WARNING")):
        assert run("repack", "-t", "items", "-o", "amount", *arguments) == (0, "", "")
    assert "pglean: public.items: the rows are sorted " in run("repack", "-t", "items", "-o", "amount")[2]
    with progress_display(console(stderr=True), progress=False) as tell:
        tell(Progress(0, "public.t", "planned", message="goes on with run 7", informational=True))
        tell(Progress(0, "public.t", "planned", message="cancelled pid 7"))
        tell(Progress(0, "", "planned", message="warning: late"))
    assert capsys.readouterr().err == "pglean: public.t: cancelled pid 7\npglean: warning: late\n"


def test_indexes_that_failed(stage: Stage, run: Run) -> None:
    """Each is told in full; nothing is called done, and nothing "nothing"."""
    stage.db.execute("CREATE TABLE other (id int PRIMARY KEY)")
    with stage.db.connect() as one:
        one.execute("BEGIN; LOCK TABLE items IN SHARE UPDATE EXCLUSIVE MODE")
        status, out, err = run("reindex", "-i", "items_pkey,other_pkey,absent", "-T", "0.3")
        one.execute("COMMIT")
    assert status == 9
    assert "nothing to rebuild" not in out
    assert "public.items: done" not in err
    assert 'pglean: error: relation "absent" does not exist\nHINT:  ' in err or "absent" in err
    first, _, last = err.rpartition("pglean: error: ")
    assert last.startswith("2 of 3 indexes were not rebuilt\nDETAIL:  ")
    assert first.count("pglean: error: ") == 2
    assert "HINT:" in first


# ---- names and options


def test_hints_for_names(stage: Stage, run: Run) -> None:
    status, _, err = run("repack", "-t", "My Schema.Order Lines")
    assert status == 2
    assert "HINT:  Names are read as in SQL: schema.table; capitals and blanks need quotes: '\"Big Table\"'." in err
    status, _, err = run("repack", "-t", "items_pkey")
    assert status == 3
    assert "public.items_pkey is an index, not a table\nHINT:  Rebuild it by itself: -i public.items_pkey" in err
    out = run("cleanup", "--help")[1]
    assert "How long to try for locks, in all." in out
    assert "Longest single wait for a lock" in out


def test_abbreviations_mean_what_they_mean_to_pg_repack(stage: Stage, run: Run) -> None:
    def meant(argument: str) -> str:
        context = click.Context(repack_command)
        rest = [argument, "1", "-N"] if "=" not in argument else [argument]
        repack_command.parse_args(context, rest)
        return next(name for name, value in context.params.items() if value in ("1", ("1",), 1.0))

    assert meant("--tables=1") == "tablespace"
    assert meant("--in=1") == "indexes"
    assert meant("--wait=1") == "wait_timeout"
    both = "--no-error-on-invalid-index, --no-error-on-publication"
    for short, which in (("--no-error-on", both), ("--max", "--max-")):
        status, out, err = run("repack", short, "-t", "items")
        assert (status, out) == (2, "")
        assert f"option {short} is ambiguous: {which}" in err


def test_without_a_superuser_in_general(stage: Stage, run: Run) -> None:
    table(stage, "other")
    stage.db.execute("DROP ROLE IF EXISTS nobody_special; CREATE ROLE nobody_special LOGIN")
    status, _, err = run("repack", "-U", "nobody_special")
    assert status == 3
    assert 'Of tables that "nobody_special" owns' in err
    assert " it may rebuild the indexes online, `pglean reindex -t TABLE`" in err
    assert "items" not in err
    assert "other" not in err


def test_rate_of_wal_at_the_first_look(stage: Stage, run: Run) -> None:
    err = run("repack", "-t", "items", "--max-wal-rate", "1TB")[2]
    assert "waiting for" not in err
    assert "waiting: measuring the rate of WAL" in err


def test_rate_after_a_resume() -> None:
    progress = Progress(1, "t", "copying", done=90, total=100, done_before=80, rows=900, rows_before=800, phase_s=5)
    assert (progress.rate, progress.rows_rate, progress.eta_s) == (2, 20, 5)
