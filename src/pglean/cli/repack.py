"""`pglean repack`: its options, and what they mean together; the work is done by `batch`."""

from __future__ import annotations

from typing import Any

import click

from pglean.catalog import split_names
from pglean.cli.batch import Work, failure_as_json, repack_database, repack_databases
from pglean.cli.connection import as_utf8, connection_options, open_database
from pglean.cli.messages import LEVELS, begin_messages, message_options
from pglean.cli.reindex import Request, check_usage, without_effect
from pglean.cli.reindex import names as distinct_names
from pglean.cli.sections import Section, SectionedCommand
from pglean.errors import UsageError
from pglean.options import Capture, Compression, InvalidIndexes, Options, Verify, Window, lag, size_bytes
from pglean.selection import Selection
from pglean.version import __version__

_DEFAULTS = Options()

#: Options of pg_repack that are accepted, and why there is nothing to be done.
_WHY_UNUSED = {
    "--no-superuser-check": "preflight says which rights are missing, and refuses where it could not go on",
    "--no-error-on-publication": "logical decoding does not see the copy, so a publication is no obstacle",
    "--apply-count": "there is no log to be applied in portions; changed keys are refreshed in one snapshot",
    "--switch-threshold": "the files are exchanged when the rest fits into --max-lock-time",
}


_WHAT = Section("What is processed")
_HOW = Section("How it is rewritten")
_LOCKS = Section("Locks and others")
_PACE = Section("Pace")
_SHOWN = Section("What is shown")
_UNUSED = Section("Options of pg_repack that nothing needs here")


class _RepackCommand(SectionedCommand):
    """Abbreviations in scripts for pg_repack mean what they mean there."""

    first_meant = frozenset(
        {
            "all", "table", "parent-table", "schema", "tablespace", "moveidx", "order-by", "no-order", "dry-run",
            "jobs", "index", "only-indexes", "wait-timeout", "no-kill-backend", "no-analyze", "no-superuser-check",
            "exclude-extension", "no-error-on-invalid-index", "error-on-invalid-index", "no-error-on-publication",
            "apply-count", "switch-threshold", "dbname", "host", "port", "username", "no-password", "password",
            "echo", "elevel", "help", "version",
        }
    )  # fmt: skip


@click.command("repack", cls=_RepackCommand, short_help="Rewrite tables online.")
@_WHAT.option("-a", "--all", "all_databases", is_flag=True, help="All databases of the server.")
@_WHAT.option(
    "-t", "--table", "tables", multiple=True, metavar="TABLE", help="Table as in SQL, or pattern as psql's \\dt."
)
@_WHAT.option("-I", "--parent-table", "parents", multiple=True, metavar="TABLE", help="With inheritors or partitions.")
@_WHAT.option("-c", "--schema", "schemas", multiple=True, metavar="SCHEMA", help="All tables of a schema, or pattern.")
@_WHAT.option(
    "-C", "--exclude-extension", "extensions", multiple=True, metavar="NAME", help="Leave out an extension's tables."
)
@_WHAT.option("-x", "--only-indexes", is_flag=True, help="Rebuild the indexes of the named tables only.")
@_WHAT.option("-i", "--index", "indexes", multiple=True, metavar="INDEX", help="Rebuild only this index; repeatable.")
@_WHAT.option("-N", "--dry-run", is_flag=True, help="Show what would be done, with sizes, and do nothing.")
@_WHAT.option(
    "--tables-at-once",
    type=click.IntRange(1, 64),
    metavar="N",
    default=1,
    show_default=True,
    help="So many of several tables at the same time, each with --jobs workers.",
)
@_HOW.option("-o", "--order-by", metavar="COLUMNS", help="Order of the rows, as in ORDER BY, instead of CLUSTER ON's.")
@_HOW.option(
    "-n", "--no-order", is_flag=True, help="Rows in the order in which they lie, also where CLUSTER ON is set."
)
@_HOW.option("-s", "--tablespace", metavar="TBLSPC", help="Move the tables to this tablespace.")
@_HOW.option("-S", "--moveidx", is_flag=True, help="Move their indexes there too.")
@_HOW.option(
    "--compression",
    type=click.Choice([choice.value for choice in Compression]),
    help="Compress long values by this method, now and from now on.",
)
@_HOW.option("--fillfactor", type=int, metavar="N", help="Fill pages to N percent, now and from now on.")
@_HOW.option("--access-method", metavar="NAME", help="Table access method that the tables get.")
@_HOW.option(
    "--invalid-indexes",
    type=click.Choice([choice.value for choice in InvalidIndexes]),
    help="What to do about invalid indexes first; they refuse the run by default.",
)
@_HOW.option("--no-error-on-invalid-index", is_flag=True, help="The same as --invalid-indexes rebuild.")
@_HOW.option("--error-on-invalid-index", is_flag=True, help="The default here.")
@_HOW.option(
    "--verify",
    type=click.Choice([choice.value for choice in Verify]),
    default=_DEFAULTS.verify.value,
    show_default=True,
    help="Comparison of table and copy before the swap.",
)
@_HOW.option(
    "--capture",
    type=click.Choice([choice.value for choice in Capture]),
    help="Record changes by triggers (the default), from the WAL, or from there if the server allows it.",
)
@_HOW.option(
    "--max-slot-wal",
    metavar="SIZE",
    help="WAL that a replication slot may retain; it and the run then outlive the process.",
)
@_HOW.option("-Z", "--no-analyze", is_flag=True, help="No ANALYZE at the end.")
@_HOW.option("--hold", is_flag=True, help="Keep the finished copy in sync, and wait for `pglean swap`.")
@_HOW.option("--swap-window", metavar="HH:MM-HH:MM", help="Swap only at this time of the day; in sync until then.")
@_HOW.option("--mvcc-safe", is_flag=True, help="Swap only when no older snapshot is left.")
@_HOW.option("--keep", is_flag=True, help="On Ctrl-C keep what was done for `pglean resume`, undo nothing.")
@_LOCKS.option(
    "-T",
    "--wait-timeout",
    type=float,
    metavar="SECS",
    default=_DEFAULTS.wait_timeout_s,
    show_default=True,
    help="How long to try for a lock.",
)
@_LOCKS.option("-D", "--no-kill-backend", is_flag=True, help="Cancel nobody; the default here.")
@_LOCKS.option("--kill-backend", is_flag=True, help="After --wait-timeout cancel, later terminate, who holds the lock.")
@_LOCKS.option(
    "--max-lock-time",
    type=int,
    metavar="MS",
    default=_DEFAULTS.max_lock_ms,
    show_default=True,
    help="Longest hold of the exclusive lock.",
)
@_LOCKS.option(
    "--lock-timeout",
    type=int,
    metavar="MS",
    default=_DEFAULTS.lock_timeout_ms,
    show_default=True,
    help="Longest single wait for a lock, for which others queue behind.",
)
@_PACE.option("-j", "--jobs", type=int, default=_DEFAULTS.jobs, show_default=True, help="Worker connections.")
@_PACE.option(
    "--chunk-time",
    type=int,
    metavar="MS",
    default=_DEFAULTS.chunk_ms,
    show_default=True,
    help="What a chunk of the copy should take.",
)
@_PACE.option("--max-lag", metavar="SIZE|TIME", help="Wait while a standby lags behind by more.")
@_PACE.option("--lag-of", "lag_standbys", multiple=True, metavar="NAME", help="Standby that counts; repeatable.")
@_PACE.option("--max-load", type=int, metavar="N", help="Wait while more sessions of others are active.")
@_PACE.option("--max-lock-waits", type=int, metavar="N", help="Wait while more sessions of others wait for locks.")
@_PACE.option("--max-wal-rate", metavar="SIZE", help="Wait while the server writes more WAL a second.")
@_PACE.option(
    "--min-free",
    metavar="SIZE",
    default="1GB",
    show_default=True,
    help="Wait while less disk space is free on the server, where that can be seen from here.",
)
@_SHOWN.option(
    "--map",
    "mapped",
    is_flag=True,
    help="How full each table is along its file, before and after; at most some thousand blocks of it are read.",
)
@message_options
@connection_options
@_UNUSED.option("-k", "--no-superuser-check", is_flag=True, help="Missing rights are told by preflight.")
@_UNUSED.option("--no-error-on-publication", is_flag=True, help="Publications are no obstacle.")
@_UNUSED.option("--apply-count", type=click.IntRange(min=1), metavar="N", help="Keys are refreshed, no log is applied.")
@_UNUSED.option("--switch-threshold", type=click.IntRange(min=0), metavar="N", help="See --max-lock-time.")
@click.version_option(__version__, "-V", "--version", prog_name="pglean")
def repack_command(
    all_databases: bool,
    tables: tuple[str, ...],
    parents: tuple[str, ...],
    schemas: tuple[str, ...],
    extensions: tuple[str, ...],
    only_indexes: bool,
    indexes: tuple[str, ...],
    no_superuser_check: bool,
    no_error_on_publication: bool,
    apply_count: int | None,
    switch_threshold: int | None,
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
    capture: str | None,
    max_slot_wal: str | None,
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
    mapped: bool,
    as_json: bool,
    quiet: bool,
    **connection: Any,
) -> None:
    """Rewrite tables while applications read and write them, and give the space back.

    Without -t, -I or -c all tables of the database are meant; what cannot be repacked is then skipped and named.
    These options, and -C, can be repeated and take lists separated by commas.
    Nobody but an autovacuum worker is cancelled unless --kill-backend is given. Ctrl-C undoes what was begun.

    \b
    Exit status: 0 done, 1 unexpected error, 2 usage, 3 refused by preflight,
    4 no lock in time, 5 no connection, or it was lost, 6 table changed by DDL,
    7 verification failed, 8 interrupted, 9 some of several tables not done,
    10 a replication slot retained too much WAL.
    """
    level = begin_messages(echo=echo, elevel=elevel)
    if level == LEVELS.index("DEBUG"):
        unused = {
            "--no-superuser-check": no_superuser_check,
            "--no-error-on-publication": no_error_on_publication,
            "--apply-count": apply_count is not None,
            "--switch-threshold": switch_threshold is not None,
        }
        for option in (option for option, given in unused.items() if given):
            click.echo(f"pglean: debug: {option} changes nothing: {_WHY_UNUSED[option]}", err=True)
    if check_usage(
        only_indexes=only_indexes,
        tables=tables,
        parents=parents,
        indexes=indexes,
        all_databases=all_databases,
        exclude_extensions=extensions,
    ):
        if level <= LEVELS.index("WARNING"):
            for warning in without_effect(click.get_current_context()):
                click.echo(f"pglean: warning: {warning}", err=True)
        Request(
            tables=distinct_names("table name", tables),
            parents=distinct_names("table name", parents),
            indexes=distinct_names("index name", indexes),
            tablespace=None if tablespace is None else as_utf8("tablespace", tablespace),
            jobs=jobs,
            wait_timeout_s=wait_timeout,
            dry_run=dry_run,
            as_json=as_json,
            quiet=quiet,
            level=level,
        ).run(connection)
        return
    asked = _names((*tables, *parents))
    with failure_as_json(asked if as_json else None):
        if kill_backend and no_kill_backend:
            raise UsageError("--kill-backend and --no-kill-backend exclude each other")
        selection = _selection(tables, parents, schemas, extensions)
        if all_databases and (selection.named or selection.schemas):
            raise UsageError(
                "--all (-a) and --table, --parent-table or --schema (-t, -I, -c) exclude each other",
                hint="Name a database instead of -a.",
            )
        lag_bytes, lag_s = (None, None) if max_lag is None else lag(max_lag)
        options = Options(
            jobs=jobs,
            wait_timeout_s=wait_timeout,
            lock_timeout_ms=lock_timeout,
            max_lock_ms=max_lock_time,
            chunk_ms=chunk_time,
            capture=None if capture is None else Capture(capture),
            max_slot_wal_bytes=None if max_slot_wal is None else size_bytes("max-slot-wal", max_slot_wal),
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
        database = open_database(**connection, whole_server=all_databases)
    work = Work(
        options=options,
        dry_run=dry_run,
        at_once=tables_at_once,
        as_json=as_json,
        # Messages below the level are left out: progress and summaries are INFO, warnings are WARNING.
        told=level <= LEVELS.index("INFO") and not quiet,
        warned=level <= LEVELS.index("WARNING"),
        mapped=mapped,
    )
    (repack_databases if all_databases else repack_database)(database, selection, work)


def _selection(
    tables: tuple[str, ...], parents: tuple[str, ...], schemas: tuple[str, ...], extensions: tuple[str, ...]
) -> Selection:
    """Raises `UsageError` where an option is given, but no name: an empty variable must not mean all tables."""
    parts: list[tuple[str, ...]] = []
    for what, values in (("table", tables), ("parent table", parents), ("schema", schemas), ("extension", extensions)):
        names = _names(values)
        if values and not names:
            raise UsageError(f"no {what} was named", hint="Leave the option out where all are meant.")
        parts.append(tuple(as_utf8(f"{what} name", name) for name in names))
    return Selection(*parts)


def _names(values: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(name for value in values for name in split_names(value)))


def _invalid_indexes(given: str | None, no_error: bool, error: bool) -> InvalidIndexes:
    if no_error and error:
        raise UsageError("--no-error-on-invalid-index and --error-on-invalid-index exclude each other")
    if given is not None:
        return InvalidIndexes(given)
    return InvalidIndexes.REBUILD if no_error else InvalidIndexes.REFUSE
