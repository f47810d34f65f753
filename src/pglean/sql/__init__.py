"""SQL kept as SQL: statements with a name in ``.sql`` files, the schema with its migrations, and their one loader.

A file holds statements each headed by a line ``-- name: …``. `schema.sql` holds migrations headed by
``-- migration: N``. Nothing is ever formatted into these texts: values are parameters, identifiers are
placeholders of the driver.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from psycopg import sql

_NAME = re.compile(r"^-- name: (\S+)\s*$", re.MULTILINE)
_MIGRATION = re.compile(r"^-- migration: (\d+)\s*$", re.MULTILINE)


def fragment(text: str) -> sql.SQL:
    """SQL text that the server itself produced and quoted (format_type, pg_get_indexdef); never a user's string."""
    return sql.SQL(text)


@cache
def _load(file: str, heading: re.Pattern[str]) -> dict[str, sql.SQL]:
    text = (files(__name__) / file).read_text(encoding="utf-8")
    parts = heading.split(text)
    return {name: sql.SQL(body.strip()) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def query(name: str) -> sql.SQL:
    """The statement ``file.name``, e.g. ``query("catalog.columns")``."""
    file, _, statement = name.partition(".")
    return _load(f"{file}.sql", _NAME)[statement]


def migrations() -> list[tuple[int, sql.SQL]]:
    """All migrations of the schema `pglean`, oldest first."""
    return sorted((int(number), body) for number, body in _load("schema.sql", _MIGRATION).items())
