"""`pglean reindex`, and what `pglean repack -x` and `-i` do: rebuild indexes only."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from pglean.api import Database
from pglean.catalog import split_names
from pglean.cli.connection import as_utf8, connection_options, interruptible, open_database
from pglean.cli.display import console, progress_display
from pglean.cli.messages import LEVELS, begin_messages, message_options
from pglean.errors import Incomplete, PgleanError, UsageError
from pglean.options import Options
from pglean.report import error_json, error_text, reindex_plan_json, reindex_plan_summary, reindex_summary

_DEFAULTS = Options()


@click.command("reindex", short_help="Rebuild indexes online.")
@connection_options
@click.option(
    "-t",
    "--table",
    "tables",
    multiple=True,
    metavar="TABLE",
    help="Table whose indexes are rebuilt, as in SQL; repeatable, also comma-separated.",
)
@click.option(
    "-I",
    "--parent-table",
    "parents",
    multiple=True,
    metavar="TABLE",
    help="The same, with its inheritors, or its partitions at any depth.",
)
@click.option("-i", "--index", "indexes", multiple=True, metavar="INDEX", help="Single index; repeatable.")
@click.option("-s", "--tablespace", metavar="TBLSPC", help="Move the indexes to this tablespace.")
@click.option("-j", "--jobs", type=int, metavar="N", default=1, show_default=True, help="So many tables at once.")
@click.option(
    "-T",
    "--wait-timeout",
    type=float,
    metavar="SECS",
    default=_DEFAULTS.wait_timeout_s,
    show_default=True,
    help="How long to wait for the lock with which a rebuild begins.",
)
@click.option("-N", "--dry-run", is_flag=True, help="Show what would be done, with sizes, and do nothing.")
@message_options
def reindex_command(
    tables: tuple[str, ...],
    parents: tuple[str, ...],
    indexes: tuple[str, ...],
    tablespace: str | None,
    jobs: int,
    wait_timeout: float,
    dry_run: bool,
    echo: bool,
    elevel: str,
    as_json: bool,
    quiet: bool,
    **connection: Any,
) -> None:
    """Rebuild indexes by REINDEX CONCURRENTLY, and remove what earlier attempts that failed have left.

    The owner of the tables may do this. Each rebuild waits, twice, for the transactions that use its table, however
    long these last: the display says for whom. Ctrl-C ends it, and removes what was begun.

    \b
    Exit status: 0 done, 1 an index could not be rebuilt, 2 usage, 3 refused,
    4 no lock in time, 5 no connection, or it was lost, 8 interrupted, 9 some of several not done.
    """
    request = Request(
        tables=names("table name", tables),
        parents=names("table name", parents),
        indexes=names("index name", indexes),
        tablespace=None if tablespace is None else as_utf8("tablespace", tablespace),
        jobs=jobs,
        wait_timeout_s=wait_timeout,
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
        level=begin_messages(echo=echo, elevel=elevel),
    )
    request.run(connection)


def names(what: str, values: Sequence[str]) -> list[str]:
    """Names that were given singly or separated by commas, each once."""
    return [as_utf8(what, name) for name in dict.fromkeys(name for value in values for name in split_names(value))]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    tables: list[str]
    parents: list[str]
    indexes: list[str]
    tablespace: str | None
    jobs: int
    wait_timeout_s: float
    dry_run: bool
    as_json: bool
    quiet: bool
    #: Of the least severe messages that are shown, as its place in `LEVELS`.
    level: int

    def run(self, connection: dict[str, Any]) -> None:
        """Raises what is to become the exit status."""
        told = [*self.tables, *self.parents, *self.indexes]
        try:
            if not told:
                raise UsageError(
                    "no index and no table was named", hint="Name one or more: -t TABLE, -I TABLE or -i INDEX."
                )
            database = open_database(**connection)
            with interruptible(database):
                error = self._plan(database) if self.dry_run else self._reindex(database)
        except PgleanError as failure:
            if self.as_json:
                click.echo(json.dumps({**error_json(", ".join(told), failure), "failures": []}, indent=2))
            raise
        if error is None:
            return
        if isinstance(error, Incomplete) and not self.as_json:
            # In full, once each: what ends the command lists them by their messages. One may be that of many indexes.
            for single in {id(single): single for single in error.failures.values()}.values():
                console(stderr=True).print(error_text(single), soft_wrap=True)
        raise error

    @property
    def _asked(self) -> dict[str, Any]:
        return {
            "tables": self.tables,
            "parents": self.parents,
            "indexes": self.indexes,
            "tablespace": self.tablespace,
            "jobs": self.jobs,
            "wait_timeout_s": self.wait_timeout_s,
        }

    def _plan(self, database: Database) -> PgleanError | None:
        plan = database.plan_reindex(**self._asked)
        if self.as_json:
            click.echo(json.dumps(reindex_plan_json(plan), indent=2))
        else:
            console().print(reindex_plan_summary(plan))
        return plan.error

    def _reindex(self, database: Database) -> PgleanError | None:
        progress = not self.quiet and self.level <= LEVELS.index("INFO")
        # Lines, not a display: several tables may be worked on, and each index is a matter of minutes.
        with progress_display(
            console(stderr=True), progress=progress, messages=self.level <= LEVELS.index("WARNING"), several=True
        ) as on_progress:
            result = database.reindex(**self._asked, on_progress=on_progress)
        if self.as_json:
            click.echo(json.dumps(result.as_json(), indent=2))
        elif progress:
            console().print(reindex_summary(result))
        return result.error


# ---- the same by pg_repack's options

#: Parameters of `pglean repack` that mean something there too.
_MEANINGFUL = frozenset(
    {
        "tables",
        "parents",
        "indexes",
        "only_indexes",
        "tablespace",
        "jobs",
        "wait_timeout",
        "no_kill_backend",
        "no_superuser_check",
        "dry_run",
        "echo",
        "elevel",
        "as_json",
        "quiet",
        "dbname",
        "dbname_option",
        "host",
        "port",
        "username",
        "no_password",
        "ask_password",
    }
)


def check_usage(
    *,
    only_indexes: bool,
    tables: Collection[str],
    parents: Collection[str],
    indexes: Collection[str],
    all_databases: bool = False,
    exclude_extensions: Collection[str] = (),
) -> bool:
    """Whether only indexes are to be rebuilt; raises `UsageError` where the options contradict one another."""
    if not (only_indexes or indexes):
        return False
    which = "--index (-i)" if indexes else "--only-indexes (-x)"
    for given, other in (
        (indexes and tables, "--table (-t)"),
        (indexes and parents, "--parent-table (-I)"),
        (indexes and only_indexes, "--only-indexes (-x)"),
        (exclude_extensions, "--exclude-extension (-C)"),
        (all_databases, "--all (-a)"),
    ):
        if given:
            raise UsageError(f"{which} and {other} exclude each other")
    if not (indexes or tables or parents):
        raise UsageError(
            "--only-indexes (-x) needs tables", hint="Name those whose indexes are to be rebuilt: -t TABLE or -I TABLE."
        )
    return True


def without_effect(context: click.Context) -> list[str]:
    """What to say of options that were given, and have no effect while only indexes are rebuilt."""
    return [
        f"option {parameter.opts[0]}{f' ({parameter.opts[1]})' if parameter.opts[1:] else ''} has no effect while"
        " repacking indexes"
        for parameter in context.command.params
        if parameter.name not in _MEANINGFUL
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
