"""The tree of errors and its exit statuses."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest

from pglean import errors
from pglean.errors import CaptureGap, Finding, Incomplete, LockNotObtained, PgleanError, Refused, TableChanged
from pglean.report import error_json, error_text
from pglean.server import translate


def tree(root: type[PgleanError] = PgleanError) -> Iterator[type[PgleanError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def test_statuses_are_those_of_the_documentation() -> None:
    rows = re.findall(r"^    [│├└─ ]*(\w+) +(\d+)  ", errors.__doc__ or "", re.MULTILINE)
    assert {name: int(status) for name, status in rows} == {error.__name__: error.exit_status for error in tree()}


def test_statuses_are_distinct() -> None:
    """What is told apart by its class alone, and not by scripts, has the status of what it is a kind of."""
    first = [error for error in tree() if error.exit_status != error.__mro__[1].__dict__.get("exit_status")]
    statuses = [error.exit_status for error in first if "exit_status" in error.__dict__]
    assert sorted(statuses) == list(range(1, 11))
    assert CaptureGap.exit_status == TableChanged.exit_status


def test_text_has_detail_and_hint_as_psql_prints_them() -> None:
    assert str(PgleanError("it failed")) == "it failed"
    error = PgleanError("it failed", detail="It was late.", hint="Come earlier.")
    assert str(error) == "it failed\nDETAIL:  It was late.\nHINT:  Come earlier."
    assert error_text(error).plain == f"pglean: error: {error}"
    assert str(Finding("late", "it failed", "It was late.", "Come earlier.")) == str(error)


def test_refused_tells_everything_found() -> None:
    late = Finding("late", "it is late", "The sun is down.", "Come earlier.")
    one = Refused("t", [late])
    assert str(one) == str(late)
    assert error_json("t", one)["findings"] == [
        {"code": "late", "message": "it is late", "detail": "The sun is down.", "hint": "Come earlier."}
    ]
    two = Refused("t", [late, Finding("far", "it is far")])
    assert two.message == "t cannot be repacked for 2 reasons"
    assert two.detail == f"{late}\nit is far"


def test_incomplete_lists_each() -> None:
    error = Incomplete({"a": PgleanError("late", detail="Very."), "b": LockNotObtained("far")}, done=3)
    assert error.message == "2 of 5 tables were not repacked"
    assert error.detail == "a: late\nb: far"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (Refused("t", [Finding("late", "late")]), Refused, "late"),
        (ValueError("odd"), PgleanError, "unexpected error: ValueError('odd')"),
        (psycopg.errors.DivisionByZero("division by zero"), PgleanError, "division by zero"),
        # No SQLSTATE: the driver itself has lost the connection.
        (
            psycopg.OperationalError("consuming input failed"),
            errors.ConnectionLost,
            "connection to the server was lost",
        ),
        (
            psycopg.InterfaceError("the connection is closed"),
            errors.ConnectionLost,
            "connection to the server was lost",
        ),
        (psycopg.ProgrammingError("odd"), PgleanError, "odd"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_translation_of_errors(error: Exception, kind: type[PgleanError], message: str) -> None:
    told = translate(error)
    assert type(told) is kind
    assert told.message == message


def test_translation_keeps_ours_as_they_are() -> None:
    error = LockNotObtained("late")
    assert translate(error) is error


def test_what_ends_a_batch() -> None:
    """Whoever pauses or aborts a run from elsewhere has not spoken of the other tables."""
    assert {error.__name__ for error in tree() if error.ends_batch} == {"ConnectionLost", "Interrupted"}
