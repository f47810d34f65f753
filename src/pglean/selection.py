r"""Which tables are meant: all of a database or of schemas, by name, by pattern, by what they inherit from.

Whatever is asked for is answered by a few statements, also of a database with a hundred thousand relations; none is
looked at by itself.

Patterns are those of psql's ``\dt``: ``*`` stands for any characters and ``?`` for one, other characters of regular
expressions have their meaning, ``$`` has none, a dot separates schema and name, what is not in double quotes is folded
to lower case, and in double quotes all of it is meant as it stands. Without a schema, tables are meant that the search
path of the role finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from psycopg import errors as pg

from pglean.catalog import resolve
from pglean.errors import UsageError
from pglean.parameters import integer, parameters
from pglean.server import Server
from pglean.session import Connection, scalar, transaction
from pglean.sql import query
from pglean.table import quote_name

#: How long the reading of a size may wait for a lock, and how often it is tried before sizes are estimated.
_LOCK_TIMEOUT_MS, _ATTEMPTS = 200, 5

#: A part in double quotes, which may not be closed, or what is outside of them.
_RUNS = re.compile(r'"((?:[^"]|"")*)(?:"|$)|([^"]+)', re.DOTALL)
_SPECIAL = re.compile(r"[*?|+()\[\]{}^\\]")
_QUOTED = re.compile(r"[|*+?()\[\]{}.^$\\]")
#: What is not as in regular expressions, outside of double quotes. ``[]`` rather means an array than a set.
_SHELL = {"*": ".*", "?": ".", "$": r"\$", "[]": r"\[]"}


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for; nothing is every ordinary table of the database.

    Raises `UsageError` where parts of it exclude each other.
    """

    #: Names as in SQL, and patterns.
    tables: tuple[str, ...] = ()
    #: Tables that are meant with all that inherits from them, and with their partitions.
    parents: tuple[str, ...] = ()
    #: Schemas by name or pattern.
    schemas: tuple[str, ...] = ()
    #: Extensions whose tables are left out.
    without_extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.schemas and self.named:
            raise UsageError(
                "--schema (-c) and the names of tables (-t, -I) exclude each other",
                hint="Use schema.table notation: -t sales.orders, or -t 'sales.*' for all of a schema.",
            )
        if self.without_extensions and self.named:
            raise UsageError(
                "--exclude-extension (-C) and the names of tables (-t, -I) exclude each other",
                hint="-C leaves out tables of a database or, with -c, of schemas.",
            )

    @property
    def named(self) -> bool:
        """Whether tables or parents are named."""
        return bool(self.tables or self.parents)

    def parts(self) -> Iterator[tuple[str, Selection]]:
        """Each name of a table or parent by itself."""
        for name in self.tables:
            yield name, Selection(tables=(name,))
        for name in self.parents:
            yield name, Selection(parents=(name,))


@dataclass(frozen=True, slots=True)
class Chosen:
    """A table that is meant."""

    oid: int
    schema: str
    name: str
    #: Heap, TOAST and all indexes.
    total_bytes: int
    #: Size of the heap beyond what the live rows need, by the statistics; None where there are none.
    gain_bytes: int | None
    #: Whether it was named, and not found by a pattern, a parent, a schema, or as one of all.
    named: bool

    @property
    def qualified_name(self) -> str:
        """Quoted where psql would; as `Database.repack` takes it."""
        return f"{quote_name(self.schema)}.{quote_name(self.name)}"


@dataclass(frozen=True, slots=True)
class _Found:
    oid: int
    schema: str
    name: str
    kind: str
    named: bool = False


# ---- patterns


def is_pattern(text: str) -> bool:
    """Whether there is, outside of double quotes, what no name has."""
    return any(_SPECIAL.search(run[2] or "") for run in _RUNS.finditer(text))


def _parts(text: str) -> list[tuple[str, str]]:
    """What the dots separate, each as it stands and as a regular expression."""
    literals, patterns = [""], [""]
    for run in _RUNS.finditer(text):
        if run[2] is None:
            name = run[1].replace('""', '"')
            literals[-1] += name
            patterns[-1] += _QUOTED.sub(r"\\\g<0>", name)
            continue
        # The server folds letters beyond ASCII no more than psql does.
        folded = re.sub("[A-Z]+", lambda letters: letters[0].lower(), run[2])
        first, *others = folded.split(".")
        for number, part in enumerate([first, *others]):
            if number:
                literals.append("")
                patterns.append("")
            literals[-1] += part
            patterns[-1] += re.sub(r"\[\]|[*?$]", lambda match: _SHELL[match[0]], part)
    return list(zip(literals, patterns, strict=True))


@dataclass(frozen=True, slots=True)
class Pattern:
    """A schema, or None, and a name: regular expressions of the server."""

    schema: str | None
    name: str

    @classmethod
    def parse(cls, text: str, database: str) -> Self:
        """``name``, ``schema.name`` or ``database.schema.name``, which must be the present one. Raises `UsageError`."""
        *parents, (_, name) = _parts(text)
        if len(parents) > 2:
            raise UsageError(f"invalid pattern: {text}", detail="It has too many dots.")
        if len(parents) == 2 and parents[0][0] != database:
            raise UsageError(f"invalid pattern: {text}", detail="Tables of another database cannot be named.")
        return cls(_whole(parents[-1][1]) if parents else None, _whole(name))


def _whole(part: str) -> str:
    return f"^({part})$"


# ---- what they mean


def select(server: Server, conn: Connection, selection: Selection) -> list[Chosen]:
    """The tables that are meant, each once.

    Those of a database, schema, pattern or parent come with the largest gain first, and the largest first of those of
    which nothing is known; names in the order in which they are given. Partitioned tables, which hold no rows, are not
    among them unless they are named. Raises `UsageError` where a name or a pattern means nothing.
    Locks: ACCESS SHARE on each, for the moment in which its size is read; nobody is waited for.
    """
    if selection.named:
        groups = [_named(server, conn, name) for name in selection.tables]
        groups += [_family(server, conn, name) for name in selection.parents]
    else:
        known, _ = _extensions(conn, selection)
        parameters = {"schemas": schemas(conn, selection) if selection.schemas else None, "extensions": known}
        groups = [[_Found(*row) for row in conn.execute(query("selection.tables"), parameters)]]
    weights = _weigh(server, conn, {found.oid for group in groups for found in group})
    chosen: dict[int, Chosen] = {}
    for group in groups:
        # What was dropped since it was found is not meant any more.
        present = (found for found in group if found.oid in weights)
        for one in sorted((_chosen(found, *weights[found.oid]) for found in present), key=_order):
            before = chosen.setdefault(one.oid, one)
            chosen[one.oid] = replace(before, named=before.named or one.named)
    return list(chosen.values())


def oids(server: Server, conn: Connection, name: str, *, family: bool = False) -> list[int]:
    """What a name or pattern means; with `family` a name stands for all that inherits from it, and for its partitions.

    Takes no lock. Raises `UsageError` where it means nothing.
    """
    found = _family(server, conn, name) if family else _named(server, conn, name)
    return [one.oid for one in found]


def schemas(conn: Connection, selection: Selection) -> list[str]:
    """The schemas that are meant. Raises `UsageError` where a name or a pattern means none."""
    return [name for text in selection.schemas for name in _schemas(conn, text)]


def missing_extensions(conn: Connection, selection: Selection) -> list[str]:
    """Those to be left out that this database has not."""
    return _extensions(conn, selection)[1]


def databases(conn: Connection) -> list[str]:
    """The databases of the server that allow connections and are no templates."""
    return [name for (name,) in conn.execute(query("selection.databases"))]


def _named(server: Server, conn: Connection, text: str) -> list[_Found]:
    if not is_pattern(text):
        oid = resolve(server, conn, text)
        return [replace(found, named=True) for found in _relations(conn, oid) if found.oid == oid]
    pattern = Pattern.parse(text, server.capabilities.database)
    parameters = {"schema": pattern.schema, "name": pattern.name, "path": _search_path(server, conn)}
    try:
        found = [_Found(*row) for row in conn.execute(query("selection.matching"), parameters)]
    except pg.InvalidRegularExpression as error:
        raise UsageError(f"invalid pattern: {text}", detail=error.diag.message_primary) from error
    if tables := [one for one in found if one.kind == "r"]:
        return tables
    if found:
        raise UsageError(
            f"only partitioned tables match the pattern {text}",
            detail="They hold no rows themselves.",
            hint="-I names one with all its partitions.",
        )
    raise UsageError(
        f"no table matches the pattern {text}",
        hint="Patterns are those of psql's \\dt; without a schema they mean what the role's search path finds.",
    )


def _family(server: Server, conn: Connection, text: str) -> list[_Found]:
    root = resolve(server, conn, text)
    return [replace(found, named=found.oid == root) for found in _relations(conn, root) if found.kind != "p"]


def _relations(conn: Connection, root: int) -> list[_Found]:
    return [_Found(*row) for row in conn.execute(query("selection.family"), {"root": root})]


def _schemas(conn: Connection, text: str) -> list[str]:
    parts = _parts(text)
    if len(parts) == 1:
        parameters = {"literal": text, "pattern": _whole(parts[0][1])}
        try:
            found = [name for (name,) in conn.execute(query("selection.schemas"), parameters)]
        except pg.InvalidRegularExpression as error:
            raise UsageError(f"invalid pattern: {text}", detail=error.diag.message_primary) from error
        if found:
            return found
    raise UsageError(f"no schema matches {text}", hint="Name a schema, or a pattern as psql's \\dn takes it.")


def _extensions(conn: Connection, selection: Selection) -> tuple[list[str], list[str]]:
    """Of those to be left out, the ones that there are, and the others."""
    if not selection.without_extensions:
        return [], []
    present = {name for (name,) in conn.execute(query("selection.extensions"))}
    known, missing = [], []
    for text in selection.without_extensions:
        names = [name for name in (text, ".".join(part for part, _ in _parts(text))) if name in present]
        known += names[:1]
        missing += [] if names else [text]
    return known, missing


def _search_path(server: Server, conn: Connection) -> list[str]:
    """The schemas in which the role looks for names, those among them that come unasked."""
    # Nothing but this is done under that path: it may begin with a schema where anybody can define operators.
    with transaction(conn):
        conn.execute("SELECT pg_catalog.set_config('search_path', %s, true)", (server.capabilities.search_path,))
        path: list[str] = scalar(conn, "SELECT pg_catalog.current_schemas(true)::pg_catalog.text[]")
    return path


# ---- what they weigh


def _weigh(server: Server, conn: Connection, oids: Iterable[int]) -> dict[int, tuple[int, int | None]]:
    """Total bytes, and the bytes to be gained where they can be told, of each that is still there."""
    wanted = list(oids)
    # An ordinary role may not look at the statistics.
    live = (
        {
            oid: int(needed * 100 / integer(parameters(options), "fillfactor", 100))
            for oid, options, needed in conn.execute(query("selection.live_bytes"), {"oids": wanted})
        }
        if server.capabilities.is_superuser
        else {}
    )
    return {
        oid: (int(total), max(int(heap) - live[oid], 0) if oid in live else None)
        for oid, heap, total in _sizes(server, conn, wanted)
        if heap is not None and total is not None
    }


def _sizes(server: Server, conn: Connection, oids: list[int]) -> list[tuple[int, int | None, int | None]]:
    for attempt in range(_ATTEMPTS + 1):
        server.check()
        try:
            with transaction(conn):
                conn.execute("SELECT set_config('lock_timeout', %s, true)", (f"{_LOCK_TIMEOUT_MS}ms",))
                parameters = {"oids": oids, "estimated": attempt == _ATTEMPTS}
                return [(row[0], row[1], row[2]) for row in conn.execute(query("selection.sizes"), parameters)]
        except (pg.LockNotAvailable, pg.DeadlockDetected, pg.InternalError_):
            # Locked, or an index dropped, between the look at the locks and that at the relation.
            continue
    raise AssertionError("unreachable")


def _chosen(found: _Found, total: int, gain: int | None) -> Chosen:
    return Chosen(found.oid, found.schema, found.name, total, gain, found.named)


def _order(chosen: Chosen) -> tuple[bool, int, int, str, str]:
    return chosen.gain_bytes is None, -(chosen.gain_bytes or 0), -chosen.total_bytes, chosen.schema, chosen.name
