"""Fixtures of the tests that repack tables: who owns them, and where they lie."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import sql

from pglean.embedded import EmbeddedServer
from tests.servers import OWNERS, discover

_NO_CASE = SimpleNamespace(params={})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each case with one owner, on the next server with the other; with both owners on all servers it is slow."""
    majors = {bindir: major for major, bindir in discover().items()}
    for item in items:
        if not isinstance(item, pytest.Function) or "owner" not in getattr(item, "callspec", _NO_CASE).params:
            continue
        owner, bindir = item.callspec.params["owner"], item.callspec.params.get("bindir")
        case = "-".join(part for part in item.callspec.id.split("-") if part not in OWNERS and part[:2] != "pg")
        turn = zlib.crc32(f"{item.originalname} {case}".encode()) + (
            majors.get(bindir, 0) if isinstance(bindir, Path) else 0
        )
        if owner != OWNERS[turn % 2]:
            item.add_marker(pytest.mark.slow)


def _role(server: EmbeddedServer, name: str) -> str:
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        if session.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
            session.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    return name


@pytest.fixture
def plain_role(server: EmbeddedServer) -> str:
    """A role without any privilege; it stays until the server is discarded."""
    return _role(server, "plain role")


@pytest.fixture(params=OWNERS)
def owner(request: pytest.FixtureRequest, server: EmbeddedServer) -> str:
    """Whom the table is to belong to: statements on a plain role's table run behind the guard."""
    return _role(server, "plain role") if request.param == "plain" else "postgres"


@pytest.fixture
def tablespace(server: EmbeddedServer) -> Iterator[str]:
    """A tablespace of this test alone; to be asked for before the database, which must be dropped first."""
    name = f"space_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute("SET allow_in_place_tablespaces = on")
        session.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(sql.Identifier(name)))
    yield name
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(name)))


@pytest.fixture
def icu(server: EmbeddedServer) -> None:
    """Skips where the server was built without ICU, which alone has nondeterministic collations."""
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        if session.execute("SELECT FROM pg_collation WHERE collname = 'und-x-icu'").fetchone() is None:
            pytest.skip("this server was built without ICU")
