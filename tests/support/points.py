"""The named points of the production code at which a run can be stopped, found by reading its text.

So a point that is added is tested without anybody remembering to add it to a list. What a traced run reaches
(`tests/faults/test_points.py`) must agree with what is found here.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from pglean.rewrite.pipeline import STEPS

T = TypeVar("T")

_SOURCE = Path(__file__).parents[2] / "src" / "pglean"

#: Reached only once something has ended the run.
UNDO: Final = "undo"
#: From here on the table has its new files.
COMMITTED: Final = "swap: after the commit"


def declared() -> list[str]:
    """Every name that the code may reach, in no particular order."""
    found: dict[str, None] = {}
    for path in sorted(_SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "reach":
                found.update(dict.fromkeys(_names(node.args[0])))
    return list(found)


def _names(argument: ast.expr) -> list[str]:
    match argument:
        case ast.Constant(value=str(name)):
            return [name]
        case ast.JoinedStr(values=[ast.Constant(value="phase: "), _]):
            return [f"phase: {step.phase.label}" for step in STEPS]
        case ast.Name():  # handed on
            return []
    raise AssertionError(f"a point whose name cannot be known: {ast.unparse(argument)}")


#: A few for the faults that take their time: before anything, with triggers, within a chunk, around the commit.
SAMPLE: Final = (
    "capture: prepared",
    "copy: in a chunk",
    "refresh: between the halves",
    "swap: before the commit",
    COMMITTED,
)

#: Reached only with `--mvcc-safe`.
SAFE: Final = "swap: before the older snapshots are gone"

#: Reached only where the table has no key.
KEYLESS: Final = ("copy: snapshot taken", "copy: before the snapshot is let go", "decoder: a part is written")

#: Where every run may be stopped before anything has gone wrong.
POINTS: Final = [point for point in declared() if point not in (UNDO, SAFE, *KEYLESS)]


def some(values: Sequence[T], turn: int, of: int = 3) -> list[Any]:
    """All of them as parameters of a test, of which every `of`-th is for every day, beginning with `turn`.

    With another turn for each test that stops runs at all points, each point has its day in one of them.
    """
    return [
        pytest.param(*value, marks=marks) if isinstance(value, tuple) else pytest.param(value, marks=marks)
        for number, value in enumerate(values)
        for marks in [[] if number % of == turn % of else [pytest.mark.slow]]
    ]
