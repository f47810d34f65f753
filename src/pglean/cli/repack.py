"""`pglean repack`: parse, call the API per table, render."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import psycopg

from pglean.api import Database
from pglean.catalog import resolve, split_names
from pglean.cli.connection import as_utf8, connection_options, interruptible, open_database
from pglean.cli.display import console, progress_display
from pglean.errors import Incomplete, Interrupted, PgleanError, UsageError
from pglean.options import Compression, InvalidIndexes, Options, Verify, Window, lag, size_bytes
from pglean.report import error_json, error_text, plan_json, plan_summary, result_summary
from pglean.result import Result

_LEVELS = ("DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "LOG", "FATAL", "PANIC")
_DEFAULTS = Options()


@click.command("repack", short_help="Rewrite tables online.")
@connection_options
@click.option(
    "-t",
    "--table",
    "tables",
    multiple=True,
    metavar="TABLE",
    help="Table to rewrite, as in SQL; repeatable, also comma-separated.",
)
@click.option("-o", "--order-by", metavar="COLUMNS", help="Order of the rows, as in ORDER BY, instead of CLUSTER ON's.")
@click.option(
    "-n", "--no-order", is_flag=True, help="Rows in the order in which they lie, also where CLUSTER ON is set."
)
@click.option("-s", "--tablespace", metavar="TBLSPC", help="Move the tables to this tablespace.")
@click.option("-S", "--moveidx", is_flag=True, help="Move their indexes there too.")
@click.option(
    "--compression",
    type=click.Choice([choice.value for choice in Compression]),
    help="Compress long values by this method, now and from now on.",
)
@click.option("--fillfactor", type=int, metavar="N", help="Fill pages to N percent, now and from now on.")
@click.option("--access-method", metavar="NAME", help="Table access method that the tables get.")
@click.option(
    "--invalid-indexes",
    type=click.Choice([choice.value for choice in InvalidIndexes]),
    help="What to do about invalid indexes first; they refuse the run by default.",
)
@click.option("--no-error-on-invalid-index", is_flag=True, help="The same as --invalid-indexes rebuild.")
@click.option("--error-on-invalid-index", is_flag=True, help="The default here.")
@click.option("-j", "--jobs", type=int, default=_DEFAULTS.jobs, show_default=True, help="Worker connections.")
@click.option(
    "--tables-at-once",
    type=click.IntRange(1, 64),
    metavar="N",
    default=1,
    show_default=True,
    help="So many of several tables at the same time, each with --jobs workers.",
)
@click.option(
    "-T",
    "--wait-timeout",
    type=float,
    metavar="SECS",
    default=_DEFAULTS.wait_timeout_s,
    show_default=True,
    help="How long to try for a lock.",
)
@click.option("-D", "--no-kill-backend", is_flag=True, help="Cancel nobody; the default here.")
@click.option("--kill-backend", is_flag=True, help="After --wait-timeout cancel, later terminate, who holds the lock.")
@click.option("-Z", "--no-analyze", is_flag=True, help="No ANALYZE at the end.")
@click.option("-N", "--dry-run", is_flag=True, help="Show what would be done, with sizes, and do nothing.")
@click.option("-e", "--echo", is_flag=True, help="Show the statements that are sent.")
@click.option(
    "-E",
    "--elevel",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Least severe messages to show; DEBUG adds what becomes of each lock.",
)
@click.option(
    "--max-lock-time",
    type=int,
    metavar="MS",
    default=_DEFAULTS.max_lock_ms,
    show_default=True,
    help="Longest hold of the exclusive lock.",
)
@click.option(
    "--lock-timeout",
    type=int,
    metavar="MS",
    default=_DEFAULTS.lock_timeout_ms,
    show_default=True,
    help="Longest single wait for a lock, for which others queue behind.",
)
@click.option(
    "--chunk-time",
    type=int,
    metavar="MS",
    default=_DEFAULTS.chunk_ms,
    show_default=True,
    help="What a chunk of the copy should take.",
)
@click.option(
    "--verify",
    type=click.Choice([choice.value for choice in Verify]),
    default=_DEFAULTS.verify.value,
    show_default=True,
    help="Comparison of table and copy before the swap.",
)
@click.option("--hold", is_flag=True, help="Keep the finished copy in sync, and wait for `pglean swap`.")
@click.option("--swap-window", metavar="HH:MM-HH:MM", help="Swap only at this time of the day; in sync until then.")
@click.option("--mvcc-safe", is_flag=True, help="Swap only when no older snapshot is left.")
@click.option("--max-lag", metavar="SIZE|TIME", help="Wait while a standby lags behind by more.")
@click.option("--lag-of", "lag_standbys", multiple=True, metavar="NAME", help="Standby that counts; repeatable.")
@click.option("--max-load", type=int, metavar="N", help="Wait while more sessions of others are active.")
@click.option("--max-lock-waits", type=int, metavar="N", help="Wait while more sessions of others wait for locks.")
@click.option("--max-wal-rate", metavar="SIZE", help="Wait while the server writes more WAL a second.")
@click.option(
    "--min-free",
    metavar="SIZE",
    default="1GB",
    show_default=True,
    help="Wait while less disk space is free on the server, where that can be seen from here.",
)
@click.option("--keep", is_flag=True, help="On Ctrl-C keep what was done for `pglean resume`, undo nothing.")
@click.option("--json", "as_json", is_flag=True, help="Result as JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
def repack_command(
    tables: tuple[str, ...],
    order_by: str | None,
    no_order: bool,
    tablespace: str | None,
    moveidx: bool,
    compression: str | None,
    fillfactor: int | None,
    access_method: str | None,
    invalid_indexes: str | None,
    no_error_on_invalid_index: bool,
    error_on_invalid_index: bool,
    jobs: int,
    tables_at_once: int,
    wait_timeout: float,
    no_kill_backend: bool,
    kill_backend: bool,
    no_analyze: bool,
    dry_run: bool,
    echo: bool,
    elevel: str,
    max_lock_time: int,
    lock_timeout: int,
    chunk_time: int,
    verify: str,
    hold: bool,
    swap_window: str | None,
    mvcc_safe: bool,
    max_lag: str | None,
    lag_standbys: tuple[str, ...],
    max_load: int | None,
    max_lock_waits: int | None,
    max_wal_rate: str | None,
    min_free: str,
    keep: bool,
    as_json: bool,
    quiet: bool,
    **connection: Any,
) -> None:
    """Rewrite tables while applications read and write them, and give the space back.

    Nobody but an autovacuum worker is cancelled unless --kill-backend is given. Ctrl-C undoes what was begun.

    \b
    Exit status: 0 done, 1 unexpected error, 2 usage, 3 refused by preflight,
    4 no lock in time, 5 connection lost, 6 table changed by DDL,
    7 verification failed, 8 interrupted, 9 some of several tables not done.
    """
    context, level = click.get_current_context(), _LEVELS.index(elevel.upper())
    if echo:
        context.with_resource(_logged("pglean.sql", logging.INFO))
    if level == _LEVELS.index("DEBUG"):
        context.with_resource(_logged("pglean.locks", logging.DEBUG))
    names = list(dict.fromkeys(name for value in tables for name in split_names(value)))
    with _failure_as_json(names if as_json else None):
        if kill_backend and no_kill_backend:
            raise UsageError("--kill-backend and --no-kill-backend exclude each other")
        if not names:
            raise UsageError("no table was named", hint="Name one or more: -t TABLE.")
        names = [as_utf8("table name", name) for name in names]
        lag_bytes, lag_s = (None, None) if max_lag is None else lag(max_lag)
        options = Options(
            jobs=jobs,
            wait_timeout_s=wait_timeout,
            lock_timeout_ms=lock_timeout,
            max_lock_ms=max_lock_time,
            chunk_ms=chunk_time,
            verify=Verify(verify),
            kill_backend=kill_backend,
            analyze=not no_analyze,
            hold=hold,
            swap_window=None if swap_window is None else Window.parse(swap_window),
            mvcc_safe=mvcc_safe,
            keep=keep,
            # As with pg_repack, -n wins.
            order_by=None if no_order or order_by is None else as_utf8("order", order_by),
            cluster=not no_order,
            tablespace=None if tablespace is None else as_utf8("tablespace", tablespace),
            move_indexes=moveidx,
            compression=None if compression is None else Compression(compression),
            fillfactor=fillfactor,
            access_method=access_method,
            invalid_indexes=_invalid_indexes(invalid_indexes, no_error_on_invalid_index, error_on_invalid_index),
            max_lag_bytes=lag_bytes,
            max_lag_s=lag_s,
            lag_standbys=lag_standbys,
            max_load=max_load,
            max_lock_waits=max_lock_waits,
            max_wal_rate_bytes=None if max_wal_rate is None else size_bytes("max-wal-rate", max_wal_rate),
            min_free_bytes=size_bytes("min-free", min_free),
        )
        database = open_database(**connection)
    # Messages below the level are left out: progress and summaries are INFO, warnings are WARNING.
    told, warned = level <= _LEVELS.index("INFO"), level <= _LEVELS.index("WARNING")
    _Batch(database, options, as_json=as_json, told=told and not quiet, warned=warned).run(
        names, dry_run=dry_run, at_once=tables_at_once
    )


def _invalid_indexes(given: str | None, no_error: bool, error: bool) -> InvalidIndexes:
    if no_error and error:
        raise UsageError("--no-error-on-invalid-index and --error-on-invalid-index exclude each other")
    if given is not None:
        return InvalidIndexes(given)
    return InvalidIndexes.REBUILD if no_error else InvalidIndexes.REFUSE


@contextlib.contextmanager
def _failure_as_json(names: Sequence[str] | None) -> Iterator[None]:
    """What ends the command before its first table is told of each of `names`; of none, for people, where None."""
    try:
        yield
    except PgleanError as error:
        if names is not None:
            click.echo(json.dumps([error_json(name, error) for name in names], indent=2))
        raise


@contextlib.contextmanager
def _logged(name: str, level: int) -> Iterator[None]:
    """Show on standard error what a logger is told in the block."""
    logger, handler = logging.getLogger(name), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Batch:
    """Several tables, one after the other or some at once; what is not done is listed with its reason."""

    def __init__(self, database: Database, options: Options, *, as_json: bool, told: bool, warned: bool) -> None:
        self._database, self._options = database, options
        self._as_json, self._told, self._warned = as_json, told, warned
        self._out, self._err = console(), console(stderr=True)
        self._results: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, PgleanError] = {}
        self._several = False

    def run(self, names: list[str], *, dry_run: bool, at_once: int) -> None:
        """Raises the error of the one table, or `Incomplete` where one of several was not done."""
        with interruptible(self._database):
            names = self._distinct(names)
            self._several = len(names) > 1
            if dry_run:
                self._plan_each(names)
            elif at_once > 1 and self._several:
                self._repack(names, at_once)
            else:
                self._repack_each(names)
        for name in names:
            if name not in self._results:
                self._ended(name, PgleanError("not begun: the run before it was ended"), told=False)
        if self._as_json:
            click.echo(json.dumps([self._results[name] for name in names], indent=2, default=str))
        if self._failures:
            if not self._several:
                raise self._failures[names[0]]
            interruption = next(
                (e for e in self._failures.values() if isinstance(e, Interrupted) and e.ends_batch), None
            )
            raise interruption or Incomplete(self._failures, len(names) - len(self._failures))

    def _plan_each(self, names: list[str]) -> None:
        for name in names:
            try:
                plan = self._database.plan(name, self._options)
            except PgleanError as error:
                self._ended(name, error)
                if error.ends_batch:
                    return
                continue
            self._results[name] = plan_json(plan)
            if not self._as_json:
                self._out.print(plan_summary(plan))

    def _repack_each(self, names: list[str]) -> None:
        for name in names:
            self._repack([name], 1)
            if name in self._failures and self._failures[name].ends_batch:
                return

    def _repack(self, names: list[str], at_once: int) -> None:
        with progress_display(
            self._err, progress=self._told, messages=self._warned, several=at_once > 1
        ) as on_progress:
            outcomes = self._database.repack_all(names, self._options, at_once=at_once, on_progress=on_progress)
        # After the display has gone.
        for name, outcome in outcomes.items():
            self._ended(name, outcome)

    def _ended(self, name: str, outcome: Result | PgleanError, *, told: bool = True) -> None:
        if isinstance(outcome, PgleanError):
            self._failures[name] = outcome
            self._results[name] = error_json(name, outcome)
            if told and self._several and not self._as_json:
                self._err.print(error_text(outcome), soft_wrap=True)
            return
        self._results[name] = outcome.as_json()
        if self._told and not self._as_json:
            self._out.print(result_summary(outcome))

    def _distinct(self, names: list[str]) -> list[str]:
        """Without those that mean a table named before; what is wrong with a name is told in its turn."""
        if len(names) < 2:
            return names
        found: dict[int | str, str] = {}
        try:
            with self._database.server.connect("preflight") as conn:
                for name in names:
                    try:
                        found.setdefault(resolve(self._database.server, conn, name), name)
                    except UsageError:
                        found[name] = name
        except (PgleanError, psycopg.Error):
            return names
        return list(found.values())
