"""`pglean pause`, `resume`, `swap` and `abort`: a run, steered from another terminal."""

from __future__ import annotations

import json
from typing import Any

import click

from pglean.api import Database
from pglean.cli.connection import connection_options, interruptible, open_database
from pglean.cli.display import console, progress_display
from pglean.errors import LockNotObtained, UsageError
from pglean.report import result_summary

_JOB = click.argument("job", type=int)
_JSON = click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")


def _tell(job: int, state: str, text: str, *, as_json: bool) -> None:
    click.echo(json.dumps({"job": job, "state": state}) if as_json else f"job {job}: {text}")


@click.command("pause", short_help="Stop a run, keeping what it has done.")
@_JOB
@connection_options
@click.option(
    "-T", "--wait-timeout", type=float, metavar="SECS", default=3600.0, show_default=True, help="How long to wait."
)
@_JSON
def pause_command(job: int, wait_timeout: float, as_json: bool, **connection: Any) -> None:
    """Stop run JOB after what it has begun (a chunk, an index), and wait for that; `pglean resume` continues.

    What is written to the table is recorded meanwhile, so nothing is lost; `pglean status` says what that costs.
    """
    database = open_database(**connection)
    with interruptible(database):
        database.pause(job, wait_s=wait_timeout)
    _tell(job, "paused", f"paused; {database.server.command(f'resume {job}')} continues", as_json=as_json)


@click.command("swap", short_help="Let a run that holds swap.")
@_JOB
@connection_options
@_JSON
def swap_command(job: int, as_json: bool, **connection: Any) -> None:
    """Let run JOB swap, which was told to --hold or to wait for its --swap-window; returns at once."""
    open_database(**connection).swap(job)
    _tell(job, "asked", "asked to swap", as_json=as_json)


@click.command("abort", short_help="Undo a run.")
@_JOB
@connection_options
@click.option(
    "-T", "--wait-timeout", type=float, metavar="SECS", default=60.0, show_default=True, help="How long to wait."
)
@_JSON
def abort_command(job: int, wait_timeout: float, as_json: bool, **connection: Any) -> None:
    """Undo run JOB, whether anybody works on it or not; one that had swapped already is finished."""
    database = open_database(**connection)
    with interruptible(database):
        state, remains = database.abort(job, wait_s=wait_timeout)
    texts = {
        "undone": "undone, the table is as it was",
        "done": "it had swapped already: the table is repacked, and what was left is removed",
    }
    if remains:
        raise LockNotObtained(
            "not everything could be removed",
            detail=f"job {job}: {'; '.join(remains)}",
            hint=f"Run {database.server.command('cleanup')} when those sessions have ended.",
        )
    _tell(job, state, texts.get(state, state), as_json=as_json)


@click.command("resume", short_help="Go on with a run that was paused or interrupted.")
@click.argument("job", required=False)
@connection_options
@click.option(
    "-T", "--wait-timeout", type=float, metavar="SECS", help="How long to try for a lock; as it was begun by default."
)
@click.option(
    "--kill-backend/--no-kill-backend",
    default=None,
    help="After --wait-timeout cancel, later terminate, who holds the lock; or nobody.",
)
@_JSON
@click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
def resume_command(
    job: str | None,
    wait_timeout: float | None,
    kill_backend: bool | None,
    as_json: bool,
    quiet: bool,
    **connection: Any,
) -> None:
    """Go on with run JOB; without JOB, with the one that is paused or interrupted.

    With the options it was begun with, but for those that are given here.

    Exit status: as of `pglean repack`.
    """
    if job is not None and not job.isdecimal():
        # A single argument that is no number is the database.
        if connection["dbname"] is not None:
            raise UsageError(f"invalid job: {job}", hint="`pglean status` lists them by number.")
        connection["dbname"], job = job, None
    database = open_database(**connection)
    number = _only(database) if job is None else int(job)
    err = console(stderr=True)
    with interruptible(database), progress_display(err, progress=not quiet) as on_progress:
        result = database.resume(
            number, wait_timeout_s=wait_timeout, kill_backend=kill_backend, on_progress=on_progress
        )
    if result is None:
        _tell(number, "done", "it had swapped already; what was left is removed", as_json=as_json)
    elif as_json:
        click.echo(json.dumps(result.as_json(), indent=2, default=str))
    elif not quiet:
        console().print(result_summary(result))


def _only(database: Database) -> int:
    """The one run that nobody works on. Raises `UsageError` where there is none, or several."""
    server = database.server
    waiting = [run for run in database.status() if run.state in ("paused", "interrupted")]
    if not waiting:
        raise UsageError(
            "no run is paused or interrupted",
            hint=f"{server.command('status')} lists runs that are not over, {server.command('log')} the others.",
        )
    if len(waiting) > 1:
        raise UsageError(
            f"{len(waiting)} runs are paused or interrupted",
            detail="; ".join(f"{run.id}: {run.schema}.{run.table}, {run.state}" for run in waiting),
            hint=f"Name one: {server.command('resume JOB')}.",
        )
    return waiting[0].id
