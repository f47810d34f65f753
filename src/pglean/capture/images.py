"""What the triggers record of a table without a key: images of whole rows, each with +1 or -1.

A row's image is all that the heap holds of it (generated stored columns too). Of rows that nothing tells apart only
their number matters: so many of this image came, so many went. The sum tells what became of the table since any
snapshot, in whatever order the records are read.

* An image is recorded value by value, each in a column of the very type that the table has it in: nothing is cast, and
  a domain's checks are not run. (Recorded as what the domain is over, they would be when the row is added to the copy,
  and a constraint that is NOT VALID would refuse what the table has.) Without modifiers: where somebody makes a column
  wider, what is then written must not be too long for us.
* What is compared is compared by image (``*<>``), which calls no code of a type's owner. Where an UPDATE changed
  nothing, nothing is recorded. Values are compared one by one, until one differs: for that they are unpacked, and all
  of a row may not fit into the 1 GB that a value can have. First come those of fixed width, then what the others take
  up as they are stored. That may differ for the same value too: of such records nothing is left when they are summed.
* A value is out of line where it need be, whatever its column's storage is: beside the number there might be no room
  for it in the page that it filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from psycopg import sql

from pglean.sql import fragment
from pglean.table import Column

#: pg_type.oid of what an image is counted by, a smallint.
NUMBER_OID = 21

#: Whether a value is not what it was: surely, or perhaps.
_IMAGE: Final = "ROW(NEW.{0})::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW(OLD.{0})::pg_catalog.record"
_SIZE: Final = "pg_catalog.pg_column_size(NEW.{0}) OPERATOR(pg_catalog.<>) pg_catalog.pg_column_size(OLD.{0})"


def definitions(columns: Sequence[Column]) -> list[sql.Composable]:
    """The columns of the change table: the number, then the image."""
    values = (
        sql.SQL("{} {}").format(place(position), fragment(column.bare_type_sql))
        for position, column in enumerate(columns, 1)
    )
    return [sql.SQL("n smallint"), *values]


def place(position: int) -> sql.Identifier:
    """The column of the change table that holds the image's value at a position, from 1 on."""
    return sql.Identifier(f"i{position}")


def external(columns: Sequence[Column]) -> Iterator[sql.Composed]:
    """What makes values leave the page, uncompressed if they are so in the table; to be done to the change table."""
    for position, column in enumerate(columns, 1):
        if column.type_storage != "p" and column.storage in "pe":
            yield sql.SQL("ALTER COLUMN {} SET STORAGE EXTERNAL").format(place(position))


def bodies(changes: sql.Identifier, columns: Sequence[Column]) -> dict[str, sql.Composed]:
    """The text of the trigger functions, by event."""

    def values(record: str) -> sql.Composed:
        return sql.SQL(", ").join(
            sql.SQL("{}.{}").format(fragment(record), sql.Identifier(column.name)) for column in columns
        )

    def retyped(record: str) -> sql.Composed:
        return sql.SQL(" OR ").join(
            sql.SQL("pg_catalog.pg_typeof({}.{})::pg_catalog.oid OPERATOR(pg_catalog.<>) {}::pg_catalog.oid").format(
                fragment(record), sql.Identifier(column.name), sql.Literal(column.type_oid)
            )
            for column in columns
        )

    def differs() -> sql.Composed:
        fixed = [column for column in columns if column.width > 0]
        longer = [column for column in columns if column.width <= 0]
        tests = [
            *((_IMAGE, column) for column in fixed),
            *((test, column) for test in (_SIZE, _IMAGE) for column in longer),
        ]
        return sql.SQL(" OR ").join(sql.SQL(test).format(sql.Identifier(column.name)) for test, column in tests)

    parts = {
        "differs": differs(),
        "changes": changes,
        "old": values("OLD"),
        "new": values("NEW"),
        "old_retyped": retyped("OLD"),
        "new_retyped": retyped("NEW"),
    }
    return {
        event: sql.SQL(text).format(**parts)
        for event, text in {
            "insert": "BEGIN IF {new_retyped} THEN RETURN NULL; END IF;"
            " INSERT INTO {changes} VALUES (1, {new}); RETURN NULL; END",
            "update": "BEGIN IF {new_retyped} THEN RETURN NULL; END IF;"
            " IF {differs} THEN INSERT INTO {changes} VALUES (-1, {old}), (1, {new}); END IF; RETURN NULL; END",
            "delete": "BEGIN IF {old_retyped} THEN RETURN NULL; END IF;"
            " INSERT INTO {changes} VALUES (-1, {old}); RETURN NULL; END",
        }.items()
    }
