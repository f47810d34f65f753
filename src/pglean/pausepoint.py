"""Named points in the production code at which a test may stop a run, look, act and let it go on.

A call of `reach` is a no-op unless somebody intercepts that name. Tests interleave sessions with it instead of
sleeping: a race that is believed impossible is tried by standing still at the point where it would happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_intercepts: dict[str, Callable[[], None]] = {}

#: Called with every name that is reached; for tests that enumerate the points.
trace: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Tell that the run has come to the point `name`; runs whatever intercepts it, in the calling thread."""
    if trace is not None:
        trace(name)
    if (action := _intercepts.get(name)) is not None:
        action()


@contextmanager
def intercept(name: str, action: Callable[[], None]) -> Iterator[None]:
    """Run `action` each time that `name` is reached, as long as the block lasts."""
    _intercepts[name] = action
    try:
        yield
    finally:
        del _intercepts[name]
