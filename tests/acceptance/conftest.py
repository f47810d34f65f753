"""Fixtures of the tests of the command line."""

from tests.support.arena import arena, stage
from tests.support.command import run

__all__ = ["arena", "run", "stage"]
