"""Names as they are read from the command line, and as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglean.catalog import split_names
from pglean.conninfo import connection_words
from pglean.session import application_name
from pglean.table import quote_name

#: A name as SQL has it in double quotes: anything, the quotes in it doubled.
QUOTED = st.text(min_size=1).map(lambda name: '"' + name.replace('"', '""') + '"')
BARE = st.from_regex(r"[a-z_][a-z0-9_$]*", fullmatch=True)
QUALIFIED = st.lists(QUOTED | BARE, min_size=1, max_size=2).map(".".join)
BLANKS = st.text(" \t", max_size=2)


@given(st.lists(st.tuples(BLANKS, QUALIFIED, BLANKS)))
def test_names_are_split_where_they_were_joined(names: list[tuple[str, str, str]]) -> None:
    joined = ",".join("".join(parts) for parts in names)
    assert split_names(joined) == [name for _, name, _ in names]


@given(st.text())
def test_nothing_but_commas_and_blanks_is_lost(value: str) -> None:
    def kept(text: str) -> str:
        return "".join(text.replace(",", "").split())

    assert kept("".join(split_names(value))) == kept(value)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", []),
        (" , ,", []),
        ("a", ["a"]),
        ("a, b ,c", ["a", "b", "c"]),
        ('"a,b"', ['"a,b"']),
        ('"a""b,c".d, e', ['"a""b,c".d', "e"]),
        # What is never closed belongs to one name; the server will say what it thinks of it.
        ('a,"b,c', ["a", '"b,c']),
    ],
)
def test_names_are_split(value: str, names: list[str]) -> None:
    assert split_names(value) == names


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("orders", "orders"),
        ("_1", "_1"),
        ("Orders", '"Orders"'),
        ("1st", '"1st"'),
        ("two words", '"two words"'),
        ('say "hi"', '"say ""hi"""'),
        # Bare they would be something else: `-o user` the current role.
        ("user", '"user"'),
        ("order", '"order"'),
        ("größe", '"größe"'),
        ("", '""'),
    ],
)
def test_names_are_shown_as_psql_takes_them(name: str, shown: str) -> None:
    assert quote_name(name) == shown


@given(st.text())
def test_shown_names_are_one_name(name: str) -> None:
    assert split_names(f"{quote_name('a')}.{quote_name(name)}") == [f"a.{quote_name(name)}"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_application_name_fits_the_server(purpose: str) -> None:
    name = application_name(purpose)
    assert len(name.encode()) <= 63
    assert f"pglean {purpose}".startswith(name)
    # Not shorter than it must be: the next character would not fit.
    rest = f"pglean {purpose}"[len(name) :]
    assert not rest or len((name + rest[0]).encode()) > 63


def test_application_name_is_cut_between_characters() -> None:
    assert application_name("17 orders copy 42%") == "pglean 17 orders copy 42%"
    assert application_name("ä" * 40) == "pglean " + "ä" * 28


@pytest.mark.parametrize(
    ("conninfo", "words"),
    [
        ("", "-d shop"),
        ("host=prod port=5433 user=app password=x", "-h prod -p 5433 -U app -d shop"),
        ("host=a,b sslmode=require", "-d 'dbname=shop host=a,b sslmode=require'"),
        # Whatever may hold a secret is not repeated, whether libpq knows it for one or not.
        ("host=prod sslkey=pkcs11:token=t;pin-value=1", "-h prod -d shop"),
        ("host=prod options='-c app.token=secret'", "-h prod -d shop"),
        ("host=prod sslpassword=secret application_name=secret", "-h prod -d shop"),
    ],
)
def test_the_way_to_a_database_is_told_without_secrets(conninfo: str, words: str) -> None:
    assert connection_words(conninfo, "shop") == words


def test_a_database_that_looks_like_a_connection_string_is_none() -> None:
    assert (
        connection_words("", "host=10.6.6.6 user=postgres") == """-d 'dbname='"'"'host=10.6.6.6 user=postgres'"'"''"""
    )
