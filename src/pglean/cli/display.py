"""Progress on standard error: a live display on a terminal, lines without one."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table as Grid
from rich.text import Text

from pglean.cli.streams import printable
from pglean.progress import Callback, Progress
from pglean.report import counted, seconds_text

#: Phases in the order in which they come, as `Progress.phase` names them.
PHASES = (
    "capturing",
    "copying",
    "indexing",
    "catching up",
    "verifying",
    "ready",
    "swapping",
    "cleaning",
)

_LINE_INTERVAL_S = 10.0
#: Of lines that go to a file or a pipe: nothing is folded there, so that it can be searched.
_ENDLESS = 10_000


def console(*, stderr: bool = False) -> Console:
    """Standard output, or error; where that is no terminal, lines are as long as they need to be."""
    # Given as a file, it is asked for its encoding: frames are drawn with what that has.
    file = sys.stderr if stderr else sys.stdout
    found = _Console(file=file, highlight=False)
    return found if found.is_terminal else _Console(file=file, highlight=False, width=_ENDLESS)


class _Console(Console):
    """Shows control characters in what others have named as a replacement; its own are segments of another kind."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)


def _figures(progress: Progress) -> str:
    parts = []
    if progress.phase == "copying" and progress.phase_s > 0.2:
        parts.append(f"{counted(progress.rows, 'row')}, {progress.rows_rate:,.0f} rows/s")
    if (eta := progress.eta_s) is not None and eta >= 1 and progress.fraction != 1:
        parts.append(f"{seconds_text(eta)} left")
    if progress.changes_applied:
        parts.append(f"{counted(progress.changes_applied, 'change')} taken over")
    return ", ".join(parts)


def _told(progress: Progress) -> str:
    """The message, with the table that it is about."""
    return f"{progress.table}: {progress.message}" if progress.table else progress.message


class _Screen:
    """The live display: one line per phase, the current one with a bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._received = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._messages: set[str] = {""}
        self._spinner = Spinner("dots")

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            before = self._progress
            if before is not None and before.phase != progress.phase:
                self._seconds[before.phase] = max(
                    progress.elapsed_s - progress.phase_s - (before.elapsed_s - before.phase_s), 0.0
                )
            self._progress = progress
            self._received = time.monotonic()
            news = progress.message if progress.message not in self._messages else ""
            self._messages.add(progress.message)
        if news:
            # Above the display, where it stays when that is gone.
            self._console.print(Text(f"pglean: {_told(progress)}", style="yellow"))

    def __rich__(self) -> RenderableType:
        with self._lock:
            progress = self._progress
            if progress is None:
                return Text("connecting …")
            since = time.monotonic() - self._received
            grid = Grid.grid(padding=(0, 1))
            grid.add_column(width=2)
            grid.add_column(width=12)
            grid.add_column(width=8, justify="right")
            grid.add_column(width=24)
            grid.add_column(overflow="fold")
            for phase in PHASES:
                if phase == progress.phase:
                    bar: RenderableType = (
                        ProgressBar(total=1, completed=progress.fraction, width=24)
                        if progress.fraction is not None
                        else Text("")
                    )
                    seconds = seconds_text(progress.phase_s + since)
                    grid.add_row(self._spinner, Text(phase, style="bold"), seconds, bar, _figures(progress))
                elif phase in self._seconds:
                    grid.add_row(Text("✓", style="green"), phase, seconds_text(self._seconds[phase]), "", "")
                else:
                    grid.add_row("", Text(phase, style="dim"), "", "", "")
            lines: list[RenderableType] = [
                Text.assemble(
                    ("repacking ", "bold"),
                    (progress.table, "bold"),
                    f"  (job {progress.job}, {seconds_text(progress.elapsed_s + since)})",
                ),
                grid,
            ]
            if progress.waiting_for:
                lines.append(Text(progress.waiting, style="yellow"))
            return Group(*lines)


@dataclass(slots=True)
class _Last:
    """What was written last of a table."""

    phase: str = ""
    waiting: str = ""
    at: float = 0.0


class _Lines:
    """A line per phase, and one every ten seconds; of each table, where there are several at once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._told: dict[str, _Last] = defaultdict(_Last)

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            now, last = time.monotonic(), self._told[progress.table]
            news = progress.phase != last.phase or now - last.at >= _LINE_INTERVAL_S
            waiting = progress.waiting_for if progress.waiting_for != last.waiting else ""
            if not (news or progress.message or waiting):
                return
            last.phase, last.at, last.waiting = progress.phase, now, progress.waiting_for
            done = f" {progress.fraction:.0%}" if progress.fraction else ""
            if progress.message:
                self._write(_told(progress))
                return
            text = [f"{progress.table}: {progress.phase}{done}", _figures(progress), progress.waiting]
            self._write(", ".join(part for part in text if part))


@contextlib.contextmanager
def progress_display(
    console: Console, *, progress: bool = True, messages: bool = True, several: bool = False
) -> Iterator[Callback]:
    """A callback for `on_progress`: live on a terminal, lines elsewhere, and for `several` runs at the same time.

    `progress=False` leaves only messages that somebody should read, `messages=False` as well nothing.
    """

    def write(line: str) -> None:
        print(f"pglean: {line}", file=console.file, flush=True)

    def tell(state: Progress) -> None:
        if messages and state.message and not state.informational:
            write(_told(state))

    if not progress:
        yield tell
    elif console.is_terminal and not several:
        screen = _Screen(console)
        with Live(screen, console=console, refresh_per_second=8, transient=True):
            yield screen
    else:
        yield _Lines(write)
