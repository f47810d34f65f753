"""The phases of a run, with fixed numbers (they are stored), and what may follow what. Pure: no I/O.

    number  phase        in the database, killed or not               resume goes on with    abort
    0       planned      the job's row                                another run, anew      undone
    10      capturing    change table, functions, the empty shadow    another run, anew      undone
    20      copying      + triggers; some chunks are in the shadow    the chunks missing     undone
    30      indexing     + all rows; some indexes are built           a refresh, the rest    undone
    40      catching up  + all indexes; equal to the table up to      catching up            undone
                         the records that wait
    50      verifying    the same                                     catching up            undone
    60      ready        the same, verified                           catching up            undone
    70      swapping     the same, or, once committed, the next       catching up            undone
    80      cleaning     the table has its new files, the shadow      cleaning               done
                         the old ones: there is no way back
    100     done         the job's row                                nothing                nothing
    110     undone       the job's row                                nothing                nothing

Two transactions enter the next phase themselves: the one that switches capturing on writes 20, the swap's writes 80.
So whoever finds 10 knows that nothing is recorded yet, whoever finds 70 that nothing was exchanged, and whoever finds
80 that all of it was. There is nothing in between: a connection lost at COMMIT is no riddle.
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

    @property
    def worth_keeping(self) -> bool:
        """There is work in it that a resumed run need not do again."""
        return Phase.COPYING <= self <= Phase.SWAPPING


#: The phases that a phase may be followed by.
FOLLOWS: dict[Phase, frozenset[Phase]] = {
    Phase.PLANNED: frozenset({Phase.CAPTURING, Phase.UNDONE}),
    Phase.CAPTURING: frozenset({Phase.COPYING, Phase.UNDONE}),
    Phase.COPYING: frozenset({Phase.INDEXING, Phase.UNDONE}),
    Phase.INDEXING: frozenset({Phase.CATCHING_UP, Phase.UNDONE}),
    # Back to indexing from here on: somebody has made an index.
    Phase.CATCHING_UP: frozenset({Phase.VERIFYING, Phase.INDEXING, Phase.UNDONE}),
    Phase.VERIFYING: frozenset({Phase.READY, Phase.CATCHING_UP, Phase.INDEXING, Phase.UNDONE}),
    Phase.READY: frozenset({Phase.SWAPPING, Phase.CATCHING_UP, Phase.INDEXING, Phase.UNDONE}),
    # Back to ready: the window has closed.
    Phase.SWAPPING: frozenset({Phase.CATCHING_UP, Phase.READY, Phase.INDEXING, Phase.CLEANING, Phase.UNDONE}),
    Phase.CLEANING: frozenset({Phase.DONE}),
    Phase.DONE: frozenset(),
    Phase.UNDONE: frozenset(),
}

#: Where a run that was interrupted in a phase goes on; in `planned`: anew, as another run.
RESUMES_WITH: dict[Phase, Phase] = {
    Phase.PLANNED: Phase.PLANNED,
    Phase.CAPTURING: Phase.PLANNED,
    Phase.COPYING: Phase.COPYING,
    Phase.INDEXING: Phase.INDEXING,
    Phase.CATCHING_UP: Phase.CATCHING_UP,
    # What was verified, or found ready, has been written to since.
    Phase.VERIFYING: Phase.CATCHING_UP,
    Phase.READY: Phase.CATCHING_UP,
    Phase.SWAPPING: Phase.CATCHING_UP,
    Phase.CLEANING: Phase.CLEANING,
}

#: What becomes of a run that is aborted in a phase, or interrupted and cleaned up after.
ENDS_AS: dict[Phase, Phase] = {
    phase: Phase.DONE if phase.swapped else Phase.UNDONE for phase in Phase if not phase.over
}
