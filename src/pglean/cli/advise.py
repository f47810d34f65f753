"""`pglean advise`: what to do about bloat, in which order, and what stands in the way."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.text import Text

from pglean.advice.survey import MIN_GAIN_BYTES
from pglean.bloat.finding import Method
from pglean.cli.advice_text import advice_text
from pglean.cli.bloat import METHODS, told
from pglean.cli.connection import connection_options, interruptible, open_database
from pglean.cli.display import console
from pglean.cli.looked_at import LOOKED_AT, selection_options
from pglean.cli.reindex import names
from pglean.cli.sections import Section, SectionedCommand
from pglean.disk import bytes_text
from pglean.options import size_bytes

#: So many actions are listed for people who have not said how many.
_TOP = 20

_SHOWN = Section("What is shown")


@click.command("advise", cls=SectionedCommand, short_help="What to do about bloat, and what stands in the way.")
@selection_options
@LOOKED_AT.option(
    "--method",
    type=click.Choice(METHODS),
    default=Method.ESTIMATE.value,
    show_default=True,
    help="How bloat is found out, as for pglean bloat.",
)
@LOOKED_AT.option("--min-size", metavar="SIZE", default="0", help="Leave out tables that are smaller.")
@_SHOWN.option(
    "--min-gain",
    metavar="SIZE",
    default=str(MIN_GAIN_BYTES),
    help=f"Leave out what is about less.  [default: {bytes_text(MIN_GAIN_BYTES)}]",
)
@_SHOWN.option(
    "--top", type=click.IntRange(1), metavar="N", help=f"The first N actions; {_TOP} by default, all with --json."
)
@_SHOWN.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
@_SHOWN.option("-q", "--quiet", is_flag=True, help="No progress.")
@connection_options
def advise_command(
    tables: tuple[str, ...],
    schemas: tuple[str, ...],
    method: str,
    min_size: str,
    min_gain: str,
    top: int | None,
    as_json: bool,
    quiet: bool,
    **connection: Any,
) -> None:
    """Tell what would help: VACUUM, other settings, new indexes, a repack, or nothing, with reason, cost and gain.

    And what stands in the way: who holds the vacuum horizon, tables near the limit of transactions, running VACUUMs.
    Any role may ask. Nothing is written; what the role may not see is said. docs/advise.md explains it.

    \b
    Exit status: 0 done, 1 unexpected error, 2 usage, 3 a method that is not to be had,
    5 no connection, or it was lost, 8 interrupted.
    """
    asked: dict[str, Any] = {
        "tables": names("table name", tables),
        "schemas": names("schema", schemas),
        "method": method,
        "min_bytes": size_bytes("min-size", min_size),
        "min_gain_bytes": size_bytes("min-gain", min_gain),
        # For people, what is left out is counted.
        "top": top if as_json else None,
    }
    database = open_database(**connection)
    with interruptible(database), told(quiet=quiet) as on_table:
        found = database.advise(**asked, on_table=on_table)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
        return
    out = console()
    out.print(advice_text(found, top or _TOP, folded=out.is_terminal))
    for warning in found.warnings:
        console(stderr=True).print(Text(f"pglean: {warning}"), soft_wrap=True)
