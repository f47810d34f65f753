"""What is asked for, and patterns as psql reads them, as far as that needs no server."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglean.errors import UsageError
from pglean.selection import Pattern, Selection, is_pattern
from pglean.table import quote_name


@pytest.mark.parametrize(
    "text", ["*", "ord*", "public.*", "t?", '"Odd Name".t?', "a|b", "[ab]c", "t+", "(a)", "^a", "a\\d"]
)
def test_patterns(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize("text", ["orders", "public.orders", '"Odd*Name"', '"a?"."b|c"', "price$", '"it""s[]"', ""])
def test_names(text: str) -> None:
    assert not is_pattern(text)


@given(st.text())
def test_a_quoted_name_is_no_pattern(name: str) -> None:
    assert not is_pattern('"' + name.replace('"', '""') + '"')


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("ord*", None, "^(ord.*)$"),
        ("Public.T?", "^(public)$", "^(t.)$"),
        ('"Odd Name".t?', "^(Odd Name)$", "^(t.)$"),
        ("*.a$b", "^(.*)$", r"^(a\$b)$"),
        ('"a.*$"', None, r"^(a\.\*\$)$"),
        ('say_"""hi"""*', None, '^(say_"hi".*)$'),
        ("[ab]x[]", None, r"^([ab]x\[])$"),
        ('A"B"C', None, "^(aBc)$"),
        ("shop.public.t*", "^(public)$", "^(t.*)$"),
        ('"never closed*', None, r"^(never closed\*)$"),
        ("ÄA*", None, "^(Äa.*)$"),
    ],
)
def test_patterns_as_regular_expressions(text: str, schema: str | None, name: str) -> None:
    assert Pattern.parse(text, "shop") == Pattern(schema, name)


@given(st.text(), st.text())
def test_a_quoted_name_matches_itself_alone(schema: str, name: str) -> None:
    pattern = Pattern.parse(f"{quote_name(schema)}.{quote_name(name)}", "shop")
    assert pattern.schema is not None
    for expression, text in ((pattern.schema, schema), (pattern.name, name)):
        # `$` also stands before a line break at the end in Python, not in the server.
        assert re.match(expression.removesuffix("$") + r"\Z", text)
        assert not re.match(expression.removesuffix("$") + r"\Z", text + "x")


@pytest.mark.parametrize("text", ["other.public.t*", "a.b.c.d*", "Shop.public.*"])
def test_patterns_of_other_databases(text: str) -> None:
    with pytest.raises(UsageError, match="invalid pattern"):
        Pattern.parse(text, "Shop")


@pytest.mark.parametrize("named", [{"tables": ("t",)}, {"parents": ("t",)}])
@pytest.mark.parametrize("other", [{"schemas": ("s",)}, {"without_extensions": ("e",)}])
def test_what_excludes_each_other(named: dict[str, tuple[str]], other: dict[str, tuple[str]]) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        Selection(**named, **other)
    assert Selection(schemas=("s",), without_extensions=("e",)).named is False


def test_parts_are_the_names() -> None:
    selection = Selection(tables=("a", "b*"), parents=("p",))
    assert list(selection.parts()) == [
        ("a", Selection(tables=("a",))),
        ("b*", Selection(tables=("b*",))),
        ("p", Selection(parents=("p",))),
    ]
