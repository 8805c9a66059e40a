"""A pool's phase, and how long a claim would wait."""

from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given

from app.domain.states import PoolPhase
from app.domain.statistics import Ailment, BootTimes, PoolCounts, PoolFlags, assess, estimate_wait

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MEASURED = BootTimes(count=20, p50=40.0, p95=55.0)

PHASES = {
    "full": (PoolCounts(ready=3), {}, PoolPhase.READY),
    "over full, while it rotates": (PoolCounts(ready=4, booting=1), {}, PoolPhase.READY),
    "filling": (PoolCounts(ready=2, booting=1), {}, PoolPhase.FILLING),
    "below the floor": (PoolCounts(booting=3), {}, PoolPhase.DEGRADED),
    "full, of VMs that no node could take any more": (
        PoolCounts(ready=3),
        {"capacity_problem": "x"},
        PoolPhase.DEGRADED,
    ),
    "filling, though one of two does not get on": (
        PoolCounts(ready=1, booting=2),
        {"ailing": Ailment(1, 2, "x")},
        PoolPhase.FILLING,
    ),
    "none of those on their way gets on": (
        PoolCounts(ready=1, booting=2),
        {"ailing": Ailment(2, 2, "x")},
        PoolPhase.DEGRADED,
    ),
    "full, and its new ones do not get on": (
        PoolCounts(ready=3, booting=1),
        {"ailing": Ailment(1, 1, "x")},
        PoolPhase.READY,
    ),
    "the cluster takes no creates": (PoolCounts(ready=1, planned=2), {"put_off": "x"}, PoolPhase.DEGRADED),
    "the cluster takes no creates, and one made before boots": (
        PoolCounts(ready=1, planned=1, booting=1),
        {"put_off": "x"},
        PoolPhase.FILLING,
    ),
    "full, so that it needs no creates": (PoolCounts(ready=3), {"put_off": "x"}, PoolPhase.READY),
    "drained": (PoolCounts(ready=1), {"auto_replenish": False}, PoolPhase.DRAINED),
    "being refilled": (PoolCounts(ready=1, planned=2), {"auto_replenish": False}, PoolPhase.FILLING),
    "paused before degraded": (PoolCounts(), {"paused": True}, PoolPhase.PAUSED),
    "stalled before paused": (PoolCounts(), {"paused": True, "stalled_because": "5 failed"}, PoolPhase.STALLED),
    "deleting before all": (PoolCounts(claimed=2), {"deleting": True, "stalled_because": "x"}, PoolPhase.DELETING),
}


@pytest.mark.parametrize(("counts", "flags", "phase"), PHASES.values(), ids=PHASES)
def test_the_phase_of_a_pool_follows_from_its_counts_and_flags(counts, flags, phase):
    assert assess(counts, size=3, min_available=1, flags=PoolFlags(**flags)).phase is phase


def test_the_reason_names_what_puts_creates_off_unless_the_pool_needs_none():
    flags = PoolFlags(put_off="no VM can be created since noon: x")
    assert assess(PoolCounts(ready=2), size=3, min_available=1, flags=flags).reason == flags.put_off
    assert assess(PoolCounts(ready=3), size=3, min_available=1, flags=flags).reason is None


def test_the_reason_names_what_is_waited_for_and_the_last_failure():
    health = assess(
        PoolCounts(), size=3, min_available=1, flags=PoolFlags(last_failure="no such image"), notes=("backing off",)
    )
    assert health.reason == "0 ready, below min_available 1; backing off; last failure: no such image"
    assert assess(PoolCounts(ready=3), size=3, min_available=1, flags=PoolFlags(last_failure="x")).reason is None
    assert assess(PoolCounts(ready=2, booting=1), size=3, min_available=1, flags=PoolFlags()).reason is None


def told(counts, *, notes=(), **flags):
    return assess(counts, size=3, min_available=1, flags=PoolFlags(**flags), notes=notes).reason


def test_a_full_pool_tells_what_keeps_its_old_vms_and_what_the_new_ones_suffer_from():
    full = PoolCounts(ready=3, booting=1)
    assert told(full, notes=("rotating",)) is None
    assert told(full, held="3 VMs of the old template: the nodes are full", notes=("the nodes are full",)) == (
        "3 VMs of the old template: the nodes are full"
    )
    assert told(full, ailing=Ailment(1, 1, "ErrImagePull"), last_failure="not ready") == (
        "1 of 1 VM: ErrImagePull; last failure: not ready"
    )
    assert told(PoolCounts(ready=3), never="max_vms is 0") == "max_vms is 0"


def test_each_cause_is_told_once():
    assert told(PoolCounts(ready=2), held="2 VMs: full", notes=("full", "slow"), ailing=Ailment(1, 1, "x")) == (
        "2 VMs: full; slow; 1 of 1 VM: x"
    )


def test_what_the_notes_tell_already_is_not_told_as_an_ailment():
    waits = told(
        PoolCounts(ready=2),
        notes=("waits: snapshot 's' is not ready",),
        ailing=Ailment(1, 1, "snapshot 's' is not ready"),
    )
    assert waits == "waits: snapshot 's' is not ready"


def test_a_pool_below_its_floor_that_nothing_refills_says_so():
    assert told(PoolCounts(), auto_replenish=False) == (
        "0 ready, below min_available 1; auto_replenish is off: call replenish to refill it"
    )
    assert told(PoolCounts(booting=1), auto_replenish=False) == "0 ready, below min_available 1"


def wait(place, *, boots=MEASURED, ages=(), can_grow=True, batch=10, rests_until=None):
    since = tuple(NOW - timedelta(seconds=age) for age in ages)
    return estimate_wait(
        place=place,
        boots=boots,
        in_flight_since=since,
        now=NOW,
        can_grow=can_grow,
        batch=batch,
        rests_until=rests_until,
    )


def test_the_next_claim_gets_the_vm_that_began_first():
    assert wait(1, ages=(30, 10)).seconds == pytest.approx(10)
    assert wait(2, ages=(30, 10)).seconds == pytest.approx(30)


def test_a_boot_that_is_late_is_still_expected_soon():
    assert wait(1, ages=(100,)).seconds == pytest.approx(2)


def test_a_boot_that_is_overdue_is_expected_when_another_after_it_would_be_ready():
    overdue = wait(1, ages=(400,))
    assert overdue.seconds == pytest.approx(80)
    assert overdue.basis.endswith("; 1 VM on its way, overdue")
    assert wait(1, ages=(400, 10)).seconds == pytest.approx(30)
    assert "overdue" not in wait(1, ages=(400, 10)).basis


def test_a_pool_that_backs_off_makes_its_next_vm_only_then():
    until = NOW + timedelta(seconds=90)
    assert wait(1, rests_until=until).seconds == pytest.approx(130)
    assert "none is made before 2026-03-01T00:01:30+00:00" in wait(1, rests_until=until).basis
    assert wait(1, rests_until=NOW).seconds == pytest.approx(40)
    assert wait(1, ages=(10,), rests_until=until).seconds == pytest.approx(30)


def test_a_claim_beyond_those_on_their_way_waits_for_another_batch():
    assert wait(2, ages=(10,)).seconds == pytest.approx(80)
    assert wait(11, batch=5).seconds == pytest.approx(120)


def test_without_a_measured_boot_it_says_so():
    estimate = wait(1, boots=BootTimes())
    assert estimate.seconds == pytest.approx(60)
    assert (
        estimate.basis == "no boot was measured on this cluster yet: a guess of 60 s for one; no claim before this one"
    )
    assert "20 boots, 40.0 s" in wait(1).basis


def test_a_pool_that_makes_no_more_gives_no_time():
    estimate = wait(3, ages=(10,), can_grow=False)
    assert estimate.seconds is None
    assert estimate.basis == "1 VM on its way, and 2 claims before this one"


@given(
    place=st.integers(1, 500),
    ages=st.lists(st.floats(0, 1000), max_size=20),
    batch=st.integers(0, 50),
    grows=st.booleans(),
)
def test_who_stands_further_back_never_waits_less(place, ages, batch, grows):
    ages = sorted(ages, reverse=True)
    here = wait(place, ages=ages, batch=batch, can_grow=grows).seconds
    behind = wait(place + 1, ages=ages, batch=batch, can_grow=grows).seconds
    assert here is None or here > 0
    assert behind is None or (here is not None and behind >= here)
