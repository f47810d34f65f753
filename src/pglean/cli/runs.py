"""`pglean status`, `log`, `cleanup` and `uninstall`."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import Any

import click
from rich.live import Live
from rich.text import Text

from pglean.api import Database
from pglean.cli.connection import connection_options, interruptible, open_database
from pglean.cli.display import console
from pglean.errors import Interrupted, LockNotObtained
from pglean.options import Options
from pglean.report import log_lines, status_lines

_WATCH_S = 1.0


@click.command("status", short_help="Runs that are not over.")
@connection_options
@click.option("--watch", is_flag=True, help="Go on showing it, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
def status_command(watch: bool, as_json: bool, **connection: Any) -> None:
    """Show runs that are not over: phase, progress, what they wait for, and what they cost meanwhile.

    \b
    running      a process works on it
    ready        the copy is kept in sync; the swap waits
    paused       kept; what is written to the table is recorded
    interrupted  its process is gone; what is written is recorded, if its replication slot is not gone too
    remains      over, but something of it could not be removed
    """
    database = open_database(**connection)
    if not watch:
        _show(database, as_json=as_json)
        return
    with interruptible(database), contextlib.suppress(Interrupted):
        if as_json or not console().is_terminal:
            # Until nobody reads it any more (`streams`), as in `pglean status --watch | head`.
            while getattr(sys.stdout, "error", None) is None:
                _show(database, as_json=as_json)
                database.server.rest(_WATCH_S)
            return
        command = database.server.command
        with Live(console=console(), auto_refresh=False) as live:
            while True:
                found = database.status()
                live.update(status_lines(found, command) if found else Text(_NOTHING), refresh=True)
                database.server.rest(_WATCH_S)


_NOTHING = "no run is in progress, none has left anything"


def _show(database: Database, *, as_json: bool) -> None:
    runs = database.status()
    if as_json:
        click.echo(json.dumps([asdict(run) for run in runs], indent=2, default=str))
        return
    command = database.server.command
    orphans = database.orphans()
    if runs:
        console().print(status_lines(runs, command))
    elif not orphans:
        click.echo(_NOTHING)
    for orphan in orphans:
        click.echo(f"{orphan}: its run is not known any more; {command('cleanup')} drops it")


@click.command("log", short_help="History of runs.")
@connection_options
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="So many at most.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
def log_command(limit: int, as_json: bool, **connection: Any) -> None:
    """Show the latest runs that are over, newest first: what they gave back, or why they were undone."""
    finished = open_database(**connection).log(limit)
    if as_json:
        click.echo(json.dumps([asdict(run) for run in finished], indent=2, default=str))
    elif not finished:
        click.echo("no run is over yet")
    else:
        console().print(log_lines(finished))


@click.command("cleanup", short_help="Undo what interrupted runs have left.")
@connection_options
@click.option(
    "-T",
    "--wait-timeout",
    type=float,
    metavar="SECS",
    default=60.0,
    show_default=True,
    help="How long to try for locks, in all.",
)
@click.option(
    "--lock-timeout",
    type=int,
    metavar="MS",
    default=200,
    show_default=True,
    help="Longest single wait for a lock of a table, for which others queue behind.",
)
@click.option("--paused", is_flag=True, help="Also runs that are kept: paused, or ended by what will pass.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
def cleanup_command(wait_timeout: float, lock_timeout: int, paused: bool, as_json: bool, **connection: Any) -> None:
    """Undo runs that were interrupted; finish those that had swapped already. Running ones are left alone."""
    database = open_database(**connection)
    options = Options(wait_timeout_s=wait_timeout, lock_timeout_ms=lock_timeout)
    with interruptible(database):
        swept = database.cleanup(options, paused=paused)
        left_alone = [run for run in database.status() if run.state != "remains"]
        orphans = database.orphans(drop=True)
    if as_json:
        click.echo(
            json.dumps(
                [{"job": run.id, "table": f"{run.schema}.{run.table}", "remains": remains} for run, remains in swept]
            )
        )
    elif not swept and not left_alone and not orphans:
        click.echo("nothing to clean up")
    for orphan in orphans:
        click.echo(f"{orphan}: dropped, its run is not known any more", err=as_json)
    for run in left_alone:
        # Also one whose client was killed a moment ago: its session ends within seconds.
        why = "paused" if run.state == "paused" else "a session works on it"
        how = " (--paused undoes it)" if run.state == "paused" else ""
        click.echo(f"job {run.id} on {run.schema}.{run.table}: {why}, left alone{how}", err=as_json)
    for run, remains in swept:
        if not as_json and not remains:
            click.echo(f"job {run.id} on {run.schema}.{run.table}: cleaned up")
    left = [f"job {run.id}: {'; '.join(remains)}" for run, remains in swept if remains]
    if left:
        raise LockNotObtained(
            "not everything could be removed",
            detail=" ".join(left),
            hint=f"Run {database.server.command('cleanup')} again when those sessions have ended.",
        )


@click.command("uninstall", short_help="Drop the schema pglean.")
@connection_options
def uninstall_command(**connection: Any) -> None:
    """Drop the schema pglean with the history of runs; refused while a run is in progress or has left something."""
    database = open_database(**connection)
    dropped = database.uninstall()
    click.echo("schema pglean dropped" if dropped else "there is no schema pglean")
    for orphan in database.orphans(drop=True):
        click.echo(f"{orphan}: dropped, its run was not known any more")
