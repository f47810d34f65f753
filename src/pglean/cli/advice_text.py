"""Advice for people: what stands in the way, then the actions one by one."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from pglean.advice.advice import Action, ActionKind, Advice, Age, Hold, words
from pglean.cli.streams import printable
from pglean.disk import bytes_text
from pglean.report import counted, seconds_text

_TITLES = {
    ActionKind.FREEZE: "freeze",
    ActionKind.END_HOLDER: "let go of the vacuum horizon",
    ActionKind.VACUUM: "VACUUM",
    ActionKind.VACUUM_MEMORY: "VACUUM with more memory",
    ActionKind.AUTOVACUUM: "autovacuum",
    ActionKind.ANALYZE: "ANALYZE",
    ActionKind.REPACK: "repack",
    ActionKind.REPACK_ORDER: "repack in another order",
    ActionKind.REINDEX: "rebuild indexes",
    ActionKind.INVALID_INDEX: "an invalid index",
    ActionKind.FILLFACTOR: "leave room for updates",
    ActionKind.DROP_INDEX: "an index that may not be needed",
    ActionKind.WAIT: "nothing to do before the horizon is let go",
    ActionKind.NOTHING: "nothing to do",
}


def advice_text(found: Advice, top: int, *, folded: bool) -> RenderableType:
    """What stands in the way, the first `top` actions, and what all of it comes to.

    `folded`: for a terminal, where long lines are folded within their column.
    """
    parts: list[RenderableType] = []
    if found.holds:
        parts.append(_holds(found))
    if found.ages:
        parts.append(_ages(found.ages))
    parts += [_shown(f"running: {words(vacuum)}") for vacuum in found.vacuums]
    if parts and found.actions:
        parts.append(Text())
    for number, action in enumerate(found.actions[:top], 1):
        lines = list(_lines(number, action))
        parts += [_folded(lines)] if folded else [Text(f"{label:>5}  ").append(text) for label, text in lines]
        parts.append(Text())
    parts += [Text(line) for line in _summary(found, top)]
    return Group(*parts)


def _shown(text: str, style: str = "") -> Text:
    return Text(printable(text), style)


def _lines(number: int, action: Action) -> Iterator[tuple[str, Text]]:
    """What is said of an action, each with what it is."""
    title = _TITLES[action.kind] + (f": {action.table}" if action.table else "")
    urgent = " (urgent)" if action.urgent else ""
    yield f"{number}.", _shown(f"{title}{urgent}", "bold red" if action.urgent else "bold")
    yield "why", _shown(action.reason)
    for command in action.commands:
        if printable(command) == command:
            yield "do", _shown(command, "green")
        else:
            yield "do", Text("take the command from --json: a name in it has characters that cannot be shown")
    if action.commands and (cost := _cost(action)):
        yield "costs", Text(cost)
    if action.gain:
        yield "gives", Text(action.gain)
    for note in action.notes:
        yield "note", _shown(note)


def _folded(lines: list[tuple[str, Text]]) -> RenderableType:
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(width=5, justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in lines:
        grid.add_row(label, text)
    return grid


def _cost(action: Action) -> str:
    cost = action.cost
    parts = []
    if cost.seconds is not None:
        parts.append(f"about {seconds_text(max(cost.seconds, 0.1))}, an estimate")
    if cost.disk_bytes:
        parts.append(f"{bytes_text(cost.disk_bytes)} of disk space meanwhile")
    if cost.locks:
        parts.append(cost.locks)
    return "; ".join(parts)


def _holds(found: Advice) -> RenderableType:
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("the vacuum horizon is held by", overflow="fold")
    grid.add_column("transactions", justify="right", no_wrap=True)
    grid.add_column("keeps dead rows of", overflow="fold")
    grid.add_column("query", overflow="fold")
    for hold in found.holds:
        grid.add_row(
            _shown(hold.holder.phrase),
            f"{hold.holder.age_transactions:,}",
            _shown(_keeps(hold)),
            _shown(" ".join((hold.holder.query or "").split())[:120]),
        )
    return grid


def _keeps(hold: Hold) -> str:
    if hold.holder.catalogs_only:
        return "the system catalogs"
    most = ", ".join(f"{table} ({rows:,})" for table, rows in hold.keeps[:3])
    return f"{most} …" if len(hold.keeps) > 3 else most


def _ages(ages: tuple[Age, ...]) -> RenderableType:
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("near the limit from which on autovacuum freezes", overflow="fold")
    for heading in ("oldest row", "limit", "share"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for age in ages[:10]:
        part = " (TOAST)" if age.toast else ""
        doing = ", being vacuumed" if age.in_vacuum else ""
        grid.add_row(
            _shown(f"{age.name}{part}{doing}"),
            f"{age.age:,} {age.of}",
            f"{age.limit:,}",
            Text(f"{age.share:.0%}", style="red" if age.share >= 1 else "yellow"),
        )
    if len(ages) > 10:
        grid.add_row(f"and {len(ages) - 10:,} others")
    return grid


def _summary(found: Advice, top: int) -> Iterator[str]:
    of = f"of {counted(found.looked_at, 'table')} looked at"
    if not found.looked_at:
        yield "there is no table to be looked at"
    elif found.fine == found.looked_at:
        yield f"nothing to do: {of} none needs anything"
    else:
        yield f"{of} {found.fine:,} need{'s' if found.fine == 1 else ''} nothing" + (
            f", and of {found.unknown:,} nothing is known" if found.unknown else ""
        )
    if (left := len(found.actions) - top) > 0:
        yield f"{counted(left, 'action')} {'is' if left == 1 else 'are'} not listed here, --top N lists more"
