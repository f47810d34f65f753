"""Fixtures of the tests in which something goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SERVERS
from tests.support.arena import arena, stage
from tests.support.points import SAMPLE

__all__ = ["arena", "sampled", "stage"]


@pytest.fixture
def sampled(bindir: Path, point: str) -> None:
    """Every point is tried on the newest server, on the others only a sample."""
    if bindir != list(SERVERS.values())[-1] and point not in SAMPLE:
        pytest.skip("tried on the newest server only")
