"""What was asked for, table by table, in one database or in all; what is not done is said with its reason."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import psycopg
from rich.console import RenderableType
from rich.text import Text

from pglean.api import Database
from pglean.bloat.density import Density
from pglean.catalog import fingerprint, resolve
from pglean.cli.connection import interruptible
from pglean.cli.density_map import CELLS, density_json, density_map
from pglean.cli.display import console, progress_display
from pglean.errors import Incomplete, Interrupted, NotBegun, PgleanError, Refused, UsageError
from pglean.options import Options
from pglean.report import batch_text, error_json, error_text, plan_json, plan_summary, result_summary, skipped_json
from pglean.result import Result
from pglean.rewrite import rights
from pglean.rewrite.checks import EVERY_TABLE, OLDEST
from pglean.rewrite.plan import Plan
from pglean.selection import Selection, is_pattern, missing_extensions, select
from pglean.server import Server
from pglean.session import Connection
from pglean.table import quote_name


@dataclass(frozen=True, slots=True)
class Work:
    """How it is to be done, and what is said of it."""

    options: Options
    dry_run: bool
    at_once: int
    as_json: bool
    #: Progress and summaries.
    told: bool
    warned: bool
    #: How full each table is along its file, before and after.
    mapped: bool = False


@dataclass(frozen=True, slots=True)
class _Target:
    """A table, or a name that means none."""

    #: As it was given; qualified where the table was found otherwise.
    name: str
    #: Whether it was named by itself: what refuses it is then a failure.
    named: bool
    oid: int | None = None
    error: PgleanError | None = None


@contextlib.contextmanager
def failure_as_json(names: Sequence[str] | None) -> Iterator[None]:
    """What ends the command in the block is told of each of `names`, of none in particular where there are none.

    For machines; for people, where `names` is None, the error says it.
    """
    try:
        yield
    except PgleanError as error:
        if names is not None:
            click.echo(json.dumps([error_json(name, error) for name in names or (None,)], indent=2))
        raise


class _Report:
    """What came of each, for both kinds of readers."""

    def __init__(self, work: Work, what: str = "tables") -> None:
        self._work, self._what = work, what
        self.out, self.err = console(), console(stderr=True)
        # Of a hundred thousand tables no more is kept than is told in the end.
        self.elements: list[dict[str, Any]] = []
        self.failures: dict[str, PgleanError] = {}
        self.done = self.skipped = self.bytes_before = self.bytes_after = 0
        #: Named in what is said, where there are several.
        self.database: str | None = None
        #: Whether there is one table only, whose error ends the command.
        self.single = False

    def add(self, element: dict[str, Any]) -> None:
        if self._work.as_json:
            self.elements.append(element if self.database is None else {"database": self.database, **element})

    def succeeded(self, outcome: Result | Plan, maps: Mapping[str, Density]) -> None:
        """`maps`: how full the table is along its file, by when that was; those from before were shown then."""
        self.done += 1
        extra = {"map": {when: density_json(density) for when, density in maps.items()}} if maps else {}
        if isinstance(outcome, Plan):
            self.add({**plan_json(outcome), **extra})
            self.show(plan_summary(outcome, self.database), always=True)
        else:
            self.bytes_before += outcome.bytes_before
            self.bytes_after += outcome.bytes_after
            self.add({**outcome.as_json(), **extra})
            self.show(result_summary(outcome, self.database))
        if "after" in maps:
            self.show_map(maps["after"], "after")

    def failed(self, name: str | None, error: PgleanError) -> None:
        """Of a table, or of the database as a whole."""
        self.failures[self._named(name)] = error
        self.add(error_json(name, error))
        # What ends the batch by the user's will is told once, in the end, with all that was not begun.
        told = not (self.single or isinstance(error, NotBegun) or _ends_all(error))
        if told and not self._work.as_json:
            self.err.print(error_text(error), soft_wrap=True)

    def _named(self, name: str | None) -> str:
        """A table, or the database as a whole, as it is named where there are several."""
        where = None if self.database is None else quote_name(self.database)
        return ": ".join(part for part in (where, name) if part)

    def skip(self, name: str, error: PgleanError) -> None:
        self.skipped += 1
        self.add(skipped_json(name, error))
        findings = error.findings if isinstance(error, Refused) else ()
        reason = "; ".join(finding.message for finding in findings) or error.message
        # Exit status 0 does not tell of it. For machines it is in the JSON.
        if self._work.told or not self._work.as_json:
            self.warn(f"{self._named(name)}: skipped: {reason}")

    def show(self, what: RenderableType, *, always: bool = False) -> None:
        """A result, on standard output."""
        if (self._work.told or always) and not self._work.as_json:
            self.out.print(what)

    def show_map(self, density: Density, when: str) -> None:
        """How full a table is, before or after."""
        self.show(density_map(density, self.out, f", {when}"), always=self._work.dry_run)

    def tell(self, line: str) -> None:
        """A message, on standard error."""
        if self._work.told:
            self.err.print(Text(f"pglean: {line}"), soft_wrap=True)

    def warn(self, line: str) -> None:
        """A message that is seldom unwanted."""
        if self._work.warned:
            self.err.print(Text(f"pglean: warning: {line}"), soft_wrap=True)

    def end(self) -> None:
        """Say how many were done; raises the error of the one table, or `Incomplete` where one of several was not."""
        if self._work.as_json:
            click.echo(json.dumps(self.elements, indent=2, default=str))
        elif (self.done or self.skipped or self.failures) and not self.single:
            sizes = None if self._work.dry_run else (self.bytes_before, self.bytes_after)
            self.show(Text(batch_text(self.done, self.skipped, len(self.failures), sizes)))
        if not self.failures:
            return
        errors = list(self.failures.values())
        if self.single:
            raise errors[0]
        if any(map(_ends_all, errors)):
            raise _interruption(self.failures)
        raise Incomplete(self.failures, self.done, self._what)


def _ends_all(error: PgleanError) -> bool:
    return isinstance(error, Interrupted) and error.ends_batch


def _interruption(failures: Mapping[str, PgleanError]) -> Interrupted:
    """The error of what was interrupted, with all that was not done, and with what became of each that was begun."""
    ended = {name: error for name, error in failures.items() if _ends_all(error)}
    hints = {name: error.hint for name, error in ended.items() if error.hint}
    if len(set(hints.values())) > 1:
        hint = "\n".join(f"{name}: {text}" for name, text in hints.items())
    else:
        hint = next(iter(hints.values()), "")
    return Interrupted(
        next(iter(ended.values())).message,
        detail="\n".join(": ".join(filter(None, (name, error.message))) for name, error in failures.items()),
        hint=hint or None,
    )


def repack_database(database: Database, selection: Selection, work: Work) -> None:
    """Raises the error of the one table that was named, or `Incomplete` where one of several was not done.

    And `Refused` where the database refuses every table.
    """
    report = _Report(work)
    names = (*selection.tables, *selection.parents)
    with interruptible(database), failure_as_json(names if work.as_json else None):
        for name in _missing(database, selection):
            report.warn(f"there is no extension {quote_name(name)} in this database")
        targets = _targets(database, selection)
        report.single = len(targets) == 1 and targets[0].named
        _Batch(database, work, report).run(targets)
    report.end()


def repack_databases(first: Database, selection: Selection, work: Work) -> None:
    """The same in every database of the server; what fails in one does not keep the others from their turn.

    Raises `Incomplete`, `Refused` where the server refuses every table, `Interrupted`.
    """
    report = _Report(work, "tables and databases")
    missing: list[set[str]] = []
    with interruptible(first), failure_as_json([] if work.as_json else None):
        names = first.databases()
        for position, name in enumerate(names):
            report.database = name
            report.tell(f"database {quote_name(name)}")
            try:
                database = first.in_database(name)
                missing.append(set(_missing(database, selection)))
                ended = _Batch(database, work, report).run(_targets(database, selection))
            except PgleanError as error:
                if isinstance(error, Refused) and _refuses_all(first):
                    raise
                report.failed(None, error)
                ended = error if error.ends_batch and not _answers(first) else None
            if ended is not None:
                for other in names[position + 1 :]:
                    report.database = other
                    report.failed(None, NotBegun(ended))
                break
    for absent in sorted(set.intersection(*missing)) if missing else ():
        report.warn(f"there is no extension {quote_name(absent)} in any database")
    report.end()


def _refuses_all(database: Database) -> bool:
    server = database.server.capabilities
    return server.in_recovery or server.version < OLDEST or not server.is_superuser


def _answers(database: Database) -> bool:
    """Whether the server is there, so that what failed is a matter of one database."""
    try:
        with database.server.connect("preflight"):
            return True
    except PgleanError:
        return False


def _missing(database: Database, selection: Selection) -> list[str]:
    if not selection.without_extensions:
        return []
    try:
        with database.server.connect("preflight") as conn:
            return missing_extensions(conn, selection)
    except psycopg.Error as error:
        raise database.server.translate(error) from error


def _targets(database: Database, selection: Selection) -> list[_Target]:
    """The tables that are meant, each once, in their order; what is wrong with a name is among them."""
    if len(selection.tables) == 1 and not selection.parents and not is_pattern(selection.tables[0]):
        return [_Target(selection.tables[0], named=True)]
    found: dict[int | str, _Target] = {}
    parts = list(selection.parts()) if selection.named else [("", selection)]
    try:
        with database.server.connect("preflight") as conn:
            for text, part in parts:
                try:
                    for target in _meant(database.server, conn, text, part):
                        before = found.setdefault(target.oid or text, target)
                        found[target.oid or text] = replace(before, named=before.named or target.named)
                except UsageError as error:
                    if not text:
                        raise
                    found[text] = _Target(text, named=True, error=error)
    except psycopg.Error as error:
        raise database.server.translate(error) from error
    return list(found.values())


def _meant(server: Server, conn: Connection, text: str, part: Selection) -> list[_Target]:
    if part.tables and not is_pattern(text):
        # Of a name no more is wanted than what it means.
        return [_Target(text, named=True, oid=resolve(server, conn, text))]
    return [_Target(one.qualified_name, one.named, one.oid) for one in select(server, conn, part)]


class _Batch:
    """The tables of one database, one after the other or some at once."""

    def __init__(self, database: Database, work: Work, report: _Report) -> None:
        self._database, self._work, self._report = database, work, report
        #: Maps of tables that are being worked on, as they were before, by name.
        self._maps: dict[str, Density] = {}

    def run(self, targets: Sequence[_Target]) -> PgleanError | None:
        """What has ended the batch before its time. Raises `Refused` where the database refuses every table."""
        with self._database.server.kept():
            return self._run(targets)

    def _run(self, targets: Sequence[_Target]) -> PgleanError | None:
        if not targets:
            name = quote_name(self._database.server.capabilities.database)
            self._report.show(Text(f"nothing to do: there is no table to repack in database {name}"))
            return None
        self._refuse_all(targets)
        begun, ended = 0, None
        for group in self._groups(targets):
            for target, outcome in zip(group, self._outcomes(group), strict=True):
                error = self._ended(target, outcome)
                if ended is None and error is not None and error.ends_batch:
                    ended = error
            begun += len(group)
            if ended is not None:
                break
        if ended is not None:
            for target in targets[begun:]:
                self._report.failed(target.name, NotBegun(ended))
        return ended

    def _refuse_all(self, targets: Sequence[_Target]) -> None:
        """Raise what would refuse each table that nobody has named: it is told once."""
        if (unnamed := next((target for target in targets if not target.named), None)) is None:
            return
        try:
            # Nobody is waited for: whatever else there is with this table is told in its turn.
            self._database.plan(unnamed.name, self._work.options, wait_timeout_s=0, kill_backend=False)
        except Refused as error:
            if findings := [finding for finding in error.findings if finding.code in EVERY_TABLE]:
                # What he may do instead is told of no table in particular: nobody has named one.
                with self._database.server.connect("preflight") as conn:
                    general = list(rights.of_database(conn))
                rest = [finding for finding in findings if finding.code != rights.CODE]
                raise Refused(quote_name(self._database.server.capabilities.database), [*general, *rest]) from error
        except PgleanError:
            return

    def _groups(self, targets: Sequence[_Target]) -> list[list[_Target]]:
        """What is done in one go: a table, or all of them where some are worked on at the same time."""
        if self._work.at_once == 1 or self._work.dry_run:
            return [[target] for target in targets]
        return [list(targets)]

    def _outcomes(self, group: list[_Target]) -> list[Result | Plan | PgleanError]:
        names, work = [target.name for target in group if target.error is None], self._work
        self._maps = self._maps_before(names)
        found: dict[str, Result | Plan | PgleanError] = {}
        if work.dry_run:
            for name in names:
                try:
                    found[name] = self._database.plan(name, work.options)
                except PgleanError as error:
                    found[name] = error
        elif names:
            at_once = min(work.at_once, len(names))
            with progress_display(
                self._report.err, progress=work.told, messages=work.warned, several=at_once > 1
            ) as on_progress:
                found |= self._database.repack_all(names, work.options, at_once=at_once, on_progress=on_progress)
        # After the display has gone.
        return [target.error or found[target.name] for target in group]

    def _ended(self, target: _Target, outcome: Result | Plan | PgleanError) -> PgleanError | None:
        if not isinstance(outcome, PgleanError):
            maps = {"before": self._maps[target.name]} if target.name in self._maps else {}
            if maps and isinstance(outcome, Result):
                maps |= self._map_after(outcome, maps["before"])
            self._report.succeeded(outcome, maps)
            return None
        if not target.named and (self._skippable(outcome) or self._gone(target, outcome)):
            self._report.skip(target.name, outcome)
            return None
        self._report.failed(target.name, outcome)
        return outcome

    def _maps_before(self, names: Sequence[str]) -> dict[str, Density]:
        """How full tables are, if that is wanted; shown at once. What is in the way of that is told with the run."""
        found: dict[str, Density] = {}
        work = self._work
        for name in names if work.mapped and (work.told or work.as_json or work.dry_run) else ():
            with contextlib.suppress(PgleanError):
                # A partitioned table has several, and cannot be repacked.
                if len(maps := self._database.density([name], cells=CELLS)) == 1:
                    found[name] = maps[0]
                    self._report.show_map(maps[0], "before")
        return found

    def _map_after(self, result: Result, before: Density) -> dict[str, Density]:
        """The same when it is done, each cell for as much as before."""
        size = next((size.bytes_after for size in result.sizes if size.kind == "heap"), before.bytes)
        cells = max(round(len(before.fill) * size / max(before.bytes, 1)), 1)
        try:
            return {"after": self._database.density([result.table], cells=min(cells, CELLS))[0]}
        except PgleanError as error:
            # The table is repacked, whatever keeps it from being looked at.
            self._report.warn(f"{result.table}: no map of what is left: {error.message}")
            return {}

    @staticmethod
    def _skippable(error: PgleanError) -> bool:
        """Whether the table cannot be repacked for what it is."""
        return isinstance(error, Refused) and not any(finding.code in EVERY_TABLE for finding in error.findings)

    def _gone(self, target: _Target, error: PgleanError) -> bool:
        """Whether the table was dropped since it was found."""
        if not isinstance(error, UsageError) or target.oid is None:
            return False
        try:
            with self._database.server.connect("preflight") as conn:
                return fingerprint(conn, target.oid) is None
        except (PgleanError, psycopg.Error):
            return False
