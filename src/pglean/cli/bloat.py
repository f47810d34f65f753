"""`pglean bloat`: which tables are bloated, by how much, and what a repack would give back."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from pglean.api import Database
from pglean.bloat.density import Density
from pglean.bloat.finding import Bloat, Method
from pglean.bloat.survey import AUTO, MAX_SCAN_BYTES, Callback
from pglean.cli.bloat_page import bloat_page
from pglean.cli.bloat_table import bloat_csv, bloat_table
from pglean.cli.connection import connection_options, interruptible, open_database
from pglean.cli.density_map import CELLS, density_map
from pglean.cli.display import console
from pglean.cli.looked_at import selection_options
from pglean.cli.reindex import names
from pglean.cli.sections import Section, SectionedCommand
from pglean.disk import bytes_text
from pglean.errors import PgleanError, UsageError
from pglean.options import size_bytes

#: Ways to look at tables that can be asked for.
METHODS = [AUTO, *(method.value for method in (Method.ESTIMATE, Method.APPROX, Method.EXACT))]

#: So many tables are listed for people who have not said how many.
_TOP = 20

_HOW = Section("How it is looked at")
_SHOWN = Section("What is shown")


@click.command("bloat", cls=SectionedCommand, short_help="What is bloated, and what a repack would give back.")
@selection_options
@_HOW.option(
    "--method",
    type=click.Choice(METHODS),
    default=AUTO,
    show_default=True,
    help="By statistics, and closer for the worst; by statistics; by pgstattuple_approx; by pgstattuple.",
)
@_HOW.option(
    "--max-scan",
    metavar="SIZE",
    default=bytes_text(MAX_SCAN_BYTES).replace(" ", ""),
    help=f"Relations that are larger are not read as a whole.  [default: {bytes_text(MAX_SCAN_BYTES)}]",
)
@_SHOWN.option("--min-size", metavar="SIZE", default="0", help="Leave out tables that are smaller.")
@_SHOWN.option("--min-bloat", metavar="PERCENT", default="0", help="Leave out tables that are less bloated.")
@_SHOWN.option(
    "--top", type=click.IntRange(1), metavar="N", help=f"The first N; {_TOP} by default, all with --json and --csv."
)
@_SHOWN.option("--relations", is_flag=True, help="Each heap, TOAST table and index; of tables that are named always.")
@_SHOWN.option("--partitions", is_flag=True, help="Each partition by itself; they are added up otherwise.")
@_SHOWN.option("--map", "mapped", is_flag=True, help="How full each of these tables is along its file.")
@_SHOWN.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Write a page with pictures, which needs nothing else.",
)
@_SHOWN.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
@_SHOWN.option("--csv", "as_csv", is_flag=True, help="As CSV on standard output, a line per relation.")
@_SHOWN.option("-q", "--quiet", is_flag=True, help="No progress.")
@connection_options
def bloat_command(
    tables: tuple[str, ...],
    schemas: tuple[str, ...],
    method: str,
    max_scan: str,
    min_size: str,
    min_bloat: str,
    top: int | None,
    relations: bool,
    partitions: bool,
    mapped: bool,
    page: str | None,
    as_json: bool,
    as_csv: bool,
    quiet: bool,
    **connection: Any,
) -> None:
    """Show how much of tables, TOAST tables and indexes is bloat, and what a repack would leave; most gain first.

    Any role may ask. Nothing is written; what is locked, or not to be seen, is skipped, and said. docs/bloat.md tells
    what bloat is, where it comes from, and what the methods are worth.

    \b
    Exit status: 0 done, 1 unexpected error, 2 usage, 3 a method that is not to be had,
    5 no connection, or it was lost, 8 interrupted.
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other")
    if mapped and (as_json or as_csv):
        raise UsageError("--map and --json or --csv exclude each other", hint="`Database.density` gives its figures.")
    asked: dict[str, Any] = {
        "tables": names("table name", tables),
        "schemas": names("schema", schemas),
        "method": method,
        "min_bytes": size_bytes("min-size", min_size),
        "min_bloat": share("min-bloat", min_bloat),
        "max_scan_bytes": size_bytes("max-scan", max_scan),
        "partitions": partitions,
        # For people, what is left out is counted.
        "top": top if as_json or as_csv or page else None,
    }
    database = open_database(**connection)
    with interruptible(database), told(quiet=quiet) as on_table:
        found = database.bloat(**asked, on_table=on_table)
        maps = _maps(database, found, top or _TOP) if mapped or page else []
    if page is not None:
        made = time.strftime("%Y-%m-%d %H:%M")
        _write(page, bloat_page(found, maps, database.server.capabilities.database, made))
    _show(database, found, top or _TOP, relations=relations or bool(tables), as_json=as_json, as_csv=as_csv)
    out = console()
    for density in maps if mapped else ():
        out.print(density_map(density, out))


def _show(database: Database, found: Bloat, top: int, *, relations: bool, as_json: bool, as_csv: bool) -> None:
    if as_json:
        click.echo(json.dumps({"database": database.server.capabilities.database, **found.as_json()}, indent=2))
    elif as_csv:
        click.echo(bloat_csv(found), nl=False)
    else:
        console().print(bloat_table(found, top, relations=relations))
    if not as_json:
        for warning in found.warnings:
            console(stderr=True).print(Text(f"pglean: {warning}"), soft_wrap=True)


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise PgleanError(f"could not write to {path}: {error.strerror}") from error


def _maps(database: Database, found: Bloat, top: int) -> list[Density]:
    """Of the tables that are shown, in their order; of each partition."""
    maps: list[Density] = []
    for table in found.tables[:top]:
        # What was dropped meanwhile has none.
        with contextlib.suppress(UsageError):
            maps += database.density([table.qualified_name], cells=CELLS)
    return maps


@contextlib.contextmanager
def told(*, quiet: bool) -> Iterator[Callback]:
    """Tells on a terminal what is looked at, for as long as that lasts."""
    err = console(stderr=True)
    if quiet or not err.is_terminal:
        yield lambda _: None
        return
    with err.status(Text("looking at the statistics …")) as status:
        yield lambda name: status.update(Text(f"looking at {name} …"))


def share(name: str, text: str) -> float:
    """``30%`` or ``30``: 0.3. Raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", text.strip())
    if match is None or not 0 <= float(match[1]) <= 100:
        raise UsageError(f"invalid value for option --{name}: {text}", hint=f"Give a percentage: --{name} 30%.")
    return float(match[1]) / 100
