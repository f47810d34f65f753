"""`pglean status`, `cleanup` and `uninstall`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from pglean.cli.connection import connection_options, interruptible, open_database
from pglean.cli.display import console
from pglean.errors import LockNotObtained
from pglean.options import Options
from pglean.report import status_lines


@click.command("status", short_help="Runs in progress and interrupted ones.")
@connection_options
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
def status_command(as_json: bool, **connection: Any) -> None:
    """Show runs in progress, with what they wait for, and what interrupted ones have left."""
    runs = open_database(**connection).status()
    if as_json:
        click.echo(json.dumps([asdict(run) for run in runs], indent=2, default=str))
    elif not runs:
        click.echo("no run is in progress, none has left anything")
    else:
        console().print(status_lines(runs))


@click.command("cleanup", short_help="Undo what interrupted runs have left.")
@connection_options
@click.option("-T", "--wait-timeout", type=float, metavar="SECS", default=60.0, show_default=True)
@click.option("--lock-timeout", type=int, metavar="MS", default=200, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
def cleanup_command(wait_timeout: float, lock_timeout: int, as_json: bool, **connection: Any) -> None:
    """Undo runs that were interrupted; finish those that had swapped already. Running ones are left alone."""
    database = open_database(**connection)
    options = Options(wait_timeout_s=wait_timeout, lock_timeout_ms=lock_timeout)
    with interruptible(database):
        swept = database.cleanup(options)
        claimed = [run for run in database.status() if run.state == "running"]
    if as_json:
        click.echo(
            json.dumps(
                [{"job": run.id, "table": f"{run.schema}.{run.table}", "remains": remains} for run, remains in swept]
            )
        )
    elif not swept and not claimed:
        click.echo("nothing to clean up")
    for run in claimed:
        # Also one whose client was killed a moment ago: its session ends within seconds.
        click.echo(f"job {run.id} on {run.schema}.{run.table}: a session works on it, left alone", err=as_json)
    for run, remains in swept:
        if not as_json and not remains:
            click.echo(f"job {run.id} on {run.schema}.{run.table}: cleaned up")
    left = [f"job {run.id}: {'; '.join(remains)}" for run, remains in swept if remains]
    if left:
        raise LockNotObtained(
            "not everything could be removed",
            detail=" ".join(left),
            hint="Run `pglean cleanup` again when those sessions have ended.",
        )


@click.command("uninstall", short_help="Drop the schema pglean.")
@connection_options
def uninstall_command(**connection: Any) -> None:
    """Drop the schema pglean with the history of runs; refused while a run is in progress or has left something."""
    dropped = open_database(**connection).uninstall()
    click.echo("schema pglean dropped" if dropped else "there is no schema pglean")
