"""`pglean check`: whether tables are bloated beyond a threshold, as monitoring plugins tell it.

Standard output has one line with the state, then ``|`` and performance data, then details in lines of their own. The
exit status is 0, 1, 2 or 3; whatever goes wrong is UNKNOWN: 1 and 2 are said of tables, never of the check itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import click

from pglean.bloat import verdict
from pglean.bloat.survey import MAX_SCAN_BYTES
from pglean.bloat.verdict import Judged, State, Threshold, Thresholds, Verdict
from pglean.cli.bloat import METHODS
from pglean.cli.connection import connection_options, interruptible, open_database
from pglean.cli.looked_at import LOOKED_AT, selection_options
from pglean.cli.reindex import names
from pglean.cli.sections import Section, SectionedCommand
from pglean.disk import bytes_text
from pglean.errors import Interrupted, PgleanError
from pglean.options import size_bytes
from pglean.report import counted
from pglean.server import translate

#: A check that cannot be ended otherwise is killed so long after its time is up.
_GRACE_S = 2.0
#: So many tables are told of in detail.
_TOP = 20
#: What is smaller is left out, where no table is named.
_MIN_SIZE = "64MB"

_HOW = Section("How it is looked at")
_WHEN = Section("What is too much")
_SHOWN = Section("What is shown")


class _CheckCommand(SectionedCommand):
    """Whatever keeps it from an answer, wrong options among it, is told as UNKNOWN."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        as_json = "--json" in args
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except click.ClickException as error:
            raise click.exceptions.Exit(_unknown(PgleanError(error.format_message()), as_json=as_json)) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            error: PgleanError = Interrupted("interrupted")
        except Exception as failure:
            error = failure if isinstance(failure, PgleanError) else translate(failure)
        return _unknown(error, as_json=ctx.params["as_json"])


@click.command("check", cls=_CheckCommand, short_help="Whether tables are too bloated, for monitoring.")
@selection_options
@LOOKED_AT.option(
    "--min-size",
    metavar="SIZE",
    help=f"Leave out tables that are smaller.  [default: {_MIN_SIZE}; 0 where tables are named by -t]",
)
@_WHEN.option(
    "--warning",
    metavar="PERCENT|SIZE",
    default="30%",
    show_default=True,
    help="WARNING where a repack would give back more of a table than this share, or size.",
)
@_WHEN.option("--critical", metavar="PERCENT|SIZE", default="50%", show_default=True, help="The same for CRITICAL.")
@_WHEN.option("--total", "together", is_flag=True, help="Of all these tables together, not of each by itself.")
@_WHEN.option("--partitions", is_flag=True, help="Of each partition by itself; they are added up otherwise.")
@_HOW.option(
    "--method",
    type=click.Choice(METHODS),
    default="estimate",
    show_default=True,
    help="As of `pglean bloat`; `estimate` reads no table.",
)
@_HOW.option(
    "--max-scan",
    metavar="SIZE",
    default=bytes_text(MAX_SCAN_BYTES).replace(" ", ""),
    show_default=True,
    help="Relations that are larger are not read as a whole.",
)
@_HOW.option(
    "--timeout",
    type=click.FloatRange(0.1, 86400),
    metavar="SECS",
    default=50.0,
    show_default=True,
    help="UNKNOWN where there is no answer within this time.",
)
@_SHOWN.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
@connection_options
def check_command(
    tables: tuple[str, ...],
    schemas: tuple[str, ...],
    min_size: str | None,
    warning: str,
    critical: str,
    together: bool,
    partitions: bool,
    method: str,
    max_scan: str,
    timeout: float,
    as_json: bool,
    **connection: Any,
) -> int:
    """Tell whether tables are bloated beyond thresholds, as plugins of Nagios, Icinga and the like do.

    A table is too bloated where a repack would give back MORE than the threshold. Of what nothing is known (no
    statistics, or the role may not see them), the state is UNKNOWN where it could be another if all of that were bloat,
    and nothing worse was found. docs/bloat.md tells more.

    \b
    Exit status: 0 OK, 1 WARNING, 2 CRITICAL,
    3 UNKNOWN: whatever went wrong, wrong options and no connection among it.
    """
    thresholds = Thresholds(Threshold.parse("warning", warning), Threshold.parse("critical", critical))
    min_bytes = size_bytes("min-size", min_size or ("0" if tables else _MIN_SIZE))
    with _deadline(timeout, as_json=as_json):
        database = open_database(**connection)
        with interruptible(database):
            found = database.bloat(
                names("table name", tables),
                schemas=names("schema", schemas),
                method=method,
                max_scan_bytes=size_bytes("max-scan", max_scan),
                partitions=True,
            )
    judged = verdict.judge(found, thresholds, min_bytes=min_bytes, partitions=partitions, together=together)
    remarks = [warning.message for warning in found.warnings]
    name = database.server.capabilities.database
    if as_json:
        _tell(json.dumps(_as_json(judged, name, remarks), indent=2))
    else:
        perfdata = " ".join(_perfdata(judged, named=bool(tables)))
        told = [f"PGLEAN {judged.state.name} - {_plain(_headline(judged))} | {perfdata}"]
        _tell("\n".join([*told, *(_plain(line) for line in [*_details(judged, named=bool(tables)), *remarks])]))
    return _told(judged.state)


# ---- what ends it


@contextlib.contextmanager
def _deadline(seconds: float, *, as_json: bool) -> Iterator[None]:
    """Raises `PgleanError` in the block when the time is up, wherever it is.

    Nothing is written meanwhile, so nothing is left half done. Where the block does not come to an end by that, as
    while a name is looked up, the process is ended.
    """
    error = PgleanError(f"no answer within {seconds:g} s", hint="--timeout SECS gives it more time.")

    def end(_: int, __: FrameType | None) -> None:
        raise error

    def last_resort() -> None:
        status = _unknown(error, as_json=as_json)
        os._exit(status)

    watchdog = threading.Timer(seconds + _GRACE_S, last_resort)
    watchdog.daemon = True
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _unknown(error: PgleanError, *, as_json: bool) -> int:
    """Tell why there is no answer; returns the exit status."""
    state = State.UNKNOWN
    if as_json:
        said = {"status": state.name, "exit_status": int(state), "message": error.message}
        _tell(json.dumps({**said, "detail": error.detail, "hint": error.hint}, indent=2))
    else:
        first, *rest = str(error).splitlines() or [""]
        _tell("\n".join([f"PGLEAN {state.name} - {_plain(first)}", *map(_plain, rest)]))
    return _told(state)


def _tell(text: str) -> None:
    click.echo(text)
    sys.stdout.flush()


def _told(state: State) -> int:
    """The exit status; what nobody could be told of is UNKNOWN."""
    return int(State.UNKNOWN if getattr(sys.stdout, "error", None) else state)


# ---- what is said


def _headline(judged: Verdict) -> str:
    total = judged.total
    looked_at = f"{counted(len(judged.tables), 'table')}, {bytes_text(total.bytes)}"
    if judged.small:
        looked_at += f" ({judged.small:,} smaller left out)"
    gain = f"a repack would give back {bytes_text(total.gain_bytes)} ({total.bloat:.0%})"
    if judged.together:
        unknown = f"; of {bytes_text(total.unknown_bytes)} nothing is known" if total.unknown_bytes else ""
        return f"{looked_at}: {gain}{unknown}"
    counts = [(len(judged.of_state(state)), state) for state in (State.CRITICAL, State.WARNING, State.UNKNOWN)]
    states = ", ".join(f"{count:,} {state.name}" for count, state in counts if count)
    if not judged.tables:
        return f"{looked_at}: there is none to be looked at"
    first = judged.tables[0]
    return f"{states or 'none is too bloated'}, of {looked_at}; first {_said(first)}"


def _details(judged: Verdict, *, named: bool) -> Iterator[str]:
    """A line for each table that is not OK, or was named; the thresholds."""
    thresholds = judged.thresholds
    yield f"WARNING above {thresholds.warning.text}, CRITICAL above {thresholds.critical.text}" + (
        " of all together" if judged.together else ""
    )
    shown = [table for table in judged.tables if named or table.state is not State.OK]
    for table in shown[:_TOP]:
        yield f"{table.state.name}: {_said(table)}" + "".join(f"; {note}" for note in table.notes)
    if len(shown) > _TOP:
        yield f"and {len(shown) - _TOP:,} more, which --json lists"


def _said(table: Judged) -> str:
    if not table.known:
        return f"{table.name}: {bytes_text(table.bytes)}, of which nothing is known"
    unknown = f", of {bytes_text(table.unknown_bytes)} nothing is known" if table.unknown_bytes else ""
    return f"{table.name}: {bytes_text(table.gain_bytes)} of {bytes_text(table.bytes)} ({table.bloat:.0%}){unknown}"


def _plain(text: str) -> str:
    """As a line of a plugin: the bar is what performance data begin with, and a name may have one."""
    return "".join(character if character.isprintable() else " " for character in text).replace("|", "_")


def _as_json(judged: Verdict, database: str, remarks: Sequence[str]) -> dict[str, Any]:
    return {
        "status": judged.state.name,
        "exit_status": int(judged.state),
        "message": _headline(judged),
        "database": database,
        "warning": judged.thresholds.warning.text,
        "critical": judged.thresholds.critical.text,
        "of_total": judged.together,
        "total": judged.total.as_json(),
        "left_out": judged.small,
        "tables": [table.as_json() for table in judged.tables],
        "warnings": list(remarks),
    }


# ---- performance data


def _perfdata(judged: Verdict, *, named: bool) -> Iterator[str]:
    """``'label'=value[unit];warning;critical;least;most``: always the same labels for the same question.

    So graphs can be drawn: of tables that were named each has its own, of others only what all have in common.
    """
    thresholds = judged.thresholds
    yield from _measured(judged.total, thresholds if judged.together else None)
    if not judged.together:
        known = [table for table in judged.tables if table.known]
        share = max((table.bloat for table in known), default=0.0)
        gain = max((table.gain_bytes for table in known), default=0)
        yield _datum("most bloated", f"{share * 100:.2f}%", *_limits(thresholds, share=True), "0", "100")
        yield _datum("largest gain", f"{gain}B", *_limits(thresholds, share=False), "0")
        for state in (State.WARNING, State.CRITICAL, State.UNKNOWN):
            yield _datum(state.name.lower(), str(len(judged.of_state(state))), "", "", "0")
    yield _datum("tables", str(len(judged.tables)), "", "", "0")
    for table in sorted(judged.tables, key=lambda table: table.name) if named else ():
        yield from _measured(table, None if judged.together else thresholds)


def _measured(table: Judged, thresholds: Thresholds | None) -> Iterator[str]:
    # U is what could not be determined.
    share, gain = (f"{table.bloat * 100:.2f}%", f"{table.gain_bytes}B") if table.known else ("U", "U")
    yield _datum(f"{table.name} bloat", share, *_limits(thresholds, share=True), "0", "100")
    yield _datum(f"{table.name} gain", gain, *_limits(thresholds, share=False), "0", str(table.bytes))
    yield _datum(f"{table.name} size", f"{table.bytes}B", "", "", "0")


def _limits(thresholds: Thresholds | None, *, share: bool) -> tuple[str, str]:
    """Warning and critical, where they are of that kind."""
    if thresholds is None:
        return "", ""
    both = (thresholds.warning, thresholds.critical)
    if share:
        warning, critical = ("" if one.share is None else f"{one.share * 100:g}" for one in both)
    else:
        warning, critical = ("" if one.bytes is None else str(one.bytes) for one in both)
    return warning, critical


def _datum(label: str, value: str, *limits: str) -> str:
    """A label may not have an equals sign, and a quote in it is doubled."""
    quoted = _plain(label).replace("=", "_").replace("'", "''")
    return f"'{quoted}'={';'.join([value, *limits])}".rstrip(";")
