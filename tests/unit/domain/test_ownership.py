"""Whose objects are, as a table: Leases, what VMs carry, orphans, and what adopting does."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app.domain.adoption import Step, plan_adoption
from app.domain.ownership import (
    ClaimRecord,
    FoundVm,
    Identity,
    Known,
    KnownVm,
    LeaseRecord,
    Orphan,
    Progress,
    instance_trouble,
    lease_trouble,
    sort_orphans,
    survey_trouble,
)
from app.domain.states import VmState

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
BEFORE, AFTER = NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)
VM_ID, CLAIM_ID, OTHER_ID = (UUID(int=number) for number in (1, 2, 3))
US, THEM = Identity("us"), "them"


def lease(holder="us", sequence=5, writer="w", *, alive=True):
    renewed_at = NOW - timedelta(seconds=5 if alive else 500)
    return LeaseRecord("emberpool", holder, sequence, writer, renewed_at, 40, "uid/1")


@pytest.mark.parametrize(
    ("found", "at_home", "copy", "alive"),
    [
        (None, True, None, None),
        (lease(), True, None, None),  # a replica
        (lease(sequence=4, writer="x"), True, None, None),  # the database goes first
        (lease(sequence=4, alive=False), False, None, None),  # it was moved, and nobody has used it since
        (lease(THEM, alive=False), True, None, None),  # what it left tells
        (lease(THEM), True, False, True),
        (lease(sequence=6), True, True, True),
        (lease(writer="x"), True, True, True),  # two copies that have counted equally far
        (lease(), False, True, True),  # a copy that was made since the last renewal
        (lease(sequence=6, alive=False), True, True, False),  # a backup
        (lease(writer="x", alive=False), True, True, False),
    ],
)
def test_what_a_lease_says(found, at_home, copy, alive):
    trouble = lease_trouble(US, Progress(5, "w", at_home=at_home), found, NOW)
    assert (trouble and trouble.is_copy, trouble and trouble.alive) == (copy, alive)


@pytest.mark.parametrize(
    ("before", "waits"),
    [((None, None), False), (("a", "x"), False), (("b", "y"), False), (("a", "y"), True)],
    ids=["never used", "as before", "another namespace", "another instance here"],
)
def test_a_database_that_was_used_with_another_instance_here_waits(before, waits):
    trouble = instance_trouble(before, ("a", "x"))
    assert bool(trouble) == waits
    assert trouble is None or not trouble.adoptable


def vm(**given):
    return FoundVm(**{"name": "web-1", "uid": "u1", "installation": "us", "vm_id": VM_ID, "created_at": AFTER, **given})


def known(row=None, *, claims=(), ids=(), confirmed_at=NOW):
    """`row`: the state and the claim of the VM's row."""
    by_uid = {"u1": KnownVm(VM_ID, "web-1", "u1", *row)} if row else {}
    return Known(by_uid, {VM_ID, *ids} if row else set(ids), set(claims), confirmed_at)


@pytest.mark.parametrize(
    ("found", "rows", "told"),
    [
        (vm(), known((VmState.READY, None)), None),
        (vm(), known((VmState.DELETED, None)), None),
        (vm(), known(), "newer than the database"),
        (vm(), known(confirmed_at=None), "newer than the database"),
        (vm(created_at=BEFORE), known(), None),  # an orphan
        (vm(owner="pool", vm_id=None), known(), None),  # the cluster's controller has just made it
        (vm(deleting=True), known(), None),
        (vm(claim_id=CLAIM_ID, created_at=BEFORE), known(), "claims that the database does not know"),
        (vm(claim_id=CLAIM_ID), known((VmState.CLAIMED, CLAIM_ID), claims=[CLAIM_ID]), None),
        (vm(installation=THEM), known((VmState.READY, None)), "another installation (them)"),
        (vm(installation=None), known((VmState.READY, None)), None),
        (vm(installation=None, created_at=BEFORE), known(), "earlier version"),
    ],
)
def test_what_a_vm_says(found, rows, told):
    trouble = survey_trouble(US, [found], rows)
    assert trouble is None if told is None else told in trouble.reason


def test_what_an_operator_has_decided_is_no_trouble_any_more():
    ours = Identity("us", adopted=frozenset({"old"}), disowned=frozenset({THEM}), left_alone=frozenset({"u9"}))
    found = [vm(installation=THEM), vm(name="x", uid="u9"), vm(installation="old", created_at=BEFORE)]
    assert survey_trouble(ours, found, known()) is None


@pytest.mark.parametrize(
    ("found", "rows", "step"),
    [
        (vm(claim_id=CLAIM_ID), known((VmState.CLAIMED, CLAIM_ID)), Step.KEEP),
        (vm(), known((VmState.CLAIMED, CLAIM_ID)), Step.KEEP),  # it was not labelled yet
        (vm(claim_id=CLAIM_ID), known((VmState.READY, None)), Step.REBUILD),
        (vm(claim_id=CLAIM_ID), known((VmState.CLAIMED, OTHER_ID)), Step.REBUILD),
        (vm(claim_id=CLAIM_ID), known((VmState.LOST, None)), Step.REBUILD),
        (vm(claim_id=CLAIM_ID), known(), Step.REBUILD),
        (vm(claim_id=CLAIM_ID), known(ids=[VM_ID]), Step.LEAVE),  # the id is another VM's
        (vm(claim_id=CLAIM_ID), known((VmState.RELEASING, CLAIM_ID)), Step.LEAVE),
        (vm(), known((VmState.READY, None)), Step.REPLACE),
        (vm(), known((VmState.PLANNED, None)), Step.REPLACE),
        (vm(), known(), Step.REPLACE),
        (vm(installation=THEM), known(), Step.REPLACE),
        (vm(installation=THEM, owner="pool"), known(), Step.LEAVE),
    ],
)
def test_what_adopting_does_after_a_restore(found, rows, step):
    (decision,) = plan_adoption(US, [found], rows, whole=True)
    assert decision.step is step


def test_adopting_what_is_held_leaves_alone_what_rows_know():
    found = [vm(), vm(name="x", uid="u2", vm_id=OTHER_ID), vm(name="m", uid="u3", vm_id=None, owner="pool")]
    decisions = plan_adoption(US, found, known((VmState.READY, None)), whole=False)
    assert [each.vm.name for each in decisions] == ["x"]


def orphan(name="a", **given):
    return Orphan(**{"name": name, "uid": name, "installation": "us", **given})


@pytest.mark.parametrize(
    ("found", "removable"),
    [
        (orphan(), True),
        (orphan(claim_id="c"), False),
        (orphan(installation=None), False),
        (orphan(installation=None, has_row=True), True),
        (orphan(precious=True), False),
        (orphan(precious=True, has_row=True), True),
    ],
)
def test_which_orphans_are_removed(found, removable):
    result = sort_orphans(US, [found], listed=1, most=5, share=0)
    assert bool(result.removable) == removable
    assert bool(result.tell_held()) != removable


@pytest.mark.parametrize(("listed", "bound"), [(10, 5), (100, 5), (200, 10)])
def test_no_more_than_the_bound_or_the_share_is_removed_at_once(listed, bound):
    few = [orphan(str(number)) for number in range(bound)]
    assert len(sort_orphans(US, few, listed=listed, most=5, share=0.05).removable) == bound
    many = sort_orphans(US, [*few, orphan("x")], listed=listed, most=5, share=0.05)
    assert (many.removable, many.held_count) == ((), bound + 1)


def test_orphans_of_others_are_counted_and_those_given_up_are_removed_however_many_they_are():
    ours = Identity("us", left_alone=frozenset({"l"}), given_up=frozenset({"a", "b", "c"}))
    found = [orphan(name) for name in "abcl"] + [orphan("t", installation=THEM, claim_id="c")]
    result = sort_orphans(ours, found, listed=5, most=0, share=0)
    assert [each.name for each in result.removable] == ["a", "b", "c"]
    assert (result.foreign, result.held) == (1, {})


def test_a_record_reads_back_as_it_was_written_and_anything_else_reads_as_none():
    record = ClaimRecord(60, AFTER, NOW, "cold", "shape", {"team": "red", "name": "é"})
    assert ClaimRecord.read(record.as_json()) == record
    written = record.as_json()
    odd = [None, [], {}, {**written, "lease_seconds": 0}, {**written, "bound_at": "soon"}, {**written, "labels": [1]}]
    odd.append({**written, "lease_expires_at": "2026-11-26T12:00:00"})
    assert [ClaimRecord.read(each) for each in odd] == [None] * len(odd)
