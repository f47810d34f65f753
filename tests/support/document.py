"""The examples in the documentation, as somebody would type them who has a database called shop."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(sql|sh|text|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(name: str) -> list[tuple[str, str]]:
    """Kind and text of each of a document, from the first to the last."""
    return _BLOCK.findall((_DOCS / name).read_text(encoding="utf-8"))


def statements(text: str) -> Iterator[str]:
    """Of a block of SQL, one by one."""
    return (statement.strip() for statement in text.split(";\n") if statement.strip())


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `pglean` of a block, without `-d shop`."""
    for line in text.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "pglean"
        at = arguments.index("-d")
        assert arguments[at + 1] == "shop"
        yield [*arguments[:at], *arguments[at + 2 :]]
