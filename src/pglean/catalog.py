"""From the server's catalog to the values of `table`, and the fingerprint that notices DDL.

No function here locks a table longer than its statement (ACCESS SHARE on catalogs only).
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import dict_row

from pglean.errors import Finding, IndexesChanged, Refused, TableChanged, UsageError
from pglean.server import Server
from pglean.session import Connection, scalar, transaction
from pglean.sql import query
from pglean.table import Column, Index, Key, KeyColumn, Table, Toast

Fingerprint = dict[str, Any]

_NAMES_HINT = "Names are read as in SQL: schema.table; capitals and blanks need quotes: '\"Big Table\"'."


def split_names(value: str) -> list[str]:
    """``a, "b,c".d`` into its names; commas within double quotes belong to the name."""
    names: list[str] = []
    current, quoted = "", False
    for character in value:
        if character == '"':
            quoted = not quoted
        if character == "," and not quoted:
            names.append(current.strip())
            current = ""
        else:
            current += character
    names.append(current.strip())
    return [name for name in names if name]


def resolve(server: Server, conn: Connection, name: str) -> int:
    """The OID of the relation that `name` means to our role: by its own search path, quoted as in SQL.

    Raises `UsageError` where there is none, or where `name` is no name; `Refused` where our role may not look there.
    """
    try:
        with transaction(conn):
            conn.execute(
                "SELECT pg_catalog.set_config('search_path', %s, true)",
                (server.capabilities.search_path,),
            )
            oid = scalar(conn, "SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid", (name,))
    except pg.InsufficientPrivilege as error:
        message = error.diag.message_primary or "permission denied"
        hint = f'GRANT USAGE on that schema to "{server.capabilities.role}", or connect as a superuser (-U).'
        raise Refused(name, [Finding("rights", f"{name} cannot be looked up: {message}", None, hint)]) from error
    except psycopg.Error as error:
        raise UsageError(f"invalid table name: {name}", detail=error.diag.message_primary, hint=_NAMES_HINT) from error
    if oid is None:
        raise UsageError(
            f'relation "{name}" does not exist',
            hint=_NAMES_HINT,
        )
    return int(oid)


def load(conn: Connection, oid: int) -> Table:
    """All that pglean knows of the relation.

    Raises `TableChanged` where it no longer exists.
    """
    found = _rows(conn, "table", oid=oid)
    # Without a size it was dropped while its lock was waited for.
    if not found or found[0]["heap_bytes"] is None:
        raise TableChanged(f"the relation with OID {oid} no longer exists")
    (row,) = found
    toast_oid = row.pop("toast_oid")
    toasts = [] if toast_oid is None else _rows(conn, "toast", oid=toast_oid)
    columns = tuple(Column(**column) for column in _rows(conn, "columns", oid=oid))
    return Table(
        **row,
        columns=columns,
        indexes=tuple(Index(**index) for index in _rows(conn, "indexes", oid=oid)),
        key=_key(conn, oid, columns),
        toast=Toast(**toasts[0]) if toasts else None,
    )


def _rows(conn: Connection, name: str, **parameters: Any) -> list[dict[str, Any]]:
    """Of a query whose columns are called as the attributes that they are for; arrays come as tuples."""
    rows = conn.cursor(row_factory=dict_row).execute(query(f"catalog.{name}"), parameters)
    return [
        {column: tuple(value) if isinstance(value, list) else value for column, value in row.items()} for row in rows
    ]


def _key(conn: Connection, oid: int, columns: tuple[Column, ...]) -> Key | None:
    not_null = [column.number for column in columns if column.not_null and column.stored]
    found = _rows(conn, "keys", oid=oid, not_null=not_null)
    if not found:
        return None
    (row,) = found
    index_oid, index_name = row.pop("index_oid"), row.pop("index_name")
    # What is left are arrays, with an element for each column of the key.
    parts = (KeyColumn(**dict(zip(row, values, strict=True))) for values in zip(*row.values(), strict=True))
    return Key(index_oid, index_name, tuple(parts))


def fingerprint(conn: Connection, oid: int) -> Fingerprint | None:
    """What a run relies on, in named parts; None where the table is gone."""
    value: Fingerprint | None = scalar(conn, query("catalog.fingerprint"), {"oid": oid})
    return value


def check_fingerprint(conn: Connection, table: Table, expected: Fingerprint) -> None:
    """Raise `TableChanged` where the table is not what it was when the run began; `IndexesChanged` where only those.

    To be called in a transaction that has locked the table by its name: then what is found holds until its end
    for everything that ACCESS SHARE keeps away (TRUNCATE, rewrites, column changes, renames).
    """
    found = fingerprint(conn, table.oid)
    if found is None:
        raise TableChanged(f"table {table.qualified_name} was dropped by another session")
    changed = changed_parts(expected, found)
    if changed:
        kind = IndexesChanged if changed == ["indexes"] else TableChanged
        raise kind(
            f"table {table.qualified_name} was changed by another session",
            detail=f"Changed: {', '.join(changed)}.",
            hint="Nothing was swapped; run pglean again once the change is complete.",
        )


def changed_parts(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """The parts of the first fingerprint that the second does not agree with."""
    return [part for part in expected if found.get(part) != expected[part]]


def relation(table: Table) -> sql.Identifier:
    """The table's qualified name, quoted. Means the table only where that name was locked and looked at."""
    return sql.Identifier(table.schema, table.name)


def blocks(conn: Connection, oid: int) -> int:
    """Blocks of the heap's main fork."""
    return int(scalar(conn, query("catalog.blocks"), {"oid": oid}))
