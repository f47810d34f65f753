"""The table of phases."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from pglean.rewrite import phase
from pglean.rewrite.phase import ENDS_AS, FOLLOWS, RESUMES_WITH, Phase
from pglean.rewrite.pipeline import STEPS


def reachable(start: Phase) -> set[Phase]:
    """Every phase that may come after, sooner or later."""
    found: set[Phase] = set()
    todo = [start]
    while todo:
        for following in FOLLOWS[todo.pop()] - found:
            found.add(following)
            todo.append(following)
    return found


def test_numbers_are_those_of_the_documentation() -> None:
    rows = re.findall(r"^    (\d+) +([a-z ]+?)  ", phase.__doc__ or "", re.MULTILINE)
    assert {label: int(number) for number, label in rows} == {member.label: int(member) for member in Phase}


def test_numbers_are_fixed() -> None:
    """They are stored in databases of users: this list may grow, its entries never change."""
    assert {member.name: int(member) for member in Phase} == {
        "PLANNED": 0,
        "CAPTURING": 10,
        "COPYING": 20,
        "INDEXING": 30,
        "CATCHING_UP": 40,
        "VERIFYING": 50,
        "READY": 60,
        "SWAPPING": 70,
        "CLEANING": 80,
        "DONE": 100,
        "UNDONE": 110,
    }


@pytest.mark.parametrize("member", Phase)
def test_every_phase_has_an_end(member: Phase) -> None:
    ends = {end for end in reachable(member) | {member} if end.over}
    if member.over:
        assert not FOLLOWS[member]
    elif member.swapped:
        assert ends == {Phase.DONE}, "after the swap there is no way back"
    else:
        assert ends == {Phase.DONE, Phase.UNDONE}
        assert Phase.UNDONE in FOLLOWS[member], "before the swap every phase can be undone at once"


def test_the_swap_is_the_only_way_to_new_files() -> None:
    for member, following in FOLLOWS.items():
        if not member.swapped:
            assert not any(after.swapped for after in following) or member is Phase.SWAPPING


def test_the_pipeline_keeps_to_the_table() -> None:
    walk = [Phase.PLANNED, *(step.phase for step in STEPS), Phase.DONE]
    for before, after in pairwise(walk):
        assert after in FOLLOWS[before]


@pytest.mark.parametrize("member", [member for member in Phase if not member.over])
def test_every_phase_can_be_gone_on_with(member: Phase) -> None:
    goes_on_with = RESUMES_WITH[member]
    assert (goes_on_with is Phase.PLANNED) == (not member.worth_keeping and not member.swapped)
    if member.worth_keeping:
        assert goes_on_with is member or goes_on_with in FOLLOWS[member], "it is persisted on the way"
        assert goes_on_with <= member, "nothing is left out"
        assert goes_on_with in {step.phase for step in STEPS}


def test_every_phase_can_be_aborted() -> None:
    for member, end in ENDS_AS.items():
        assert end.over
        assert (end is Phase.DONE) == member.swapped
        assert end in reachable(member)
    assert ENDS_AS.keys() == RESUMES_WITH.keys() == {member for member in Phase if not member.over}
