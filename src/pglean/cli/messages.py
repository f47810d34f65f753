"""What is shown: `--json`, `-q`, `-e` and `-E`, of the commands that do long work."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from pglean.cli.sections import Section

F = TypeVar("F", bound=Callable[..., Any])

LEVELS = ("DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "LOG", "FATAL", "PANIC")

_SECTION = Section("What is shown")
_OPTIONS = (
    _SECTION.option("--json", "as_json", is_flag=True, help="Result as JSON on standard output."),
    _SECTION.option("-q", "--quiet", is_flag=True, help="No progress, no summary."),
    _SECTION.option("-e", "--echo", is_flag=True, help="Show the statements that are sent."),
    _SECTION.option(
        "-E",
        "--elevel",
        type=click.Choice(LEVELS, case_sensitive=False),
        default="INFO",
        show_default=True,
        help="Least severe messages to show; DEBUG adds what becomes of each lock.",
    ),
)


def message_options(command: F) -> F:
    """Add --json, -q, -e and -E."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def begin_messages(*, echo: bool, elevel: str) -> int:
    """Show what -e and -E ask for until the command ends; returns the level, as its place in `LEVELS`."""
    context, level = click.get_current_context(), LEVELS.index(elevel.upper())
    if echo:
        context.with_resource(logged("pglean.sql", logging.INFO))
    if level == LEVELS.index("DEBUG"):
        context.with_resource(logged("pglean.locks", logging.DEBUG))
    return level


@contextlib.contextmanager
def logged(name: str, level: int) -> Iterator[None]:
    """Show on standard error what a logger is told in the block."""
    logger, handler = logging.getLogger(name), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
