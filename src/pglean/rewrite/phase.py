"""The phases of a run, with fixed numbers (they are stored), and what may follow what. Pure: no I/O.

    number  phase        on the way out of it, killed or not, the database holds        undo
    0       planned      the job's row                                                  close the row
    10      capturing    change table, trigger functions, perhaps triggers              drop them
    20      copying      + the shadow, some chunks of it                                drop all
    30      indexing     + all rows in it, some indexes                                 drop all
    40      catching up  + all indexes; equal to the table up to the waiting records    drop all
    50      verifying    the same                                                       drop all
    60      ready        the same, verified                                             drop all
    70      swapping     the same, or, once committed, the next                         drop all
    80      cleaning     the table has its new files; the shadow has the old ones       finish: drop all
    100     done         the job's row
    110     undone       the job's row

The swap's transaction writes phase 80 itself: whoever finds a run in 70 knows that nothing was exchanged, whoever finds
80 knows that all of it was. There is nothing in between, so a connection lost at COMMIT is no riddle.
"""

from __future__ import annotations

from enum import IntEnum


class Phase(IntEnum):
    """Numbers are persisted: never renumber, insert between."""

    PLANNED = 0
    CAPTURING = 10
    COPYING = 20
    INDEXING = 30
    CATCHING_UP = 40
    VERIFYING = 50
    READY = 60
    SWAPPING = 70
    CLEANING = 80
    DONE = 100
    UNDONE = 110

    @property
    def label(self) -> str:
        """For people."""
        return self.name.lower().replace("_", " ")

    @property
    def over(self) -> bool:
        """Nothing of the run is left but its row."""
        return self >= Phase.DONE

    @property
    def swapped(self) -> bool:
        """The table already has its new files: what is left to do is to tidy up, there is no way back."""
        return Phase.CLEANING <= self < Phase.UNDONE


#: The phases that a phase may be followed by.
FOLLOWS: dict[Phase, frozenset[Phase]] = {
    Phase.PLANNED: frozenset({Phase.CAPTURING, Phase.UNDONE}),
    Phase.CAPTURING: frozenset({Phase.COPYING, Phase.UNDONE}),
    Phase.COPYING: frozenset({Phase.INDEXING, Phase.UNDONE}),
    Phase.INDEXING: frozenset({Phase.CATCHING_UP, Phase.UNDONE}),
    Phase.CATCHING_UP: frozenset({Phase.VERIFYING, Phase.READY, Phase.UNDONE}),
    Phase.VERIFYING: frozenset({Phase.READY, Phase.UNDONE}),
    Phase.READY: frozenset({Phase.SWAPPING, Phase.UNDONE}),
    # Over the budget, or no lock: back to catching up, as often as need be.
    Phase.SWAPPING: frozenset({Phase.CATCHING_UP, Phase.CLEANING, Phase.UNDONE}),
    Phase.CLEANING: frozenset({Phase.DONE}),
    Phase.DONE: frozenset(),
    Phase.UNDONE: frozenset(),
}
