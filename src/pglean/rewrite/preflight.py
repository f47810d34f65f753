"""Preflight: from what was asked for to a plan, or to all that stands in the way. Touches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pglean import catalog, disk
from pglean.capture import requirements
from pglean.catalog import Fingerprint
from pglean.claim import claimed
from pglean.errors import Finding, Refused
from pglean.locks import patiently
from pglean.options import Capture, InvalidIndexes, Options
from pglean.rewrite import checks, ending, order, schema, shadow
from pglean.rewrite import job as jobs
from pglean.rewrite.job import Stored
from pglean.rewrite.phase import RESUMES_WITH, Phase
from pglean.rewrite.plan import Plan
from pglean.server import Server
from pglean.session import Connection
from pglean.table import Table

#: Sessions beside the workers: watch, control, flush, and one for pausing writers; capture from the WAL has one more.
_OTHER_SESSIONS, _DECODER_SESSIONS = 4, 1


def plan(server: Server, oid: int, options: Options) -> Plan:
    """What would be done; raises `Refused` with all findings where something stands in the way. Touches nothing."""
    with server.connect("preflight") as conn:
        return make(server, conn, oid, options, busy=claimed(conn, oid), invalid_indexes=options.invalid_indexes)


def check_connections(server: Server, options: Options, tables: int) -> None:
    """Raise `Refused` where the server has not so many connections left as `tables` runs at once need."""
    with server.connect("preflight") as conn:
        sessions = tables * _sessions(options)
        if findings := list(checks.of_connections(conn, server.capabilities, sessions, server.spare_pids)):
            raise Refused(f"{tables} tables at once" if tables > 1 else "the table", findings)


def make(
    server: Server,
    conn: Connection,
    oid: int,
    options: Options,
    *,
    busy: bool,
    invalid_indexes: InvalidIndexes = InvalidIndexes.REFUSE,
) -> Plan:
    """The plan of a run that is to begin now, on the session that has the claim on the table.

    `invalid_indexes`: what will be done about these first; after that, what is invalid still refuses the run.
    Raises what `plan` raises, and `LockNotObtained`.
    """
    sessions = _sessions(options)

    def read() -> tuple[catalog.Fingerprint | None, Table, list[Finding], list[Finding]]:
        # The fingerprint comes first: what is changed after it will be noticed.
        fingerprint = catalog.fingerprint(conn, oid)
        table = catalog.load(conn, oid)
        asked = replace(options, invalid_indexes=invalid_indexes)
        facts = checks.gather(
            conn, server.capabilities, table, asked, busy=busy, sessions=sessions, spares=server.spare_pids
        )
        missing = requirements.findings(server, conn, table) if _may_read_wal(options) else []
        return fingerprint, table, checks.run(facts), missing

    fingerprint, table, findings, missing = patiently(server, conn, oid, ending.patience(server, options), read)
    fatal = [finding for finding in findings if finding.fatal]
    kept = None if fatal or fingerprint is None else _kept(conn, oid, fingerprint)
    if options.capture is Capture.WAL and kept is None:
        fatal += missing
    if fatal or fingerprint is None:
        raise Refused(table.qualified_name, fatal)
    warnings = [finding for finding in findings if not finding.fatal]
    if kept is not None:
        _check_shape(kept, table, options, server)
        if kept.by_images:
            table = replace(table, key=None)
        sorting = kept.order
        limit = options.max_slot_wal_bytes or kept.options.max_slot_wal_bytes
        options = options.with_capture(kept.options.capture or Capture.TRIGGER, limit)
        missing = []
    else:
        sorting, told = order.decide(server, conn, table, options, ending.patience(server, options))
        warnings += told
        if options.capture is Capture.AUTO and options.keep and options.max_slot_wal_bytes is None:
            missing = [requirements.no_limit(), *missing]
        if options.capture is Capture.AUTO and sorting is not None and sorting.ranges is None:
            missing = [*missing, requirements.large_transaction()]
        if options.capture is not Capture.WAL:
            by_wal = options.capture is Capture.AUTO and not missing
            options = options.with_capture(Capture.WAL if by_wal else Capture.TRIGGER, options.max_slot_wal_bytes)
    made = Plan(
        table,
        options,
        fingerprint,
        tuple(warnings),
        shadow.default_tablespace(conn),
        sorting,
        kept,
        missing[0].message if missing else "",
    )
    return replace(made, warnings=(*made.warnings, *_space_warnings(conn, made)))


def _sessions(options: Options) -> int:
    return options.jobs + _OTHER_SESSIONS + (_DECODER_SESSIONS if _may_read_wal(options) else 0)


def _may_read_wal(options: Options) -> bool:
    return options.capture in (Capture.WAL, Capture.AUTO)


def _kept(conn: Connection, oid: int, fingerprint: Fingerprint) -> Stored | None:
    """The run on the table that a new one would go on with."""
    if not schema.current(conn) or (found := jobs.resumable(conn, oid)) is None:
        return None
    stored = jobs.load(conn, found)
    if stored is None or RESUMES_WITH[stored.phase] is Phase.PLANNED or not stored.options.outlives_process:
        return None
    return stored if catalog.changed_parts(stored.fingerprint, fingerprint) in ([], ["indexes"]) else None


def _check_shape(stored: Stored, table: Table, options: Options, server: Server) -> None:
    """Raise `Refused` where the copy that is kept is not what is asked for now: it may be hours of work."""
    if different := options.shape_differs(stored.options):
        finding = Finding(
            "kept-run",
            f"run {stored.id} on {table.qualified_name} is kept, and was begun with other options",
            f"Given differently: {', '.join(different)}.",
            f"{server.command(f'resume {stored.id}')} goes on with it as it was begun,"
            f" {server.command(f'abort {stored.id}')} undoes it.",
        )
        raise Refused(table.qualified_name, [finding])


def _space_warnings(conn: Connection, plan: Plan) -> Iterator[Finding]:
    """Where less is free than is surely enough; the run waits before the disk is full (`--min-free`)."""
    space = disk.of_tablespaces(conn, plan.disk_bytes_by_tablespace)
    if space is None:
        return
    try:
        free = space.free_bytes()
    except OSError:
        return
    for tablespace, needed in plan.disk_bytes_by_tablespace.items():
        purpose = disk.purpose_of(tablespace or plan.default_tablespace)
        if purpose in free and free[purpose] < needed + plan.options.min_free_bytes:
            yield Finding(
                "space",
                f"{free[purpose] >> 20} MB are free on {purpose}",
                f"The copy takes {needed >> 20} MB if nothing is bloated; the run waits when less than"
                f" {plan.options.min_free_bytes >> 20} MB are left (--min-free).",
                "Make room first, or see how bloated the table is.",
                fatal=False,
            )
