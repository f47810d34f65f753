"""What the triggers of a table without a key do."""

from __future__ import annotations

import re

from psycopg import sql

from pglean.capture.images import bodies
from pglean.table import Column


def column(number: int, name: str, width: int) -> Column:
    return Column(
        number=number,
        name=name,
        type_sql="x",
        collation_sql=None,
        storage="x",
        type_storage="x",
        compression="",
        dropped=False,
        generated="",
        not_null=False,
        is_array=False,
        type_oid=number,
        bare_type_sql="x",
        width=width,
    )


def test_long_values_are_compared_last_and_one_by_one() -> None:
    """All of a row at once would have to be unpacked for it, and may be more than a value can be."""
    columns = [column(1, "long", -1), column(2, "n", 4), column(3, "longer", -1)]
    body = bodies(sql.Identifier("changes"), columns)["update"].as_string(None)
    assert re.findall(r"ROW\((.*?)\)", body) == [
        f'{record}."{name}"' for name in ("n", "long", "longer") for record in ("NEW", "OLD")
    ]
    assert body.index('ROW(NEW."n")') < body.index('pg_column_size(NEW."long")')
    assert body.index('pg_column_size(NEW."longer")') < body.index('ROW(NEW."long")')
