"""Databases in other encodings than UTF-8: nothing that we send is beyond them, and their names are found."""

from __future__ import annotations

import uuid
from importlib.resources import files

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pglean
from pglean.horizon import Holding, holders
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


@pytest.mark.newest
@pytest.mark.parametrize("encoding", ["UTF8", "WIN1252", "EUC_JP"])
def test_what_others_write_in_another_encoding(db: Database, encoding: str) -> None:
    """Of sessions, prepared transactions, roles and databases: it is sent as if it were of this database's encoding."""
    own, latin = (f"test_{uuid.uuid4().hex[:12]}" for _ in range(2))
    name = f"caf\xe9\x81_{uuid.uuid4().hex[:8]}"
    server, create = db.connect(), "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE 'C'"
    for called, its in ((own, encoding), (latin, "LATIN1")):
        server.execute(sql.SQL(create).format(sql.Identifier(called), sql.Literal(its)))
    conninfo = make_conninfo(db.conninfo, dbname=own)
    other = psycopg.connect(make_conninfo(db.conninfo, dbname=latin), autocommit=True, client_encoding="latin1")
    try:
        other.execute(sql.SQL("CREATE ROLE {} SUPERUSER").format(sql.Identifier(name)))
        with psycopg.connect(conninfo, autocommit=True) as session:
            session.execute("CREATE TABLE items (id int PRIMARY KEY)")
            session.execute(
                "DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE items OWNER TO %I', rolname) FROM pg_roles"
                " WHERE starts_with(rolname, 'caf')); END $$"
            )
        other.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(name)))
        other.execute("BEGIN; CREATE TABLE gone (); ")
        other.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(name)))
        other.execute("BEGIN; SELECT pg_current_xact_id()")
        other.execute("SELECT 'caf\xe9\x81' AS said")
        with pglean.connect(conninfo) as database:
            assert database.bloat(["items"], method="estimate").looked_at == 1
            database.advise(method="estimate")
        with psycopg.connect(conninfo, autocommit=True, client_encoding="utf8") as session:
            found = {holder.pid: holder for holder in holders(session)}
            # Nothing of that stays.
            assert session.info.encoding == "utf-8"
        said = found[other.info.backend_pid].query or ""
        assert (said[:11], said[-9:]) == ("SELECT 'caf", "' AS said")
        assert [holder.name[:3] for holder in found.values() if holder.kind is Holding.PREPARED] == ["caf"]
    finally:
        other.execute("ROLLBACK")
        other.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(name)))
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(own)))
        other.execute(sql.SQL("RESET ROLE; DROP ROLE {}").format(sql.Identifier(name)))
        other.close()
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(latin)))
