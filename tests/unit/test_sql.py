"""The loader of SQL: every statement that is asked for is there, every one that is there is asked for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pglean.sql import migrations, query

SOURCE = Path(__file__).parents[2] / "src" / "pglean"
DEFINED = {
    f"{path.stem}.{name}"
    for path in (SOURCE / "sql").glob("*.sql")
    for name in re.findall(r"^-- name: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}


def strings() -> set[str]:
    """All strings of the code, also those that a conditional chooses between."""
    return {
        node.value
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def asked() -> tuple[set[str], set[str]]:
    """Names that the code gives to `query` as they are, and the beginnings of those that it puts together."""
    whole, beginnings = set(), set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "query":
                (argument,) = node.args
                if isinstance(argument, ast.Constant):
                    whole.add(str(argument.value))
                elif isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
                    beginnings.add(str(argument.values[0].value))
                else:
                    assert isinstance(argument, ast.Name), f"{path.name}: {ast.unparse(node)}"
    return whole, beginnings


def test_every_statement_asked_for_is_there() -> None:
    whole, beginnings = asked()
    assert whole <= DEFINED
    for beginning in beginnings:
        assert any(name.startswith(beginning) for name in DEFINED)
    named = {
        text
        for text in strings()
        if re.fullmatch(r"\w+\.\w+", text) and (SOURCE / "sql" / f"{text.split('.')[0]}.sql").is_file()
    }
    assert {name for name in named if not name.endswith(".sql")} <= DEFINED


def test_every_statement_is_asked_for() -> None:
    whole, beginnings = asked()
    used = whole | strings()
    dead = {name for name in DEFINED - used if not any(name.startswith(beginning) for beginning in beginnings)}
    assert dead == set()


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_statements_are_whole(name: str) -> None:
    text = query(name).as_string(None)
    assert text
    assert "-- name:" not in text
    assert not text.rstrip().endswith(";")


def test_unknown_statements_are_bugs() -> None:
    with pytest.raises(KeyError):
        query("job.nonsense")


def test_migrations_are_numbered_without_gaps() -> None:
    assert [number for number, _ in migrations()] == list(range(1, len(migrations()) + 1))
