"""Options and their limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import pglean
from pglean import Options, Verify
from pglean.errors import UsageError

LIMITS: dict[str, tuple[str, float, float]] = {
    "jobs": ("jobs", 1, 64),
    "wait_timeout_s": ("wait-timeout", 0, 7 * 86400),
    "lock_timeout_ms": ("lock-timeout", 1, 600_000),
    "max_lock_ms": ("max-lock-time", 20, 600_000),
    "chunk_ms": ("chunk-time", 10, 60_000),
}


def options(**values: Any) -> Options:
    return Options(**values)


def test_defaults_harm_nobody() -> None:
    assert Options().kill_backend is False
    assert Options().verify is Verify.COUNT
    assert Options().lock_timeout_ms <= Options().max_lock_ms


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    option, least, most = LIMITS[name]
    for value in (least, most):
        assert getattr(options(**{name: value}), name) == value
    for value in (least - 1, most + 1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"invalid value for option --{option}: {value:g}") as caught:
            options(**{name: value})
        assert caught.value.hint == f"The value must lie between {least:g} and {most:g}."


def test_every_number_has_limits() -> None:
    numbers = {field.name for field in dataclasses.fields(Options) if isinstance(field.default, int | float)}
    switches = {field.name for field in dataclasses.fields(Options) if isinstance(field.default, bool)}
    assert numbers - switches == set(LIMITS)


def test_as_json_has_every_field() -> None:
    given = options(jobs=3, verify=Verify.FULL)
    assert Options(**given.as_json()) == given
    assert set(given.as_json()) == {field.name for field in dataclasses.fields(Options)}


def test_public_names_exist() -> None:
    for name in pglean.__all__:
        assert hasattr(pglean, name)
