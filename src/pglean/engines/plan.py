"""Which indexes are to be rebuilt, and what the server would refuse: found before anything is touched, all at once.

Also found is what rebuilds of before have left of the same tables; that is removed with the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pglean import catalog, selection
from pglean.claim import claimed
from pglean.engines import candidate
from pglean.engines.candidate import Candidate, Relation
from pglean.errors import Finding, PgleanError, Refused, UsageError
from pglean.locks import patiently
from pglean.options import Options
from pglean.patience import Patience, Policy
from pglean.result import failure
from pglean.server import Server
from pglean.session import Connection, scalar
from pglean.sql import query
from pglean.table import quote_name

#: REINDEX (TABLESPACE …) and what pg_locks tells of waiting came with this version.
_OLDEST = 140000


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for, by names as in SQL; tables by patterns as well."""

    tables: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done to one table."""

    relation: Relation
    #: In this order, first.
    removals: tuple[Candidate, ...]
    #: In this order.
    rebuilds: tuple[Candidate, ...]

    @property
    def bytes(self) -> int:
        """Size of all that is to be rebuilt."""
        return sum(index.bytes for index in self.rebuilds)


@dataclass(frozen=True, slots=True)
class ReindexPlan:
    """What is to be done, and what cannot be."""

    works: tuple[Work, ...]
    #: Of which matter: tablespace (None: they stay where they are), jobs, and how long locks are waited for.
    options: Options
    #: By the name of the index or table.
    failures: dict[str, PgleanError]
    warnings: tuple[Finding, ...]
    #: What was found and not named, and cannot be done by its nature; by the name of the index.
    skipped: dict[str, Refused] = field(default_factory=dict)

    @property
    def error(self) -> PgleanError | None:
        """What to raise where not all can be done; None where all can."""
        return failure(self.failures, sum(len(work.rebuilds) for work in self.works))


def plan(server: Server, choice: Choice, options: Options) -> ReindexPlan:
    """What would be done. Touches nothing; takes ACCESS SHARE on indexes for a moment.

    Raises `Refused`, `UsageError`, or `Incomplete` where nothing at all could be done.
    """
    with server.connect("preflight") as conn:
        if findings := list(_of_server(server, conn, options)):
            raise Refused("an index", findings, "rebuilt")
        failures: dict[str, PgleanError] = {}
        chosen = _choose(server, conn, choice, failures)
        relations = candidate.relations(conn, chosen.tables)
        made = _Plan(server, conn, options, failures)
        for relation in relations.values():
            if relation.kind != "f" or chosen.whole.get(relation.oid, "") is not None:
                made.add(relation, relation.oid in chosen.whole, chosen.single.get(relation.oid, {}))
        for oid, name in chosen.whole.items():
            if oid not in relations and name is not None:
                failures[name] = UsageError(f'relation "{name}" has been dropped meanwhile')
        found = made.finished()
    if not found.works and (error := failure(failures, 0)) is not None:
        raise error
    return found


def _of_server(server: Server, conn: Connection, options: Options) -> Iterator[Finding]:
    if server.capabilities.version < _OLDEST:
        yield Finding(
            "version",
            f"server version {server.capabilities.version // 10000} is too old",
            "pglean needs PostgreSQL 14 or later.",
            "Upgrade the server.",
        )
    if server.capabilities.in_recovery:
        yield Finding(
            "standby",
            "the server is a standby",
            "Nothing can be written there.",
            "Run pglean on the primary; the standby follows by itself.",
        )
    if (name := options.tablespace) is None:
        return
    allowed = scalar(conn, query("reindex.tablespace"), {"name": name})
    if allowed is None:
        raise UsageError(f'tablespace "{name}" does not exist')
    if name == "pg_global":
        yield Finding(
            "tablespace", "tablespace pg_global is for what all databases share", None, "Name another tablespace."
        )
    elif not allowed:
        yield Finding(
            "tablespace",
            f"you may not put anything into tablespace {quote_name(name)}",
            None,
            f"GRANT CREATE ON TABLESPACE {quote_name(name)} TO your role;",
        )


@dataclass(slots=True)
class _Chosen:
    #: Tables all of whose indexes are wanted, with the name of those that were named themselves.
    whole: dict[int, str | None] = field(default_factory=dict)
    #: Indexes that were named, with their names, by their tables.
    single: dict[int, dict[int, str]] = field(default_factory=dict)

    @property
    def tables(self) -> list[int]:
        return list(dict.fromkeys([*self.whole, *self.single]))


def _choose(server: Server, conn: Connection, choice: Choice, failures: dict[str, PgleanError]) -> _Chosen:
    chosen = _Chosen()
    for kind, names in (("table", choice.tables), ("parent", choice.parents), ("index", choice.indexes)):
        for name in names:
            try:
                if kind == "table" and selection.is_pattern(name):
                    found, root = selection.oids(server, conn, name), None
                else:
                    root = catalog.resolve(server, conn, name)
                    found = selection.oids(server, conn, name, family=True) if kind == "parent" else [root]
                if kind == "index" and root is not None:
                    chosen.single.setdefault(_table_of(conn, name, root), {})[root] = name
                    continue
                for oid in found:
                    chosen.whole[oid] = chosen.whole.get(oid) or (name if oid == root else None)
            except (UsageError, Refused) as error:
                failures[name] = error
    return chosen


def _table_of(conn: Connection, name: str, index: int) -> int:
    table = candidate.table_of(conn, index)
    if table is None:
        raise UsageError(f'"{name}" is not an index', hint="Tables are named by -t.")
    return table


class _Plan:
    """A plan in the making."""

    def __init__(self, server: Server, conn: Connection, options: Options, failures: dict[str, PgleanError]) -> None:
        self._server, self._conn, self._options = server, conn, options
        self._failures = failures
        self._warnings: list[Finding] = []
        self._skipped: dict[str, Refused] = {}
        self._works: list[Work] = []
        self._patience = Patience(server, Policy.of(options), lambda _: None)

    def add(self, relation: Relation, whole: bool, named: dict[int, str]) -> None:
        """All indexes of the table, or only those named; what failed rebuilds have left of it in any case."""
        busy = claimed(self._conn, relation.main_oid)
        if findings := list(candidate.of_relation(relation, busy=busy)):
            self._failures[relation.qualified_name] = Refused(relation.qualified_name, findings, "reindexed")
            return
        indexes = self._indexes(relation)
        removals = list(self._removals(relation, indexes))
        rebuilds = [
            index
            for index in indexes
            if (whole or index.oid in named)
            and index not in removals
            and self._can(index, relation, named=index.oid in named)
        ]
        present = {index.oid for index in indexes}
        for name in (name for oid, name in named.items() if oid not in present):
            self._failures[name] = UsageError(f'relation "{name}" has been dropped meanwhile')
        if whole and not indexes:
            self._warnings.append(Finding("no-index", f"{relation.qualified_name} has no indexes", fatal=False))
        rebuilds.sort(key=lambda index: -index.bytes)
        self._add(Work(relation, tuple(removals), tuple(rebuilds)))

    def _can(self, index: Candidate, relation: Relation, *, named: bool) -> bool:
        """Whether it can be rebuilt; what cannot is a failure, or is left out where nobody has named it."""
        if not named and (index.leftover or (index.builder is not None and index.named_as_leftover)):
            # What others have left, or somebody's REINDEX at work, for whose end this table is waited for anyhow.
            return False
        findings = list(candidate.of_index(index, relation, moved=self._options.tablespace is not None))
        if index.leftover and not findings:
            findings = [self._foreign(index, relation)]
        if not findings:
            return True
        refused = Refused(index.qualified_name, findings, "rebuilt")
        if not named and all(finding.code in candidate.BY_NATURE for finding in findings):
            self._skipped[index.qualified_name] = refused
            self._warnings += [
                replace(finding, message=f"skipped: {finding.message}", fatal=False) for finding in findings
            ]
        else:
            self._failures[index.qualified_name] = refused
        return False

    def _foreign(self, index: Candidate, relation: Relation) -> Finding:
        """A leftover that our role may not drop."""
        return Finding(
            "leftover",
            f"index {index.qualified_name} cannot be removed by your role",
            index.story,
            f"As {'a superuser' if relation.owned else 'its owner'}: DROP INDEX CONCURRENTLY {index.qualified_name};",
        )

    def _add(self, work: Work) -> None:
        if work.removals or work.rebuilds:
            self._works.append(work)

    def _indexes(self, relation: Relation) -> list[Candidate]:
        return patiently(
            self._server,
            self._conn,
            relation.oid,
            self._patience,
            lambda: candidate.candidates(self._conn, relation.oid),
        )

    def _removals(self, relation: Relation, indexes: list[Candidate]) -> Iterator[Candidate]:
        """What failed rebuilds have left of the table, and of its TOAST table."""
        places = [(relation, indexes)]
        if relation.toast_oid is not None:
            for toast in candidate.relations(self._conn, [relation.toast_oid]).values():
                places.append((toast, self._indexes(toast)))
        for place, found in places:
            for index in found:
                if not index.leftover or index.builder is not None:
                    continue
                if place.owned and place.schema_usage:
                    yield index
                    continue
                self._warnings.append(replace(self._foreign(index, place), fatal=False))

    def finished(self) -> ReindexPlan:
        """The table with most to be done comes first: begun last, it would be worked on alone."""
        works = sorted(self._works, key=lambda work: -work.bytes)
        return ReindexPlan(tuple(works), self._options, self._failures, tuple(self._warnings), self._skipped)
