"""What `-e` and `-E` ask to be shown."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

LEVELS = ("DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "LOG", "FATAL", "PANIC")


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
