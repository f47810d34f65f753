"""What the tests of this directory share: a table with its model, and runs that work in small portions."""

from __future__ import annotations

import pytest

from pglean.rewrite import copy, refresh
from tests.servers import Database
from tests.support.play import Play


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, and refreshes divided among workers, on a table of a few thousand rows too."""
    monkeypatch.setattr(refresh, "_SHARED_FROM", 0)
    monkeypatch.setattr(refresh, "_SHARE_RECORDS", 40)
    monkeypatch.setattr(copy, "_FIRST_BLOCKS", 8)
    monkeypatch.setattr(copy, "_MOST_BLOCKS", 8)


@pytest.fixture
def play(db: Database) -> Play:
    """A table ``t`` of 1,500 rows with its model ``m``."""
    return Play(db)
