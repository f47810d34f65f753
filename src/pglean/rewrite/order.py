"""The order of the rows in the copy, and how the copy is divided so that they come to lie in it.

The order is what the user says (`-o`) or that of the index the table is clustered on. It is decided once, when the run
is planned, and kept with the run: one that is gone on with has the same text and the same ranges, whatever statistics
or CLUSTER ON say by then.

There are two ways. *One statement* sorts all rows; its snapshot is held for as long as that takes. *By ranges of the
column that the order begins with*, each range is sorted in a short transaction of its own, by several workers. That
pays where the rows lie nearly in the order of an index already: a range is then read from few pages.

A range of values is as good a piece of the table as a range of blocks is (see `copy`): a row that nobody writes to
keeps its value. Ranges lie between bounds that the server has sorted, and compare by the default operators of the
column's type under its own collation, which order all values, NaN and infinity too; NULL is a piece by itself. So each
row is in exactly one piece, whatever the bounds are: old statistics make pieces of unequal size, and nothing else.

How strict the order is: ranges that are copied at the same time lie side by side in the file, page by page, since
workers extend it in turns; they are so small a part of the table (`MOST_AT_ONCE`) that the correlation suffers only
in its third digit. Small tables are copied by one worker. In both ways the server puts a row into a hole at the end of
an earlier page where it fits, as it does for every INSERT; and rows that are written meanwhile lie where the refresh
puts them.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean import guard
from pglean.blockers import Mode
from pglean.catalog import relation
from pglean.errors import Finding, UsageError
from pglean.locks import locked
from pglean.options import Options
from pglean.patience import Patience
from pglean.server import Server
from pglean.session import Connection, scalar
from pglean.sql import fragment, query
from pglean.table import Table, quote_name

#: From here on rows lie nearly sorted, whether forwards or backwards. (Tried: where 1 % of the rows lie anywhere, which
#: is a correlation of 0.99, ranges visit 1.5 times as many pages as the table has; at 0.95 2.7 times, at 0.9 4.3 times.
#: In memory they are as fast as one sort at 0.95; and they never hold a snapshot for long.)
_NEARLY_SORTED = 0.95
#: Of a piece, about; and so many at most, for they are kept in the job's row.
_PIECE_BYTES, _MOST_PIECES = 1 << 20, 10_000
#: Below so many pieces one worker copies them all, in strict order.
_ALONE_BELOW = 256
#: All workers together copy this part of the table at a time, at most.
MOST_AT_ONCE: Final = 1 / 16

# The first item of a sort list, if it is a column in its own, plain order; all else is left to the server.
_LEADING: Final = re.compile(
    r"""\s* (?: "(?P<quoted>(?:[^"]|"")+)" | (?P<plain>[a-z_][a-z0-9_]*) )
        (?: \s+ (?P<direction>ASC|DESC) )? (?: \s+ NULLS \s+ (?P<nulls>FIRST|LAST) )? \s* (?: , | $ )""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)

# Comments and names, which are passed over, and whatever begins a string constant or is one.
_TOKEN: Final = re.compile(
    r"""--[^\n]* | /\*.*?\*/ | "(?:[^"]|"")*" | [^\W\d][\w$]*
        | (?P<string> '(?:[^']|'')*'? | (?P<tag>\$(?:[^\W\d]\w*)?\$) .*? (?:(?P=tag)|\Z) )""",
    re.DOTALL | re.VERBOSE,
)
_BUILTIN_CAST: Final = re.compile(
    r"""\s* :: \s* (?:pg_catalog\.)? (?: text | varchar | bpchar | name | int[248]? | integer | smallint | bigint
        | numeric | real | float[48] | bool | boolean | uuid | date | time | timetz | timestamp | timestamptz | interval
        | bytea | inet | regclass ) (?! [\w$.] | \s*\[ )""",
    re.IGNORECASE | re.VERBOSE,
)

_NUMBER: Final = sql.SQL("(l::numeric + (h::numeric - l::numeric) * k / {parts})::{type}")
# Infinity has no distance from anything, nor have years some hundred thousand years apart.
_NEAR: Final = "CASE WHEN l >= '0001-01-01' AND h <= '9999-12-31' THEN"
_MOMENT: Final = sql.SQL(f"{_NEAR} l + (h - l) * (k::float8 / {{parts}}) ELSE l END")
_DAY: Final = sql.SQL(f"{_NEAR} l + ((h - l)::bigint * k / {{parts}})::int ELSE l END")

#: Types of which values can be told that lie between two others: the k-th of `parts` - 1, by its type.
_BETWEEN: Final = {
    "smallint": _NUMBER,
    "integer": _NUMBER,
    "bigint": _NUMBER,
    "numeric": _NUMBER,
    "date": _DAY,
    "timestamp without time zone": _MOMENT,
    "timestamp with time zone": _MOMENT,
}


@dataclass(frozen=True, slots=True)
class KeyRanges:
    """The values of a column, divided into pieces that are numbered in the order of the rows; one of them is NULL."""

    column: str
    #: Its type, one of the server's own, without a modifier.
    type_sql: str
    collation_sql: str | None
    descending: bool
    nulls_first: bool
    #: Between pieces, ascending, as text; a bound belongs to the piece above it.
    bounds: tuple[str, ...]

    @property
    def pieces(self) -> int:
        return len(self.bounds) + 2

    def condition(self, alias: str, first: int, end: int) -> sql.Composable:
        """Whether a row of `alias` is in one of the pieces ``[first, end)``."""
        column = sql.Identifier(alias, self.column)
        values = self.pieces - 1
        null = 0 if self.nulls_first else values
        # Without the piece of NULL, which is the first or the last of all.
        lower, upper = (max(edge - 1, 0) if self.nulls_first else min(edge, values) for edge in (first, end))
        if self.descending:
            lower, upper = values - upper, values - lower
        parts: list[sql.Composable] = []
        if lower < upper:
            parts.append(self._between(column, lower, upper))
        if first <= null < end:
            parts.append(sql.SQL("{} IS NULL").format(column))
        return sql.SQL("({})").format(sql.SQL(" OR ").join(parts)) if parts else sql.SQL("false")

    def _between(self, column: sql.Identifier, lower: int, upper: int) -> sql.Composed:
        parts: list[sql.Composable] = []
        if lower > 0:
            parts.append(sql.SQL("{} OPERATOR(pg_catalog.>=) {}").format(column, self._bound(lower)))
        if upper <= len(self.bounds):
            parts.append(sql.SQL("{} OPERATOR(pg_catalog.<) {}").format(column, self._bound(upper)))
        return sql.SQL(" AND ").join(parts or [sql.SQL("{} IS NOT NULL").format(column)])

    def _bound(self, number: int) -> sql.Composed:
        collation = f" COLLATE {self.collation_sql}" if self.collation_sql else ""
        literal = sql.Literal(self.bounds[number - 1])
        return sql.SQL("{}::{}{}").format(literal, fragment(self.type_sql), fragment(collation))


@dataclass(frozen=True, slots=True)
class Order:
    """By what the rows are sorted, and in which way."""

    #: What stands behind ORDER BY: a sort list and nothing else, which the server has read as one.
    text: str
    #: The index that the table is clustered on; None where the user has given the order.
    index: str | None
    #: None: in one statement.
    ranges: KeyRanges | None
    #: Why in this way, for people.
    reason: str

    @property
    def pieces(self) -> int:
        """How many the copy is divided into."""
        return 1 if self.ranges is None else self.ranges.pieces

    @property
    def way(self) -> str:
        """How it is done, for people."""
        if self.ranges is None:
            return "in one statement, which holds its snapshot for as long as it takes"
        return f"by ranges of {quote_name(self.ranges.column)}"

    def workers(self, jobs: int) -> int:
        """How many of so many workers may copy."""
        return jobs if self.pieces >= _ALONE_BELOW else 1

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return "-o" if self.index is None else f"CLUSTER ON {quote_name(self.index)}"

    def select(self, table: Table, source: guard.Source, first: int, end: int) -> sql.Composed:
        """The rows of the pieces ``[first, end)`` in their order: a subquery ``t`` with all stored columns."""
        condition = sql.SQL("true") if self.ranges is None else self.ranges.condition("t", first, end)
        return sql.SQL("(SELECT {columns} FROM {rows} ORDER BY {order}\n) AS t").format(
            columns=_columns(table, virtual=False),
            rows=_rows(table, source.relation, condition),
            order=_text(self.text),
        )

    def as_json(self) -> dict[str, Any]:
        """What the job's row remembers."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """What `as_json` has made."""
        ranges = value["ranges"]
        return cls(**{**value, "ranges": ranges and KeyRanges(**{**ranges, "bounds": tuple(ranges["bounds"])})})


def _columns(table: Table, *, virtual: bool) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.Identifier(column.name) for column in table.columns if column.stored or (virtual and not column.dropped)
    )


def _rows(table: Table, source: sql.Composable, condition: sql.Composable) -> sql.Composed:
    """The table under its own name, which the order may use. Whoever owns it, a row is its columns and nothing else."""
    return sql.SQL("(SELECT {columns} FROM {source} AS t WHERE {condition}) AS {name}").format(
        columns=_columns(table, virtual=True), source=source, condition=condition, name=sql.Identifier(table.name)
    )


def _text(order: str) -> sql.SQL:
    # The user's own words, the only ones that are put into a statement: see `check`. A line break must follow, since
    # they may end in a comment.
    return sql.SQL(order)


# ---- what is to be done


def decide(
    server: Server, conn: Connection, table: Table, options: Options, patience: Patience
) -> tuple[Order | None, tuple[Finding, ...]]:
    """The order of a run that is to begin, None for that in which the rows lie; and what there is to be warned of.

    On entry and exit: no transaction. Locks, where there is an order: ACCESS SHARE on the table, for a moment.
    Raises `UsageError` where what was given is no order, `LockNotObtained`, `TableChanged`.
    """
    text, index = options.order_by, None
    if text is None and options.cluster:
        parameters = {"oid": table.oid, "trusted": table.owner_is_superuser}
        found = conn.execute(query("order.clustering"), parameters).fetchone()
        if found is not None:
            index, method, text = found
            if text is None:
                return None, (_not_sorted(table, index, method),)
    if text is None:
        return None, ()
    with locked(server, conn, table, Mode.ACCESS_SHARE, patience):
        check(conn, table, text, index)
        ranges, reason = _way(conn, table, text)
    return Order(text, index, ranges, reason), ()


def _not_sorted(table: Table, index: str, method: str) -> Finding:
    why = "which has a literal of a user's type" if method == "btree" else f"whose access method {method} has no order"
    return Finding(
        "clustering-index",
        f"{table.qualified_name} is clustered on index {quote_name(index)}, {why}",
        "The rows are copied in the order in which they lie.",
        "Give an order (-o), or none (-n).",
        fatal=False,
    )


def check(conn: Connection, table: Table, text: str, index: str | None = None) -> None:
    """Raise `UsageError` unless the text is a list of columns and expressions to sort by, and nothing else.

    `ORDER BY id LIMIT 5` would lose rows. The server is made to read the text in two places, in one statement each.
    At the end of a SELECT no parenthesis can be closed that the text has not opened, nothing can follow it, and there
    are no positions to be named. Among an aggregate's arguments, with its parentheses known to match, there is room
    for a sort list alone: LIMIT, OFFSET, FETCH and FOR UPDATE are no part of it; and no aggregate, window function or
    function that returns a set may be in it. Only read: PREPARE plans nothing.
    On entry: a transaction that holds ACCESS SHARE on the table.
    """
    if "\0" in text:
        raise _invalid(text, index, "There is a character in it that no statement can hold.")
    if index is None and not table.owner_is_superuser and (bare := _bare_literal(text)):
        raise UsageError(
            f"invalid value for option --order-by: {_printable(text)}",
            detail=f"The type of {bare} is left to what it is compared with or given to, which"
            f" {quote_name(table.owner)} can change; reading it could run that role's code with your rights.",
            hint="Say its type, one of the server's own: 'x'::text, '2026-01-31'::date.",
        )
    rows = _rows(table, sql.SQL("ONLY {}").format(relation(table)), sql.SQL("true"))
    for template in (
        sql.SQL("SELECT FROM {rows} HAVING pg_catalog.count(true ORDER BY {order}\n) > 0"),
        sql.SQL("SELECT FROM {rows} ORDER BY {order}\n"),
    ):
        statement = template.format(rows=rows, order=_text(text))
        try:
            # In binary, which is to say by the protocol that takes one statement at a time.
            conn.execute(sql.SQL("PREPARE pglean_order AS {}").format(statement), binary=True)
            complete = scalar(conn, query("order.prepared"))
            conn.execute("DEALLOCATE pglean_order")
        except psycopg.OperationalError:
            # A lock, a connection: it says nothing of the text.
            raise
        except psycopg.Error as error:
            raise _invalid(text, index, error.diag.message_primary or str(error), type(error)) from error
        except UnicodeEncodeError as error:
            raise _invalid(text, index, "There is a character in it that no statement can hold.") from error
        if not complete:
            raise _invalid(text, index, "There is a parameter in it.")


def _bare_literal(text: str) -> str | None:
    """The first string constant whose type is not said to be one of the server's own; None where there is none."""
    for match in _TOKEN.finditer(text):
        if match["string"] is not None and _BUILTIN_CAST.match(text, match.end()) is None:
            return match["string"]
    return None


def _invalid(text: str, index: str | None, detail: str, kind: type[psycopg.Error] | None = None) -> UsageError:
    sentence = f"{detail[:1].upper()}{detail[1:]}" + ("" if detail.endswith(".") else ".")
    if index is not None:
        return UsageError(
            f"the rows cannot be sorted by index {quote_name(index)}, on which the table is clustered",
            detail=sentence,
            hint="Give another order (-o), or none (-n).",
        )
    hint = "Give what can stand behind ORDER BY: columns and expressions, with ASC or DESC, NULLS FIRST or NULLS LAST."
    if kind in (pg.UndefinedFunction, pg.UndefinedObject, pg.UndefinedTable):
        hint = "What is not the server's own is named with its schema: public.f(x), x COLLATE public.c."
    elif kind is pg.UndefinedColumn:
        hint = "Name columns of the table as in SQL; capitals and blanks need quotes: '\"Created At\" DESC'."
    elif kind is pg.InvalidColumnReference:
        hint = "Name the column itself, not its position."
    return UsageError(f"invalid value for option --order-by: {_printable(text)}", detail=sentence, hint=hint)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


@dataclass(frozen=True, slots=True)
class _Leading:
    """The stored column that an order begins with, in its plain order, and what is known of it."""

    name: str
    descending: bool
    nulls_first: bool
    type_sql: str
    collation_sql: str | None
    #: Whether text stands for a value of it under any setting, and unequal texts for unequal values.
    fit: bool
    #: Of its values with their places in the heap; None where there are no statistics.
    correlation: float | None
    #: Values all over its range; none where there are no statistics.
    values: list[str]


def _leading(conn: Connection, table: Table, text: str) -> _Leading | None:
    match = _LEADING.match(text)
    if match is None:
        return None
    quoted = match["quoted"] is not None
    name = match["quoted"].replace('""', '"') if quoted else match["plain"].lower()
    parameters = {"oid": table.oid, "schema": table.schema, "name": table.name, "column": name, "quoted": quoted}
    row = conn.execute(query("order.column"), parameters).fetchone()
    if row is None:
        return None
    descending = (match["direction"] or "").upper() == "DESC"
    nulls_first = (match["nulls"] or ("FIRST" if descending else "LAST")).upper() == "FIRST"
    return _Leading(name, descending, nulls_first, *row)


def _way(conn: Connection, table: Table, text: str) -> tuple[KeyRanges | None, str]:
    """The ranges to sort by, or None for one statement; and why."""
    leading = _leading(conn, table, text)
    if leading is None:
        return None, "the order does not begin with a stored column by itself"
    name = quote_name(leading.name)
    if not leading.fit:
        return None, f"the type or collation of {name} is not one to be divided into ranges"
    if not has_index(conn, table, leading.name):
        return None, f"no index begins with {name}"
    if leading.correlation is None or not leading.values:
        return None, f"there are no statistics of {name} (ANALYZE gathers them)"
    if abs(leading.correlation) < _NEARLY_SORTED:
        return None, f"the rows lie scattered (correlation of {name}: {leading.correlation:.3f})"
    bounds = _bounds(conn, table, leading.type_sql, leading.collation_sql, leading.values)
    return KeyRanges(
        leading.name, leading.type_sql, leading.collation_sql, leading.descending, leading.nulls_first, bounds
    ), f"the rows lie nearly sorted already (correlation of {name}: {leading.correlation:.3f})"


def has_index(conn: Connection, table: Table, column: str) -> bool:
    """Whether there is an index by which a range of the column can be read without the rest."""
    return bool(scalar(conn, query("order.index"), {"oid": table.oid, "column": column}))


def _bounds(
    conn: Connection, table: Table, type_sql: str, collation_sql: str | None, values: list[str]
) -> tuple[str, ...]:
    """Bounds for pieces of about the same size, strictly ascending by the operators that compare them."""
    wanted = min(table.heap_bytes // _PIECE_BYTES, _MOST_PIECES)
    kind = fragment(type_sql)
    parts = -(-wanted // len(values)) if type_sql in _BETWEEN else 1
    between = _BETWEEN.get(type_sql, sql.SQL("l")).format(parts=sql.Literal(max(parts, 1)), type=kind)
    statement = sql.SQL(
        "SELECT b::text FROM (SELECT DISTINCT CASE WHEN k = 0 OR h IS NULL THEN l ELSE {between} END AS b"
        " FROM (SELECT v::{type} AS l, lead(v::{type}) OVER (ORDER BY v::{type}) AS h FROM unnest(%s::text[]) AS v)"
        " AS p, generate_series(0, {last}) AS k) AS d"
        " ORDER BY d.b{collate}"
    ).format(
        between=between,
        type=kind,
        last=sql.Literal(max(parts, 1) - 1),
        collate=fragment(f" COLLATE {collation_sql}" if collation_sql else ""),
    )
    found = [row[0] for row in conn.execute(statement, (values,))]
    if len(found) <= wanted:
        return tuple(found)
    return tuple(found[number * len(found) // wanted] for number in range(wanted))


# ---- what is set in the transaction of a chunk


def prepare(conn: Connection, order: Order, *, indexed: bool) -> None:
    """Settings of the open transaction in which pieces are copied: by the index, if it is there, or past all."""
    if order.ranges is None or not indexed:
        conn.execute(query("order.settings_of_sort"))
    else:
        conn.execute(query("order.settings_of_ranges"))


def prepare_count(conn: Connection) -> None:
    """Settings of the open transaction in which the rows are counted that were read by an index: not by an index."""
    conn.execute(query("order.settings_of_count"))
