"""The command line where something else goes wrong than the run: streams, names, passwords, what came before it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import terminal
from tests.support.command import Run, in_process, table
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


# ---- whoever is in the way


def test_kill_backend_says_whom_it_met(stage: Stage, run: Run) -> None:
    stage.db.execute("BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE; PREPARE TRANSACTION 'it''s prepared'")
    blocker = stage.db.connect(application_name="blocker")
    blocker.execute("BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE")
    try:
        status, _, err = run("repack", "-q", "-t", "items", "-T", "0.2", "--lock-timeout", "20", "--kill-backend")
    finally:
        stage.db.execute("ROLLBACK PREPARED 'it''s prepared'")
    assert status == 4
    # All of the three steps were waited for.
    assert (waited := re.search(r"could not lock table public.items within (\d\.\d) s\n", err))
    assert float(waited[1]) >= 0.6
    who = f"pid {blocker.info.backend_pid} \\(postgres, blocker, idle in transaction\\)"
    assert re.search(f"Blocked by prepared transaction 'it''s prepared' .* Cancelled {who}. Terminated {who}.\n", err)
    assert "HINT:  End the prepared transaction: COMMIT PREPARED 'it''s prepared' or ROLLBACK" in err
    assert "--kill-backend" not in err
    stage.check()


# ---- one table by two names


def test_a_table_by_two_names_is_done_once(stage: Stage, run: Run) -> None:
    table(stage, '"Other"')
    names = ("items", "public.items", '"Other", public . "items"', "absent", '"public"."Other"', "a.b.c.d")
    arguments = [part for name in names for part in ("-t", name)]
    status, out, err = run("repack", "-q", *arguments, "--json")
    assert status == 9
    assert [result["table"] for result in json.loads(out)] == ["public.items", 'public."Other"', "absent", "a.b.c.d"]
    assert "2 of 4 tables were not repacked" in err
    status, out, err = run("repack", "-q", "-t", "items,public.items", "--json")
    assert (status, len(json.loads(out)), err) == (0, 1, "")


# ---- what is shown


def test_debug_shows_each_lock(stage: Stage, run: Run) -> None:
    err = run("repack", "-q", "-t", "items", "-E", "DEBUG")[2]
    for mode in ("ACCESS SHARE", "SHARE ROW EXCLUSIVE", "ACCESS EXCLUSIVE"):
        assert re.search(f"^public.items: {mode} lock after \\d+ ms$", err, re.MULTILINE)
        assert re.search(f"^public.items: {mode} lock released after \\d+ ms$", err, re.MULTILINE)
    with stage.db.connect() as blocker:
        blocker.execute("BEGIN; LOCK TABLE items IN ROW EXCLUSIVE MODE")
        err = run("repack", "-q", "-t", "items", "-E", "debug", "-T", "0.1", "--lock-timeout", "20")[2]
    assert re.search(r"^public.items: no SHARE ROW EXCLUSIVE lock within \d+ ms$", err, re.MULTILINE)
    # Nothing of it stays for the next.
    assert run("repack", "-q", "-t", "items") == (0, "", "")


def test_singular_and_plural(stage: Stage, run: Run) -> None:
    stage.db.execute("CREATE TABLE single (id int PRIMARY KEY); INSERT INTO single VALUES (1)")
    status, out, _ = run("repack", "-t", "single")
    assert status == 0
    assert "\n1 row counted in the table and in its copy before the swap\n" in out
    assert "; 0 changes taken over" in out
    assert "\n4. build the index\n" in run("repack", "-t", "single", "-N")[1]
    assert "\n4. build 3 indexes, 2 at a time\n" in run("repack", "-t", "items", "-N")[1]
    stage.db.execute("CREATE VIEW overview AS SELECT 1 AS n")
    for name, message in (
        ("overview", "public.overview is a view, not a table"),
        ("single_pkey", "public.single_pkey is an index, not a table"),
        ("pglean.job", "pglean.job is a table of pglean itself"),
        ("pg_catalog.pg_class", "pg_catalog.pg_class is a system catalog"),
    ):
        assert f"pglean: error: {message}\n" in run("repack", "-t", name)[2]


def test_dry_run_says_where_space_is_needed(stage: Stage, run: Run) -> None:
    out = run("repack", "-t", "items", "-N")[1]
    assert "disk space needed: up to " in out
    assert "tablespace" not in out
    (plan,) = json.loads(run("repack", "-t", "items", "-N", "--json")[1])
    assert plan["disk_bytes_by_tablespace"] == {"": plan["disk_bytes_needed"]}


def test_rows_that_nobody_counted(stage: Stage, run: Run) -> None:
    (result,) = json.loads(run("repack", "-q", "-t", "items", "--verify", "none", "--json")[1])
    assert (result["verify"], result["rows"]) == ("none", None)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-j", "0"], 2, "invalid value for option --jobs: 0"),
        (["--swap-window", "noon"], 2, "invalid value for option --swap-window: noon"),
        (["-D", "--kill-backend"], 2, "--kill-backend and --no-kill-backend exclude each other"),
        (["-d", "one", "two"], 2, "two databases were named"),
        (["nonsense=1"], 2, "invalid connection parameters"),
        (["-d", "absent"], 5, 'database "absent" does not exist'),
        (["-h", "/nowhere"], 5, "No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_json_of_what_comes_before_the_first_table(
    stage: Stage, run: Run, arguments: list[str], status: int, message: str
) -> None:
    found, out, err = run("repack", "-t", "items,other", "--json", *arguments)
    assert found == status
    assert message in err
    results: list[dict[str, Any]] = json.loads(out)
    assert [result["table"] for result in results] == ["items", "other"]
    for result in results:
        assert (result["status"], result["exit_status"]) == ("failed", status)
        assert message in result["message"]
    (result,) = json.loads(run("repack", "-t", "", "--json")[1])
    assert (result["table"], result["exit_status"], result["message"]) == (None, 2, "no table was named")


# ---- passwords that nobody gives


def test_no_password_to_be_had(stage: Stage, run: Run) -> None:
    def told(status: int, shown: str) -> None:
        assert status == 2
        assert "pglean: error: no password was given" in shown
        assert "Traceback" not in shown
        assert "GetPassWarning" not in shown

    status, out, err = in_process("status", "-W")
    told(status, err)
    assert out == ""
    # A closed standard input.
    command = [sys.executable, "-m", "pglean", "status", "-W"]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command],
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
        timeout=60,
    )
    told(closed.returncode, closed.stderr)
    # Ctrl-D.
    told(*terminal.run(["status", "-W"], answers={"Password:": "\x04"}))
    # Without a terminal it is read from standard input, and is not shown.
    status, out, err = in_process("status", "-W", stdin="sesame\n")
    assert (status, out) == (0, "no run is in progress, none has left anything\n")
    assert "sesame" not in err


# ---- streams that take nothing


@needs_full
def test_report_on_a_full_disk(stage: Stage, run: Run) -> None:
    table(stage, "other")
    for more in ([], ["--json"], ["-N"], ["-N", "--json"]):
        before, other = stage.file, stage.db.scalar("SELECT pg_relation_filenode('other')")
        with FULL.open("wb") as full:
            status, _, err = in_process("repack", "-t", "items,other", *more, stdout=full)
        assert status == 1
        assert err.endswith("pglean: error: could not write to standard output: No space left on device\n")
        assert "Exception" not in err
        if "-N" not in more:
            assert stage.file != before
            assert stage.db.scalar("SELECT pg_relation_filenode('other')") != other
            assert stage.db.scalar("SELECT state FROM pglean.job ORDER BY id DESC LIMIT 1") == "done"
    for command in (["status"], ["status", "--json"], ["--help"]):
        with FULL.open("wb") as full:
            status, _, err = in_process(*command, stdout=full)
        assert status == 1
        assert "could not write to standard output" in err
    # Nothing was to be written; and an error keeps its own status.
    with FULL.open("wb") as full:
        assert in_process("repack", "-q", "-t", "items", stdout=full) == (0, "", "")
        assert in_process("repack", "-q", "-t", "absent", "--json", stdout=full)[0] == 2
    stage.check()


def test_report_that_nobody_reads(stage: Stage, run: Run) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        status, _, err = in_process("repack", "-t", "items", stdout=pipe)
    assert status == 1
    assert err.endswith("pglean: error: could not write to standard output: Broken pipe\n")
    assert stage.repacked
    command = [sys.executable, "-m", "pglean", "repack", "-t", "items"]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, text=True, check=False, timeout=60
    )
    assert closed.returncode == 1
    assert closed.stderr.endswith("pglean: error: could not write to standard output: Bad file descriptor\n")
    stage.check()


@needs_full
def test_progress_that_cannot_be_written(stage: Stage, run: Run) -> None:
    for more in ([], ["-e"], ["-E", "DEBUG"]):
        before = stage.file
        with FULL.open("wb") as full:
            status, out, _ = in_process("repack", "-t", "items", *more, stderr=full)
        assert status == 0
        assert "heap items" in out
        assert stage.file != before
        # An error has its status also where it cannot be told.
        with FULL.open("wb") as full:
            assert in_process("repack", "-t", "absent", *more, stderr=full)[:2] == (2, "")
    command = [sys.executable, "-m", "pglean", "repack", "-t", "items"]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, text=True, check=False, timeout=60
    )
    assert closed.returncode == 0
    assert "heap items" in closed.stdout
    stage.check()


# ---- characters that a stream or a locale has not


def test_names_that_the_output_cannot_show(stage: Stage, run: Run) -> None:
    table(stage, '"Käse"')
    environment = {"PYTHONIOENCODING": "ascii"}
    status, out, err = in_process("repack", "-t", '"Käse"', environment=environment)
    assert status == 0, err
    assert 'public."K\\xe4se"' in out
    assert 'public."K\\xe4se": copying' in err
    # Frames are drawn with what there is.
    assert "heap K\\xe4se" in out
    assert "\\u" not in out
    assert in_process("repack", "-t", '"Käse"', "-N", environment=environment)[0] == 0


def test_names_in_a_locale_without_them(stage: Stage, run: Run) -> None:
    table(stage, '"Käse"')
    for environment in ({"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}):
        status, out, err = in_process("repack", "-t", '"Käse"'.encode(), "--json", environment=environment)
        assert status == 0, err
        assert json.loads(out)[0]["table"] == 'public."Käse"'


def test_names_that_are_no_utf8(stage: Stage, run: Run) -> None:
    name = b'"K\xe4se"'
    status, out, err = in_process("repack", "-t", name)
    assert (status, out) == (2, "")
    assert 'pglean: error: invalid table name: "K\\udce4se"\nDETAIL:  It is not valid UTF-8.\n' in err
    status, out, err = in_process("repack", "-t", name, "-t", "items", "--json")
    assert status == 2
    assert [result["status"] for result in json.loads(out)] == ["failed", "failed"]
    for option in ("-d", "-h", "-U", "-p"):
        status, out, err = in_process("status", option, b"K\xe4se")
        assert (status, out) == (2, "")
        assert "Traceback" not in err
        assert "It is not valid UTF-8." in err
