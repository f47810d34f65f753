"""Databases in other encodings than UTF-8: nothing that we send is beyond them, and their names are found."""

from __future__ import annotations

import uuid
from importlib.resources import files

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pglean
from tests.servers import Database
from tests.support.oracle import once


def test_statements_are_plain_ascii() -> None:
    """A comment is sent to the server too, and converted to the database's encoding."""
    for file in files("pglean.sql").iterdir():
        if file.name.endswith(".sql"):
            assert file.read_text(encoding="utf-8").isascii(), file.name


@pytest.mark.parametrize(
    ("encoding", "table"), [("LATIN1", "Gr\u00f6\u00dfe"), ("SQL_ASCII", "plain"), ("KOI8R", "plain")]
)
def test_table_is_repacked(db: Database, encoding: str, table: str) -> None:
    """Under a message of ours in the job's row, too: progress and fingerprint are stored there."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    create = "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE 'C'"
    db.connect().execute(sql.SQL(create).format(sql.Identifier(name), sql.Literal(encoding)))
    conninfo = make_conninfo(db.conninfo, dbname=name)
    quoted = sql.Identifier(table)
    try:
        with psycopg.connect(conninfo, autocommit=True, client_encoding="utf8") as session:
            session.execute(sql.SQL("CREATE TABLE {} (id int PRIMARY KEY, t text)").format(quoted))
            session.execute(sql.SQL("INSERT INTO {} SELECT g, 'x' FROM generate_series(1, 1000) g").format(quoted))
        with pglean.connect(conninfo) as database:
            result = database.repack(f'"{table}"', verify="full")
            assert result.rows == 1000
            assert database.status() == []
            # Without a key text is hashed as it is stored: some of it cannot be sent to anybody.
            with psycopg.connect(conninfo, autocommit=True, client_encoding="utf8") as session:
                session.execute(
                    sql.SQL("ALTER TABLE {0} DROP CONSTRAINT {1}").format(quoted, sql.Identifier(f"{table}_pkey"))
                )
                high = {"LATIN1": "\\344", "KOI8R": "\\301", "SQL_ASCII": "\\377"}[encoding]
                session.execute(sql.SQL("UPDATE {} SET t = E{}").format(quoted, sql.SQL(f"'{high}'")))

                def write() -> None:
                    session.execute(sql.SQL("DELETE FROM {} WHERE id % 7 = 0").format(quoted))
                    session.execute(sql.SQL("UPDATE {} SET id = id + 1").format(quoted))

                with once("phase: verifying", write):
                    assert database.repack(f'"{table}"', verify="full").changes_applied > 1000
    finally:
        db.connect().execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
