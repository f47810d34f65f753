"""A database that the tests of a module share, since creating one takes longer than most of them, and a fresh stage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pglean.embedded import EmbeddedServer
from pglean.rewrite import copy
from tests.servers import Database, create_database
from tests.support.stage import Stage

__all__ = ["arena", "stage"]


@pytest.fixture(scope="module")
def arena(server: EmbeddedServer) -> Iterator[Database]:
    """The database of this module's tests, which may hold anything when a test begins."""
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
    arena.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
    # Several chunks even of a small table.
    monkeypatch.setattr(copy, "_FIRST_BLOCKS", 16)
    return Stage(arena)
