"""Results, plans, runs and errors for people: rich renderables and plain lines. Nothing here talks to a server.

Names of tables and roles go through `rich.text.Text`, never through markup: a table may be called ``[red]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from pglean.disk import bytes_text
from pglean.engines.plan import ReindexPlan
from pglean.errors import PgleanError
from pglean.progress import waiting_text
from pglean.result import ReindexResult, Result
from pglean.rewrite.plan import Plan
from pglean.rewrite.status import Finished, Status, ways_on
from pglean.table import quote_name


def seconds_text(seconds: float) -> str:
    """How long something took, or takes by now: ``0.4 s``, ``4.0 s``, ``12 s``, ``3:05``, ``2:11:09``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(count: int, noun: str) -> str:
    """``1 row``, ``1,234 rows``; `noun` in the singular."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _saved(before: int, after: int) -> str:
    return f"{(after - before) / before:+.0%}" if before else ""


def _in(database: str | None) -> str:
    return "" if database is None else f" in database {quote_name(database)}"


def result_summary(result: Result, database: str | None = None) -> RenderableType:
    """What a finished run did: sizes, times, the lock, the changes, the WAL; `database` where there are several."""
    sizes = Grid(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    sizes.add_column("relation", footer="total", overflow="fold")
    for heading, footer in (
        ("before", bytes_text(result.bytes_before)),
        ("after", bytes_text(result.bytes_after)),
        ("", _saved(result.bytes_before, result.bytes_after)),
    ):
        sizes.add_column(heading, footer=footer, justify="right", no_wrap=True)
    for size in result.sizes:
        sizes.add_row(
            Text(f"{size.kind} {size.name}".strip()),
            bytes_text(size.bytes_before),
            bytes_text(size.bytes_after),
            _saved(size.bytes_before, size.bytes_after),
        )
    phases = ", ".join(f"{name} {seconds_text(seconds)}" for name, seconds in result.phases.items())
    facts = [
        f"repacked in {seconds_text(result.elapsed_s)}: {phases}",
        f"exclusive lock {result.exclusive_lock_ms:.0f} ms;"
        f" {counted(result.changes_applied, 'change')} taken over meanwhile;"
        f" {bytes_text(result.wal_bytes)} of WAL written by the server",
    ]
    if result.verify != "none":
        how = "compared one by one" if result.verify == "full" else "counted in the table and in its copy"
        facts.append(f"{counted(result.rows, 'row')} {how} before the swap")
    if not result.frozen:
        facts.append("not all pages are frozen: they were being written, or an older snapshot was open")
    return Group(Text(f"{result.table}{_in(database)}", style="bold"), sizes, *(Text(fact) for fact in facts))


def plan_summary(plan: Plan, database: str | None = None) -> RenderableType:
    """What a run would do; `database` where there are several."""
    table = plan.table
    grid = Grid(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    grid.add_column("relation", footer="total", overflow="fold")
    grid.add_column("size", footer=bytes_text(table.total_bytes), justify="right", no_wrap=True)
    grid.add_row(Text(f"heap {table.name}"), bytes_text(table.heap_bytes))
    if table.toast:
        grid.add_row("toast", bytes_text(table.toast.bytes))
    for index in table.indexes:
        grid.add_row(Text(f"index {index.name}"), bytes_text(index.bytes))
    steps = [Text(f"{number}. {step}") for number, step in enumerate(plan.steps, 1)]
    warnings = [Text(f"WARNING:  {finding}", style="yellow") for finding in plan.warnings]
    return Group(
        Text(f"{table.qualified_name}{_in(database)} would be repacked", style="bold"),
        grid,
        *steps,
        Text(_disk_text(plan)),
        *warnings,
    )


def _disk_text(plan: Plan) -> str:
    """What is known is the present size; how much of it is live data turns out in the run."""
    text = (
        f"disk space needed: up to {bytes_text(plan.disk_bytes)} for the copy and its indexes"
        " (less for what is bloat), and the changes recorded meanwhile; about as much WAL"
    )
    if plan.order is not None and plan.order.ranges is None:
        text += "; while the rows are sorted, temporary files of the size of the heap"
    if len(places := plan.disk_bytes_by_tablespace) > 1 or None not in places:
        parts = (f"{bytes_text(size)} in {_place(space)}" for space, size in places.items())
        text += f"\nof the copy, up to {', '.join(parts)}"
    return text


def _place(tablespace: str | None) -> str:
    return "the database's default tablespace" if tablespace is None else f"tablespace {quote_name(tablespace)}"


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan for machines."""
    table = plan.table
    return {
        "table": table.qualified_name,
        "status": "planned",
        "key": [column.name for column in table.key.columns] if table.key else [],
        "heap_bytes": table.heap_bytes,
        "toast_bytes": table.toast.bytes if table.toast else 0,
        "indexes": {index.name: index.bytes for index in table.indexes},
        "total_bytes": table.total_bytes,
        "disk_bytes_needed": plan.disk_bytes,
        # "" is the database's default tablespace.
        "disk_bytes_by_tablespace": {space or "": size for space, size in plan.disk_bytes_by_tablespace.items()},
        "order": _order_json(plan),
        "capture": None if plan.options.capture is None else plan.options.capture.value,
        "steps": list(plan.steps),
        "warnings": [
            {"code": finding.code, "message": finding.message, "detail": finding.detail, "hint": finding.hint}
            for finding in plan.warnings
        ],
    }


def _order_json(plan: Plan) -> dict[str, object] | None:
    order = plan.order
    if order is None:
        return None
    return {
        "order_by": order.text,
        "index": order.index,
        "way": "one statement" if order.ranges is None else "key ranges",
        "reason": order.reason,
    }


def reindex_summary(result: ReindexResult) -> RenderableType:
    """What was rebuilt, dropped, and not done."""
    grid = Grid(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    grid.add_column("index", footer="total", overflow="fold")
    for heading, footer in (
        ("before", bytes_text(result.bytes_before)),
        ("after", bytes_text(result.bytes_after)),
        ("", _saved(result.bytes_before, result.bytes_after)),
        ("time", seconds_text(result.elapsed_s)),
    ):
        grid.add_column(heading, footer=footer, justify="right", no_wrap=True)
    for index in result.indexes:
        grid.add_row(
            Text(index.index),
            bytes_text(index.bytes_before),
            bytes_text(index.bytes_after),
            _saved(index.bytes_before, index.bytes_after),
            seconds_text(index.elapsed_s),
        )
    lines = [Text(f"dropped invalid index {name}") for name in result.removed]
    if result.ended_by is not None:
        # Whatever else was not done is told with the error.
        lines += [Text(f"not done: {name}: {error.message}") for name, error in result.failures.items()]
    if not result.indexes:
        return Group(*(lines or [Text("nothing was rebuilt" if result.failures else "nothing to rebuild")]))
    return Group(grid, *lines)


def reindex_plan_summary(plan: ReindexPlan) -> RenderableType:
    """What would be rebuilt, dropped, and what cannot be."""
    lines: list[RenderableType] = []
    for work in plan.works:
        for index in work.removals:
            lines.append(Text(f"index {index.qualified_name} would be dropped. {index.story}"))
    if rebuilds := [index for work in plan.works for index in work.rebuilds]:
        tablespace = plan.options.tablespace
        where = "" if tablespace is None else f", and moved to tablespace {quote_name(tablespace)}"
        grid = Grid(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
        grid.add_column(f"would be rebuilt{where}", footer="total", overflow="fold")
        total = sum(index.bytes for index in rebuilds)
        grid.add_column("size", footer=bytes_text(total), justify="right", no_wrap=True)
        for index in rebuilds:
            grid.add_row(Text(f"{index.qualified_name}{'' if index.valid else ' (invalid)'}"), bytes_text(index.bytes))
        lines.append(grid)
    lines += [Text(f"cannot be done: {name}: {error}") for name, error in plan.failures.items()]
    lines += [Text(f"WARNING:  {finding}", style="yellow") for finding in plan.warnings]
    return Group(*(lines or [Text("nothing to rebuild")]))


def reindex_plan_json(plan: ReindexPlan) -> dict[str, object]:
    """The same for machines."""
    return {
        "status": "planned",
        "tablespace": plan.options.tablespace,
        "indexes": [
            {"index": index.qualified_name, "table": work.relation.qualified_name, "bytes": index.bytes}
            for work in plan.works
            for index in work.rebuilds
        ],
        "removals": [index.qualified_name for work in plan.works for index in work.removals],
        "failures": [error_json(name, error) for name, error in plan.failures.items()],
        "skipped": [skipped_json(name, refused) for name, refused in plan.skipped.items()],
        "warnings": [{"code": finding.code, "message": finding.message} for finding in plan.warnings],
    }


def status_lines(runs: Sequence[Status], command: Callable[[str], str]) -> RenderableType:
    """Runs that are not over: a few lines each, which fit any terminal and any pipe; `command` is `Server.command`."""
    lines: list[Text] = []
    for run in runs:
        done, total = run.progress.get("done", 0), run.progress.get("total", 0)
        share = f" {done / total:.0%}" if total and run.state == "running" else ""
        state = run.state if run.state == run.phase else f"{run.state}, {run.phase}{share}"
        lines.append(
            Text.assemble(
                (f"job {run.id}: {quote_name(run.schema)}.{quote_name(run.table)}", "bold"),
                f"  {state}",
            )
        )
        lines.append(
            Text(
                f"  begun {seconds_text(run.elapsed_s)} ago, heartbeat {seconds_text(run.heartbeat_s)} ago;"
                f" changes {bytes_text(run.changes_bytes)}, copy {bytes_text(run.shadow_bytes)}"
            )
        )
        if run.slot_wal_bytes is not None:
            lines.append(Text(f"  replication slot {run.slot} retains {bytes_text(run.slot_wal_bytes)} of WAL"))
        elif run.slot_lost:
            lines.append(Text(f"  replication slot {run.slot} is gone, or was invalidated by the server"))
        if waiting := str(run.progress.get("waiting_for", "")):
            lines.append(Text(f"  {waiting_text(waiting, throttled=bool(run.progress.get('throttled')))}"))
        if run.command and run.alive:
            lines.append(Text(f"  asked to {run.command}"))
        if run.error:
            lines.append(Text(f"  {run.error}"))
        if run.slot_lost and not run.swapped:
            lines.append(Text(f"  `pglean repack` begins anew, {command(f'abort {run.id}')} undoes it"))
        elif run.state in ("paused", "interrupted"):
            lines.append(Text(f"  {ways_on(run.id, command)}"))
    return Group(*lines)


def log_lines(runs: Sequence[Finished]) -> RenderableType:
    """The history of runs: a line each, and why those that were undone were."""
    lines: list[Text] = []
    for run in runs:
        result = run.result or {}
        sizes = (
            f", {bytes_text(result['bytes_before'])} to {bytes_text(result['bytes_after'])}"
            f", exclusive lock {result['exclusive_lock_ms']:.0f} ms"
            if result
            else ""
        )
        lines.append(
            Text.assemble(
                f"{run.started_at:%Y-%m-%d %H:%M}  job {run.id}: ",
                (f"{quote_name(run.schema)}.{quote_name(run.table)}", "bold"),
                f"  {run.state} in {seconds_text(run.elapsed_s)}{sizes}",
            )
        )
        if run.error:
            lines.append(Text(f"  {run.error}"))
    return Group(*lines)


def error_text(error: PgleanError) -> Text:
    """As psql prints an error of the server."""
    lines = [f"pglean: error: {error.message}"]
    if error.detail:
        lines.append(f"DETAIL:  {error.detail}")
    if error.hint:
        lines.append(f"HINT:  {error.hint}")
    return Text("\n".join(lines))


def batch_text(done: int, skipped: int, failed: int, sizes: tuple[int, int] | None) -> str:
    """How many tables were done, and their bytes before and after; where these are None, would be done."""
    parts = [f"{counted(done, 'table')} {'would be repacked' if sizes is None else 'repacked'}"]
    parts += [f"{skipped:,} skipped"] if skipped else []
    parts += [f"{failed:,} not done"] if failed else []
    text = ", ".join(parts)
    return f"{text}; {bytes_text(sizes[0])} before, {bytes_text(sizes[1])} after" if sizes and done else text


def skipped_json(table: str, error: PgleanError) -> dict[str, object]:
    """A table that nobody has named, and that cannot be repacked, for machines."""
    return {**error_json(table, error), "status": "skipped", "exit_status": 0}


def error_json(table: str | None, error: PgleanError) -> dict[str, object]:
    """A failure for machines; where it is one of the whole database, there is no table."""
    findings = getattr(error, "findings", ())
    return {
        "table": table,
        "status": "failed",
        # Only where there is a run.
        **({} if error.job is None else {"job": error.job}),
        "exit_status": error.exit_status,
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
        "findings": [
            {"code": finding.code, "message": finding.message, "detail": finding.detail, "hint": finding.hint}
            for finding in findings
        ],
    }
