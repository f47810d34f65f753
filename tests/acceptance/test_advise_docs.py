"""The examples of docs/advise.md, from the first to the last."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.command import Run
from tests.support.oracle import until
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

_DOCUMENT = Path(__file__).parents[2] / "docs" / "advise.md"
_BLOCK = re.compile(r"^```(sql|sh|text|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _execute(stage: Stage, statement: str) -> None:
    """In a session that ends, and so tells what it has written."""
    with stage.db.connect() as session:
        session.execute(statement)
    if statement.startswith("DELETE"):
        dead = "SELECT n_dead_tup > 0 FROM pg_stat_user_tables WHERE relname = 'orders'"
        until(lambda: bool(stage.db.scalar(dead)), "it is counted")


def test_examples_run(stage: Stage, run: Run) -> None:
    told = ""
    for kind, text in _BLOCK.findall(_DOCUMENT.read_text(encoding="utf-8")):
        if kind == "sql":
            for statement in text.split(";\n"):
                if statement.strip():
                    _execute(stage, statement.strip())
        elif kind == "sh":
            for line in text.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "pglean"
                at = arguments.index("-d")
                assert arguments[at + 1] == "shop"
                status, told, err = run(*arguments[:at], *arguments[at + 2 :])
                assert status == 0, err
        elif kind == "text":
            shown = [line.split() for line in told.replace(stage.db.name, "shop").splitlines()]
            for line in text.splitlines():
                assert line.split() in shown, told
        else:
            assert "postgresql:///shop" in text
            exec(text.replace("postgresql:///shop", stage.db.conninfo), {})
