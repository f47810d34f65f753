"""Runs that are steered from another terminal: held, paused, gone on with, aborted, watched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

import pglean
from pglean import pausepoint
from pglean.errors import UsageError
from pglean.rewrite.status import ways_on
from tests.servers import Database
from tests.support import terminal
from tests.support.client import Client
from tests.support.command import Run
from tests.support.oracle import until
from tests.support.play import Background
from tests.support.points import COMMITTED
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


def begun(stage: Stage, *options: str, stop_at: str | None = None, name: str = "items") -> Client:
    """`pglean repack` in a process of its own."""
    return Client(["repack", "-q", "-t", name, *options, stage.db.conninfo], [] if stop_at is None else [stop_at])


def ready(stage: Stage) -> int:
    """Wait until the run waits for its swap, and says so; returns its number."""
    until(lambda: [run.state for run in stage.status()] == ["ready"], "the copy is ready")
    (run,) = stage.status()
    until(lambda: bool(stage.status()[0].progress.get("waiting_for")), "it says what it waits for")
    return run.id


@contextlib.contextmanager
def held(stage: Stage, *options: str) -> Iterator[tuple[Client, int]]:
    """A run that has come to all but the swap, and its number."""
    with begun(stage, "--hold", *options) as client:
        yield client, ready(stage)


def left(stage: Stage, point: str = "phase: ready", name: str = "items") -> int:
    """Leave what a killed run leaves; returns its number."""
    with begun(stage, stop_at=point, name=name) as client:
        client.await_line(point)
        client.kill()
    stage.deserted()
    return stage.status()[-1].id


def kept(stage: Stage, run: Run, name: str = "items") -> int:
    """Leave a run that is paused; returns its number."""
    with begun(stage, "--keep", stop_at="phase: catching up", name=name) as client:
        client.await_line("phase: catching up")
        client.signal(signal.SIGTERM)
        assert client.wait() == 8, client.stderr
    stage.deserted()
    found = stage.status()[-1]
    assert found.state == "paused"
    return found.id


# ---- hold, swap


def test_hold_and_swap(stage: Stage, run: Run) -> None:
    with held(stage) as (client, job):
        status, out, err = run("status")
        assert (status, err) == (0, "")
        assert f"job {job}: public.items  ready\n" in out
        assert f"waiting for {stage.typed(f'swap {job}')}" in out
        stage.write()
        assert stage.file == stage.first_file
        assert run("swap", str(job)) == (0, f"job {job}: asked to swap\n", "")
        assert client.wait() == 0, client.stderr
    assert stage.repacked
    stage.check()


def test_swap_asked_for_before_it_is_ready(stage: Stage, run: Run) -> None:
    with begun(stage, "--hold", stop_at="copy: before a chunk") as client:
        client.await_line("copy: before a chunk")
        (found,) = stage.status()
        status, out, err = run("swap", "--json", str(found.id))
        assert (status, json.loads(out), err) == (0, {"job": found.id, "state": "asked"}, "")
        assert "  asked to swap\n" in run("status")[1]
        client.go_on()
        assert client.wait() == 0, client.stderr
    assert stage.repacked
    stage.check()


def test_swap_window(stage: Stage, run: Run) -> None:
    begin = datetime.now().astimezone() + timedelta(hours=6)
    window = f"{begin:%H:%M}-{begin + timedelta(minutes=1):%H:%M}"
    with begun(stage, "--swap-window", window) as client:
        job = ready(stage)
        assert f"waiting for the time of the swap, {window}" in run("status")[1]
        assert run("swap", str(job))[0] == 0
        assert client.wait() == 0, client.stderr
    assert stage.repacked
    stage.check()


def test_swap_window_that_is_open(stage: Stage, run: Run) -> None:
    now = datetime.now().astimezone()
    window = f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=1):%H:%M}"
    assert run("repack", "-q", "-t", "items", "--swap-window", window) == (0, "", "")
    assert stage.repacked
    stage.check()


@pytest.mark.parametrize("window", ["", "night", "02:00", "02:00-02:00", "25:00-26:00", "02:60-03:00", "00:00-24:00"])
def test_swap_window_that_is_none(stage: Stage, run: Run, window: str) -> None:
    status, out, err = run("repack", "-t", "items", "--swap-window", window)
    assert (status, out) == (2, "")
    assert f"pglean: error: invalid value for option --swap-window: {window}" in err
    assert "HINT:  Give two times of the day, e.g. 02:00-04:00" in err
    assert stage.db.scalar("SELECT to_regnamespace('pglean')") is None


# ---- pause, resume


def test_pause_and_resume(stage: Stage, run: Run) -> None:
    with held(stage) as (client, job):
        assert run("pause", str(job)) == (
            0,
            f"job {job}: paused; `pglean resume {job} -d {stage.db.name}` continues\n",
            "",
        )
        assert client.wait() == 8
        assert f"pglean: error: run {job} was paused\nHINT:  What was done is kept: " in client.stderr
        assert f"{ways_on(job, stage.typed)}." in client.stderr
    stage.write()
    status, out, _ = run("status")
    assert status == 0
    assert f"job {job}: public.items  paused, ready" in out
    assert f"  run {job} was paused\n" in out
    assert f"  `pglean resume {job} -d {stage.db.name}` continues, " in out
    # It did when it was held.
    assert "waiting" not in out
    assert json.loads(run("status", "--json")[1])[0]["progress"]["waiting_for"] == ""
    # What was written meanwhile is recorded, which costs something.
    assert json.loads(run("status", "--json")[1])[0]["changes_bytes"] > 0
    # What it was asked for it has done: asked again, there is nothing to wait for.
    assert run("pause", str(job))[0] == 0

    # With the options that it was begun with: it holds again.
    with Client(["resume", str(job), stage.db.conninfo], []) as client:
        assert ready(stage) == job
        assert run("swap", str(job))[0] == 0
        assert client.wait() == 0, client.stderr
        assert "exclusive lock" in client.stdout
        assert f"pglean: public.items: goes on with run {job}, which had come to ready" in client.stderr
    assert stage.repacked
    stage.check()


def test_pause_waits_no_longer_than_it_is_told_to(stage: Stage, run: Run) -> None:
    with begun(stage, "--hold", stop_at="phase: ready") as client:
        client.await_line("phase: ready")
        (found,) = stage.status()
        status, out, err = run("pause", str(found.id), "-T", "0.1")
        assert (status, out) == (4, "")
        assert f"pglean: error: a session still works on run {found.id}" in err
        assert "in phase ready" in err
        # It is still asked.
        assert "  asked to pause\n" in run("status")[1]
        client.go_on()
        assert client.wait() == 8
    assert [each.state for each in stage.status()] == ["paused"]
    stage.settle("abort")
    stage.check()


def test_resume_as_json(stage: Stage, run: Run) -> None:
    job = left(stage)
    stage.write()
    status, out, err = run("resume", str(job), "--json", "-q")
    # That there was something to go on with is told, however quiet it is to be.
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert (result["status"], result["job"], result["table"]) == ("done", job, "public.items")
    assert stage.repacked
    stage.check()


def test_resume_says_what_it_does(stage: Stage, run: Run) -> None:
    job = left(stage)
    status, out, err = run("resume", str(job))
    assert status == 0
    assert "public.items" in out
    assert "exclusive lock" in out
    assert f"goes on with run {job}, which had come to ready" in err
    assert "pglean: public.items: swapping" in err
    assert "copying" not in err
    stage.check()


def test_resume_without_a_number(stage: Stage, run: Run) -> None:
    status, out, err = run("resume")
    assert (status, out) == (2, "")
    assert "pglean: error: no run is paused or interrupted\nHINT:  " in err
    others = Stage(stage.db, "others")
    first = left(stage)
    second = kept(stage, run, "others")
    status, out, err = run("resume")
    assert (status, out) == (2, "")
    assert "pglean: error: 2 runs are paused or interrupted\n" in err
    assert f"DETAIL:  {first}: public.items, interrupted; {second}: public.others, paused\n" in err
    assert f"HINT:  Name one: `pglean resume JOB -d {stage.db.name}`.\n" in err
    stage.write()
    assert run("resume", "-q", str(first))[:2] == (0, "")
    assert stage.repacked
    # One is left.
    others.write()
    assert run("resume", "-q")[:2] == (0, "")
    assert others.repacked
    assert run("resume")[0] == 2
    stage.check()
    others.check()


def test_resume_of_the_only_run_of_a_database_that_is_named(
    stage: Stage, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATABASE", "absent")
    for arguments in ([stage.db.name], ["-d", stage.db.name], [stage.db.conninfo]):
        before = stage.file
        job = left(stage)
        assert run("resume", "-q", *arguments)[:2] == (0, "")
        assert stage.file != before
        assert [each[0] for each in stage.db.fetchall("SELECT state FROM pglean.job WHERE id = %s", (job,))] == ["done"]
    stage.check()


def test_resume_with_a_run_beside_it(stage: Stage, run: Run) -> None:
    """One that somebody works on is not among those to choose from."""
    others = Stage(stage.db, "others")
    left(others, name="others")
    with begun(stage, stop_at="phase: ready") as client:
        client.await_line("phase: ready")
        assert run("resume", "-q")[:2] == (0, "")
        assert others.repacked
        client.go_on()
        assert client.wait() == 0, client.stderr
    stage.check()
    others.check()


def test_resume_of_what_had_swapped(stage: Stage, run: Run) -> None:
    for more, expected in (
        ([], "job {}: it had swapped already; what was left is removed\n"),
        (["--json"], '{{"job": {}, "state": "done"}}\n'),
    ):
        file = stage.file
        job = left(stage, COMMITTED)
        assert run("resume", *more, str(job)) == (0, expected.format(job), "")
        assert stage.file != file
        stage.check()


def test_repack_goes_on_with_a_paused_run(stage: Stage, run: Run) -> None:
    job = kept(stage, run)
    stage.write()
    status, out, err = run("repack", "-t", "items", "--json", "--verify", "full")
    assert status == 0
    assert f"pglean: public.items: goes on with run {job}, which had come to catching up\n" in err
    (result,) = json.loads(out)
    # With the options of this one.
    assert (result["job"], result["verify"]) == (job, "full")
    assert "copying" not in result["phases"]
    stage.check()


def test_dry_run_leaves_a_paused_run_alone(stage: Stage, run: Run) -> None:
    job = kept(stage, run)
    assert run("repack", "-t", "items", "-N")[0] == 0
    assert [(each.id, each.state) for each in stage.status()] == [(job, "paused")]
    stage.settle("resume")
    stage.check()


# ---- keep


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_keep(stage: Stage, run: Run, number: signal.Signals) -> None:
    with begun(stage, "--keep", stop_at="phase: catching up") as client:
        client.await_line("phase: catching up")
        client.signal(number)
        assert client.wait() == 8
        (found,) = stage.status()
        assert f"pglean: error: interrupted by {number.name}\nHINT:  What was done is kept: " in client.stderr
        assert f"{stage.typed(f'resume {found.id}')} continues" in client.stderr
    assert found.state == "paused"
    stage.write()
    assert run("resume", "-q", str(found.id))[:2] == (0, "")
    assert stage.repacked
    stage.check()


def test_keep_keeps_nothing_that_is_worth_nothing(stage: Stage) -> None:
    with begun(stage, "--keep", stop_at="capture: prepared") as client:
        client.await_line("capture: prepared")
        client.signal(signal.SIGINT)
        assert client.wait() == 8
        assert "there was anything to keep, and was undone" in client.stderr
        assert "pglean resume" not in client.stderr
    assert not stage.repacked
    stage.check()


def test_keep_is_for_interruptions(stage: Stage, run: Run) -> None:
    """What nobody has expected may have spoilt the copy."""

    def fail() -> None:
        raise RuntimeError("boom")

    with pausepoint.intercept("phase: ready", fail):
        status, _, err = run("repack", "-q", "-t", "items", "--keep")
    assert status == 1
    assert "kept" not in err
    assert not stage.repacked
    stage.check()


# ---- abort


def test_abort_of_a_living_run(stage: Stage, run: Run) -> None:
    with held(stage, "--keep") as (client, job):
        stage.write()
        assert run("abort", str(job)) == (0, f"job {job}: undone, the table is as it was\n", "")
        assert client.wait() == 8
        assert f"pglean: error: run {job} was aborted\n" in client.stderr
        # That is not what --keep is about.
        assert "kept" not in client.stderr
    assert not stage.repacked
    stage.check()


def test_abort_waits_no_longer_than_it_is_told_to(stage: Stage, run: Run) -> None:
    with begun(stage, "--hold", stop_at="phase: ready") as client:
        client.await_line("phase: ready")
        (found,) = stage.status()
        client.freeze()
        status, out, err = run("abort", str(found.id), "-T", "0.1")
        assert (status, out) == (4, "")
        assert f"pglean: error: a session still works on run {found.id}" in err
        assert "  asked to abort\n" in run("status")[1]
        client.thaw()
        client.go_on()
        assert client.wait() == 8
    assert not stage.repacked
    stage.check()


@pytest.mark.parametrize("how", ["interrupted", "paused"])
def test_abort_of_a_run_that_nobody_works_on(stage: Stage, run: Run, how: str) -> None:
    job = left(stage) if how == "interrupted" else kept(stage, run)
    stage.write()
    status, out, err = run("abort", "--json", str(job))
    assert (status, json.loads(out), err) == (0, {"job": job, "state": "undone"}, "")
    assert not stage.repacked
    stage.check()


def test_abort_of_what_had_swapped(stage: Stage, run: Run) -> None:
    job = left(stage, COMMITTED)
    told = f"job {job}: it had swapped already: the table is repacked, and what was left is removed\n"
    assert run("abort", str(job)) == (0, told, "")
    assert stage.repacked
    assert stage.db.scalar("SELECT state FROM pglean.job") == "done"
    stage.check()


def test_abort_with_somebody_in_the_way(stage: Stage, run: Run) -> None:
    job = kept(stage, run)
    with stage.db.connect(application_name="reader") as reader:
        reader.execute("BEGIN; SELECT count(*) FROM items")
        status, out, err = run("abort", str(job), "-T", "0.3")
        assert (status, out) == (4, "")
        assert "pglean: error: not everything could be removed\n" in err
        assert f"three triggers without effect on public.items (in use by pid {reader.info.backend_pid}" in err
        assert f"HINT:  Run `pglean cleanup -d {stage.db.name}` when those sessions have ended.\n" in err
        assert [each.state for each in stage.status()] == ["remains"]
        assert f"job {job}: public.items  remains" in run("status")[1]
        stage.write()
        stage.compare()
        # There is nothing to go on with any more.
        assert run("resume")[0] == 2
        reader.execute("COMMIT")
    assert run("abort", str(job)) == (0, f"job {job}: undone, the table is as it was\n", "")
    stage.check()


# ---- which run


@pytest.mark.parametrize("command", ["pause", "resume", "swap", "abort"])
def test_run_that_there_is_not(stage: Stage, run: Run, command: str) -> None:
    def refused(job: int) -> None:
        status, out, err = run(command, str(job))
        assert (status, out) == (2, "")
        assert f"pglean: error: there is no run {job} " in err
        name = stage.db.name
        assert f"`pglean status -d {name}` lists those that are not over, `pglean log -d {name}` the others." in err

    # There is not even a schema.
    refused(1)
    assert stage.db.scalar("SELECT to_regnamespace('pglean')") is None
    assert run("repack", "-q", "-t", "items")[0] == 0
    job = stage.db.scalar("SELECT max(id) FROM pglean.job")
    # It is over.
    refused(job)
    refused(job + 1)
    refused(10**12)
    stage.check()


@pytest.mark.parametrize("command", ["pause", "resume", "swap", "abort"])
@pytest.mark.parametrize("job", ["items", "1.5", "²", ""])
def test_number_that_is_none(run: Run, command: str, job: str) -> None:
    status, out, err = run(command, job, "some database")
    assert (status, out) == (2, "")
    assert (f"invalid job: {job}" if command == "resume" else f"{job!r} is not a valid integer") in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["pause", "swap", "abort"])
def test_number_that_is_missing(run: Run, command: str) -> None:
    status, out, err = run(command)
    assert (status, out) == (2, "")
    assert "Missing argument 'JOB'" in err


@pytest.mark.parametrize("command", ["pause", "swap"])
def test_run_that_nobody_works_on_cannot_be_asked(stage: Stage, run: Run, command: str) -> None:
    job = left(stage)
    status, out, err = run(command, str(job))
    assert (status, out) == (2, "")
    assert f"pglean: error: run {job} is interrupted: nobody works on it" in err
    assert f"`pglean resume {job} -d {stage.db.name}` continues" in err
    stage.settle("abort")
    if command == "swap":
        job = kept(stage, run)
        status, out, err = run(command, str(job))
        assert (status, out) == (2, "")
        assert f"run {job} is paused: nobody works on it" in err
        stage.settle("resume")
    stage.check()


def test_two_runs_on_one_table(stage: Stage, run: Run) -> None:
    with begun(stage, stop_at="copy: before a chunk") as client:
        client.await_line("copy: before a chunk")
        (found,) = stage.status()
        for arguments in (["repack", "-t", "items"], ["repack", "-t", "items", "-N"], ["resume", str(found.id)]):
            status, out, err = run(*arguments)
            assert (status, out) == (3, ""), arguments
            assert "pglean: error: another run of pglean works on public.items" in err
        status, out, _ = run("repack", "-t", "items", "--json")
        assert status == 3
        (refused,) = json.loads(out)
        assert [finding["code"] for finding in refused["findings"]] == ["busy"]
        # Nobody has touched it.
        assert [(each.id, each.state) for each in stage.status()] == [(found.id, "running")]
        client.go_on()
        assert client.wait() == 0, client.stderr
    assert stage.repacked
    stage.check()


def test_two_resume_the_same_run(stage: Stage, run: Run) -> None:
    job = left(stage)
    with Client(["resume", "-q", str(job), stage.db.conninfo], ["phase: ready"]) as client:
        client.await_line("phase: ready")
        status, _, err = run("resume", str(job))
        assert status == 3
        assert "another run of pglean works on public.items" in err
        client.go_on()
        assert client.wait() == 0, client.stderr
    assert stage.repacked
    stage.check()


# ---- status, log, cleanup, uninstall


def test_status_as_json(stage: Stage, run: Run) -> None:
    with held(stage) as (client, job):
        status, out, err = run("status", "--json")
        assert (status, err) == (0, "")
        (found,) = json.loads(out)
        assert {key: found[key] for key in ("id", "schema", "table", "phase", "state", "command", "error")} == {
            "id": job,
            "schema": "public",
            "table": "items",
            "phase": "ready",
            "state": "ready",
            "command": None,
            "error": None,
        }
        assert found["relation"] == stage.oid
        assert found["shadow_bytes"] > 0
        assert 0 <= found["heartbeat_s"] <= found["elapsed_s"]
        assert stage.typed(f"swap {job}") in found["progress"]["waiting_for"]
        assert run("abort", str(job))[0] == 0
        assert client.wait() == 8
    stage.check()


def test_status_watch_on_a_terminal(stage: Stage, run: Run) -> None:
    ctrl_c = "\x03"
    status, shown = terminal.run(["status", "--watch"], answers={"no run is in progress": ctrl_c})
    assert status == 0, shown
    with held(stage) as (client, job):
        status, shown = terminal.run(["status", "--watch"], answers={f"waiting for `pglean swap {job} ": ctrl_c})
        assert status == 0, shown
        assert f"job {job}: public.items" in shown
        assert "Traceback" not in shown
        # Whoever watches can be stopped without harm to what he watches.
        assert [each.state for each in stage.status()] == ["ready"]
        assert run("swap", str(job))[0] == 0
        assert client.wait() == 0, client.stderr
    stage.check()


def watched(*more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pglean", "status", "--watch", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        start_new_session=True,
    )


def test_status_watch_without_a_terminal(stage: Stage, run: Run) -> None:
    with watched("--json") as process:
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline() == "[]\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")


def test_status_watch_that_nobody_reads(stage: Stage, run: Run) -> None:
    """`pglean status --watch | head -1` comes to its end."""
    with watched() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "no run is in progress, none has left anything\n"
        process.stdout.close()
        try:
            assert process.wait(30) == 1
            assert "could not write to standard output: Broken pipe" in process.stderr.read()
        finally:
            process.kill()


def test_log(stage: Stage, run: Run) -> None:
    assert run("log") == (0, "no run is over yet\n", "")
    assert run("log", "--json") == (0, "[]\n", "")
    assert run("repack", "-q", "-t", "items")[0] == 0
    done = stage.db.scalar("SELECT max(id) FROM pglean.job")
    undone = left(stage)
    # It is not over.
    assert len(json.loads(run("log", "--json")[1])) == 1
    assert run("abort", str(undone))[0] == 0

    status, out, err = run("log")
    assert (status, err) == (0, "")
    newest, why, oldest = out.splitlines()
    assert f"job {undone}: public.items  undone in " in newest
    assert why == "  aborted"
    assert f"job {done}: public.items  done in " in oldest
    assert " kB to " in oldest
    assert ", exclusive lock " in oldest

    status, out, _ = run("log", "--json")
    second, first = json.loads(out)
    assert (second["id"], second["state"], second["error"], second["result"]) == (undone, "undone", "aborted", None)
    assert (first["id"], first["state"], first["error"]) == (done, "done", None)
    assert first["result"]["bytes_after"] < first["result"]["bytes_before"]
    assert first["client"].endswith(f":{os.getpid()}")
    assert [each["id"] for each in json.loads(run("log", "-n", "1", "--json")[1])] == [undone]
    assert run("log", "-n", "0")[0] == 2
    stage.check()


def test_cleanup_leaves_paused_runs_alone(stage: Stage, run: Run) -> None:
    others = Stage(stage.db, "others")
    paused = kept(stage, run)
    interrupted = left(stage, name="others")
    told = f"job {paused} on public.items: paused, left alone (--paused undoes it)\n"
    assert run("cleanup") == (0, f"{told}job {interrupted} on public.others: cleaned up\n", "")
    assert run("cleanup", "--json") == (0, "[]\n", told)
    assert [(each.id, each.state) for each in stage.status()] == [(paused, "paused")]
    status, _, err = run("uninstall")
    assert status == 1
    assert "pglean: error: 1 run is not over\n" in err
    assert f"DETAIL:  {paused} on public.items: paused\n" in err
    assert f"`pglean abort JOB -d {stage.db.name}` those that are paused" in err
    stage.write()
    assert run("cleanup", "--paused") == (0, f"job {paused} on public.items: cleaned up\n", "")
    assert run("cleanup", "--paused") == (0, "nothing to clean up\n", "")
    assert not stage.repacked
    stage.check()
    others.check()


def test_cleanup_of_paused_ones_leaves_running_ones_alone(stage: Stage, run: Run) -> None:
    with held(stage) as (client, job):
        told = f"job {job} on public.items: a session works on it, left alone\n"
        assert run("cleanup", "--paused") == (0, told, "")
        assert run("swap", str(job))[0] == 0
        assert client.wait() == 0, client.stderr
    assert stage.repacked
    stage.check()


def test_pause_is_waited_for(stage: Stage, run: Run) -> None:
    """What was begun is finished first; whoever asks is told when it is."""
    with begun(stage, "--hold", stop_at="phase: ready") as client:
        client.await_line("phase: ready")
        (found,) = stage.status()
        with Client(["pause", "--json", str(found.id), stage.db.conninfo], []) as asking:
            until(lambda: stage.status()[0].command == "pause", "the pause was asked for")
            ended = Background(asking.wait)
            client.go_on()
            assert client.wait() == 8
            assert ended.result() == 0, asking.stderr
            assert json.loads(asking.stdout) == {"job": found.id, "state": "paused"}
    stage.settle("abort")
    stage.check()


def test_dry_run_tells_what_the_swap_waits_for(stage: Stage, run: Run) -> None:
    out = run("repack", "-N", "-t", stage.name, "--hold", "--mvcc-safe")[1]
    assert "stay in sync until `pglean swap`" in out
    assert "no older snapshot" in out
    assert "until it is 02:00-04:00" in run("repack", "-N", "-t", stage.name, "--swap-window", "02:00-04:00")[1]


def test_standby(stage: Stage) -> None:
    """What stands there is the primary's: runs are shown, whether they live cannot be known, and none is steered."""
    standby = stage.db.server.standby()
    try:
        standby.start()
        with begun(stage, stop_at="phase: ready") as client:
            client.await_line("phase: ready")
            copy = Database(standby, stage.db.name)
            # Ours commits asynchronously: a later commit brings the WAL along.
            stage.db.scalar("SELECT pg_logical_emit_message(true, 'test', '')")
            until(lambda: bool(copy.scalar("SELECT to_regclass('pglean.job') IS NOT NULL")), "it has the schema")
            until(lambda: copy.scalar("SELECT count(*) FROM pglean.job") == 1, "it has the run")
            with pglean.connect(standby.conninfo(stage.db.name)) as database:
                (run,) = database.status()
                assert run.state == "unknown"
                for steer in (database.resume, database.pause, database.swap, database.abort):
                    with pytest.raises(UsageError, match="standby"):
                        steer(run.id)
                for tidy in (database.cleanup, database.uninstall):
                    with pytest.raises(UsageError, match="standby"):
                        tidy()
            copy.close()
            client.go_on()
            assert client.wait() == 0
    finally:
        standby.close(mode="immediate")
    stage.check()
