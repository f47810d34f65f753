"""`pglean check`: as a monitor calls it, which knows of four exit statuses and one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.command import Outcome, Run, in_process
from tests.support.oracle import until
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

_ODD = "it's \"=|\n[red]"
_LINE = re.compile(r"PGLEAN (OK|WARNING|CRITICAL|UNKNOWN) - ([^|\n]*)(?: \| ([^|\n]*))?")
#: As the guidelines for such plugins have it: 'label'=value[unit];[warning];[critical];[least];[most].
_DATUM = re.compile(r"'((?:[^'=|]|'')+)'=(U|-?[\d.]+)(%|B|)((?:;[\d.]*){0,4})(?: |$)")


@pytest.fixture(autouse=True)
def tables(stage: Stage) -> None:
    name = '"' + _ODD.replace('"', '""') + '"'
    with stage.db.connect() as session:
        session.execute(
            f"""
            CREATE TABLE half (id int) WITH (autovacuum_enabled = off);
            INSERT INTO half SELECT generate_series(1, 40000);
            CREATE TABLE {name} (LIKE half) WITH (autovacuum_enabled = off);
            INSERT INTO {name} TABLE half;
            DELETE FROM half WHERE id % 5 < 2;
            DELETE FROM {name} WHERE id % 5 > 0;
            CREATE TABLE unknown (id int) WITH (autovacuum_enabled = off);
            INSERT INTO unknown SELECT generate_series(1, 10000);
            """.encode()
        )
        session.execute(f"VACUUM half, {name}".encode())
    # By another session: what that one has counted is told when it ends.
    with stage.db.connect() as session:
        session.execute(f"ANALYZE items, half, {name}".encode())


def said(outcome: Outcome, state: str, status: int) -> tuple[str, dict[str, str]]:
    """The text of the first line, and the performance data by their labels; nothing is on standard error."""
    assert (outcome[0], outcome[2]) == (status, "")
    first, *details = outcome[1].splitlines()
    line = _LINE.fullmatch(first)
    assert line is not None, first
    assert line[1] == state
    assert not any("|" in detail for detail in details)
    data, perfdata = {}, line[3] or ""
    while perfdata:
        datum = _DATUM.match(perfdata)
        assert datum is not None, perfdata
        data[datum[1]] = f"{datum[2]}{datum[3]}{datum[4]}"
        perfdata = perfdata[datum.end() :]
    return line[2], data


def test_states(run: Run) -> None:
    text, data = said(run("check", "-t", "half", "--warning", "50%", "--critical", "60%"), "OK", 0)
    assert "none is too bloated, of 1 table, 1.4 MB; first public.half: " in text
    assert data["tables"] == "1;;;0"
    assert re.fullmatch(r"(39|40)\.\d\d%;50;60;0;100", data["public.half bloat"])
    assert re.fullmatch(r"\d{6}B;;;0;\d{7}", data["public.half gain"])
    text, data = said(run("check", "-t", "half", "-t", "items", "--warning", "35%"), "WARNING", 1)
    assert text.startswith("1 WARNING, of 2 tables, ")
    assert re.fullmatch(r"(39|40)\.\d\d%;35;50;0;100", data["most bloated"])
    text, data = said(run("check", "--min-size", "1MB"), "CRITICAL", 2)
    assert text.startswith("1 CRITICAL, 1 WARNING, of ")
    assert "smaller left out" in text
    # Of the whole database only what does not change its labels.
    common = {"tables", "warning", "critical", "unknown", "most bloated", "largest gain"}
    assert set(data) == common | {"total bloat", "total gain", "total size"}
    text, data = said(run("check", "-t", "half", "--warning", "100kB", "--critical", "10GB"), "WARNING", 1)
    assert data["largest gain"].endswith("B;102400;10737418240;0")
    assert data["public.half gain"].split(";")[1:3] == ["102400", "10737418240"]
    assert data["public.half bloat"].split(";")[1:3] == ["", ""]


def test_odd_names(run: Run) -> None:
    status, out, _ = outcome = run("check", "-t", '"' + _ODD.replace('"', '""') + '"')
    said(outcome, "CRITICAL", 2)
    assert status == 2
    assert "'public.\"it''s \"\"__ [red]\" bloat'=" in out
    assert 'CRITICAL: public."it\'s ""=_ [red]": ' in out


def test_what_is_not_known(stage: Stage, run: Run) -> None:
    text, data = said(run("check", "-t", "unknown"), "UNKNOWN", 3)
    assert "public.unknown: 360 kB, of which nothing is known" in text
    assert data["public.unknown bloat"] == "U;30;50;0;100"
    # Something worse was found.
    text, data = said(run("check", "-t", "unknown", "-t", "half"), "WARNING", 1)
    assert text.startswith("1 WARNING, 1 UNKNOWN, of 2 tables")
    assert data["unknown"] == "1;;;0"
    # However bloated, that would not be too much; and what is left out does not count.
    said(run("check", "-t", "unknown", "--warning", "1MB", "--critical", "1GB"), "OK", 0)
    text, _ = said(run("check"), "OK", 0)
    assert "there is none to be looked at" in text
    # All of them together.
    text, data = said(run("check", "-t", "half", "-t", "unknown", "--total"), "WARNING", 1)
    assert data["total bloat"].split(";")[1:3] == ["30", "50"]
    assert "of 360 kB nothing is known" in text
    said(run("check", "-t", "half", "-t", "unknown", "--total", "--warning", "45%"), "UNKNOWN", 3)
    said(run("check", "-t", "half", "-t", "unknown", "--total", "--warning", "60%", "--critical", "60%"), "OK", 0)
    # A closer look knows more.
    said(run("check", "-t", "unknown", "--method", "auto"), "OK", 0)


def test_json(stage: Stage, run: Run) -> None:
    status, out, err = run("check", "-t", "half", "-t", "unknown", "--json")
    assert (status, err) == (1, "")
    answer = json.loads(out)
    assert (answer["status"], answer["exit_status"], answer["database"]) == ("WARNING", 1, stage.db.name)
    half, unknown = answer["tables"]
    assert (half["table"], half["status"]) == ("public.half", "WARNING")
    assert half["bloat"] == pytest.approx(0.4, abs=0.02)
    assert (unknown["status"], unknown["gain_bytes"]) == ("UNKNOWN", None)
    status, out, err = run("check", "--json", "-t", "absent")
    assert (status, err) == (3, "")
    answer = json.loads(out)
    assert (answer["status"], answer["message"]) == ("UNKNOWN", 'relation "absent" does not exist')
    status, out, _ = run("check", "--json", "--nonsense")
    assert (status, json.loads(out)["status"]) == (3, "UNKNOWN")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nonsense",), "No such option"),
        (("-t",), "requires an argument"),
        (("--method", "guess"), "'guess' is not one of"),
        (("--warning", "30"), "invalid value for option --warning: 30"),
        (("--warning", "60%"), "--warning 60% is above --critical 50%"),
        (("--min-size", "big"), "invalid value for option --min-size: big"),
        (("one", "two"), "unexpected extra argument"),
        (("-t", "absent"), 'relation "absent" does not exist'),
        (("-t", "items_pkey"), "items_pkey: there is no table that holds rows"),
        (("-c", "absent"), "no schema matches absent"),
        (("-d", "absent"), 'database "absent" does not exist'),
        (("-h", "/nowhere"), "No such file or directory"),
        (("-U", "nobody|else"), 'role "nobody_else" does not exist'),
        (("--method", "exact"), "method exact is not to be had: the extension pgstattuple is not installed"),
    ],
)
def test_whatever_goes_wrong_is_unknown(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = outcome = run("check", *arguments)
    assert (status, err) == (3, "")
    assert message.lower() in out.lower()
    said(outcome, "UNKNOWN", 3)


def test_it_does_not_wait_for_ever(stage: Stage, run: Run) -> None:
    # Who has the catalog for himself keeps everybody waiting, also whoever connects.
    with stage.db.connect() as other, other.transaction():
        other.execute("LOCK TABLE pg_statistic IN ACCESS EXCLUSIVE MODE")
        begun = time.monotonic()
        text, _ = said(run("check", "--timeout", "0.5"), "UNKNOWN", 3)
        assert text == "no answer within 0.5 s"
        assert time.monotonic() - begun < 5
    said(run("check"), "OK", 0)


def test_a_monitor_that_ends_it(stage: Stage, run: Run) -> None:
    looking = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pglean bloat' AND wait_event_type = 'Lock'"
    )

    def end() -> None:
        until(lambda: stage.db.scalar(looking) == 1, "it looks at the tables")
        os.kill(os.getpid(), signal.SIGTERM)

    with stage.db.connect() as other, other.transaction():
        other.execute("LOCK TABLE pg_statistic_ext_data IN ACCESS EXCLUSIVE MODE")
        watcher = threading.Thread(target=end)
        watcher.start()
        try:
            text, _ = said(run("check"), "UNKNOWN", 3)
        finally:
            watcher.join()
    assert text == "interrupted by SIGTERM"


def test_a_role_that_may_not_look(stage: Stage, run: Run) -> None:
    stage.db.execute("CREATE ROLE monitor LOGIN")
    try:
        text, _ = said(run("check", "-U", "monitor", "-t", "half", "-t", "items"), "UNKNOWN", 3)
        assert text.startswith("2 UNKNOWN, of 2 tables")
        assert "the role may not read the table" in run("check", "-U", "monitor", "-t", "half")[1]
    finally:
        stage.db.execute("DROP ROLE monitor")


def test_help_is_no_failure(run: Run) -> None:
    status, out, _ = run("check", "--help")
    assert status == 0
    assert "Exit status: 0 OK, 1 WARNING, 2 CRITICAL," in out


def test_nobody_listens() -> None:
    with Path("/dev/full").open("wb") as full:
        assert in_process("check", "-h", "/nowhere", stdout=full)[0] == 3


_HANGS = """
import sys, threading
import psycopg
from pglean import cli

def hang(*_, **__):
    # As a name server that does not answer: an exception of a signal's handler does not end it.
    while True:
        try:
            threading.Event().wait(60)
        except Exception:
            pass

psycopg.Connection.connect = hang
sys.exit(cli.run(sys.argv[1:]))
"""


def test_what_cannot_be_ended_is_unknown_in_time_as_well() -> None:
    command = [sys.executable, "-c", _HANGS, "check", "--timeout", "0.2", "-h", "nowhere", "-d", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (3, "PGLEAN UNKNOWN - no answer within 0.2 s")
