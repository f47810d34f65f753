"""`pglean advise`: options, exit statuses, what is said on which stream."""

from __future__ import annotations

import json
import re

import pytest

from pglean import horizon
from tests.support import terminal
from tests.support.command import Run
from tests.support.oracle import until
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


@pytest.fixture(autouse=True)
def tables(stage: Stage) -> None:
    with stage.db.connect() as session:
        session.execute(
            """
            CREATE TABLE "[red] Table" (id int PRIMARY KEY) WITH (autovacuum_enabled = off);
            INSERT INTO "[red] Table" SELECT generate_series(1, 20000);
            CREATE TABLE fine (id int);
            INSERT INTO fine SELECT generate_series(1, 1000);
            """
        )
    with stage.db.connect() as session:
        session.execute('DELETE FROM "[red] Table" WHERE id % 10 > 1')
    # A session tells its counters when it ends: after a VACUUM they would count rows as dead that it has removed.
    deleted = (
        "SELECT max(n_tup_del) = 16000 AND sum(n_tup_ins) = 21000 FROM pg_stat_user_tables WHERE relname ~ 'Table|fine'"
    )
    until(lambda: stage.db.scalar(deleted), "the rows are counted")
    with stage.db.connect() as session:
        session.execute('VACUUM ANALYZE "[red] Table"')
        session.execute("VACUUM ANALYZE fine")
    done = (
        "SELECT bool_and(n_dead_tup = 0 AND last_analyze IS NOT NULL) AND max(n_tup_del) = 16000"
        " FROM pg_stat_user_tables WHERE relname IN ('[red] Table', 'fine')"
    )
    until(lambda: stage.db.scalar(done), "that is counted")


def test_text(stage: Stage, run: Run) -> None:
    status, out, err = run("advise", "--min-gain", "100kB")
    assert (status, err) == (0, "")
    assert '   1.  repack: public."[red] Table"\n' in out
    assert re.search(r"^  why  \d+ kB of \S+ MB would be given back \(method: estimate\); of ", out, re.MULTILINE)
    assert f"""   do  pglean repack -d {stage.db.name} -t 'public."[red] Table"'\n""" in out
    assert re.search(
        r"^costs  about 0\.1 s, an estimate; \d+ kB of disk space meanwhile; reading and ", out, re.MULTILINE
    )
    assert "autovacuum is switched off for this table" in out
    assert re.search(r"^of 4 tables looked at 1 needs nothing", out, re.MULTILINE), out
    assert "\x1b" not in out
    status, out, err = run("advise", "-t", "fine")
    assert (status, err) == (0, "")
    assert "   1.  nothing to do: public.fine\n" in out
    assert out.endswith("nothing to do: of 1 table looked at none needs anything\n")
    _, out, _ = run("advise", "--min-gain", "100kB", "--top", "1")
    assert re.search(r"\n\d actions are not listed here, --top N lists more\n$", out), out
    status, shown = terminal.run(["advise", "-d", stage.db.conninfo, "--min-gain", "100kB"])
    assert status == 0
    assert "repack" in shown
    assert all(len(line) <= 140 for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines())


def test_json(stage: Stage, run: Run) -> None:
    status, out, err = run("advise", "--json", "--min-gain", "100kB", "-t", "fine", "-t", '"[red] Table"')
    assert (status, err) == (0, "")
    said = json.loads(out)
    assert said["database"] == stage.db.name
    repack = said["actions"][0]
    assert repack["kind"] == "repack"
    assert repack["table"] == 'public."[red] Table"'
    assert repack["gain_bytes"] > 100_000
    assert repack["seconds"] >= 0
    assert repack["commands"] == [repack["command"]]
    assert said["actions"][-1] == {
        "kind": "nothing",
        "table": "public.fine",
        "urgent": False,
        "reason": said["actions"][-1]["reason"],
        "command": None,
        "commands": [],
        "seconds": None,
        "disk_bytes": 0,
        "locks": None,
        "gain": None,
        "gain_bytes": 0,
        "notes": [],
    }
    assert (said["looked_at"], said["nothing_to_do"], said["unknown"]) == (2, 1, 0)
    assert said["horizon"] == said["ages"] == said["vacuums"] == said["warnings"] == []


def test_a_name_that_cannot_be_shown(stage: Stage, run: Run) -> None:
    """The command of a name in which something was replaced would be another one's."""
    stage.db.execute('ALTER TABLE "[red] Table" RENAME TO "two\nlines"')
    _, out, _ = run("advise", "--min-gain", "100kB")
    assert '   1.  repack: public."two\N{REPLACEMENT CHARACTER}lines"\n' in out
    assert "   do  take the command from --json: a name in it has characters that cannot be shown\n" in out
    assert not re.search("^ +do .*\N{REPLACEMENT CHARACTER}", out, re.MULTILINE)
    commands = [
        action["command"] for action in json.loads(run("advise", "--json", "--min-gain", "100kB")[1])["actions"]
    ]
    assert any("""-t 'public."two\nlines"'""" in (command or "") for command in commands)


def test_the_horizon(stage: Stage, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon.Holder, "lasts", lambda holder, long_s=0: holder.age_transactions > 0)
    with stage.db.connect(autocommit=False, application_name="[red] report") as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT '[bold]\x1b[2J'")
        stage.db.execute("SELECT pg_current_xact_id()")
        status, out, _ = run("advise", "-t", "fine")
        assert status == 0
        assert "the vacuum horizon is held by" in out
        assert f"pid {reader.info.backend_pid} (postgres, [red] report, idle in transaction" in out
        assert "SELECT '[bold]\N{REPLACEMENT CHARACTER}[2J'" in out
        (holder,) = json.loads(run("advise", "--json")[1])["horizon"]
        assert (holder["kind"], holder["pid"]) == ("session", reader.info.backend_pid)
        assert holder["end"] == f"SELECT pg_terminate_backend({reader.info.backend_pid});"
        assert holder["since"]
        assert holder["keeps"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "absent"), 'relation "absent" does not exist'),
        (("-c", "absent"), "no schema matches absent"),
        (("--min-gain", "much"), "invalid value for option --min-gain: much"),
        (("--min-size", "big"), "invalid value for option --min-size: big"),
        (("-t", "items", "-c", "public"), "--schema (-c) and the names of tables (-t, -I) exclude each other"),
    ],
)
def test_usage(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run("advise", *arguments)
    assert (status, out) == (2, "")
    assert f"pglean: error: {message}" in err


def test_methods(run: Run) -> None:
    status, out, err = run("advise", "--method", "exact")
    assert (status, out) == (3, "")
    assert "method exact is not to be had" in err
    status, out, err = run("advise", "-c", "public", "--method", "auto", "--min-size", "100kB", "--min-gain", "100kB")
    assert status == 0
    assert "of 3 tables looked at" in out
