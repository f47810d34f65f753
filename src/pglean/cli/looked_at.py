"""The options by which commands that only look say at which tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pglean.cli.sections import Section

LOOKED_AT = Section("What is looked at")


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``-t`` and ``-c``; the command gets `tables` and `schemas`."""
    schemas = LOOKED_AT.option(
        "-c", "--schema", "schemas", multiple=True, metavar="SCHEMA", help="All tables of a schema, or pattern."
    )
    tables = LOOKED_AT.option(
        "-t",
        "--table",
        "tables",
        multiple=True,
        metavar="TABLE",
        help="Table as in SQL, or pattern as psql's \\dt; a partitioned one means its partitions.",
    )
    return tables(schemas(command))
