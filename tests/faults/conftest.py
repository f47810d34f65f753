"""A stage for each fault: a fresh table in a database that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pglean.embedded import EmbeddedServer
from pglean.rewrite import copy
from tests.conftest import SERVERS
from tests.servers import Database, create_database
from tests.support.stage import Stage


@pytest.fixture(scope="module")
def arena(server: EmbeddedServer) -> Iterator[Database]:
    """A database for all tests of a module, since creating one takes longer than most of them."""
    with create_database(server) as database:
        yield database


@pytest.fixture
def stage(arena: Database, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A fresh table with its model; of earlier tests nothing is left, not even where they failed."""
    arena.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'pglean %'"
    )
    arena.execute("DROP SCHEMA IF EXISTS pglean CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    # amcheck went with the schema. Several chunks even of a small table:
    monkeypatch.setattr(copy, "_FIRST_BLOCKS", 16)
    return Stage(arena)


@pytest.fixture
def other_server_only(bindir: Path) -> None:
    """Skip on the newest server."""
    if len(SERVERS) > 1 and bindir == list(SERVERS.values())[-1]:
        pytest.skip("all of it is tried on this server")
