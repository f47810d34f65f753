"""DDL that waits for the table during a long step: the step is ended and done again, so that readers need not queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pglean.result import Result
from pglean.rewrite import copy, refresh, verify
from tests.support.fault import repack
from tests.support.play import Background
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

_LONG = sql.SQL("SELECT pg_catalog.count(*) FROM {} AS t, pg_catalog.pg_sleep(60)")


def take(stage: Stage) -> None:
    """What an ALTER TABLE does; for no longer than a site can bear."""
    with psycopg.connect(stage.db.conninfo) as conn:
        conn.execute("SET lock_timeout = '10s'")
        conn.execute(sql.SQL("LOCK TABLE {}").format(stage.table))


@pytest.mark.parametrize("what", ["comparison", "chunk", "refresh"])
def test_long_step_gives_way(stage: Stage, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The first one would take a minute."""
    begun = threading.Event()

    def long_comparison(count: Callable[[sql.Composable], sql.Composed], relation: sql.Composable) -> sql.Composed:
        if begun.is_set():
            return count(relation)
        begun.set()
        return _LONG.format(relation)

    def long_statement(statement: Any, *arguments: Any) -> sql.Composed:
        composed: sql.Composed = statement(*arguments)
        if begun.is_set():
            return composed
        begun.set()
        return composed + sql.SQL(" AND pg_catalog.pg_sleep(60) IS NOT NULL")

    if what == "comparison":
        count = verify._count
        monkeypatch.setattr(verify, "_count", lambda relation: long_comparison(count, relation))
    elif what == "chunk":
        chunk = copy._statement
        monkeypatch.setattr(copy, "_statement", lambda *arguments: long_statement(chunk, *arguments))
    else:
        recorded = refresh._recorded
        monkeypatch.setattr(refresh, "_recorded", lambda *arguments: long_statement(recorded, *arguments))
    outcome = Background(lambda: repack(stage))
    assert begun.wait(30)
    take(stage)
    assert isinstance(outcome.result(), Result), outcome.result()
    assert stage.repacked
    stage.check()
