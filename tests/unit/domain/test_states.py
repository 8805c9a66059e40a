"""The two state machines, as tables: what may follow what, what is final, and that nothing else is let through."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from app.domain.states import (
    CLAIM_ENDED,
    CLAIM_TRANSITIONS,
    VM_ENDED,
    VM_TRANSITIONS,
    ClaimState,
    VmState,
    check_claim_transition,
    check_vm_transition,
)
from app.errors import IllegalTransition

MACHINES = [
    pytest.param(VmState, VM_TRANSITIONS, VM_ENDED, VmState.PLANNED, id="vm"),
    pytest.param(ClaimState, CLAIM_TRANSITIONS, CLAIM_ENDED, ClaimState.PENDING, id="claim"),
]


def reachable(table, start):
    found, front = {start}, [start]
    while front:
        for after in table[front.pop()]:
            if after not in found:
                found.add(after)
                front.append(after)
    return found


@pytest.mark.parametrize(("states", "table", "ended", "first"), MACHINES)
def test_every_state_stands_in_the_table_and_can_be_reached(states, table, ended, first):
    assert set(table) == set(states)
    assert reachable(table, first) == set(states)


@pytest.mark.parametrize(("states", "table", "ended", "first"), MACHINES)
def test_what_has_ended_stays_ended_and_everything_else_can_end(states, table, ended, first):
    assert {state for state in states if not table[state]} == ended
    assert all(reachable(table, state) & ended for state in states)


@given(old=st.sampled_from(VmState), new=st.sampled_from(VmState))
def test_a_vm_moves_along_the_table_and_nowhere_else(old, new):
    if new in VM_TRANSITIONS[old]:
        check_vm_transition(old, new)
    else:
        with pytest.raises(IllegalTransition, match=f"a VM cannot go from {old} to {new}"):
            check_vm_transition(old, new)


@given(old=st.sampled_from(ClaimState), new=st.sampled_from(ClaimState))
def test_a_claim_moves_along_the_table_and_nowhere_else(old, new):
    if new in CLAIM_TRANSITIONS[old]:
        check_claim_transition(old, new)
    else:
        with pytest.raises(IllegalTransition, match=f"a claim cannot go from {old} to {new}"):
            check_claim_transition(old, new)


@given(walk=st.lists(st.sampled_from(VmState), max_size=12))
def test_no_walk_hands_a_vm_out_twice(walk):
    """Whatever is tried, in whatever order: once claimed, a VM never waits in the queue again."""
    state, claims = VmState.PLANNED, 0
    for wish in walk:
        if wish in VM_TRANSITIONS[state]:
            state = wish
            claims += state is VmState.CLAIMED
    assert claims <= 1


def test_a_claimed_vm_is_never_ready_again():
    assert VmState.READY not in reachable(VM_TRANSITIONS, VmState.CLAIMED)
