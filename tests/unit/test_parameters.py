"""Storage parameters in the spellings that the server takes, and in some that it does not."""

from __future__ import annotations

import pytest

from pglean.parameters import boolean, integer, parameters, real


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("70", 70), ("70.0", 70), ("7e1", 70), ("7E+1", 70), ("0x46", 70), ("0X46.8p0", 70), ("0106", 70), ("070", 56),
        ("070.0", 70), ("70.5", 70), ("71.5", 72), (" \t70 ", 70), ("+70", 70), ("-1", -1), (".5", 0), ("1e400", 5),
        ("99999999999", 5), ("99999999999999999999", 5), ("089", 5), ("0x", 5), ("7_0", 5), ("nan", 5), ("inf", 5),
        ("", 5), ("70%", 5), ("x70", 5), ("\u0667\u0660", 5), ("1e", 5),
    ],
)  # fmt: skip
def test_integers(text: str, number: int) -> None:
    assert integer({"p": text}, "p", 5) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("0.2", 0.2), ("2e-1", 0.2), ("0x32", 50.0), ("050", 50.0), ("0x.8p1", 1.0), (" 1. ", 1.0), ("nan", 7.0),
     ("inf", 7.0), ("1e400", 7.0), ("0x1p9999", 7.0), ("1,5", 7.0), ("", 7.0), ("-.5", -0.5)],
)  # fmt: skip
def test_reals(text: str, number: float) -> None:
    assert real({"p": text}, "p", 7.0) == number


def test_booleans() -> None:
    for text in ("on", "ON", "true", "t", "tr", "yes", "y", "1"):
        assert boolean({"p": text}, "p", default=False), text
    for text in ("off", "of", "Off", "false", "f", "no", "n", "0"):
        assert not boolean({"p": text}, "p", default=True), text
    for text in ("", "o", "2", "offf", " on"):
        assert boolean({"p": text}, "p", default=True), text
        assert not boolean({"p": text}, "p", default=False), text


def test_by_name() -> None:
    assert parameters(["fillfactor=7e1", "a=b=c"]) == {"fillfactor": "7e1", "a": "b=c"}
    assert parameters(None) == {}
    assert integer({}, "fillfactor", 90) == 90
