"""The command line as a user has it: options, exit statuses, what is said on which stream."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pglean
from pglean import pausepoint
from pglean.embedded import EmbeddedServer
from tests.conftest import SERVERS
from tests.servers import Database
from tests.support import terminal
from tests.support.client import Client
from tests.support.command import Run, in_process, table
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

_SECRET = "open sesame % 41"


def options_of_last_run(stage: Stage) -> dict[str, Any]:
    value: dict[str, Any] = stage.db.scalar("SELECT options FROM pglean.job ORDER BY id DESC LIMIT 1")
    return value


# ---- what it says of itself


@pytest.mark.parametrize("option", ["-?", "--help"])
def test_help(run: Run, option: str) -> None:
    status, out, err = run(option)
    assert (status, err) == (0, "")
    for command in ("repack", "status", "cleanup", "uninstall", "demo"):
        assert command in out
        assert run(command, option)[0] == 0
    assert "Exit status: 0 done" in run("repack", option)[1]


def test_version(run: Run) -> None:
    for option in ("-V", "--version"):
        assert run(option) == (0, f"pglean, version {pglean.__version__}\n", "")


# ---- a run


def test_a_run_in_a_process_of_its_own(stage: Stage, run: Run) -> None:
    status, out, err = in_process("repack", "-t", "items")
    assert status == 0, err
    assert stage.repacked
    # The result on one stream, progress on the other; neither is a terminal, so both are lines.
    assert "public.items" in out
    assert "heap items" in out
    assert "index items_pkey" in out
    assert "rows counted in the table and in its copy" in out
    assert all(line.startswith("pglean: public.items: ") for line in err.splitlines())
    assert "pglean: public.items: copying" in err
    assert "\x1b" not in out + err
    stage.check()


def test_json(stage: Stage, run: Run) -> None:
    status, out, err = run("repack", "-t", "items", "--json")
    assert status == 0
    assert "pglean: public.items: swapping" in err
    (result,) = json.loads(out)
    assert result["status"] == "done"
    assert result["table"] == "public.items"
    assert result["bytes_after"] < result["bytes_before"]
    assert result["rows"] == stage.db.scalar("SELECT count(*) FROM items")
    assert list(result["phases"])[-1] == "cleaning"
    assert result["exclusive_lock_ms"] > 0


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet(stage: Stage, run: Run, option: str) -> None:
    assert run("repack", "-t", "items", option) == (0, "", "")
    assert stage.repacked


def test_elevel(stage: Stage, run: Run) -> None:
    assert run("repack", "-t", "items", "-E", "warning") == (0, "", "")
    assert "copying" in run("repack", "-t", "items", "--elevel", "DEBUG")[2]
    assert run("repack", "-t", "items", "-E", "chatty")[0] == 2


def test_options_arrive(stage: Stage, run: Run) -> None:
    given = {
        "jobs": ("-j", 3),
        "wait_timeout_s": ("-T", 7.5),
        "max_lock_ms": ("--max-lock-time", 700),
        "lock_timeout_ms": ("--lock-timeout", 70),
        "chunk_ms": ("--chunk-time", 77),
        "verify": ("--verify", "full"),
    }
    arguments = [str(part) for pair in given.values() for part in pair]
    assert run("repack", "-q", "-t", "items", *arguments, "-Z", "-D")[0] == 0
    expected = {name: value for name, (_, value) in given.items()}
    assert options_of_last_run(stage).items() >= {**expected, "kill_backend": False, "analyze": False}.items()


def test_options_of_waiting_arrive(stage: Stage, run: Run) -> None:
    given: dict[str, tuple[str, str | None, Any]] = {
        "hold": ("--hold", None, True),
        "swap_window": ("--swap-window", "2:00-04:30", "02:00-04:30"),
        "mvcc_safe": ("--mvcc-safe", None, True),
        "keep": ("--keep", None, True),
        "max_lag_bytes": ("--max-lag", "64MB", 64 << 20),
        "max_load": ("--max-load", "7", 7),
        "max_lock_waits": ("--max-lock-waits", "0", 0),
        "max_wal_rate_bytes": ("--max-wal-rate", "1.5GB", 3 << 29),
        "min_free_bytes": ("--min-free", "0", 0),
    }
    arguments = [part for option, value, _ in given.values() for part in (option, value) if part is not None]

    def fail() -> None:
        raise RuntimeError("enough")

    # Before it waits for any of that; the row of what was undone stays.
    with pausepoint.intercept("phase: capturing", fail):
        assert run("repack", "-q", "-t", "items", *arguments, "--lag-of", "one", "--lag-of", "two")[0] == 1
        expected = {name: value for name, (_, _, value) in given.items()}
        stored = options_of_last_run(stage)
        assert {name: stored[name] for name in expected} == expected
        assert (stored["lag_standbys"], stored["max_lag_s"]) == (["one", "two"], None)
        assert run("repack", "-q", "-t", "items", "--max-lag", "10s")[0] == 1
    stored = options_of_last_run(stage)
    assert (stored["max_lag_s"], stored["max_lag_bytes"], stored["min_free_bytes"]) == (10, None, 1 << 30)
    assert (stored["hold"], stored["keep"], stored["mvcc_safe"], stored["swap_window"]) == (False, False, False, None)
    stage.check()


def test_options_of_the_new_files_arrive(stage: Stage, run: Run) -> None:
    def fail() -> None:
        raise RuntimeError("enough")

    def stored(*arguments: str) -> dict[str, Any]:
        with pausepoint.intercept("phase: capturing", fail):
            assert run("repack", "-q", "-t", "items", *arguments)[0] == 1
        return options_of_last_run(stage)

    given = stored("-o", "amount DESC", "-s", "pg_default", "-S", "--compression", "pglz", "--fillfactor", "70")
    assert (given["order_by"], given["cluster"], given["compression"]) == ("amount DESC", True, "pglz")
    assert (given["tablespace"], given["move_indexes"], given["fillfactor"]) == ("pg_default", True, 70)
    # As with pg_repack.
    given = stored("-o", "amount", "-n", "--access-method", "heap", "--no-error-on-invalid-index")
    assert (given["order_by"], given["cluster"]) == (None, False)
    assert (given["access_method"], given["invalid_indexes"]) == ("heap", "rebuild")
    assert stored("--invalid-indexes", "drop", "--error-on-invalid-index")["invalid_indexes"] == "drop"
    for arguments, message in (
        (["-S"], "--moveidx (-S) needs --tablespace (-s)"),
        (["--fillfactor", "5"], "invalid value for option --fillfactor: 5"),
        (["-s", ""], "invalid value for option --tablespace: it is empty"),
        (["--no-error-on-invalid-index", "--error-on-invalid-index"], "exclude each other"),
    ):
        status, _, err = run("repack", "-t", "items", *arguments)
        assert status == 2
        assert message in err


def test_no_analyze(stage: Stage, run: Run) -> None:
    for option, expected in (("-Z", False), ("-q", True)):
        reached: list[bool] = []
        with pausepoint.intercept("analyze", partial(reached.append, True)):
            assert run("repack", "-t", "items", option)[0] == 0
        assert bool(reached) == expected


def test_verify_none(stage: Stage, run: Run) -> None:
    status, out, _ = run("repack", "-t", "items", "--verify", "none")
    assert status == 0
    assert "before the swap" not in out


@pytest.mark.parametrize("option", ["-N", "--dry-run"])
def test_dry_run(stage: Stage, run: Run, option: str) -> None:
    status, out, err = run("repack", "-t", "items", option)
    assert (status, err) == (0, "")
    assert "public.items would be repacked" in out
    assert "heap items" in out
    assert "disk space needed" in out
    (plan,) = json.loads(run("repack", "-t", "items", option, "--json")[1])
    assert plan["status"] == "planned"
    assert plan["key"] == ["id"]
    assert set(plan["indexes"]) == {"items_pkey", "items_code_key", "items_amount_idx"}
    assert plan["disk_bytes_needed"] == plan["total_bytes"] == stage.db.scalar("SELECT pg_total_relation_size('items')")
    assert not stage.repacked
    assert stage.db.scalar("SELECT to_regnamespace('pglean')") is None


def test_echo(stage: Stage, run: Run) -> None:
    status, out, err = in_process("repack", "-t", "items", "-e", "-q")
    assert (status, out) == (0, "")
    for statement in ('LOCK TABLE ONLY "public"."items" IN ACCESS EXCLUSIVE MODE', "CREATE TRIGGER", "COMMIT"):
        assert statement in err


# ---- which tables


def test_several_tables(stage: Stage, run: Run) -> None:
    for name in ("one", '"Two, Too"', '"it""s"', '"it\'s"', '"[red]x[/red]"', '"100%"'):
        table(stage, name)
    stage.db.execute('CREATE SCHEMA "My Schema"; ALTER TABLE one SET SCHEMA "My Schema"')
    status, out, err = run(
        "repack", "-q", "-t", '"Two, Too", "it""s"', "-t", "\"it's\"", "--table", '"[red]x[/red]",items', "-t",
        '"My Schema".one', "-t", '"100%"', "--json",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert [result["table"] for result in json.loads(out)] == [
        'public."Two, Too"',
        'public."it""s"',
        'public."it\'s"',
        'public."[red]x[/red]"',
        "public.items",
        '"My Schema".one',
        'public."100%"',
    ]
    status, out, err = run("repack", "-t", '"[red]x[/red]"')
    assert status == 0
    assert '"[red]x[/red]"' in out
    assert '"[red]x[/red]"' in err


def test_several_tables_at_once(stage: Stage, run: Run) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        table(stage, name)
    status, out, err = run(
        "repack", "--tables-at-once", "3", "-j", "1", "-t", "absent", "-t", ",".join(names), "--json"
    )
    assert status == 9
    results = json.loads(out)
    assert [result["table"] for result in results] == ["absent", *(f"public.{name}" for name in names)]
    assert [result["status"] for result in results] == ["failed", *["done"] * len(names)]
    for name in names:
        assert f"pglean: public.{name}: swapping" in err


def test_more_connections_than_there_are(stage: Stage, run: Run) -> None:
    for name in "abcdefgh":
        table(stage, name)
    status, out, err = run("repack", "--tables-at-once", "9", "-j", "64", "-t", "items", "-t", "a,b,c,d,e,f,g,h")
    assert (status, out) == (3, "")
    assert "needs 612 connections" in err
    assert "or tables at once" in err
    assert not stage.repacked


def test_same_table_twice_is_done_once(stage: Stage, run: Run) -> None:
    assert len(json.loads(run("repack", "-q", "-t", "items,items", "-t", "items", "--json")[1])) == 1
    # What refuses it is told, once.
    stage.db.execute("CREATE TABLE bare ()")
    status, _, err = run("repack", "-t", "bare,bare")
    assert status == 3
    assert "has no column" in err


def test_some_of_several_refused(stage: Stage, run: Run) -> None:
    stage.db.execute("CREATE TABLE bare (); CREATE VIEW overview AS SELECT 1")
    status, out, err = run("repack", "-q", "-t", "bare,items,overview,absent")
    assert (status, out) == (9, "")
    assert stage.repacked
    assert "pglean: error: 3 of 4 tables were not repacked" in err
    for line in (
        "DETAIL:  bare: public.bare has no column",
        "overview: public.overview is a view, not a table",
        'absent: relation "absent" does not exist',
    ):
        assert line in err
    status, out, err = run("repack", "-q", "-t", "bare,items", "--json")
    assert status == 9
    refused, done = json.loads(out)
    assert (refused["status"], refused["exit_status"], done["status"]) == ("failed", 3, "done")
    assert refused["findings"][0]["code"] == "no-column"


# ---- exit statuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repack", "-t", ""], "no table was named"),
        (["repack", "-t", "items", "-I", " , "], "no parent table was named"),
        (["repack", "-c", ""], "no schema was named"),
        (["repack", "-C", ""], "no extension was named"),
        (["repack", "-t", "absent"], 'relation "absent" does not exist'),
        (["repack", "-t", "a.b.c.d"], "invalid table name: a.b.c.d"),
        (["repack", "-t", "items", "-j", "0"], "invalid value for option --jobs: 0"),
        (["repack", "-t", "items", "-j", "two"], "'two' is not a valid integer"),
        (["repack", "-t", "items", "--max-lock-time", "1"], "invalid value for option --max-lock-time: 1"),
        (["repack", "-t", "items", "--lock-timeout", "0"], "invalid value for option --lock-timeout: 0"),
        (["repack", "-t", "items", "--chunk-time", "1"], "invalid value for option --chunk-time: 1"),
        (["repack", "-t", "items", "-T", "-1"], "invalid value for option --wait-timeout: -1"),
        (["repack", "-t", "items", "-T", "nan"], "invalid value for option --wait-timeout: nan"),
        (["repack", "-t", "items", "--verify", "twice"], "'twice' is not one of"),
        (["repack", "-t", "items", "-D", "--kill-backend"], "exclude each other"),
        (["repack", "-t", "items", "-d", "one", "two"], "two databases were named"),
        (["repack", "-t", "items", "nonsense=1"], "invalid connection parameters"),
        (["repack", "-h"], "requires an argument"),
        (["repack", "--nonsense"], "No such option"),
        (["nonsense"], "No such command"),
        (["repack", "-t", "items", "--max-lag", "soon"], "invalid value for option --max-lag: soon"),
        (["repack", "-t", "items", "--max-lag", "-1s"], "invalid value for option --max-lag: -1s"),
        (["repack", "-t", "items", "--max-load", "-1"], "invalid value for option --max-load: -1"),
        (["repack", "-t", "items", "--max-lock-waits", "-1"], "invalid value for option --max-lock-waits: -1"),
        (["repack", "-t", "items", "--max-wal-rate", "fast"], "invalid value for option --max-wal-rate: fast"),
        (["repack", "-t", "items", "--min-free", "1EB"], "invalid value for option --min-free: 1EB"),
        (["cleanup", "-T", "-1"], "invalid value for option --wait-timeout: -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(stage: Stage, run: Run, arguments: list[str], message: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not stage.repacked


def test_status_1_where_something_unexpected_fails(stage: Stage, run: Run) -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    with pausepoint.intercept("copy: in a chunk", fail):
        status, out, err = run("repack", "-q", "-t", "items")
    assert (status, out) == (1, "")
    assert "pglean: error: unexpected error: RuntimeError('boom')" in err
    stage.check()


def test_status_3_where_preflight_refuses(stage: Stage, run: Run) -> None:
    stage.db.execute("CREATE UNLOGGED TABLE bare ()")
    status, out, err = run("repack", "-t", "bare")
    assert (status, out) == (3, "")
    assert "cannot be repacked for 2 reasons" in err
    assert "has no column" in err
    assert "is an unlogged table" in err
    assert stage.db.scalar("SELECT to_regnamespace('pglean')") is None


def test_status_4_where_the_lock_is_not_to_be_had(stage: Stage, run: Run) -> None:
    with stage.db.connect(application_name="blocker") as blocker:
        blocker.execute("BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE")
        arguments = ("repack", "-q", "-t", "items", "-T", "0.2", "--lock-timeout", "20")
        for more in ((), ("-D",), ("--no-kill-backend",)):
            status, out, err = run(*arguments, *more)
            assert (status, out) == (4, "")
            assert re.search(r"could not lock table public.items within 0\.\d s\n", err)
            assert f"Blocked by pid {blocker.info.backend_pid} (postgres, blocker, idle in transaction" in err
        blocker.execute("COMMIT")
        stage.check()

        # Only who asks for it gets others out of his way.
        blocker.execute("BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE")
        status, out, err = run(*arguments, "--kill-backend")
        assert (status, out) == (0, "")
        # Who it was is told, however quiet the run is to be.
        who = f"pid {blocker.info.backend_pid} (postgres, blocker, idle in transaction)"
        for line, verb in zip(err.splitlines(), ("cancelled", "terminated"), strict=True):
            assert line == f"pglean: public.items: {verb} {who}, which was in the way of the SHARE ROW EXCLUSIVE lock"
        with pytest.raises(psycopg.errors.AdminShutdown):
            blocker.execute("COMMIT")
    assert stage.repacked
    stage.check()


def test_status_5_where_the_server_is_out_of_reach(run: Run, tmp_path: Path) -> None:
    for command in (["repack", "-t", "items"], ["status"], ["cleanup"], ["uninstall"]):
        status, out, err = run(*command, "-h", str(tmp_path))
        assert (status, out) == (5, "")
        assert "pglean: error: " in err
    assert run("status", "absent database")[0] == 5


def test_status_5_where_the_connection_is_lost(stage: Stage, run: Run) -> None:
    def terminate() -> None:
        for pid in stage.sessions():
            stage.db.scalar("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    table(stage, "other")
    with pausepoint.intercept("phase: copying", terminate):
        status, out, err = run("repack", "-q", "-t", "items", "--json")
        assert status == 5
        assert [result["status"] for result in json.loads(out)] == ["failed"]
        assert "connection to the server was lost" in err
        (kept,) = stage.status()
        assert f"What was done is kept: `pglean resume {kept.id} -d {stage.db.name}` continues, " in err
        # With a server that is not there, the others are not even begun.
        status, out, err = run("repack", "-q", "-t", "items,other")
        assert (status, out) == (9, "")
        assert "other: not begun" in err
        (run_, other) = json.loads(run("repack", "-q", "--json", "-t", "items,other")[1])
        assert (run_["exit_status"], run_["job"]) == (5, kept.id)
        assert (other["exit_status"], other["message"]) == (5, "not begun: the run before it was ended")
    assert [(run.id, run.state) for run in stage.status()] == [(kept.id, "paused")]
    stage.write()
    stage.settle("resume")
    stage.check()


def test_status_6_where_the_table_is_changed(stage: Stage, run: Run) -> None:
    with pausepoint.intercept("phase: ready", lambda: stage.db.execute("ALTER TABLE items ADD COLUMN late int")):
        status, out, err = run("repack", "-q", "-t", "items")
    assert (status, out) == (6, "")
    assert "table public.items was changed by another session" in err
    assert "DETAIL:  Changed: columns." in err
    assert err.endswith(" What was begun is undone.\n")
    assert stage.status() == []
    assert not stage.repacked


def test_status_7_where_the_verification_fails(stage: Stage, run: Run) -> None:
    def lose_a_row() -> None:
        job = stage.db.scalar("SELECT max(id) FROM pglean.job")
        stage.db.execute(f"DELETE FROM pglean.shadow_{job} WHERE id = 8")

    with pausepoint.intercept("phase: verifying", lose_a_row):
        status, out, err = run("repack", "-q", "-t", "items")
    assert (status, out) == (7, "")
    assert "verification of public.items failed" in err
    assert "Nothing was swapped" in err
    # Kept to be looked at: whoever resumes it meets the same difference.
    (kept,) = stage.status()
    assert kept.state == "paused"
    assert f"`pglean abort {kept.id} -d {stage.db.name}` undoes it." in err
    assert run("resume", "-q", str(kept.id))[0] == 7
    stage.write()
    assert run("abort", str(kept.id))[0] == 0
    stage.check()
    assert not stage.repacked


def test_status_8_where_interrupted(stage: Stage, run: Run) -> None:
    table(stage, "other")
    before = signal.getsignal(signal.SIGTERM)
    with pausepoint.intercept("copy: in a chunk", lambda: os.kill(os.getpid(), signal.SIGTERM)):
        status, out, err = run("repack", "-q", "-t", "items,other", "--json")
    assert status == 8
    assert [result["message"] for result in json.loads(out)] == [
        "interrupted by SIGTERM",
        "not begun: the run before it was ended",
    ]
    assert err.count("interrupted by SIGTERM") == 2
    assert "pglean: error: interrupted by SIGTERM\nDETAIL:  items: interrupted by SIGTERM\n" in err
    assert "\nother: not begun: the run before it was ended\nHINT:  What was begun is undone; " in err
    assert signal.getsignal(signal.SIGTERM) is before
    stage.check()


# ---- status, cleanup, uninstall


def test_nothing_to_do_is_said(stage: Stage, run: Run) -> None:
    assert run("status") == (0, "no run is in progress, none has left anything\n", "")
    assert run("status", "--json") == (0, "[]\n", "")
    assert run("cleanup") == (0, "nothing to clean up\n", "")
    assert run("cleanup", "--json") == (0, "[]\n", "")
    assert run("uninstall") == (0, "there is no schema pglean\n", "")


def test_status_of_running_and_interrupted(stage: Stage, run: Run) -> None:
    arguments = ["repack", "-q", "-t", "items", stage.db.conninfo]
    with Client(arguments, ["phase: verifying"]) as client:
        client.await_line("phase: verifying")
        status, out, err = run("status")
        assert (status, err) == (0, "")
        assert "public.items  running, verifying\n" in out
        (found,) = json.loads(run("status", "--json")[1])
        assert found["state"] == "running"
        assert found["phase"] == "verifying"
        assert found["table"] == "items"
        assert found["shadow_bytes"] > 0

        status, out, err = run("uninstall")
        assert (status, out) == (1, "")
        assert "1 run is not over" in err
        client.kill()
    stage.deserted()
    assert "interrupted" in run("status")[1]
    (found,) = json.loads(run("status", "--json")[1])
    assert found["state"] == "interrupted"
    assert run("uninstall")[0] == 1
    status, out, err = run("cleanup", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == [{"job": found["id"], "table": "public.items", "remains": []}]
    stage.check()
    assert run("uninstall") == (0, "schema pglean dropped\n", "")
    assert stage.db.scalar("SELECT to_regnamespace('pglean')") is None


def test_a_schema_of_somebody_else_is_left_alone(stage: Stage, run: Run) -> None:
    stage.db.execute("CREATE SCHEMA pglean; CREATE TABLE pglean.precious (n int)")
    for command, expected in (("status", 1), ("cleanup", 1), ("uninstall", 1), ("repack", 3)):
        status, out, err = run(command, *(["-t", "items"] if command == "repack" else []))
        assert (status, out) == (expected, "")
        assert 'there is a schema "pglean" that is not ours' in err
    assert stage.db.scalar("SELECT count(*) FROM pglean.precious") == 0


def test_ordinary_roles_are_told_what_is_missing(stage: Stage, run: Run) -> None:
    stage.db.execute("DROP ROLE IF EXISTS nobody_special; CREATE ROLE nobody_special LOGIN")
    assert run("repack", "-q", "-t", "items")[0] == 0
    status, out, err = run("repack", "-t", "items", "-U", "nobody_special")
    assert (status, out) == (3, "")
    assert 'role "nobody_special" is not a superuser' in err
    commands = ("status", "log", "cleanup", "uninstall", "resume", "resume 1", "pause 1", "swap 1", "abort 1")
    for command in commands:
        status, out, err = run(*command.split(), "-U", "nobody_special")
        assert (status, out) == (3, "")
        assert err.startswith('pglean: error: permission denied for schema pglean: role "nobody_special" is not a')
        assert "HINT:  Connect as a superuser (-U)" in err
    stage.db.execute("DROP SCHEMA pglean CASCADE")
    told = {}
    for command in commands:
        status, out, err = run(*command.split(), "-U", "nobody_special")
        told[command] = (status, out or err.splitlines()[0])
    nowhere = (2, "pglean: error: there is no run 1 that is not over")
    assert told == {
        "status": (0, "no run is in progress, none has left anything\n"),
        "log": (0, "no run is over yet\n"),
        "cleanup": (0, "nothing to clean up\n"),
        "uninstall": (0, "there is no schema pglean\n"),
        "resume": (2, "pglean: error: no run is paused or interrupted"),
        "resume 1": (2, "pglean: error: there is no run 1 to be resumed"),
        **dict.fromkeys(("pause 1", "swap 1", "abort 1"), nowhere),
    }


# ---- connections


def test_connection_by_options(stage: Stage, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    db = stage.db
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name)
    where = ["-h", str(db.server.socket_dir), "-p", str(db.server.port), "-U", "postgres"]
    uri = f"postgresql://postgres@127.0.0.1:{db.server.port}/{db.name}"
    for connection in (
        [*where, "-d", db.name],
        [*where, "--dbname", db.name, "-w"],
        [*where, "--no-password", db.name],
        ["--host", "127.0.0.1", "--port", str(db.server.port), "--username", "postgres", db.name],
        [db.conninfo],
        ["-d", db.conninfo],
        [uri],
        ["-d", uri],
        # As with psql, options win over what the URI says.
        [uri.replace("postgres@", "nobody@"), "-U", "postgres"],
    ):
        assert run("status", *connection) == (0, "no run is in progress, none has left anything\n", "")
    assert run("repack", "-q", "-t", "items", uri) == (0, "", "")
    assert stage.repacked


def test_connection_by_service(stage: Stage, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    services = tmp_path / "pg_service.conf"
    lines = [
        "[shop]",
        f"host={stage.db.server.socket_dir}",
        f"port={stage.db.server.port}",
        f"dbname={stage.db.name}",
        "user=postgres",
    ]
    services.write_text("\n".join(lines) + "\n")
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    assert run("status", "service=shop")[0] == 0
    monkeypatch.setenv("PGSERVICE", "shop")
    assert run("status")[0] == 0
    assert run("status", "service=absent")[0] in {2, 5}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Database]:
    """A server that asks for a password."""
    if not SERVERS:
        pytest.fail("no PostgreSQL server to test with")
    with EmbeddedServer(list(SERVERS.values())[-1]) as server:
        db = Database(server, "postgres")
        db.execute(f"SET password_encryption = 'scram-sha-256'; CREATE ROLE admin SUPERUSER LOGIN PASSWORD '{_SECRET}'")
        db.execute("CREATE TABLE items (id int PRIMARY KEY)")
        (server.datadir / "pg_hba.conf").write_text("local all postgres trust\nhost all all all scram-sha-256\n")
        db.execute("SELECT pg_reload_conf()")
        yield db
        db.close()


@pytest.fixture
def ask(guarded: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for that server, without the password; the environment has nothing to add."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGPASSFILE", os.devnull)
    return ["-h", "127.0.0.1", "-p", str(guarded.server.port), "-U", "admin", "-d", "postgres"]


def hidden(guarded: Database, *texts: str) -> None:
    """The password is in none of these, nor in the server's log."""
    for text in (*texts, guarded.server.log_path.read_text(errors="replace")):
        assert _SECRET not in text
        assert "sesame" not in text


def test_password_from_a_file(
    guarded: Database, ask: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:*:*:admin:{_SECRET}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    status, out, err = in_process("repack", "-t", "items", "-e", *ask)
    assert status == 0, err
    assert "CREATE TRIGGER" in err
    hidden(guarded, out, err)


def test_password_from_environment_and_uri(guarded: Database, ask: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"postgresql://admin:{_SECRET.replace('%', '%25').replace(' ', '%20')}@127.0.0.1:{ask[3]}/postgres"
    status, out, err = in_process("repack", "-t", "items", "-e", "--json", uri)
    assert status == 0, err
    hidden(guarded, out, err)
    monkeypatch.setenv("PGPASSWORD", _SECRET)
    assert in_process("repack", "-t", "items", "-q", *ask) == (0, "", "")


def test_missing_or_wrong_password(guarded: Database, ask: list[str]) -> None:
    for option in ([], ["-w"]):
        status, out, err = in_process("status", *option, *ask)
        assert (status, out) == (5, "")
        assert "no password supplied" in err
    for uri in (
        "postgresql://admin:sesame@127.0.0.1:{}/postgres",
        # None of these is understood.
        "postgresql://admin:sesame%zz@127.0.0.1:{}/postgres",
        "postgresql://admin:sesame@127.0.0.1:{}:sesame/postgres",
        "user=admin password='sesame port={}",
        "user=admin password sesame port={}",
    ):
        for more in ([], ["-d", uri.format(ask[3])]):
            status, out, err = in_process("status", uri.format(ask[3]), *more)
            assert status in {2, 5}
            assert "Traceback" not in err
            hidden(guarded, out, err)


def test_password_asked_for_on_a_terminal(guarded: Database, ask: list[str]) -> None:
    for option in ([], ["-W"], ["--password"]):
        status, shown = terminal.run(["status", *option, *ask], answers={"Password:": _SECRET})
        assert status == 0, shown
        assert "no run is in progress" in shown
        hidden(guarded, shown)
    status, shown = terminal.run(["status", "-w", *ask])
    assert status == 5
    assert "Password:" not in shown
    status, shown = terminal.run(["status", *ask], answers={"Password:": "sesame"})
    assert status == 5
    hidden(guarded, shown)


# ---- the live display


def test_live_display(stage: Stage, run: Run) -> None:
    name = '"[red]x[/red] Ä"'
    table(stage, name)
    status, shown = terminal.run(["repack", "-t", name])
    assert status == 0, shown
    assert "repacking " in shown
    assert "copying" in shown
    assert "\x1b[" in shown
    assert f"public.{name}" in shown
    assert "exclusive lock" in shown
    status, shown = terminal.run(["repack", "-t", name, "-t", "items", "-N"])
    assert status == 0
    assert f"public.{name} would be repacked" in shown
    status, shown = terminal.run(["repack", "-q", "-t", name])
    assert (status, shown) == (0, "")


def test_errors_on_a_terminal(stage: Stage, run: Run) -> None:
    stage.db.execute('CREATE TABLE "[bold]bare[/bold]" ()')
    status, shown = terminal.run(["repack", "-t", '"[bold]bare[/bold]"'])
    assert status == 3
    assert 'pglean: error: public."[bold]bare[/bold]" has no column' in shown


def test_status_on_a_terminal(stage: Stage, run: Run) -> None:
    table(stage, '"[red]x[/red]"')
    with Client(["repack", "-q", "-t", '"[red]x[/red]"', stage.db.conninfo], ["phase: verifying"]) as client:
        client.await_line("phase: verifying")
        status, shown = terminal.run(["status"])
        assert status == 0
        assert "[red]x" in shown
        assert "running" in shown
