"""The examples of docs/advise.md, from the first to the last."""

from __future__ import annotations

import pytest

from tests.support.command import Run
from tests.support.document import blocks, commands, statements
from tests.support.oracle import until
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


def _execute(stage: Stage, statement: str) -> None:
    """In a session that ends, and so tells what it has written."""
    with stage.db.connect() as session:
        session.execute(statement)
    if statement.startswith("DELETE"):
        dead = "SELECT n_dead_tup > 0 FROM pg_stat_user_tables WHERE relname = 'orders'"
        until(lambda: bool(stage.db.scalar(dead)), "it is counted")


def test_examples_run(stage: Stage, run: Run) -> None:
    told = ""
    for kind, text in blocks("advise.md"):
        if kind == "sql":
            for statement in statements(text):
                _execute(stage, statement)
        elif kind == "sh":
            for arguments in commands(text):
                status, told, err = run(*arguments)
                assert status == 0, err
        elif kind == "text":
            shown = [line.split() for line in told.replace(stage.db.name, "shop").splitlines()]
            for line in text.splitlines():
                assert line.split() in shown, told
        else:
            assert "postgresql:///shop" in text
            exec(text.replace("postgresql:///shop", stage.db.conninfo), {})
