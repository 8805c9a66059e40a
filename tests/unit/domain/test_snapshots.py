"""What is asked of a snapshot, the life of its takes, and what is to be done next."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.domain.snapshot_specs import SnapshotSpec
from app.domain.snapshots import (
    STOP_SECONDS,
    TAKE_ENDED,
    TAKE_TRANSITIONS,
    UNDER_WAY,
    ClaimFacts,
    Origin,
    SnapshotState,
    SnapshotStatus,
    SourceVm,
    TakeFacts,
    TakePlan,
    TakeState,
    VolumeVerdict,
    after_claim,
    after_loss,
    after_status,
    after_stop,
    assess,
    check_take_transition,
    left_out,
    not_disks,
    plan_takes,
)
from app.domain.states import ClaimState
from app.errors import IllegalTransition

NOW = datetime(2026, 1, 12, 9, 0, tzinfo=UTC)
T = TakeState


def spec(**given):
    return SnapshotSpec(**{"name": "ready", "source": {"pool": "web"}, **given})


def take(number, state, **given):
    ended = NOW - timedelta(seconds=1) if state in TAKE_ENDED else None
    base = {"revision": "r1", "based_at": NOW, "ended_at": ended}
    return TakeFacts(uuid.UUID(int=number), number, state, NOW, **{**base, **given})


def sight(**given):
    base = {"ready": False, "failed": False, "deleting": False}
    return SnapshotStatus("s", "uid", "take", **{**base, **given})


class TestSpec:
    @pytest.mark.parametrize(
        ("given", "field"),
        [
            ({"source": {}}, "source"),
            ({"source": {"vm": "a", "pool": "b"}}, "source"),
            ({"source": {"vm": "Not A Name"}}, "source.vm"),
            ({"source": {"vm": "a"}, "quiesce": "stop"}, "quiesce"),
            ({"source": {"vm": "a"}, "refresh": True}, "refresh"),
            ({"keep": 0}, "keep"),
            ({"name": "Bad"}, "name"),
            ({"timeout_seconds": 0}, "timeout_seconds"),
        ],
    )
    def test_what_cannot_be_is_refused_by_its_field(self, given, field):
        with pytest.raises(ValidationError) as error:
            spec(**given)
        assert ".".join(str(part) for part in error.value.errors()[0]["loc"]) == field

    @pytest.mark.parametrize(
        ("given", "stops"),
        [
            ({}, True),
            ({"quiesce": "stop"}, True),
            ({"quiesce": "freeze"}, False),
            ({"source": {"vm": "a"}}, False),
            ({"source": {"vm": "a"}, "quiesce": "freeze"}, False),
        ],
    )
    def test_only_a_vm_of_our_own_is_stopped(self, given, stops):
        assert spec(**given).stops is stops


class TestStates:
    def test_every_state_is_in_the_table(self):
        assert set(TAKE_TRANSITIONS) == set(T)

    def test_what_has_ended_stays(self):
        assert {state for state, after in TAKE_TRANSITIONS.items() if not after} == TAKE_ENDED

    @pytest.mark.parametrize("state", sorted(UNDER_WAY))
    def test_whatever_is_under_way_can_fail_and_fails_only_once_it_is_cleared(self, state):
        assert T.FAILING in TAKE_TRANSITIONS[state]
        assert T.FAILED not in TAKE_TRANSITIONS[state]

    def test_a_step_outside_the_table_raises(self):
        with pytest.raises(IllegalTransition):
            check_take_transition(T.PLANNED, T.READY)


class TestPlan:
    @pytest.mark.parametrize(
        ("takes", "given", "origin", "begins"),
        [
            pytest.param([take(1, T.READY)], {}, Origin("r2"), False, id="refreshes only where that is asked for"),
            pytest.param([take(1, T.READY)], {"refresh": True}, Origin("r1"), False, id="unchanged"),
            pytest.param([take(1, T.READY)], {"refresh": True}, Origin("r2"), True, id="the template changed"),
            pytest.param([take(1, T.READY)], {"refresh": True}, None, False, id="its pool is gone"),
            pytest.param(
                [take(1, T.READY)],
                {"refresh": True},
                Origin("r1", NOW + timedelta(seconds=1)),
                True,
                id="the image came anew",
            ),
            pytest.param([take(1, T.READY)], {"refresh": True}, Origin("r1", NOW), False, id="made from that image"),
            pytest.param(
                [take(1, T.READY), take(2, T.TAKING)], {"refresh": True}, Origin("r2"), False, id="one is under way"
            ),
            pytest.param(
                [take(1, T.READY), take(2, T.FAILING)],
                {"refresh": True},
                Origin("r2"),
                False,
                id="one is being cleared",
            ),
            pytest.param(
                [take(1, T.READY), take(2, T.FAILED, revision="r2")],
                {"refresh": True},
                Origin("r2"),
                False,
                id="it just failed",
            ),
            pytest.param(
                [take(1, T.READY), take(2, T.FAILED, revision="r2", ended_at=NOW - timedelta(minutes=1))],
                {"refresh": True},
                Origin("r2"),
                True,
                id="it failed a while ago",
            ),
            pytest.param(
                [take(1, T.READY), take(2, T.FAILED, revision="r2")],
                {"refresh": True},
                Origin("r3"),
                True,
                id="it failed, and the template changed again",
            ),
            pytest.param([take(1, T.FAILED)], {}, Origin("r1"), False, id="failed, and nobody asks again"),
        ],
    )
    def test_when_a_new_take_begins(self, takes, given, origin, begins):
        assert plan_takes(spec(**given), takes, origin, NOW, deleting=False).begin is begins

    def test_failures_in_a_row_are_ever_further_apart(self):
        waits = []
        for count in (1, 2, 3, 12):
            takes = [take(number, T.FAILED, ended_at=NOW) for number in range(1, count + 1)]
            plan = plan_takes(spec(refresh=True), takes, Origin("r1"), NOW, deleting=False)
            waits.append((plan.look_again_at - NOW).total_seconds())
        assert waits == [30, 60, 120, 3600]

    def test_the_newest_are_kept(self):
        takes = [take(1, T.READY), take(2, T.FAILED), take(3, T.READY), take(4, T.READY), take(5, T.TAKING)]
        plan = plan_takes(spec(keep=2), takes, None, NOW, deleting=False)
        assert plan == TakePlan(retire=(takes[0].id,))

    def test_a_deletion_ends_all_of_them(self):
        takes = [take(1, T.READY), take(2, T.RETIRED), take(3, T.TAKING)]
        plan = plan_takes(spec(refresh=True), takes, Origin("r2"), NOW, deleting=True)
        assert plan == TakePlan(retire=(takes[0].id,), cancel=(takes[2].id,))

    @given(
        states=st.lists(st.sampled_from(list(T)), max_size=8),
        keep=st.integers(1, 4),
        revision=st.sampled_from(["r1", "r2"]),
        deleting=st.booleans(),
    )
    def test_never_two_under_way_and_never_fewer_ready_than_are_kept(self, states, keep, revision, deleting):
        takes = [take(number, state) for number, state in enumerate(states, start=1)]
        plan = plan_takes(spec(refresh=True, keep=keep), takes, Origin(revision), NOW, deleting=deleting)
        by_id = {each.id: each for each in takes}
        ready = [each for each in takes if each.state is T.READY]
        assert not (plan.begin and any(each.state in UNDER_WAY for each in takes))
        assert all(by_id[each].state is T.READY for each in plan.retire)
        assert all(by_id[each].state in UNDER_WAY for each in plan.cancel)
        if deleting:
            assert len(plan.retire) == len(ready)
            assert not plan.begin
        else:
            assert len(ready) - len(plan.retire) == min(len(ready), keep)
            assert not plan.cancel


@pytest.mark.parametrize(
    ("takes", "deleting", "state", "reason"),
    [
        ([], False, SnapshotState.FAILED, "there is no take"),
        ([take(1, T.BOOTING, reason="a VM boots")], False, SnapshotState.TAKING, "a VM boots"),
        ([take(1, T.READY)], False, SnapshotState.READY, None),
        ([take(1, T.READY), take(2, T.TAKING, reason="x")], False, SnapshotState.READY, None),
        (
            [take(1, T.READY), take(2, T.FAILED, reason="no space")],
            False,
            SnapshotState.READY,
            "the last refresh failed; VMs start from the one before: no space",
        ),
        ([take(1, T.FAILED, reason="no space")], False, SnapshotState.FAILED, "no space"),
        ([take(1, T.FAILING, reason="no space")], False, SnapshotState.FAILED, "no space"),
        ([take(1, T.READY)], True, SnapshotState.DELETING, "its objects are being removed from the cluster"),
    ],
)
def test_the_state_of_the_whole(takes, deleting, state, reason):
    assert assess(takes, deleting=deleting) == (state, reason)


@pytest.mark.parametrize(
    ("claim", "stops", "to", "says"),
    [
        (None, True, T.FAILING, "not known any more"),
        (ClaimFacts(ClaimState.PENDING, None, None), True, None, "is being booted"),
        (ClaimFacts(ClaimState.PENDING, None, None, trouble="no room"), True, None, "no room"),
        (ClaimFacts(ClaimState.PENDING, None, None, stalled="3 failed"), True, T.FAILING, "3 failed"),
        (ClaimFacts(ClaimState.BOUND, None, "vm"), True, T.STOPPING, None),
        (ClaimFacts(ClaimState.BOUND, None, "vm"), False, T.TAKING, None),
        (ClaimFacts(ClaimState.EXPIRED, "its lease ended", "vm"), True, T.FAILING, "its lease ended"),
        (ClaimFacts(ClaimState.FAILED, "no VM became ready", None), True, T.FAILING, "no VM became ready"),
    ],
)
def test_what_a_claim_means(claim, stops, to, says):
    step = after_claim(claim, stops=stops)
    assert step.to is to
    assert says is None or says in step.reason


def test_a_vm_that_is_another_one_by_now_is_lost():
    held = ClaimFacts(ClaimState.BOUND, None, "vm-1")
    assert after_loss(held, "vm-1") is None
    assert after_loss(held, "vm-0").to is T.FAILING
    assert after_loss(None, "vm-1").to is T.FAILING
    assert (
        "released by its client"
        in after_loss(ClaimFacts(ClaimState.RELEASED, "released by its client", "vm-1"), "vm-1").reason
    )


@pytest.mark.parametrize(
    ("vm", "age", "to"),
    [
        (None, 0, T.FAILING),
        ({"uid": "other"}, 0, T.FAILING),
        ({"deleting": True}, 0, T.FAILING),
        ({"running": True}, 0, None),
        ({"running": True}, STOP_SECONDS + 1, T.FAILING),
        ({"running": False}, STOP_SECONDS + 1, T.TAKING),
    ],
)
def test_what_a_stopping_vm_means(vm, age, to):
    base = {"uid": "uid", "running": True, "halted": True, "deleting": False, "volumes": (), "shape": None}
    seen = SourceVm(name="vm", **{**base, **vm}) if vm is not None else None
    assert after_stop(seen, "uid", timedelta(seconds=age)).to is to


@pytest.mark.parametrize(
    ("seen", "age", "to", "says"),
    [
        (None, 0, T.FAILING, "deleted in the cluster"),
        (sight(deleting=True, ready=True, included=("a",)), 0, T.FAILING, "deleted in the cluster"),
        (sight(failed=True, error="deadline exceeded"), 0, T.FAILING, "deadline exceeded"),
        (sight(failed=True), 0, T.FAILING, "did not say why"),
        (sight(ready=True), 0, T.FAILING, "without a single volume"),
        (sight(ready=True, included=("root",)), 999, T.READY, None),
        (sight(progress="Source not locked"), 100, None, "Source not locked"),
        (sight(error="rpc error", progress="In error state"), 100, None, "rpc error"),
        (sight(), 10, None, "being taken"),
        (sight(error="rpc error"), 161, T.FAILING, "100 s after it was asked for: rpc error"),
    ],
)
def test_what_a_snapshot_object_means(seen, age, to, says):
    step = after_status(seen, timedelta(seconds=age), timeout_seconds=100)
    assert step.to is to
    assert says is None or says in step.reason


def test_what_is_left_out_is_told_with_the_best_reason_there_is():
    verdicts = [VolumeVerdict("a", enabled=False, reason="a container disk"), VolumeVerdict("b", enabled=True)]
    found = left_out(sight(excluded=("a", "b", "c"), hint="partial"), verdicts)
    assert [(each.name, each.reason) for each in found] == [
        ("a", "a container disk"),
        ("b", "partial"),
        ("c", "partial"),
    ]
    assert left_out(sight(excluded=("c",)), ())[0].reason == "KubeVirt left it out"


def test_what_a_snapshot_has_beside_its_disks_is_told_as_left_out():
    (found,) = not_disks(sight(included=("rootdisk", "persistent-state-for-web-1")), ["rootdisk"])
    assert (found.name, found.enabled) == ("persistent-state-for-web-1", False)
    assert "TPM or EFI" in (found.reason or "")
    assert not_disks(sight(included=("rootdisk",)), ["rootdisk"]) == ()
