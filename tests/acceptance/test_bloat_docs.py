"""The examples of docs/bloat.md, from the first to the last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.command import Run
from tests.support.document import blocks, commands, statements
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


def test_examples_run(stage: Stage, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shares: list[str] = []
    told = ""
    for kind, text in blocks("bloat.md"):
        if kind == "sql":
            for statement in statements(text):
                stage.db.execute(statement)
        elif kind == "sh":
            for arguments in commands(text):
                status, told, err = run(*arguments)
                # A check of what is sized by the statistics may be a warning, and is an answer.
                assert status in ((0, 1, 2) if arguments[0] == "check" else (0,)), err
                shares += re.findall(r"^ public\.orders .* (\d+)% +estimate", told, re.MULTILINE)
        elif kind == "text":
            # What is dead, and so what is free, depends on when sessions tell what they have counted.
            shown = [[*line.split()[:4], *line.split()[-4:]] for line in told.splitlines()]
            for line in text.splitlines():
                assert [*line.split()[:4], *line.split()[-4:]] in shown, told
        else:
            assert "postgresql:///shop" in text
            exec(text.replace("postgresql:///shop", stage.db.conninfo), {})
    # Nothing, half of it, most of it, and nothing again.
    assert [int(share) for share in shares[:4]] == [pytest.approx(share, abs=2) for share in (0, 50, 83, 0)]
    assert (tmp_path / "bloat.html").stat().st_size > 10_000
