"""What pods tell of a boot is written beside what the VM told, in one read for many."""

from datetime import UTC, datetime, timedelta

import pytest

from app.domain.observation import PodTimes
from app.domain.stages import BootMarks, measure_stages
from app.domain.states import VmState
from app.errors import ClusterError, ClusterForbidden, ClusterUnavailable
from app.reconcilers.runtime.loop import FORBIDDEN_SECONDS
from app.reconcilers.vms.boot_times import AT_ONCE, BootTimes
from tests.support.rows import fetch, make_pool, make_vms

START = datetime(2026, 3, 1, tzinfo=UTC)


def at(seconds):
    return START + timedelta(seconds=seconds)


MARKS = BootMarks(at(0), at(1), at(30), vm_made_at=at(1), vmi_made_at=at(2), scheduled_at=at(9), running_at=at(10))
POD = PodTimes(at(3), at(9))


async def stages_of(db, vm_id):
    return (await fetch(db, "SELECT stages FROM vm WHERE id = :id", id=vm_id))[0]["stages"]


class Moment:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Moment()


@pytest.fixture
def measure(db, gateway, clock):
    return BootTimes(db, gateway, every_seconds=3, clock=clock)


async def test_one_read_for_all_that_booted(db, gateway, measure):
    ids = await make_vms(db, await make_pool(db), 3, VmState.BOOTING)
    gateway.pods = {str(vm_id): POD for vm_id in ids[:2]}
    measure.note(dict.fromkeys(ids, MARKS))
    assert not await measure.step()
    assert len(gateway.called("pods")) == 1
    assert await stages_of(db, ids[0]) == await stages_of(db, ids[1]) == measure_stages(MARKS, POD)
    assert await stages_of(db, ids[2]) is None
    assert not await measure.step()
    assert len(gateway.called("pods")) == 1


async def test_many_boots_cost_one_list_every_few_seconds(db, gateway, measure, clock):
    """GIVEN twenty boots a second for ten seconds THEN four lists measure them all."""
    ids = await make_vms(db, await make_pool(db), 200, VmState.BOOTING)
    gateway.pods = {str(vm_id): POD for vm_id in ids}
    for vm_id in ids:
        measure.note({vm_id: MARKS})
        await measure.step()
        clock.now += 0.05
    assert len(gateway.called("pods")) == 4
    clock.now += 3
    await measure.step()
    assert len(gateway.called("pods")) == 5
    assert all([await stages_of(db, vm_id) for vm_id in ids])


async def test_more_boots_than_one_list_can_ask_for_are_measured_in_turn(db, gateway, measure, clock):
    ids = await make_vms(db, await make_pool(db), AT_ONCE + 10, VmState.BOOTING)
    gateway.pods = {str(vm_id): POD for vm_id in ids}
    measure.note(dict.fromkeys(ids, MARKS))
    for _ in range(2):
        assert not await measure.step()
        clock.now += 3
    assert [len(asked.split(",")) for asked in gateway.called("pods")] == [AT_ONCE, 10]
    assert all([await stages_of(db, vm_id) for vm_id in ids])


async def test_a_cluster_that_is_away_is_asked_again(db, gateway, measure, clock):
    ids = await make_vms(db, await make_pool(db), 1, VmState.BOOTING)
    gateway.pods = {str(ids[0]): POD}
    gateway.refuse("pods", ClusterUnavailable("it is away"), times=1)
    measure.note({ids[0]: MARKS})
    with pytest.raises(ClusterUnavailable):
        await measure.step()
    clock.now += 3
    await measure.step()
    assert await stages_of(db, ids[0]) == measure_stages(MARKS, POD)


async def test_without_the_right_nothing_is_asked_for_a_minute_and_then_it_goes_on(db, gateway, measure, clock):
    ids = await make_vms(db, await make_pool(db), 3, VmState.BOOTING)
    gateway.pods = {str(vm_id): POD for vm_id in ids}
    gateway.refuse("pods", ClusterForbidden("pods is forbidden"), times=1)
    measure.note({ids[0]: MARKS})
    await measure.step()
    clock.now += 3
    measure.note({ids[1]: MARKS})
    await measure.step()
    assert len(gateway.called("pods")) == 1
    clock.now += FORBIDDEN_SECONDS
    measure.note({ids[2]: MARKS})
    await measure.step()
    assert [await stages_of(db, vm_id) for vm_id in ids] == [None, None, measure_stages(MARKS, POD)]


async def test_an_odd_answer_costs_one_batch(db, gateway, measure, clock):
    ids = await make_vms(db, await make_pool(db), 2, VmState.BOOTING)
    gateway.pods = {str(vm_id): POD for vm_id in ids}
    gateway.refuse("pods", ClusterError("HTTP 418"), times=1)
    measure.note({ids[0]: MARKS})
    await measure.step()
    clock.now += 3
    measure.note({ids[1]: MARKS})
    await measure.step()
    assert await stages_of(db, ids[0]) is None
    assert await stages_of(db, ids[1]) == measure_stages(MARKS, POD)
