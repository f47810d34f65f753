"""The demo: a private server, a bloated table, live traffic, and a repack in front of your eyes.

What is shown is also proved. The clients of the traffic know what they have committed; when all is over, each row of
the table is held against that. The rest (OIDs, view, foreign keys, a prepared statement from before) is asked of a
session that was there all the time.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Final

import psycopg
from psycopg.rows import TupleRow
from rich.console import Console
from rich.text import Text

from pglean.api import connect
from pglean.demo import report as _report
from pglean.demo import shop
from pglean.demo.report import DemoReport, Slice, Window
from pglean.demo.shop import Check
from pglean.demo.traffic import Log, Traffic
from pglean.embedded import EmbeddedError, EmbeddedServer, find_binaries
from pglean.errors import PgleanError, UsageError
from pglean.options import Verify
from pglean.progress import Callback
from pglean.result import Result

__all__ = ["CLIENTS", "RATE", "ROWS", "SECONDS", "Check", "DemoReport", "Slice", "Window", "run"]

#: Of a server with a few hundred megabytes of data; no checkpoint falls into the half minute that it lives.
_SETTINGS: Final = {
    "shared_buffers": "256MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "log_min_messages": "warning",
}
#: Traffic that is not measured: caches get warm, statements get prepared.
_WARM_UP_S: Final = 1.0
_FEWEST_ROWS: Final = 1000
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Defaults of `run`: half a minute on two cores.
ROWS: Final = 300_000
SECONDS: Final = 4.0
CLIENTS: Final = 4
RATE: Final = 1000.0


def run(
    console: Console,
    *,
    rows: int = ROWS,
    seconds: float = SECONDS,
    clients: int = CLIENTS,
    rate: float = RATE,
    progress: AbstractContextManager[Callback | None] | None = None,
    keep: bool = False,
    on_report: Callable[[DemoReport], None] | None = None,
) -> DemoReport:
    """Perform the demo; when it returns or raises, the server is stopped and its files are gone.

    console: is told what is going on.
    rows: orders in the table, to which as many dead ones come; 300 000 take about 700 MB below /tmp.
    seconds: for how long traffic is measured before and after the repack.
    clients: connections of the traffic, each from a process of its own.
    rate: transactions per second that they begin together; 0 for as many as they can.
    progress: entered for the repack alone, gives the callback that it reports to.
    keep: leave the server running after the report, until Ctrl-C.
    on_report: is called with the report while the server is still there.

    Raises the errors of `pglean.errors`, also where the embedded server is not installed or does not start.
    """
    if rows < _FEWEST_ROWS or clients < 1 or seconds < 0 or rate < 0:
        raise UsageError(f"the demo needs at least {_FEWEST_ROWS} rows, one client, and no negative time or rate")
    started_s = time.monotonic()
    with ExitStack() as stack:
        try:
            server = EmbeddedServer(find_binaries(), settings=_SETTINGS)
            # Before the start, so that no moment is left in which an interrupt would find it unattended.
            stack.callback(_discard, server)
            server.start()
        except EmbeddedError as error:
            raise PgleanError(error.message, detail=error.detail, hint=error.hint) from error
        stage = _Stage(console, server, stack)
        stage.build(rows)
        setup_s = time.monotonic() - started_s
        traffic = Traffic(stage.conninfo, clients=clients, rate=rate, customers=shop.customers(rows))
        stack.callback(traffic.close)
        witness = shop.Witness(stage.conn)
        result, logs, marks_s = stage.perform(traffic, clients, seconds, progress or nullcontext())
        with stage.telling("Comparing every row with what the traffic has committed") as tell:
            compared, different = stage.compare(logs)
            tell(f"{compared:,} rows")
        report = DemoReport(
            server_version=stage.version,
            clients=clients,
            offered_per_s=rate,
            repack=result,
            windows=_report.windows(logs, marks_s),
            slices=_report.slices(logs, marks_s),
            transactions=dict(sum((log.kinds for log in logs), Counter())),
            errors=tuple(error for log in logs for error in log.errors),
            stale=sum(log.stale for log in logs),
            rows_compared=compared,
            rows_different=different,
            checks=witness.testify(),
            setup_s=round(setup_s, 3),
            elapsed_s=round(time.monotonic() - started_s, 3),
        )
        if on_report is not None:
            on_report(report)
        if keep:
            stage.wait_for_the_user()
    return report


class _Stage:
    """The server with the shop on it, and the acts of the piece in their order."""

    def __init__(self, console: Console, server: EmbeddedServer, stack: ExitStack) -> None:
        self._console = console
        with psycopg.connect(server.conninfo(), autocommit=True) as conn:
            conn.execute("CREATE DATABASE shop")
        self._address = server.conninfo("shop")
        # The same for all sessions whatever the environment says: a digest contains a timestamp as text.
        self.conninfo = psycopg.conninfo.make_conninfo(self._address, options="-c timezone=UTC")
        self.conn: psycopg.Connection[TupleRow] = stack.enter_context(
            psycopg.connect(self.conninfo, autocommit=True, application_name="pglean demo")
        )
        self.version = self.conn.info.parameter_status("server_version") or str(self.conn.info.server_version)

    def build(self, rows: int) -> None:
        """The shop, with its bloated table."""
        with self.telling(f"Building a shop on a private PostgreSQL {self.version}") as tell:
            shop.build(self.conn, rows)
            ((size,),) = self.conn.execute("SELECT pg_size_pretty(pg_total_relation_size('shop.orders'))").fetchall()
            tell(f"{shop.TABLE}: {rows:,} rows, as many dead, {size}")

    def perform(
        self,
        traffic: Traffic,
        clients: int,
        seconds: float,
        progress: AbstractContextManager[Callback | None],
    ) -> tuple[Result, list[Log], tuple[float, float, float, float]]:
        """Traffic alone, traffic and repack, traffic alone; with the marks between them, in monotonic seconds."""
        with self.telling(f"Traffic of {clients} clients, by itself") as tell:
            traffic.begin()
            time.sleep(_WARM_UP_S)
            start_s = time.monotonic()
            time.sleep(seconds)
            tell(f"{seconds:g} s, and it goes on from here")
        from_s = time.monotonic()
        with connect(self.conninfo) as db, progress as on_progress:
            result = db.repack(shop.TABLE, verify=Verify.FULL, on_progress=on_progress)
        to_s = time.monotonic()
        self._tell(f"Repacking {shop.TABLE}, in the midst of it", f"{to_s - from_s:.1f} s")
        with self.telling("Traffic on the repacked table") as tell:
            time.sleep(seconds)
            end_s = time.monotonic()
            logs = traffic.finish()
            tell(f"{seconds:g} s")
        return result, logs, (start_s, from_s, to_s, end_s)

    def compare(self, logs: list[Log]) -> tuple[int, int]:
        """Rows compared, rows different."""
        with self.conn.cursor(binary=True) as cursor:
            cursor.execute("SELECT o.id, " + shop.DIGEST + " FROM shop.orders o")
            return _report.compare(((row[0], row[1]) for row in cursor), logs)

    def wait_for_the_user(self) -> None:
        """Until Ctrl-C."""
        self._console.print(Text(f'The server goes on until Ctrl-C:  psql "{self._address}"'), soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[Callable[[str], None]]:
        """Say what is being done and, at the end, what has come of it: the function given is called with that."""
        outcome: list[str] = []
        with self._console.status(Text(f"{what} …")):
            yield outcome.append
        self._tell(what, *outcome)

    def _tell(self, what: str, *outcome: str) -> None:
        self._console.print(
            Text.assemble(("✓ ", "green"), what, *((f"  {text}", "dim") for text in outcome)),
            soft_wrap=not self._console.is_terminal,
        )


def _discard(server: EmbeddedServer) -> None:
    """Stop the server and remove its files, not to be interrupted by a second Ctrl-C: it takes half a second."""
    # Python lets no other thread set a handler, nor does a signal interrupt any other.
    numbers = _SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        # Nobody will ever read its files again.
        server.close(mode="immediate")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
