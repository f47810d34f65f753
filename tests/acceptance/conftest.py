"""Fixtures of the tests of the command line."""

from tests.support.arena import arena, stage

__all__ = ["arena", "stage"]
