"""`pglean demo`: a private server, a bloated table, live traffic, a repack in front of your eyes."""

from __future__ import annotations

import contextlib
import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from pglean import demo
from pglean.cli.display import progress_display
from pglean.demo import DemoReport, Slice
from pglean.errors import Interrupted
from pglean.report import result_summary, seconds_text

_BARS = " ▁▂▃▄▅▆▇█"
_DURING = "cyan"


@click.command("demo", short_help="See it work: a private server, live traffic, a repack.")
@click.option("--rows", type=int, default=demo.ROWS, show_default=True, help="Rows of the table, and as many dead.")
@click.option(
    "--seconds",
    type=float,
    default=demo.SECONDS,
    show_default=True,
    help="How long traffic is measured before and after.",
)
@click.option("--clients", type=int, default=demo.CLIENTS, show_default=True, help="Connections of the traffic.")
@click.option(
    "--rate",
    type=float,
    metavar="TPS",
    default=demo.RATE,
    show_default=True,
    help="Transactions per second of all clients; 0 for as many as they can.",
)
@click.option("--keep", is_flag=True, help="Leave the server running for a look around, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def demo_command(
    context: click.Context,
    rows: int,
    seconds: float,
    clients: int,
    rate: float,
    keep: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """See pglean work, in half a minute and without a server of yours.

    A private PostgreSQL is started, a bloated table made, and clients set on it that read and write all the time. The
    table is repacked under them. Then every row is compared with what the clients have committed. Nothing of it stays:
    server and files (about 700 MB below /tmp) are gone at the end, and after Ctrl-C.

    Exit status: 0 all is as it should be, 1 a row or a check is not.
    """
    out, err = Console(highlight=False), Console(stderr=True, highlight=False, quiet=quiet and not keep)

    def show(report: DemoReport) -> None:
        if as_json:
            click.echo(json.dumps(report.as_json(), indent=2))
        else:
            out.print(report_summary(report), soft_wrap=not out.is_terminal)

    try:
        with _signals_as_interrupt():
            report = demo.run(
                err,
                rows=rows,
                seconds=seconds,
                clients=clients,
                rate=rate,
                keep=keep,
                progress=progress_display(err, progress=not quiet, messages=not quiet),
                on_report=show,
            )
    except KeyboardInterrupt as interruption:
        raise Interrupted("the demo was interrupted; its server is stopped, its files are removed") from interruption
    context.exit(0 if report.ok else 1)


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: with everything put away."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- the report for people


def report_summary(report: DemoReport) -> RenderableType:
    """What became smaller, what the traffic noticed of it, and what was checked."""
    return Group(result_summary(report.repack), Text(), _traffic(report), _checks(report))


def _traffic(report: DemoReport) -> RenderableType:
    offered = f"{report.offered_per_s:,.0f} tx/s offered" if report.offered_per_s else "as fast as they can"
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.add_column("")
    for heading in ("seconds", "transactions", "tx/s", "median", "p99", "worst"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for window in report.windows:
        grid.add_row(
            f"{window.name} the repack",
            f"{window.seconds:.1f}",
            f"{window.transactions:,}",
            f"{window.transactions_per_s:,.0f}",
            *(f"{latency_ms:,.1f} ms" for latency_ms in (window.median_ms, window.p99_ms, window.worst_ms)),
            style=_DURING if window.name == "during" else "",
        )
    kinds = ", ".join(f"{count:,} {kind}s" for kind, count in sorted(report.transactions.items()))
    return Group(
        Text.assemble(("traffic", "bold"), f"  {report.clients} clients, {offered}: {kinds}"),
        grid,
        _curve("throughput", report.slices, lambda part: part.transactions_per_s, "tx/s"),
        _curve("worst wait", report.slices, lambda part: part.worst_ms, "ms"),
    )


def _curve(name: str, slices: Sequence[Slice], value: Callable[[Slice], float], unit: str) -> Text:
    """A line of bars over the time that was measured; the time of the repack has its colour."""
    highest = max(map(value, slices), default=0.0)
    text = Text(f"{name}  ")
    for part in slices:
        # Rounded up: a blank means nothing at all.
        height = math.ceil(value(part) / highest * (len(_BARS) - 1)) if highest else 0
        text.append(_BARS[height], style=_DURING if part.during else "dim")
    return text.append(f"  0 to {highest:,.0f} {unit}")


def _checks(report: DemoReport) -> RenderableType:
    grid = Grid.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    longest_ms = max((window.worst_ms for window in report.windows if window.name == "during"), default=0.0)
    _check(
        grid,
        report.rows_different == 0,
        "Rows",
        f"{report.rows_compared:,} compared one by one with what the clients have committed,"
        f" {report.rows_different:,} differences",
    )
    total = sum(report.transactions.values())
    _check(
        grid,
        not report.errors and not report.stale,
        "Transactions",
        f"{total:,} since the start, {len(report.errors)} errors, {report.stale} stale rows",
    )
    for check in report.checks:
        _check(grid, check.passed, check.name, check.detail)
    verdict = (
        Text.assemble(
            ("All is well.", "bold green"),
            f" Longest exclusive lock {report.repack.exclusive_lock_ms:.0f} ms, longest wait of a client"
            f" {longest_ms:.0f} ms; {seconds_text(report.elapsed_s)} in all.",
        )
        if report.ok
        else Text("NOT all is well: see the lines with ✗.", style="bold red")
    )
    errors = [Text(error, style="red") for error in report.errors[:5]]
    return Group(Text(), grid, *errors, Text(), verdict)


def _check(grid: Grid, passed: bool, name: str, detail: str) -> None:
    mark = Text("✓", style="green") if passed else Text("✗", style="bold red")
    grid.add_row(mark, name, Text(detail, style="" if passed else "red"))
